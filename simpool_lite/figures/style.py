"""The look of the course's figures: one colour per method, the same one throughout."""

import seaborn as sns

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _CYAN = sns.color_palette("colorblind", 10)


def darker(colour: tuple[float, ...], share: float = 0.45) -> tuple[float, ...]:
    """A colour mixed with this share of black."""
    return tuple((1 - share) * channel for channel in colour)


COLOURS = {"CLS": _PURPLE, "GAP": _GREY, "SimPool": _ORANGE, "max": _BLUE, "GeM": _CYAN, "CaiT": _GREEN}
# The rest of the paper's Table 1, by group: blues; red to pink; yellows; greens.
COLOURS |= {"GAP+max": darker(_GREY), "LSE": darker(_CYAN), "HOW": darker(_BLUE)}
COLOURS |= {"k-means": _RED, "OTK": _BROWN, "Slot": _PINK}
COLOURS |= {"SE": _YELLOW, "CBAM": darker(_YELLOW, 0.35), "GE": darker(_YELLOW, 0.6), "ViT": darker(_GREEN)}


def colour_of(variant: str) -> tuple[float, ...]:
    """The colour of a method in the whole course; what is not a method is a variant of SimPool and has SimPool's.

    A map that another method draws of a network, such as "GAP + CAM", has the network's.
    """
    network = variant.removesuffix(" rollout").partition(" + ")[0]
    return COLOURS.get(network, COLOURS["SimPool"])


def use_course_style() -> None:
    """Seaborn's defaults at the size of a notebook page, with its colour-blind palette."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"figure.dpi": 100})
