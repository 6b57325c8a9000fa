"""A1, can one count the paper's FLOPs again?"""

from .exercise import Exercise, near, near_by_name

_SHARES = {  # of SimPool's parameters in all of a network's, in percent
    "mobilenetv3_small_100": 21,
    "efficientnet_b0": 38,
    "swin_tiny_patch4_window7_224": 4,
    "vit_base_patch16_224": 1,
}

EXERCISES = {
    1: Exercise(
        form="a number of multiply-adds in one block",
        right=lambda number: near(number, 2 * 197**2 * 384, 1e5),
        hint="Each token meets each other one, in all channels. How many products are there, and how many of the two?",
        wrong=[197**2 * 384, 2 * 197 * 384**2, 12 * 2 * 197**2 * 384],
    ),
    2: Exercise(
        form="a dictionary: SimPool's share of all parameters in percent, by the network's name",
        right=lambda shares: near_by_name(shares, _SHARES, 1),
        hint="Count the parameters of the pooling and of the whole model, whose classifier has 1,000 classes; on the "
        "meta device it takes no memory.",
        wrong=[dict.fromkeys(_SHARES, 20), _SHARES | {"efficientnet_b0": 77}, {}, [21, 38, 4, 1]],
    ),
}
