"""What a store has of a grid."""

from simpool_lite.experiments.evidence import recorded_runs
from simpool_lite.experiments.grid import Grid
from simpool_lite.experiments.store import Store, make_record

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
