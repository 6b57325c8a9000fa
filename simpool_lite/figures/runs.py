"""Figures of runs: training curves, means with their intervals, who wins where and at what cost."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import textalloc
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from ..measure.decide import decide
from ..measure.stats import summarise
from .style import COLOURS, colour_of, darker

# Of each verdict the marker and its filling, None for the method's colour. The shape, too: GAP's colour is a grey.
MARKERS = {"different": ("o", None), "equivalent": ("s", "0.75"), "not decided": ("o", "white")}


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
    """Mean of a metric with its 95 % t interval and every seed as a dot, one panel per backbone."""
    backbones = list(runs.backbone.unique())
    figure, axes = plt.subplots(1, len(backbones), figsize=(4.2 * len(backbones), 3.4), sharey=True, squeeze=False)
    for axis, backbone in zip(axes[0], backbones, strict=True):
        part = runs[(runs.backbone == backbone) & runs[metric].notna()]
        table = summarise(part, metric, ["variant"])
        for x, (variant, row) in enumerate(table.iterrows()):
            axis.bar(x, row["mean"], width=0.6, color=colour_of(variant), alpha=0.85)
            ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            axis.errorbar(x, row["mean"], yerr=ends, color="black", capsize=6, linewidth=1.5)
            seeds = part[part.variant == variant][metric]
            axis.scatter(x + np.linspace(-0.15, 0.15, len(seeds)), seeds, s=14, color="black", alpha=0.6, zorder=3)
        axis.set_xticks(range(len(table)), table.index)
        axis.set_title(backbone)
    axes[0, 0].set_ylabel(label)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def decisions(tables: Mapping[str, pd.DataFrame], title: str, label: str, *, number: str = "{:.1f}") -> Figure:
    """Draw tables of :func:`simpool_lite.measure.decide.decide`, one panel each: differences, intervals and verdicts.

    One row per variant, the baseline first: its difference with the simultaneous 95 % interval, a filled dot where it
    is different, a grey square where it is equivalent (the shaded band is ± the margin), an open dot where that is not
    decided. A diamond is the paper's difference. At the right of each panel stands the variant's own mean.

    Args:
        tables: the panels by their title; all have the same variants.
        title: the figure's message.
        label: of the x axis, such as "difference to SimPool (points)".
        number: how to print a mean.
    """
    names = list(next(iter(tables.values())).index)
    size = 2.2 + 3.4 * len(tables), 1.9 + 0.34 * len(names)
    figure, axes = plt.subplots(1, len(tables), figsize=size, sharey=True, squeeze=False, layout="constrained")
    y, published = np.arange(len(names)), False
    for axis, (panel, table) in zip(axes[0], tables.items(), strict=True):
        table = table.loc[names]
        colours = [colour_of(name) for name in names]
        margin = table["margin"].iloc[0]
        axis.axvspan(-margin, margin, color="0.9", zorder=0)
        axis.axvline(0, color="black", linewidth=1)
        axis.hlines(y, table["low"], table["high"], colors=colours, linewidth=2.5)
        for row, (difference, verdict, colour) in enumerate(
            zip(table["difference"], table["verdict"], colours, strict=True)
        ):
            if verdict:  # the baseline is the line at 0
                marker, filling = MARKERS[verdict]
                look = {"s": 60, "facecolors": filling or [colour], "edgecolors": [colour], "linewidths": 2}
                axis.scatter(difference, row, marker=marker, zorder=3, **look)
        if "published_difference" in table and table["published_difference"].notna().any():
            diamond = {"marker": "D", "facecolors": "none", "edgecolors": "black", "linewidths": 1.2}
            axis.scatter(table["published_difference"], y, s=70, zorder=4, **diamond)
            published = True
        axis.locator_params(axis="x", nbins=5)
        axis.set(yticks=y, yticklabels=names, ylim=(len(names) - 0.4, -0.6), title=panel if len(tables) > 1 else "")
        right = axis.secondary_yaxis("right")
        right.set_yticks(y, [_mean_text(row, number) for _, row in table.iterrows()], fontsize=10)
        axis.text(1.01, 1.0, "mean", transform=axis.transAxes, va="bottom", color="grey", fontsize=10)
        for side in (axis, right):
            side.tick_params(axis="y", length=0)
        axis.grid(False, axis="y")
    axes[0, len(tables) // 2].set_xlabel(label)
    words = {"equivalent": f"equivalent (within ± {margin:g})"}
    legend = [_marker(marker, filling or "black", words.get(word, word)) for word, (marker, filling) in MARKERS.items()]
    legend += [_marker("D", "none", "the paper")] * published
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
    runs: pd.DataFrame,
    metric: str,
    title: str,
    label: str,
    *,
    condition: str = "condition",
    number: str = "{:.1f}",
    margin: float = 1.0,
) -> Figure:
    """Who wins where: one row per variant, one column per condition, in each cell the mean ± half its 95 % interval.

    The best of each column is framed. Bold are the best and all that are not different from it
    (:func:`simpool_lite.measure.decide.decide` within the column).

    Args:
        runs: one row per run with the columns ``variant``, ``seed``, ``status``, the condition and the metric.
        metric: the column to show; the highest is the best.
        title: the figure's message.
        label: what the metric is, such as "test accuracy (%)".
        condition: the column with the condition.
        number: how to print a mean and a half-width.
        margin: the smallest difference that would matter.
    """
    variants, conditions = runs["variant"].unique(), runs[condition].unique()
    cells = summarise(runs, metric, ["variant", condition]).unstack()
    means, low, high = (cells[name].reindex(variants, columns=conditions) for name in ("mean", "low", "high"))
    halves = (high - means).clip(lower=means - low)  # an interval may be cut at 0 or 100
    bests = means.dropna(axis="columns", how="all").idxmax()
    ties = {name: _ties(runs[runs[condition] == name], metric, best, margin) for name, best in bests.items()}
    size = max(6.5, 2.5 + 1.1 * len(conditions)), 1.6 + 0.5 * len(variants)
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    sns.heatmap(
        means, ax=axis, cmap=sns.light_palette(COLOURS["GeM"], as_cmap=True), linewidths=1, cbar_kws={"label": label},
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
    figure.supxlabel("frame: best of its column; bold: not different from it", fontsize=10)
    return figure


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
    """One metric against another, or against a cost: one labelled dot per variant, with its 95 % intervals over seeds.

    Args:
        runs: one row per run with the columns ``variant``, ``status`` and both metrics.
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
        wide = across["mean"].max() > 1000 * across["mean"].min()  # labels of 2, 5, 20, ... would touch
        axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep="") if wide else "{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())  # its labels would stand in those of 5, 50, ...
    colours = [colour_of(variant) for variant in shown]
    intervals = [
        *axis.hlines(up["mean"], across["low"], across["high"], colors=colours).get_segments(),
        *axis.vlines(across["mean"], up["low"], up["high"], colors=colours).get_segments(),
    ]
    lines = [line for line in intervals if len(line)]  # one seed has no interval
    if join:
        (joint,) = axis.plot(across["mean"], up["mean"], color="grey", linewidth=1, zorder=1)
        lines.append(joint.get_xydata())
    dots = axis.scatter(across["mean"], up["mean"], s=60, c=colours, zorder=3)
    axis.margins(0.1)
    axis.set(xlabel=x_label, ylabel=y_label)
    figure.suptitle(title)
    if len(missing):
        figure.supxlabel(f"not measured: {', '.join(missing)}", fontsize=10)
    if len(shown):
        _name_dots(axis, dots, list(shown), lines)
    return figure


# Where a name may stand, seen from its dot: the first place that is free is taken, all of them before one further away.
_DIRECTIONS = ["east", "northeast", "southeast", "west", "northwest", "southwest", "north", "south"]


def _name_dots(axis: Axes, dots: PathCollection, names: Sequence[str], lines: Sequence[np.ndarray]) -> None:
    """Write names beside dots, clear of dots, lines ``(n, 2)`` and other names; far ones get a line to their dot."""
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())  # names stay where they are placed
    x, y = dots.get_offsets().T
    *_, leaders = textalloc.allocate(
        axis, x, y, names, scatter_plot=dots, x_lines=[line[:, 0] for line in lines],
        y_lines=[line[:, 1] for line in lines], margin=0.004, nbr_candidates=1000, direction=_DIRECTIONS, va="bottom",
        avoid_label_lines_overlap=True, linecolor="grey", linewidth=0.8,
        textcolor=[darker(colour_of(name), 0.3) for name in names],
    )  # fmt: skip
    for leader in filter(None, leaders):
        start, end = axis.transData.transform(leader.get_xydata())
        if np.hypot(*(end - start)) < 12 * axis.figure.dpi / 72:  # points: the name is beside its dot
            leader.remove()


def _ties(runs: pd.DataFrame, metric: str, best: str, margin: float) -> pd.Index:
    """The best and the variants with runs that are not different from it."""
    blocks = "trunk" if "trunk" in runs and runs["trunk"].nunique() > 1 else None
    table = decide(runs, best, margin, metric, sequential=False, blocks=blocks)
    return table.index[table["mean"].notna() & (table["verdict"] != "different")]
