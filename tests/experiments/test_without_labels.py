"""The runs of notebook 15: kept and found again, measured on grids that are fine enough, recorded."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from simpool_lite.__main__ import main
from simpool_lite.experiments import without_labels as experiment
from simpool_lite.experiments.store import recorded_results
from simpool_lite.experiments.without_labels import FOLDER, Run, enlarged, make, network_of, run_all, table_runs
from simpool_lite.models import patch_features
from simpool_lite.training.dino import _check_health

TINY = Run("SimPool", images=32, epochs=1, batch_size=16)
SMALL = {"BANK": 128, "WATCHED": (64, 64), "QUERIES": 64, "RANKING": 16, "CUT": 16, "SEGMENTED": 64, "FEW": 32}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Few images to measure on, and recorded results of one's own."""
    for name, value in SMALL.items():
        monkeypatch.setattr(experiment, name, value)
    monkeypatch.setattr(experiment, "recorded_results", lambda: tmp_path / "recorded")
    monkeypatch.setattr(experiment, "SHOWN", (TINY,))
    return tmp_path


def test_runs_are_kept_and_found_again(small, monkeypatch):
    runs = [Run("GAP", "none"), TINY, replace(TINY, training="supervised")]
    records, curves = run_all(runs, small / "store", "cpu", progress=False)
    assert records.training.tolist() == ["none", "dino", "supervised"] and (records.status == "ok").all()
    assert curves.groupby("run").size().to_dict() == {run.hash(): 1 for run in runs[1:]}
    everywhere = "knn_photo map_digit linear_photo lost miou fine_tuned".split()
    assert records[everywhere].map(lambda figure: 0 <= figure <= 100).all(axis=None)
    of_maps = records[["attention_mass", "max_box_acc_v2", "dino_seg"]]
    assert of_maps.isna().all(axis=1).tolist() == [True, False, False]  # an average has no map

    monkeypatch.setattr(experiment, "record_run", None)  # nothing is computed again
    again, _ = run_all(runs[::-1], small / "store", "cpu", progress=False)
    pd.testing.assert_frame_equal(again, records[::-1].reset_index(drop=True))
    z = network_of(TINY, small / "store")(torch.zeros(1, 3, 32, 32))
    assert z.shape == (1, 32) and not torch.equal(z, make(TINY).eval()(torch.zeros(1, 3, 32, 32)))

    assert main(["record", "without-labels", "--store", str(small / "store")]) == 0
    assert main(["record", "without-labels", "--store", str(small / "nowhere")]) == 2
    files = sorted(path.relative_to(small / "recorded" / "without-labels") for path in small.glob("recorded/*/*/*"))
    assert [str(file) for file in files] == [
        "curves/recorded.parquet", f"models/{TINY.hash()}.safetensors", "runs/recorded.parquet"
    ]  # fmt: skip
    found, _ = run_all(runs, None, "cpu", progress=False)
    assert found.run.tolist() == records.run.tolist()


def test_recorded_runs_are_healthy_or_have_collapsed():
    """Nothing lies near the bound; a collapse ends what a run learns, and does not undo it."""
    curves = pd.read_parquet(recorded_results() / FOLDER / "curves" / "recorded.parquet").dropna(subset="information")
    records = pd.read_parquet(recorded_results() / FOLDER / "runs" / "recorded.parquet").set_index("run")
    assert len(curves) >= 2 * (records.training == "dino").sum() > 0
    last = curves.sort_values("epoch").groupby("run").information.last()
    collapsed = last.index[last < 0.005]
    assert last[collapsed].max() < 0.004 and last.drop(collapsed).min() > 0.0075
    assert set(records.network[collapsed]) == {"GAP", "SimPool, gamma 2"} and len(collapsed) == 6
    for row in curves.sort_values("epoch").groupby("run").tail(1).to_dict("records"):
        if row["run"] in collapsed:
            with pytest.raises(RuntimeError, match="collapsed in epoch 2"):
                _check_health(row, 256, stop_if_collapsed=True)
        else:
            _check_health(row, 256, stop_if_collapsed=True)
    gained = [
        row.knn_photo - records.knn_photo[Run(row.network, "none", seed=row.seed).hash()]
        for row in records.loc[collapsed].itertuples()
    ]
    assert min(gained) > -2 and 9 < max(gained) < 10.5


def test_the_runs_of_the_tables_are_recorded():
    runs = table_runs()
    records = pd.read_parquet(recorded_results() / FOLDER / "runs" / "recorded.parquet")
    assert {run.hash() for run in runs} <= set(records[records.status == "ok"].run)
    assert len({run.hash() for run in runs}) == len(runs) == 5 * (7 * 2 + 4)


@pytest.mark.parametrize(("network", "grid"), [("SimPool", (16, 16)), ("ViT, CLS", (12, 12))])
def test_discovery_has_twelve_positions_a_side(network, grid):
    model = make(Run(network))
    assert patch_features(model, enlarged(model, torch.zeros(1, 3, 32, 32)))[1] == grid
