"""The look of the course's figures: one colour per method, the same one throughout."""

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

MOST_WORDS = 90  # of an alternative text, which a screen reader reads aloud

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
    """Seaborn's defaults at the size of a notebook page, with its colour-blind palette.

    In a notebook, figures carry an alternative text from here on, see :func:`in_words`.
    """
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"figure.dpi": 100})
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and "inline" in mpl.get_backend():
        plt.switch_backend(mpl.get_backend())  # the backend registers its printer when it is loaded
        printers = shell.display_formatter.formatters["image/png"]
        printed = printers.for_type(Figure)
        if printed is not None and not hasattr(printed, "printed"):

            def with_words(figure):
                return printed(figure), {"alt": in_words(figure)}

            with_words.printed = printed
            printers.for_type(Figure, with_words)


def in_words(figure: Figure) -> str:
    """What a figure says of itself: its titles, axes and legends, for who does not see it.

    >>> figure, axes = plt.subplots()
    >>> axes.set(title="SimPool is ahead", xlabel="epoch", ylabel="accuracy (%)")
    [Text(...), Text(...), Text(...)]
    >>> _ = axes.plot([1, 2], label="GAP"), axes.plot([2, 3], label="SimPool"), axes.legend()
    >>> in_words(figure)
    'SimPool is ahead: accuracy (%) by epoch; GAP, SimPool.'
    """
    panels = [_panel(axes) for axes in figure.axes if axes.get_visible()]
    shared = [_entries(legend) for legend in figure.legends]
    said = [figure.get_suptitle(), *panels, *map(", ".join, shared)]
    words = " ".join(". ".join(dict.fromkeys(part for part in said if part)).split()).replace("$", "").split(" ")
    text = " ".join(words[:MOST_WORDS]) + (" ..." if len(words) > MOST_WORDS else "")
    return f"{text.rstrip('.')}." if text else f"A figure of {len(figure.axes)} panels without words."


def _panel(axes: plt.Axes) -> str:
    """Title, axes and legend of one panel."""
    x, y = axes.get_xlabel(), axes.get_ylabel()
    scales = f"{y} by {x}" if x and y else x or y
    legend = axes.get_legend()
    says = [scales, ", ".join(_entries(legend)) if legend else ""]
    rest = "; ".join(part for part in says if part)
    title = axes.get_title() or axes.get_title("left")
    return f"{title}: {rest}" if title and rest else title or rest


def _entries(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts() if text.get_text()]
