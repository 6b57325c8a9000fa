"""What a store has of a grid."""

import numpy as np
import pandas as pd
import pytest
from made_up_runs import make_runs

from simpool_lite.experiments.evidence import PLANNED_SEEDS, judge, recorded_runs
from simpool_lite.experiments.grid import Grid
from simpool_lite.experiments.store import Store, make_record
from simpool_lite.measure.decide import decide

POOLS = {"GAP": {"pool": "gap"}, "SimPool": {"pool": "simpool"}, "max": {"pool": "max"}}
GRID = Grid("demo", {"backbone": "convnet_micro"}, POOLS, seeds=2)


def add(store: Store, variant: str, seed: int, right: int) -> None:
    measured = {"top1": float(right), "loss": 1.0}
    labels = {"experiment": "another", "variant": "other name", "profile": "laptop", "device": "cpu"}
    store.add(make_record(GRID.config(variant, seed), measured, **labels))


def test_runs_of_further_seeds_are_found_and_named_by_the_grid(tmp_path):
    store = Store(tmp_path)
    for variant, seed in (("SimPool", 5), ("GAP", 0), ("SimPool", 0)):
        add(store, variant, seed, 40)
    found = recorded_runs(GRID, store)
    assert found[["experiment", "variant", "seed"]].values.tolist() == [
        ["demo", "GAP", 0], ["demo", "SimPool", 0], ["demo", "SimPool", 5],
    ]  # fmt: skip
    assert recorded_runs(GRID, Store(tmp_path / "empty")).empty


@pytest.mark.parametrize(("seeds", "followed"), [(PLANNED_SEEDS["head"], False), (9, True)])
def test_more_runs_than_planned_make_intervals_cautious(seeds, followed):
    """The number of runs followed from their results then; trunks are blocks, and maps have no image errors."""
    generator = np.random.default_rng(0)
    ap = {name: list(mean + generator.normal(0, 0.01, seeds)) for name, mean in {"SimPool": 0.6, "GAP": 0.5}.items()}
    runs = make_runs(ap).rename(columns={"top1": "attention_ap"})
    runs = runs.assign(regime="head", trunk="gap " + (runs.seed % 3).astype(str))
    table = judge(runs, metric="attention_ap", margin=0.03)
    expected = decide(runs, "SimPool", 0.03, "attention_ap", sequential=followed, blocks="trunk")
    other = decide(runs, "SimPool", 0.03, "attention_ap", sequential=not followed, blocks="trunk")
    pd.testing.assert_frame_equal(table, expected)
    assert table.low["GAP"] != other.low["GAP"]
