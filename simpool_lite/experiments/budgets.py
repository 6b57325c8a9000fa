"""Budgets: how long a small backbone trains in each regime, on which images, and at which learning rates."""

from dataclasses import dataclass, field, replace

PROFILES = ("smoke", "laptop", "gpu")

SMOKE_IMAGES = {"num_images": 96}
GPU_IMAGES = {"size": 192, "object_size": (72, 128), "num_images": 16384}
SMOKE_SEEDS = 2
SEARCH_SEED = 100  # never reported


@dataclass(frozen=True)
class Budget:
    """What a run of one backbone may cost.

    Args:
        epochs: passes over the training images.
        images: options of photo-digits.
        searched_rates: the learning rates that were tried for every variant (`simpool_lite.experiments.search`).
        learning_rates: the winner per variant; what is not named has 1e-3.
        batch_size: images per step.
        model_options: arguments of the backbone.
    """

    epochs: int = 30
    images: dict = field(default_factory=dict)
    searched_rates: tuple[float, ...] = ()
    learning_rates: dict[str, float] = field(default_factory=dict)
    batch_size: int = 32
    model_options: dict = field(default_factory=dict)


OTHER = Budget()  # of a backbone that the reader names
# Photo-digits has as many images as one asks for. Of a fixed set, the small backbones see each image so often.
PASSES_OVER_A_FIXED_SET = {"once": 2, "long": 8, "head": 1}

DIGITS_32 = {"size": 32, "object_size": (13, 22)}
DIGITS_40 = {"size": 40, "object_size": (17, 28)}  # 5 x 5 positions for vit_micro
ONCE = {
    "convnet_micro": Budget(
        epochs=1,
        images={"num_images": 65536, **DIGITS_32},
        searched_rates=(2e-3, 4e-3, 8e-3),
        learning_rates={
            "CBAM": 0.002,
            "CaiT": 0.002,
            "GAP": 0.008,
            "GAP+max": 0.016,
            "GE": 0.004,
            "GeM": 0.008,
            "HOW": 0.002,
            "LN k": 0.001,
            "LN none": 0.002,
            "LN q": 0.001,
            "LN qk": 0.001,
            "LN qkv": 0.004,
            "LN qv": 0.004,
            "LN v": 0.004,
            "LSE": 0.004,
            "OTK": 0.004,
            "SE": 0.004,
            "SimPool": 0.004,
            "Slot": 0.004,
            "U0 energy": 0.002,
            "U0 learned": 0.004,
            "U0 max": 0.002,
            "U0 random": 0.004,
            "ViT": 0.002,
            "gamma 1": 0.004,
            "gamma 1.25": 0.004,
            "gamma 1.5": 0.004,
            "gamma 2": 0.004,
            "gamma 3": 0.002,
            "gamma 5": 0.002,
            "gamma learned": 0.004,
            "k-means": 0.004,
            "max": 0.008,
        },
        batch_size=64,
        model_options={"width": 16},
    ),
    "vit_micro": Budget(
        epochs=1,
        images={"num_images": 65536, **DIGITS_40},
        searched_rates=(5e-4, 1e-3, 2e-3),
        learning_rates={"CLS": 0.0005, "GAP": 0.001, "SimPool": 0.001},
        batch_size=32,  # in batches of 64 two of three poolings have hardly begun at the end
        model_options={"depth": 2},
    ),
}
HEAD = {
    "convnet_micro": Budget(
        epochs=6,
        images={"num_images": 8192, **DIGITS_32},
        searched_rates=(1e-3, 3e-3, 1e-2, 2e-2),
        learning_rates={
            "2 heads": 0.02,
            "3 iterations": 0.01,
            "3 layers": 0.02,
            "4 heads": 0.01,
            "5 iterations": 0.01,
            "5 layers": 0.01,
            "8 heads": 0.003,
            "ABMILP": 0.003,
            "AIM": 0.003,
            "CAE": 0.003,
            "CBAM": 0.02,
            "CLIP": 0.003,
            "CaiT": 0.01,
            "CoCa": 0.003,
            "DINO block": 0.003,
            "DOLG": 0.01,
            "EP": 0.003,
            "EP 1, d": 0.01,
            "EP 1, d/4": 0.02,
            "EP 8, d": 0.01,
            "EP 8, d/4": 0.02,
            "GAP": 0.01,
            "GAP+max": 0.08,
            "GE": 0.01,
            "GeM": 0.02,
            "HOW": 0.003,
            "JEPA": 0.01,
            "LN k": 0.01,
            "LN none": 0.01,
            "LN q": 0.01,
            "LN qk": 0.04,
            "LN qkv": 0.02,
            "LN qkv, W qkv": 0.001,
            "LN qv": 0.01,
            "LN v": 0.01,
            "LSE": 0.01,
            "OTK": 0.04,
            "SE": 0.01,
            "SigLIP": 0.02,
            "SimPool": 0.01,
            "Slot": 0.01,
            "U0 energy": 0.02,
            "U0 learned": 0.02,
            "U0 max": 0.01,
            "U0 random": 0.02,
            "ViT": 0.01,
            "W k": 0.01,
            "W none": 0.02,
            "W q": 0.01,
            "W qkv": 0.003,
            "W_Q = W_K": 0.01,
            "cosine": 0.01,
            "distance": 0.02,
            "eSimPool": 0.003,
            "gamma 1": 0.01,
            "gamma 1.25": 0.02,
            "gamma 1.5": 0.02,
            "gamma 2": 0.01,
            "gamma 3": 0.01,
            "gamma 5": 0.02,
            "gamma learned": 0.01,
            "k = 2, concat": 0.02,
            "k = 2, max": 0.02,
            "k = 5, concat": 0.003,
            "k = 5, max": 0.01,
            "k-means": 0.01,
            "max": 0.01,
            "other axis": 0.01,
            "shift batch": 0.01,
            "shift channel": 0.02,
            "shift image": 0.01,
            "sigmoid": 0.01,
            "sparsemax": 0.01,
        },
        batch_size=128,
    ),
    "vit_micro": Budget(
        epochs=6,
        images={"num_images": 8192, **DIGITS_40},
        searched_rates=(1e-3, 3e-3, 1e-2, 2e-2),
        learning_rates={
            "ABMILP": 0.003,
            "AIM": 0.01,
            "CAE": 0.003,
            "CLIP": 0.003,
            "CoCa": 0.003,
            "DINO block": 0.003,
            "DOLG": 0.02,
            "EP": 0.04,
            "EP 1, d": 0.01,
            "EP 1, d/4": 0.02,
            "EP 8, d": 0.08,
            "EP 8, d/4": 0.16,
            "GAP": 0.08,
            "JEPA": 0.01,
            "SigLIP": 0.01,
            "SimPool": 0.01,
            "U0 energy": 0.01,
            "U0 learned": 0.01,
            "U0 max": 0.003,
            "U0 random": 0.01,
            "eSimPool": 0.08,
        },
        batch_size=128,
    ),
}
LONG_IMAGES = {"num_images": 262144}  # four times as many, each seen once, at the rates of "once"
LONG = {name: replace(budget, images=budget.images | LONG_IMAGES) for name, budget in ONCE.items()}
BUDGETS = {"once": ONCE, "long": LONG, "head": HEAD}
