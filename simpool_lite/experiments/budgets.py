"""Budgets: how long a small backbone trains, on which images, and at which learning rates.

Named budgets: ``full`` (notebook 00, until the curves are flat), ``short`` (the ablations, five sixths of the image
size) and ``tournament`` (short, but long enough that no method stays at chance).
"""

from dataclasses import dataclass, field, replace

PROFILES = ("smoke", "laptop", "gpu")

SMALL_IMAGES = {"size": 40, "object_size": (17, 28)}  # photo-digits at five sixths of its size
SMOKE_IMAGES = {"num_images": 96}
GPU_IMAGES = {"size": 192, "object_size": (72, 128), "num_images": 16384}
SMOKE_SEEDS = 2
SEARCH_SEEDS = (100, 101)  # never reported


@dataclass(frozen=True)
class Budget:
    """What a run of one backbone may cost.

    Args:
        epochs: passes over the training images.
        images: options of photo-digits.
        searched_rates: the learning rates that were tried for every method.
        search_epochs: epochs of that search's first round.
        learning_rates: the winner per pooling, or in the regimes "once" and "head" per variant; what is not named has
            1e-3.
        batch_size: images per step.
        model_options: arguments of the backbone.
    """

    epochs: int = 30
    images: dict = field(default_factory=dict)
    searched_rates: tuple[float, ...] = ()
    search_epochs: int = 0
    learning_rates: dict[str, float] = field(default_factory=dict)
    batch_size: int = 32
    model_options: dict = field(default_factory=dict)

    def learning_rate(self, pool: str) -> float:
        """The rate of a pooling; a variant of SimPool has SimPool's."""
        return self.learning_rates.get("simpool" if pool == "ablated_simpool" else pool, 1e-3)


OTHER = Budget()  # of a backbone that the reader names

# The learning rates are the best of the recorded searches, see simpool_lite.experiments.search.
FULL = {
    "convnet_micro": Budget(
        epochs=10,
        searched_rates=(1e-3, 2e-3, 4e-3, 8e-3),
        search_epochs=5,
        learning_rates={"gap": 2e-3, "simpool": 2e-3},
    ),
    "vit_micro": Budget(
        epochs=30,
        searched_rates=(2.5e-4, 5e-4, 1e-3, 2e-3),
        search_epochs=10,
        learning_rates={"cls": 1e-3, "gap": 5e-4, "simpool": 1e-3},
    ),
}
SHORT = {
    "convnet_micro": Budget(
        epochs=5,
        images=SMALL_IMAGES,
        searched_rates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3),
        search_epochs=4,
        learning_rates={
            "gap": 4e-3,
            "max": 16e-3,
            "gem": 4e-3,
            "lse": 4e-3,
            "how": 5e-4,
            "kmeans": 4e-3,
            "otk": 8e-3,
            "slot": 5e-4,
            "se": 8e-3,
            "cbam": 1e-3,
            "ge": 8e-3,
            "vit": 2e-3,
            "cait": 5e-4,
            "simpool": 2e-3,
        },
    ),
    "vit_micro": Budget(
        epochs=10,
        images=SMALL_IMAGES,
        searched_rates=(2.5e-4, 5e-4, 1e-3, 2e-3),
        search_epochs=10,  # in fewer, the transformer stays near chance at every rate
        learning_rates={"cls": 5e-4, "gap": 5e-4, "ge": 5e-4, "slot": 2.5e-4, "cait": 2.5e-4, "simpool": 1e-3},
    ),
}
TOURNAMENT = {"convnet_micro": replace(SHORT["convnet_micro"], epochs=8), "vit_micro": SHORT["vit_micro"]}

# One pass over fresh images, and heads on features of fresh images: the regimes that tell poolings apart (protocol 2).
DIGITS_32 = {"size": 32, "object_size": (13, 22)}
ONCE = {
    "convnet_micro": Budget(
        epochs=1,
        images={"num_images": 65536, **DIGITS_32},
        searched_rates=(2e-3, 4e-3, 8e-3),
        learning_rates={
            "GAP": 0.008,
            "GeM": 0.008,
            "SimPool": 0.004,
            "gamma 1": 0.004,
            "gamma 1.25": 0.004,
            "gamma 1.5": 0.004,
            "gamma 2": 0.004,
            "gamma 3": 0.002,
            "gamma 5": 0.002,
            "gamma learned": 0.004,
        },
        batch_size=64,
        model_options={"width": 16},
    ),
    "vit_micro": Budget(
        epochs=1,
        images={"num_images": 65536},
        searched_rates=(5e-4, 1e-3, 2e-3),
        batch_size=64,
        model_options={"depth": 2},
    ),
}
HEAD = {
    "convnet_micro": Budget(
        epochs=6,
        images={"num_images": 8192, **DIGITS_32},
        searched_rates=(1e-3, 3e-3, 1e-2, 2e-2),
        learning_rates={
            "LN k": 0.01,
            "LN none": 0.01,
            "LN q": 0.01,
            "LN qk": 0.04,
            "LN qkv": 0.02,
            "LN qv": 0.01,
            "LN v": 0.01,
            "SimPool": 0.01,
            "U0 energy": 0.02,
            "U0 learned": 0.02,
            "U0 max": 0.01,
            "U0 random": 0.02,
            "gamma 1": 0.01,
            "gamma 1.25": 0.02,
            "gamma 1.5": 0.02,
            "gamma 2": 0.01,
            "gamma 3": 0.01,
            "gamma 5": 0.02,
            "gamma learned": 0.01,
            "shift batch": 0.01,
            "shift channel": 0.02,
            "shift image": 0.01,
        },
        batch_size=128,
    ),
    "vit_micro": Budget(epochs=6, images={"num_images": 8192}, searched_rates=(1e-3, 3e-3, 1e-2, 2e-2), batch_size=128),
}
BUDGETS = {"once": ONCE, "head": HEAD, "full": FULL, "short": SHORT, "tournament": TOURNAMENT}
