"""Figures of runs against the tables they draw."""

import itertools
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up_runs import make_runs, random_runs
from matplotlib.colors import same_color

from simpool_lite.figures import (
    COLOURS,
    colour_of,
    decisions,
    heat_map,
    metric_bars,
    trade_off,
    training_curves,
)
from simpool_lite.measure.decide import decide
from simpool_lite.measure.stats import summarise


def texts_of(figure) -> list:
    """All texts that a figure shows."""
    return [t for t in figure.findobj(plt.Text) if t.get_visible() and t.get_text().strip()]


def assert_nothing_is_cut_off(figure):
    figure.canvas.draw()
    drawn, page = figure.get_tightbbox(), figure.bbox_inches.padded(0.01)
    assert page.contains(*drawn.min) and page.contains(*drawn.max), (drawn, page)


def collections_of(axis) -> dict[str, list]:
    return {
        kind: [c for c in axis.collections if type(c).__name__ == kind] for kind in ("PathCollection", "LineCollection")
    }


def conditions() -> pd.DataFrame:
    easy = make_runs({"GAP": [60, 61, 63], "max": [66, 67, 68], "SimPool": [61, 70, 72.1]}, condition="easy")
    hard = make_runs({"GAP": [10, 11, 12], "max": [None] * 3, "SimPool": [40, 41, 43]}, condition="hard")
    return pd.concat([easy, hard], ignore_index=True)


def test_the_heat_map_shows_means_and_marks_the_best():
    figure = heat_map(conditions(), "top1", "a message", "test accuracy (%)")
    axis = figure.axes[0]
    cells = {(text.get_text(), *text.get_position()): text for text in axis.texts}
    half = f"±{4.302652729911275 / math.sqrt(3):.1f}"
    assert {("61.3", 0.5, 0.5), ("67.0", 0.5, 1.5), (half, 0.5, 1.5), ("–", 1.5, 1.5), ("41.3", 1.5, 2.5)} <= set(cells)
    assert len(cells) == 5 * 2 + 1
    frames = {patch.get_xy() for patch in axis.patches}
    assert frames == {(0, 2), (1, 2)}  # SimPool in both
    bold = {key for key, text in cells.items() if text.get_weight() == "bold"}
    assert bold == {("67.7", 0.5, 2.5), ("67.0", 0.5, 1.5), ("61.3", 0.5, 0.5), ("41.3", 1.5, 2.5)}
    labels = [[label.get_text() for label in ticks] for ticks in (axis.get_xticklabels(), axis.get_yticklabels())]
    assert labels == [["easy", "hard"], ["GAP", "max", "SimPool"]]
    assert_nothing_is_cut_off(figure)


def test_bold_follows_the_verdicts():
    runs = conditions().query("condition == 'easy'")
    assert "different" not in set(decide(runs, "SimPool", 1.0, sequential=False).verdict)  # as the figure above has it
    clear = make_runs({"A": [60.0, 61.0, 63.0], "B": [50.0, 51.0, 53.5]}, backbone="vit")
    figure = heat_map(clear, "top1", "title", "label", condition="backbone")
    weights = {text.get_text(): text.get_weight() for text in figure.axes[0].texts}
    assert (weights["61.3"], weights["51.5"]) == ("bold", "normal")


def crowd(number: int) -> pd.DataFrame:
    """Methods close to each other, with costs within a decade."""
    generator = np.random.default_rng(number)
    names = list(COLOURS)[:number]
    runs = make_runs({name: list(60 + generator.normal(0, 3) + generator.normal(0, 1, 5)) for name in names})
    return runs.assign(parameters=runs.variant.map({name: 22 + generator.exponential(2) for name in names}))


NEAR = {"SimPool": 70.5, "U0 energy": 70.2, "U0 learned": 69.6, "U0 random": 68.8, "U0 max": 38.9}


def two_at_the_edge() -> pd.DataFrame:
    """Two dots that all but coincide, above and below which there is room, and others to the right."""
    runs = make_runs({name: list(mean + np.arange(-5, 6, 2.5)) for name, mean in NEAR.items()})
    return runs.assign(parameters=runs.variant.map(dict(zip(NEAR, (1.0, 1.06, 1.43, 2.62, 15.5), strict=True))))


def recorded(*tables: str, backbone: str = "convnet_micro") -> pd.DataFrame:
    """Recorded heads on one kind of trunk, with the quality of their maps as the cost."""
    folder = Path(__file__).parents[2] / "data/results"
    runs = pd.concat([pd.read_parquet(folder / f"{name}.parquet") for name in tables])
    runs = runs[(runs.backbone == backbone) & runs.attention_ap.notna()].drop_duplicates(["variant", "seed"])
    return runs.assign(parameters=runs.attention_ap)


CROWDS = {"3": crowd(3), "8": crowd(8), "15": crowd(15), "edge": two_at_the_edge()}
CROWDS |= {"exponent": recorded("exponent-head"), "layernorm": recorded("layernorm-head")}
CROWDS |= {"exponent and start": recorded("exponent-head", "init-head")}


def test_the_trade_off_shows_means_and_intervals():
    runs = random_runs(variants=4, seeds=5)
    runs["mass"] = 50 + 10 * runs.top1.rank() / len(runs)
    runs.loc[runs.variant == "v3", "mass"] = math.nan
    figure = trade_off(runs, "mass", "top1", "a message", "attention (%)", "test accuracy (%)", join=True)
    axis = figure.axes[0]
    x, y = (summarise(runs, metric, ["variant"]).loc[["v0", "v1", "v2"]] for metric in ("mass", "top1"))
    found = collections_of(axis)
    np.testing.assert_allclose(found["PathCollection"][0].get_offsets(), np.column_stack([x["mean"], y["mean"]]))
    across, up = ([s.tolist() for s in c.get_segments()] for c in found["LineCollection"])
    for name, horizontal, vertical in zip(x.index, across, up, strict=True):
        assert horizontal == [[x.low[name], y["mean"][name]], [x.high[name], y["mean"][name]]]
        assert vertical == [[x["mean"][name], y.low[name]], [x["mean"][name], y.high[name]]]
    np.testing.assert_allclose(axis.lines[0].get_xydata(), np.column_stack([x["mean"], y["mean"]]))
    assert [text.get_text() for text in axis.texts] == ["v0", "v1", "v2"]
    assert "not measured: v3" in [text.get_text() for text in texts_of(figure)]
    assert axis.get_xscale() == "linear" and (axis.get_xlabel(), axis.get_ylabel()) == (
        "attention (%)",
        "test accuracy (%)",
    )
    assert_nothing_is_cut_off(figure)


def test_labels_of_a_wide_axis_do_not_touch():
    runs = random_runs(variants=3, seeds=2)
    runs["parameters"] = runs.variant.map({"v0": 650.0, "v1": 1.5e6, "v2": 2e7})
    figure = trade_off(runs, "parameters", "top1", "title", "parameters of the head", "accuracy (%)")
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    labels = [label for label in figure.axes[0].get_xticklabels() if low <= label.get_position()[0] <= high]
    assert [label.get_text() for label in labels] == ["1k", "10k", "100k", "1M", "10M"]
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_logarithmic_axis_has_one_number_per_label():
    runs = random_runs(variants=4, seeds=2)
    runs["positions"] = runs.variant.map({"v0": 3.0, "v1": 13.0, "v2": 40.0, "v3": 64.0})
    figure = trade_off(runs, "positions", "top1", "title", "x", "y")
    figure.canvas.draw()
    (axis,) = figure.axes
    assert axis.get_xscale() == "log" and any(label.get_text() == "10" for label in axis.get_xticklabels())
    assert not any(label.get_text() for label in axis.get_xticklabels(minor=True))


@pytest.mark.parametrize("runs", CROWDS.values(), ids=CROWDS)
def test_names_cover_neither_each_other_nor_dots_and_no_line_crosses_them(runs):
    figure = trade_off(runs, "parameters", "top1", "title", "parameters (M)", "test accuracy (%)")
    figure.canvas.draw()
    axis = figure.axes[0]
    boxes = {text: plt.Text.get_window_extent(text) for text in axis.texts}
    assert len(boxes) == runs.variant.nunique()
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))
    (dots,) = collections_of(axis)["PathCollection"]
    for dot in axis.transData.transform(dots.get_offsets()):
        assert not any(box.contains(*dot) for box in boxes.values())
    assert all(axis.bbox.contains(*corner) for box in boxes.values() for corner in box.corners())
    for line in axis.lines:  # from a far name to its dot
        path = axis.transData.transform_path(line.get_path())
        away = np.abs(axis.transData.transform(dots.get_offsets()) - path.vertices[1]).max(1)
        assert away.min() < 0.1  # pixels
        own = runs["variant"].unique()[away.argmin()]
        others = [box for text, box in boxes.items() if text.get_text() != own]
        assert not any(path.intersects_bbox(box, filled=False) for box in others)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_dot_or_none_is_drawn(seeds):
    runs = random_runs(2, seeds).assign(mass=lambda r: r.top1.where(r.variant == "v1"))
    for part, names, missing in ((runs, ["v1"], "v0"), (runs[runs.variant == "v0"], [], "v0")):
        figure = trade_off(part, "mass", "top1", "title", "x", "y", join=True)
        assert [text.get_text() for text in figure.axes[0].texts] == names
        assert f"not measured: {missing}" in [text.get_text() for text in texts_of(figure)]


def test_costs_over_a_decade_are_drawn_on_a_logarithmic_axis():
    runs = crowd(4)
    runs["parameters"] = runs.variant.map(dict(zip(runs.variant.unique(), [1, 2, 5, 11], strict=True)))
    arguments = ("parameters", "top1", "title", "parameters (M)", "test accuracy (%)")
    assert trade_off(runs, *arguments).axes[0].get_xscale() == "log"
    assert trade_off(runs, *arguments, log_x=False).axes[0].get_xscale() == "linear"
    assert trade_off(runs[runs.parameters > 1], *arguments).axes[0].get_xscale() == "linear"


def test_intervals_of_accuracy_stay_between_0_and_100():
    """Two seeds near an end have an interval that is cut there: half of it is what is left on the other side."""
    runs = make_runs({"GAP": [1.0, 5.0], "SimPool": [95.0, 99.0]}, backbone="vit_micro", condition="easy", parameters=1)
    bars = metric_bars(runs, "top1", "test accuracy (%)", "title").axes[0]
    ends = [segment[:, 1] for collection in bars.collections if hasattr(collection, "get_segments")
            for segment in collection.get_segments()]  # fmt: skip
    half = 12.706204736174694 * 2
    np.testing.assert_allclose(ends, [[0, 3 + half], [97 - half, 100]])
    texts = [text.get_text() for text in heat_map(runs, "top1", "title", "label").axes[0].texts]
    assert texts.count(f"±{half:.1f}") == 2
    dots = trade_off(runs, "parameters", "top1", "title", "x", "y").axes[0]
    drawn = [s[:, 1] for c in dots.collections if hasattr(c, "get_segments") for s in c.get_segments() if len(s)]
    assert np.min(drawn) == 0 and np.max(drawn) == 100


def test_variants_without_a_colour_are_drawn():
    assert colour_of("GAP") == COLOURS["GAP"] and colour_of("gamma 2") == COLOURS["SimPool"]
    runs = random_runs(variants=3, seeds=2).assign(backbone="vit_micro")
    bars = metric_bars(runs, "top1", "test accuracy (%)", "title").axes[0].patches
    assert len(bars) == 3 and all(same_color(bar.get_facecolor()[:3], COLOURS["SimPool"]) for bar in bars)
    figure = training_curves(pd.concat([runs.assign(epoch=e) for e in (1, 2)]), "top1", "test accuracy (%)", "title")
    colours = {line.get_color() for line in figure.axes[0].lines if len(line.get_xdata())}
    assert len(colours) == 3


def test_decisions_show_their_tables():
    columns = ["mean", "failed", "difference", "low", "high", "verdict", "margin", "published_difference"]
    rows = {
        "SimPool": (70.0, 0, 0.0, np.nan, np.nan, "", 1.0, 0.0),
        "GAP": (65.0, 0, -5.0, -6.0, -4.0, "different", 1.0, -2.1),
        "gamma 2": (70.1, 1, 0.1, -0.5, 0.7, "equivalent", 1.0, np.nan),
        "gamma 5": (70.9, 0, 0.9, -0.5, 2.3, "not decided", 1.0, np.nan),
    }
    table = pd.DataFrame.from_dict(rows, "index", columns=columns)
    figure = decisions({"one": table, "two": table.iloc[::-1]}, "a message", "difference (points)")
    for axis, title in zip(figure.axes, ("one", "two"), strict=False):
        assert axis.get_title() == title
        *dots, diamonds = axis.collections[1:]
        assert {float(dot.get_offsets()[0, 0]) for dot in dots} == {-5.0, 0.1, 0.9}  # none of the baseline
        filled, equivalent, open_dot = sorted(dots, key=lambda dot: dot.get_offsets()[0, 0])
        assert filled.get_facecolor()[0, :3] == pytest.approx(colour_of("GAP"))
        assert (equivalent.get_facecolor()[0, :3] == 0.75).all() and (open_dot.get_facecolor()[0, :3] == 1).all()
        corners = [len(dot.get_paths()[0].vertices) for dot in (filled, equivalent, open_dot)]
        assert corners[0] == corners[2] > corners[1]  # circles, and a square between them
        assert diamonds.get_offsets()[1, 0] == -2.1
        band = axis.patches[0]
        assert (band.get_x(), band.get_width()) == (-1.0, 2.0)
        lines = [segment[:, 0].tolist() for segment in axis.collections[0].get_segments()[1:]]
        assert lines == [[-6.0, -4.0], [-0.5, 0.7], [-0.5, 2.3]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(rows)
    texts = [text.get_text() for text in figure.axes[0].child_axes[0].get_yticklabels()]
    assert texts == ["70.0", "65.0", "70.1 (1 failed)", "70.9"]
