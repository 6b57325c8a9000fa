"""The course's figures: one message each, the same colour for the same method throughout."""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .stats import summarise

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _CYAN = sns.color_palette("colorblind", 10)


def _darker(colour: tuple[float, ...], share: float = 0.45) -> tuple[float, ...]:
    return tuple((1 - share) * channel for channel in colour)


COLOURS = {"CLS": _PURPLE, "GAP": _GREY, "SimPool": _ORANGE, "max": _BLUE, "GeM": _CYAN, "CaiT": _GREEN}
# The rest of the paper's Table 1, by group: blues; red to pink; yellows; greens.
COLOURS |= {"LSE": _darker(_CYAN), "HOW": _darker(_BLUE), "k-means": _RED, "OTK": _BROWN, "Slot": _PINK}
COLOURS |= {"SE": _YELLOW, "CBAM": _darker(_YELLOW, 0.35), "GE": _darker(_YELLOW, 0.6), "ViT": _darker(_GREEN)}


def use_course_style() -> None:
    """Seaborn's defaults at the size of a notebook page, with its colour-blind palette."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={"figure.dpi": 100})


def image_row(axes: Iterable[Axes], images: Tensor, titles: Sequence[object] = ()) -> None:
    """Show images ``(n, 3, H, W)`` with values 0 to 1, one an axis, each under its title."""
    axes = list(axes)
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=10)
    _strip(axes)


def attention_row(axes: Sequence[Axes], images: Tensor, maps: Tensor, masks: Tensor | None = None) -> None:
    """Show attention ``(n, H, W)`` over images ``(n, 3, h, w)``: dark is none, bright most; masks outlined."""
    height, width = images.shape[-2:]
    maps = F.interpolate(maps[:, None], (height, width), mode="nearest")[:, 0]
    for index, axis in enumerate(axes):
        axis.imshow(images[index].mean(0).numpy(), cmap="gray", interpolation="nearest")
        axis.imshow(maps[index].numpy(), cmap="inferno", alpha=0.75, vmin=0, interpolation="nearest")
        if masks is not None:
            axis.contour(masks[index].float().numpy(), levels=[0.5], colors="white", linewidths=1.2)
    _strip(axes)


def training_curves(curves: pd.DataFrame, metric: str, label: str, title: str) -> Figure:
    """A column over epochs, mean and 95 % interval over seeds: columns ``backbone variant seed epoch`` and it."""
    order = [name for name in COLOURS if name in set(curves.variant)]
    grid = sns.relplot(
        curves, x="epoch", y=metric, hue="variant", hue_order=order, col="backbone", kind="line", palette=COLOURS,
        errorbar=("ci", 95), seed=0, height=3.4, aspect=1.25, facet_kws={"sharex": False},
    )  # fmt: skip
    grid.set_axis_labels("epoch", label).set_titles("{col_name}")
    grid.legend.set_title("pooling")
    grid.figure.suptitle(title, y=1.04)
    return grid.figure


def metric_bars(runs: pd.DataFrame, metric: str, label: str, title: str) -> Figure:
    """Mean of a metric with its 95 % t interval and every seed as a dot, one panel a backbone."""
    backbones = list(runs.backbone.unique())
    figure, axes = plt.subplots(1, len(backbones), figsize=(4.2 * len(backbones), 3.4), sharey=True, squeeze=False)
    for axis, backbone in zip(axes[0], backbones, strict=True):
        part = runs[(runs.backbone == backbone) & runs[metric].notna()]
        table = summarise(part, metric, ["variant"])
        for x, (variant, row) in enumerate(table.iterrows()):
            half = row["high"] - row["mean"]
            axis.bar(x, row["mean"], width=0.6, color=COLOURS[variant], alpha=0.85)
            axis.errorbar(x, row["mean"], yerr=half, color="black", capsize=6, linewidth=1.5)
            seeds = part[part.variant == variant][metric]
            axis.scatter(x + np.linspace(-0.15, 0.15, len(seeds)), seeds, s=14, color="black", alpha=0.6, zorder=3)
        axis.set_xticks(range(len(table)), table.index)
        axis.set_title(backbone)
    axes[0, 0].set_ylabel(label)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def _strip(axes: Iterable[Axes]) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
