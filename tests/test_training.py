"""Training, evaluation, the store and grids: small runs, each compared with something independent."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from simpool_lite import create_model, load_data, load_model
from simpool_lite.ablation import Grid, run
from simpool_lite.config import RunConfig
from simpool_lite.device import resolve_device
from simpool_lite.evaluate import average_precision, evaluate, evaluate_attention, object_positions
from simpool_lite.experiments import base_config, first_light
from simpool_lite.store import COLUMNS, Store, make_record, record
from simpool_lite.train import load_split, train

TINY = {"backbone": "vit_micro", "epochs": 2, "data_options": {"num_images": 64}}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_run():
    return train(RunConfig(**TINY, pool="simpool"), "cpu", progress=False)


def test_a_seed_makes_a_run_repeatable(tiny_run):
    model, _, curve = tiny_run
    torch.rand(7)  # whatever was drawn before does not matter
    again, _, curve_again = train(RunConfig(**TINY, pool="simpool"), "cpu", progress=False)
    pd.testing.assert_frame_equal(curve, curve_again)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    other, _, _ = train(RunConfig(**TINY, pool="simpool", seed=1), "cpu", progress=False)
    assert not torch.equal(other.head.weight, model.head.weight)


def test_measurements(tiny_run):
    model, measured, curve = tiny_run
    assert list(curve) == ["epoch", "step", "train_loss", "top1", "loss"]
    assert curve.step.tolist() == [2, 4]
    assert measured["top1"] == curve.top1.iloc[-1]
    assert measured["parameters"] == sum(p.numel() for p in model.parameters())
    assert min(measured[name] for name in ("seconds", "images_per_second", "peak_memory_mb")) > 0


def test_training_learns():
    """Thirty steps on 32 images must fit them: the optimiser, the schedule and the loss are connected."""
    config = RunConfig("convnet_micro", "gap", epochs=30, learning_rate=2e-3, data_options={"num_images": 32})
    _, _, curve = train(config, "cpu", progress=False)
    assert curve.train_loss.iloc[0] > 2 and curve.train_loss.iloc[-1] < 0.5


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="training loss is nan in epoch"):
        train(RunConfig(**TINY, pool="gap", learning_rate=1e30), "cpu", progress=False)


def test_any_backbone_and_a_folder_of_photographs(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, label, number in [(s, c, n) for s in ("train", "test") for c in ("a", "b") for n in range(2)]:
        pixels = generator.integers(0, 255, (40 + 9 * number, 60, 3), dtype=np.uint8)
        (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.png")
    config = RunConfig("resnet18", "simpool", dataset="folder", data_root=str(tmp_path), epochs=1)
    model, measured, _ = train(config, "cpu", progress=False)
    assert model.fc.out_features == 2 and measured["top1"] in (0, 25, 50, 75, 100)
    assert np.isnan(measured["attention_mass"]) and measured["attention_entropy"] > 0


def test_evaluate_counts_right_answers():
    data = load_data("photo-digits", "test", num_images=50)
    model = create_model("convnet_micro", "gap", 10).eval()
    with torch.no_grad():
        logits = model(torch.stack([data[i][0] for i in range(50)]))
    scores = evaluate(model, data, CPU, batch_size=16)
    assert scores["top1"] == pytest.approx(100 * (logits.argmax(1) == data.targets).double().mean().item())
    assert scores["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, data.targets).item(), rel=1e-5)


def test_attention_of_a_uniform_map_is_the_object_share():
    data = load_data("photo-digits", "test", num_images=40)
    scores = evaluate_attention(create_model("convnet_micro", "gap", 10), data, CPU)
    share = object_positions(data.masks, (12, 12)).double().mean().item()
    assert scores["attention_mass"] == pytest.approx(share, rel=1e-5)
    assert scores["attention_entropy"] == pytest.approx(np.log(144), rel=1e-5)


def test_attention_that_is_all_on_the_object():
    objects = torch.zeros(1, 2, 2, dtype=torch.bool)
    objects[0, 0, 1] = True
    assert average_precision(objects.float(), objects) == 1.0
    assert average_precision(1 - objects.float(), objects) == 0.25  # the last of four
    masks = torch.zeros(1, 4, 8, dtype=torch.bool)
    masks[0, :2, 4:] = True
    assert torch.equal(object_positions(masks, (2, 2)), objects)


def test_hash_names_the_whole_configuration():
    config = RunConfig(**TINY, pool="gap")
    assert config.hash() == RunConfig(**TINY, pool="gap").hash()
    other = {"backbone": "b", "pool": "p", "pool_kwargs": {"k": 1}, "norm_first": False, "pretrained": True}
    other |= {"dataset": "d", "target": "photo", "data_options": {}, "data_root": "r", "seed": 5, "epochs": 3}
    other |= {"batch_size": 1, "learning_rate": 1.0, "weight_decay": 1.0}
    assert set(other) == {field.name for field in dataclasses.fields(RunConfig)}
    hashes = {dataclasses.replace(config, **{name: value}).hash() for name, value in other.items()}
    assert len(hashes | {config.hash()}) == len(other) + 1


def grid(**changes) -> Grid:
    arguments = {"experiment": "test", "base": TINY, "variants": {"GAP": {"pool": "gap"}, "S": {"pool": "simpool"}}}
    return Grid(**arguments | {"seeds": 2, "profile": "smoke", "keep_models": 1} | changes)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return Store(folder), run(grid(), Store(folder), workers=2, device="cpu", progress=False)


def test_a_grid_gives_one_tidy_row_a_run(filled):
    store, table = filled
    assert list(table) == COLUMNS
    assert table[["variant", "seed", "status"]].values.tolist() == [
        ["GAP", 0, "ok"], ["S", 0, "ok"], ["GAP", 1, "ok"], ["S", 1, "ok"],
    ]  # fmt: skip
    assert table.config_hash.tolist() == [config.hash() for _, config in grid().runs()]
    assert len(store.curves()) == 4 * 2
    configs = [RunConfig(**json.loads(text)) for text in table.config]
    assert configs == [config for _, config in grid().runs()]


def test_workers_do_not_change_a_result(filled, tiny_run):
    """A run in a worker process equals the same run in this one (one thread each)."""
    _, table = filled
    row = table[(table.variant == "S") & (table.seed == 0)].iloc[0]
    assert row.top1 == tiny_run[1]["top1"] and row.loss == pytest.approx(tiny_run[1]["loss"], rel=1e-4)


def test_models_are_kept_for_the_first_seed(filled):
    store, _ = filled
    configs = {(variant, config.seed): config for variant, config in grid().runs()}
    model = load_model(store.model_path(configs["S", 0]))
    assert model.attention(torch.randn(1, 3, 48, 48)).shape == (1, 1, 6, 6)
    with pytest.raises(FileNotFoundError, match="config: no model of run"):
        store.model_path(configs["S", 1])


def test_what_is_done_is_not_done_again(filled):
    store, table = filled
    before = {file: file.stat().st_mtime_ns for file in store.folder.rglob("*.*")}
    relabelled = run(grid(experiment="other"), store, device="cpu", progress=False)
    assert {file: file.stat().st_mtime_ns for file in store.folder.rglob("*.*")} == before
    assert set(relabelled.experiment) == {"other"} and relabelled.top1.tolist() == table.top1.tolist()


def test_a_failed_run_is_recorded_and_stops_nothing(tmp_path):
    variants = {"bad": {"pool": "simpool", "pool_kwargs": {"gamma": -1.0}}, "good": {"pool": "gap"}}
    table = run(grid(variants=variants, seeds=1), Store(tmp_path), workers=1, device="cpu", progress=False)
    assert table.status.tolist() == ["failed", "ok"]
    assert "gamma: expected a finite number above 0" in table.reason[0] and np.isnan(table.top1[0])


def test_a_killed_grid_resumes(tmp_path):
    """Kill the whole grid after its first record; the second call does the rest and keeps the first."""
    code = (
        "from simpool_lite.ablation import Grid, run; from simpool_lite.store import Store\n"
        "if __name__ == '__main__':\n"
        f"    grid = Grid('test', {TINY!r}, {grid().variants!r}, seeds=3)\n"
        f"    run(grid, Store({str(tmp_path)!r}), workers=1, device='cpu')"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob("[!.]*.parquet")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    first = store.records()
    assert 1 <= len(first) < 6
    table = run(grid(seeds=3), store, workers=2, device="cpu", progress=False)
    assert (table.status == "ok").all() and len(table) == 6
    kept = table.set_index("config_hash").loc[first.config_hash]
    assert kept.started.tolist() == first.started.tolist()


def test_a_half_written_record_is_not_seen(tmp_path):
    (tmp_path / ".0123.parquet").write_bytes(b"half")
    assert Store(tmp_path).records().empty


def test_record_copies_an_experiment(filled, tmp_path, monkeypatch):
    store, table = filled
    monkeypatch.setattr("simpool_lite.store.recorded_results", lambda: tmp_path)
    assert record("test", store) == tmp_path / "test.parquet"
    recorded = Store(tmp_path)
    assert sorted(recorded.records().config_hash) == sorted(table.config_hash)
    assert len(recorded.curves()) == 8
    assert recorded.model_path(next(grid().runs())[1]).parent == tmp_path / "models"
    with pytest.raises(ValueError, match=r"experiment: expected one with runs in .* got 'nonesuch'"):
        record("nonesuch", store)


def test_record_columns_of_the_design():
    row = make_record(
        RunConfig(**TINY, pool="gap"), {"top1": 50.0}, experiment="e", variant="v", profile="smoke", device="cpu"
    )
    designed = """experiment variant seed dataset target backbone pool pool_kwargs profile top1 loss attention_mass
        attention_ap attention_entropy parameters images_per_second peak_memory_mb seconds status reason config_hash
        protocol package_version git_revision torch_version device started""".split()
    assert set(designed) <= set(row) and set(row) == set(COLUMNS)


def test_experiments_have_profiles():
    with pytest.raises(ValueError, match="profile: expected one of smoke, laptop, gpu, got 'huge'"):
        base_config("vit_micro", "huge")
    assert [config.pool for _, config in first_light("vit_micro", seeds=1).runs()] == ["cls", "gap", "simpool"]
    assert [config.pool for _, config in first_light("resnet18", seeds=1).runs()] == ["gap", "simpool"]
    assert len(list(first_light("convnet_micro", "smoke").runs())) == 4


def test_more_training_images_keep_the_test_images():
    configs = [RunConfig("vit_micro", "gap", data_options=options) for options in ({}, {"num_images": 9999})]
    usual, same = (load_split(config, "test") for config in configs)
    assert len(same) == 1024 and torch.equal(usual.images, same.images)
    assert len(load_split(RunConfig("vit_micro", "gap", data_options={"num_images": 64}), "test")) == 64


def test_device_names():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device().type in {"cuda", "mps", "cpu"}
    with pytest.raises(ValueError, match="device: expected auto, cuda, mps or cpu, got 'tpu'"):
        resolve_device("tpu")


def test_command_line_records(tmp_path):
    command = [sys.executable, "-m", "simpool_lite", "record", "nonesuch", "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(tmp_path))
    assert done.returncode == 2 and "experiment: expected one with runs" in done.stderr
