"""The course's figures: one message each, the same colour for the same method throughout."""

from collections.abc import Iterable, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from torch import Tensor

from ..measure.stats import compare, summarise, told_apart

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _CYAN = sns.color_palette("colorblind", 10)


def _darker(colour: tuple[float, ...], share: float = 0.45) -> tuple[float, ...]:
    return tuple((1 - share) * channel for channel in colour)


COLOURS = {"CLS": _PURPLE, "GAP": _GREY, "SimPool": _ORANGE, "max": _BLUE, "GeM": _CYAN, "CaiT": _GREEN}
# The rest of the paper's Table 1, by group: blues; red to pink; yellows; greens.
COLOURS |= {"LSE": _darker(_CYAN), "HOW": _darker(_BLUE), "k-means": _RED, "OTK": _BROWN, "Slot": _PINK}
COLOURS |= {"SE": _YELLOW, "CBAM": _darker(_YELLOW, 0.35), "GE": _darker(_YELLOW, 0.6), "ViT": _darker(_GREEN)}


def colour_of(variant: str) -> tuple[float, ...]:
    """The colour of a method in the whole course; what is not a method is a variant of SimPool and has SimPool's."""
    return COLOURS.get(variant, COLOURS["SimPool"])


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
    """A column over epochs, mean and 95 % interval over seeds: columns ``backbone variant seed epoch`` and it.

    Variants of SimPool, which have no colour of their own, are told apart by shades, from light to dark.
    """
    variants = curves.variant.unique()
    order = [name for name in COLOURS if name in variants] + [name for name in variants if name not in COLOURS]
    others = [name for name in order if name not in COLOURS]
    palette = COLOURS | dict(zip(others, sns.color_palette("flare", len(others) + 1)[1:], strict=True))
    grid = sns.relplot(
        curves, x="epoch", y=metric, hue="variant", hue_order=order, col="backbone", kind="line", palette=palette,
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
            axis.bar(x, row["mean"], width=0.6, color=colour_of(variant), alpha=0.85)
            axis.errorbar(x, row["mean"], yerr=half, color="black", capsize=6, linewidth=1.5)
            seeds = part[part.variant == variant][metric]
            axis.scatter(x + np.linspace(-0.15, 0.15, len(seeds)), seeds, s=14, color="black", alpha=0.6, zorder=3)
        axis.set_xticks(range(len(table)), table.index)
        axis.set_title(backbone)
    axes[0, 0].set_ylabel(label)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def comparison(table: pd.DataFrame, title: str, label: str, *, number: str = "{:.1f} %") -> Figure:
    """Draw a table of :func:`simpool_lite.measure.stats.compare`: how far each variant is from the baseline.

    A row a variant: a dot with the 95 % interval of its difference, filled where the variant is told apart from the
    baseline (p < 0.05 after Holm's correction) and open where it is not; a diamond is the paper's difference.
    At the right stands the variant's own mean.

    Args:
        table: drawn from top to bottom.
        title: the figure's message.
        label: of the x axis, such as "difference to SimPool (points)".
        number: how to print a mean.
    """
    figure, axis = plt.subplots(figsize=(8, 1.6 + 0.34 * len(table)), layout="constrained")
    y = np.arange(len(table))
    colours = [colour_of(variant) for variant in table.index]
    filling = [colour if apart else "white" for colour, apart in zip(colours, told_apart(table), strict=True)]
    axis.axvline(0, color="black", linewidth=1)
    axis.hlines(y, table["diff_low"], table["diff_high"], colors=colours, linewidth=2.5)
    axis.scatter(table["difference"], y, s=70, c=filling, edgecolors=colours, linewidths=2, zorder=3)
    legend = [_marker("o", "black", "told apart (p < 0.05, Holm)"), _marker("o", "white", "not told apart")]
    if "published_difference" in table and table["published_difference"].notna().any():
        diamond = {"marker": "D", "facecolors": "none", "edgecolors": "black", "linewidths": 1.2}
        axis.scatter(table["published_difference"], y, s=75, zorder=4, **diamond)
        legend.append(_marker("D", "none", "the paper"))
    axis.set(yticks=y, yticklabels=table.index, ylim=(len(table) - 0.4, -0.6), xlabel=label)
    right = axis.secondary_yaxis("right")
    right.set_yticks(y, [_mean_text(row, number) for _, row in table.iterrows()])
    axis.text(1.01, 1.0, "mean", transform=axis.transAxes, va="bottom", color="grey")
    for side in (axis, right):
        side.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    figure.suptitle(title)
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    return figure


def _mean_text(row: pd.Series, number: str) -> str:
    """A variant's mean, and how many of its runs failed."""
    failed = f"{row['failed']:.0f} failed" if row["failed"] else ""
    if np.isnan(row["mean"]):
        return failed or "–"
    return number.format(row["mean"]) + (f" ({failed})" if failed else "")


def _marker(marker: str, filling: str, label: str) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], linestyle="", marker=marker, color="black", markerfacecolor=filling, label=label)


def heat_map(
    runs: pd.DataFrame, metric: str, title: str, label: str, *, condition: str = "condition", number: str = "{:.1f}"
) -> Figure:
    """Who wins where: a row a variant, a column a condition, in each cell the mean ± half its 95 % interval.

    The best of each column is framed. Bold are the best and all that the seeds do not tell apart from it: paired t
    tests against the best with Holm's correction within the column (:func:`simpool_lite.measure.stats.compare`).

    Args:
        runs: one row a run with the columns ``variant``, ``seed``, ``status``, the condition and the metric.
        metric: the column to show; the highest is the best.
        title: the figure's message.
        label: what the metric is, such as "test accuracy (%)".
        condition: the column with the condition.
        number: how to print a mean and a half-width.
    """
    variants, conditions = runs["variant"].unique(), runs[condition].unique()
    cells = summarise(runs, metric, ["variant", condition]).unstack()
    means, low, high = (cells[name].reindex(variants, columns=conditions) for name in ("mean", "low", "high"))
    halves = (high - low) / 2
    bests = means.dropna(axis="columns", how="all").idxmax()
    ties = {name: _not_told_apart(runs[runs[condition] == name], metric, best) for name, best in bests.items()}
    size = max(6.5, 2.5 + 1.1 * len(conditions)), 1.6 + 0.5 * len(variants)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    sns.heatmap(
        means, ax=axis, cmap=sns.light_palette(_CYAN, as_cmap=True), linewidths=1, cbar_kws={"label": label},
        annot=means.map(number.format), fmt="", annot_kws={"va": "bottom", "size": 11, "color": "black"},
    )  # fmt: skip
    for text in list(axis.texts):
        x, y = text.get_position()
        variant, name = variants[int(y)], conditions[int(x)]
        text.set_weight("bold" if variant in ties[name] else "normal")
        if not np.isnan(half := halves.at[variant, name]):
            axis.text(x, y, f"±{number.format(half)}", ha="center", va="top", size=8, color="black")
    for row, column in np.argwhere(means.isna()):
        axis.text(column + 0.5, row + 0.5, "–", ha="center", va="center")
    for name, best in bests.items():
        corner = means.columns.get_loc(name), means.index.get_loc(best)
        axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2.5, clip_on=False))
    axis.set(xlabel="", ylabel="", xticklabels=[fill(str(name), 13) for name in conditions])
    axis.tick_params(length=0, labelrotation=0)
    axis.grid(False)
    figure.suptitle(title)
    figure.supxlabel("frame: best of its column; bold: not told apart from it by the seeds", fontsize=10)
    return figure


def _not_told_apart(runs: pd.DataFrame, metric: str, best: str) -> pd.Index:
    """The variants, the best included, that the seeds do not tell apart from the best."""
    table = compare(runs, best, metric)
    return table.index[table["mean"].notna() & ~told_apart(table)]


def trade_off(
    runs: pd.DataFrame,
    x: str,
    y: str,
    title: str,
    x_label: str,
    y_label: str,
    *,
    join: bool = False,
    log_x: bool | None = None,
) -> Figure:
    """One metric against another, or against a cost: a labelled dot a variant, with its 95 % intervals over seeds.

    Args:
        runs: one row a run with the columns ``variant``, ``status`` and both metrics.
        x: a metric or a cost; what is the same for all seeds, such as ``parameters``, gets no interval.
        y: a metric.
        title: the figure's message.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        join: join the dots in the order of the runs, for variants that are values of one factor.
        log_x: a logarithmic axis; by default if x is positive and spans more than a decade.

    Variants without x or y, such as the map of a pooling that has none, are named below the figure.
    """
    across, up = (summarise(runs, metric, ["variant"]).reindex(runs["variant"].unique()) for metric in (x, y))
    shown = across.index[across["mean"].notna() & up["mean"].notna()]
    missing, across, up = across.index.difference(shown, sort=False), across.loc[shown], up.loc[shown]
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    if log_x is None:
        log_x = across["mean"].min() > 0 and across["mean"].max() > 10 * across["mean"].min()
    if log_x:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
    if join:
        axis.plot(across["mean"], up["mean"], color="grey", linewidth=1, zorder=1)
    colours = [colour_of(variant) for variant in shown]
    axis.hlines(up["mean"], across["low"], across["high"], colors=colours)
    axis.vlines(across["mean"], up["low"], up["high"], colors=colours)
    axis.scatter(across["mean"], up["mean"], s=60, c=colours, zorder=3)
    axis.margins(0.1)
    axis.set(xlabel=x_label, ylabel=y_label)
    figure.suptitle(title)
    if len(missing):
        figure.supxlabel(f"not measured: {', '.join(missing)}", fontsize=10)
    _name_dots(axis, across, up, join)
    return figure


# Where a name may stand, seen from its dot, and how far away in points: the first that is free is taken.
_DIRECTIONS = np.array([(1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (-1, 0), (0, 1), (0, -1)])
_DISTANCES = np.array([7, 12, 20, 30, 45])


def _name_dots(axis: Axes, across: pd.DataFrame, up: pd.DataFrame, joined: bool) -> None:
    """Write each variant's name beside its dot, where it covers least of what is drawn; far ones get a line.

    A line had better not cross another name.
    """
    axis.figure.draw_without_rendering()  # settles the layout, so that positions in pixels are known
    point = axis.figure.dpi / 72
    taken = _drawn(axis, across, up, joined, point)
    offsets = point * (_DISTANCES[:, None, None] * _DIRECTIONS).reshape(-1, 2)
    alignments = np.tile((1 - _DIRECTIONS) / 2, (len(_DISTANCES), 1))  # a name to the left of its dot ends there
    far = np.arange(len(offsets)) >= len(_DIRECTIONS)
    names = np.empty((0, 4))
    for name, x, y in zip(across.index, across["mean"], up["mean"], strict=True):
        dot = axis.transData.transform((x, y))
        probe = axis.text(0, 0, name, size=10, transform=axis.transAxes)
        size = probe.get_window_extent().size
        probe.remove()
        corners = dot + offsets - alignments * size
        places = np.hstack([corners, corners + size])
        outside = size.prod() - _overlap(places, axis.bbox.extents[None])
        lines = [_boxes(dot + share * offsets, dot + share * offsets, point) for share in np.linspace(0, 1, 20)]
        crossed = far * sum(_overlap(line, names) for line in lines)
        best = (_overlap(places, taken) + 10 * (outside + crossed)).round().argmin()
        names = np.concatenate([names, places[[best]]])
        taken = np.concatenate([taken, places[[best]], *(line[[best]] for line in lines if far[best])])
        leader = {"arrowstyle": "-", "color": "grey", "linewidth": 0.8, "relpos": alignments[best]}
        axis.annotate(
            name, (x, y), (corners[best] - dot) / point, textcoords="offset points", ha="left", va="bottom", size=10,
            color=_darker(colour_of(name), 0.3), arrowprops=leader if far[best] else None,
        )  # fmt: skip


def _drawn(axis: Axes, across: pd.DataFrame, up: pd.DataFrame, joined: bool, point: float) -> np.ndarray:
    """The boxes that names had better not cover, in pixels: dots, intervals, the line that joins the dots."""

    def pixels(x: pd.Series, y: pd.Series) -> np.ndarray:
        return axis.transData.transform(np.column_stack([x, y]))

    x, y = across["mean"], up["mean"]
    dots = pixels(x, y)
    boxes = [
        _boxes(dots, dots, 6 * point),
        _boxes(pixels(across["low"].fillna(x), y), pixels(across["high"].fillna(x), y), 2 * point),
        _boxes(pixels(x, up["low"].fillna(y)), pixels(x, up["high"].fillna(y)), 2 * point),
    ]
    if joined:
        way = np.linspace(0, 1, 20)[:, None, None]
        line = ((1 - way) * dots[:-1] + way * dots[1:]).reshape(-1, 2)
        boxes.append(_boxes(line, line, 2 * point))
    return np.concatenate(boxes)


def _boxes(low: np.ndarray, high: np.ndarray, margin: float) -> np.ndarray:
    """Boxes ``(n, 4)``, x0 y0 x1 y1, from their corners ``(n, 2)``, with a margin around them."""
    return np.hstack([low - margin, high + margin])


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How much of each box ``(n, 4)`` lies under other boxes ``(m, 4)``: areas, summed over the others."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    return (high - low).clip(min=0).prod(-1).sum(-1)


def _strip(axes: Iterable[Axes]) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
