"""The names of the profiles. A module of its own because ``--help`` shows them and must not import torch."""

PROFILES = ("smoke", "laptop", "gpu")  # how much to compute; ``base_config`` says what each means
