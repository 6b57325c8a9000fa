"""What is measured besides the records: figures of maps by hand, and what the store keeps."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from simpool_lite.datasets.backgrounds import BACKGROUNDS
from simpool_lite.experiments import measures, store
from simpool_lite.experiments.measures import (
    as_shares,
    baseline_measures,
    decide_measure,
    from_bytes,
    map_measures,
    measured,
    to_bytes,
)
from simpool_lite.experiments.run import load_split
from simpool_lite.experiments.store import Store
from simpool_lite.experiments.suite import Setting


@pytest.fixture
def objects():
    """Two squares of a quarter of the image each that touch no border, and their boxes."""
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 1:9, 1:9] = masks[1, 6:14, 7:15] = True
    return masks, [torch.tensor([[1.0, 1, 9, 9]]), torch.tensor([[7.0, 6, 15, 14]])]


def values(rows: list[dict]) -> dict[str, float]:
    return {row["measure"]: row["value"] for row in rows}


def test_a_map_that_is_the_mask(objects):
    masks, boxes = objects
    found = values(map_measures("mask", masks.float(), masks, boxes))
    assert {found[name] for name in ("mass", "ap", "pointing", "box 0.3", "box 0.5", "box 0.7", "box")} == {100}
    assert found["entropy"] == pytest.approx(math.log(64))


def test_a_uniform_map(objects):
    found = values(map_measures("uniform", torch.ones(2, 16, 16), *objects))
    assert [found[name] for name in ("mass", "ap", "pointing")] == pytest.approx([25, 25, 25])
    assert found["entropy"] == pytest.approx(math.log(256))
    assert found["box"] == 0


def test_means_are_those_of_the_images(objects):
    masks, boxes = objects
    half = torch.stack([masks[0], masks[0]]).float()  # right on the first image, wrong on the second
    rows = {row["measure"]: row for row in map_measures("half", half, masks, boxes)}
    for name in ("mass", "pointing"):
        on_second = (masks[0] & masks[1]).sum().item() / 64
        assert from_bytes(pd.Series([rows[name]["each"]]))[0].tolist() == pytest.approx([1, on_second], abs=1 / 510)
        assert rows[name]["value"] == pytest.approx(50 * (1 + on_second))
    each = from_bytes(pd.Series([rows["ap"]["each"]]))[0]
    assert each.mean() == pytest.approx(rows["ap"]["value"] / 100, abs=1 / 510)


def test_negative_scores_have_no_share():
    maps = torch.tensor([[[2.0, -5.0], [0.0, 2.0]], [[-1.0, -2.0], [-3.0, 0.0]]])
    assert as_shares(maps).tolist() == [[[0.5, 0], [0, 0.5]], [[0.25, 0.25], [0.25, 0.25]]]


def test_bytes_keep_a_255th():
    numbers = np.random.default_rng(0).random(100)
    assert abs(from_bytes(pd.Series([to_bytes(numbers)]))[0] - numbers).max() <= 1 / 510 + 1e-12


@pytest.fixture(scope="module")
def grid():
    """Two networks on 48 images: what is tested is what is kept of them."""
    grid = next(g for g in Setting(profile="smoke", seeds=1).grids("background", "once") if "GAP" in g.variants)
    images = {"data_options": {"num_images": 48, "size": 24, "object_size": (10, 14)}}
    return dataclasses.replace(grid, base=grid.base | images, profile="laptop")  # runs of "smoke" are not recorded


@pytest.fixture(scope="module")
def filled(grid, tmp_path_factory):
    folder = Store(tmp_path_factory.mktemp("runs"))
    return folder, {what: measured(grid, folder, what, device="cpu", progress=False) for what in measures.WHAT}


def test_each_measurement_has_a_row_per_network(filled):
    _, tables = filled
    for table in tables.values():
        assert set(table.variant) == {"GAP", "SimPool"}
        assert (table.groupby("variant").size() > 3).all()
        assert table.value.notna().all()
    assert set(tables["backgrounds"].method) == set(BACKGROUNDS)
    by_network = tables["maps"].groupby("variant").method.unique().map(set).to_dict()
    assert by_network == {"GAP": {"GAP + CAM", "GAP + Grad-CAM"}, "SimPool": {"SimPool", "SimPool + Grad-CAM"}}
    maps = tables["sixths"][tables["sixths"].measure == "map"]
    assert {len(each) for each in maps.each} == {4 * 6 * 6}
    assert set(maps.value) == {6}  # the map's width


def test_what_is_measured_is_not_measured_again(grid, filled, monkeypatch):
    folder, tables = filled
    monkeypatch.setattr(measures, "train_and_measure", None)
    for what, table in tables.items():
        pd.testing.assert_frame_equal(measured(grid, folder, what, progress=False), table)


def test_a_network_that_was_watched_is_trained_once(grid, tmp_path, monkeypatch):
    """Its record and the measures of its maps are there, the same as of one that was not watched."""
    watched, other = Store(tmp_path / "watched"), Store(tmp_path / "other")
    measured(grid, watched, "sixths", device="cpu", progress=False)
    expected = measured(grid, other, "maps", device="cpu", progress=False)
    monkeypatch.setattr(measures, "train_and_measure", None)
    pd.testing.assert_frame_equal(measured(grid, watched, "maps", progress=False), expected)
    by_hash = [store.records().set_index("config_hash").top1.to_dict() for store in (watched, other)]
    assert by_hash[0] == by_hash[1] and len(by_hash[0]) == 2


def test_watching_changes_nothing(grid, filled):
    """The network that was watched while it learned ends where the one that was not ends."""
    folder, tables = filled
    watched = tables["sixths"][tables["sixths"].measure == "top1"].groupby("config_hash").value.last()
    curves = folder.curves().sort_values("step").groupby("config_hash").top1.last()
    assert watched.to_dict() == curves.to_dict()


def test_record_copies_measures(filled, tmp_path, monkeypatch):
    folder, tables = filled
    monkeypatch.setattr(store, "recorded_results", lambda: tmp_path)
    assert store.record("background", folder) == [tmp_path / "background-once.parquet"]
    copied = Store(tmp_path).measures()
    assert len(copied) == sum(map(len, tables.values()))
    assert not (tmp_path / "models").exists()


def test_baselines(grid):
    _, config = next(grid.runs())
    found = baseline_measures(load_split(config, "test"), (6, 6))
    share = found[(found.method == "uniform") & (found.measure == "mass")].value.item()
    assert set(found.method) == set(measures.BASELINES)
    assert 5 < share < 40


def test_a_wrong_word_is_named(grid, tmp_path):
    with pytest.raises(ValueError, match="what"):
        measured(grid, Store(tmp_path), "looks")


def test_a_decision_covers_seeds_and_images():
    """Of ten seeds without any spread, what is left is the choice of images: that of a mean of so many."""
    rng = np.random.default_rng(0)
    a, b = rng.random(400), rng.random(400)
    rows = [{"method": name, "variant": "x", "seed": seed, "status": "ok", "measure": "mass", "value": 100 * v.mean(),
             "each": to_bytes(v)} for seed in range(10) for name, v in (("A", a), ("B", b))]  # fmt: skip
    table = decide_measure(pd.DataFrame(rows), "mass", "A", 5, range(400))
    assert table.loc["B", "difference"] == pytest.approx(100 * (b - a).mean())
    half = (table.loc["B", "high"] - table.loc["B", "low"]) / 2
    assert half == pytest.approx(1.96 * 100 * (b - a).std() / 20, rel=0.1)
