"""Training, evaluation and the store: small runs, each compared with something independent."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from simpool_lite import create_model, load_data
from simpool_lite.device import resolve_device
from simpool_lite.experiments.config import PROTOCOL, RunConfig
from simpool_lite.experiments.run import load_split, train_and_measure, train_and_record
from simpool_lite.experiments.store import COLUMNS, CURVE_COLUMNS, Store, make_record, record
from simpool_lite.measure.attention import average_precision, evaluate_attention, object_positions, sharpness
from simpool_lite.measure.classification import evaluate

TINY = {"backbone": "vit_micro", "epochs": 2, "data_options": {"num_images": 64}}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_run():
    return train_and_measure(RunConfig(**TINY, pool="simpool"), "cpu", progress=False)


def test_a_seed_makes_a_run_repeatable(tiny_run):
    model, _, curve = tiny_run
    torch.rand(7)  # whatever was drawn before does not matter
    again, _, curve_again = train_and_measure(RunConfig(**TINY, pool="simpool"), "cpu", progress=False)
    pd.testing.assert_frame_equal(curve, curve_again)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    other, _, _ = train_and_measure(RunConfig(**TINY, pool="simpool", seed=1), "cpu", progress=False)
    assert not torch.equal(other.head.weight, model.head.weight)


def test_measurements(tiny_run):
    model, measured, curve = tiny_run
    assert ["config_hash", *curve] == CURVE_COLUMNS
    assert curve.step.tolist() == [1, 2, 3, 4]  # four steps, and no more points than these
    again = evaluate(model, load_split(RunConfig(**TINY, pool="simpool"), "test"), CPU)
    assert measured["top1"] == again["top1"] == 100 * measured["correct"].float().mean()
    assert measured["attention_entropy"] == pytest.approx(again["attention_entropy"])  # SimPool has one map
    assert measured["parameters"] == sum(p.numel() for p in model.parameters())
    assert min(measured[name] for name in ("seconds", "images_per_second", "peak_memory_mb")) > 0


def test_training_learns():
    """Thirty steps on 32 images must fit them: the optimiser, the schedule and the loss are connected."""
    config = RunConfig("convnet_micro", "gap", epochs=30, learning_rate=2e-3, data_options={"num_images": 32})
    _, _, curve = train_and_measure(config, "cpu", progress=False)
    assert curve.train_loss.iloc[0] > 2 and curve.train_loss.iloc[-1] < 0.5


def test_compiled_training_is_the_same_training(tiny_run, monkeypatch):
    """With the graph that torch.compile traces, but without the minute that generating code for it takes."""
    compiled, compile = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: compiled.append(m) or compile(m, backend="aot_eager"))
    model, measured, curve = train_and_measure(RunConfig(**TINY, pool="simpool"), "cpu", progress=False, compile=True)
    assert compiled == [model]
    pd.testing.assert_frame_equal(curve, tiny_run[2], rtol=1e-3)
    assert measured["attention_mass"] == pytest.approx(tiny_run[1]["attention_mass"], rel=1e-3)
    assert type(model) is type(tiny_run[0])  # not torch.compile's wrapper, which cannot be saved


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="training loss is nan in epoch"):
        train_and_measure(RunConfig(**TINY, pool="gap", learning_rate=1e30), "cpu", progress=False)


def test_any_backbone_and_a_folder_of_photographs(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, label, number in [(s, c, n) for s in ("train", "test") for c in ("a", "b") for n in range(2)]:
        pixels = generator.integers(0, 255, (40 + 9 * number, 60, 3), dtype=np.uint8)
        (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.png")
    config = RunConfig("resnet18", "simpool", dataset="folder", data_root=str(tmp_path), epochs=1)
    model, measured, _ = train_and_measure(config, "cpu", progress=False)
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


def test_sharpness_of_a_softmax_is_the_spread_of_its_logits():
    logits = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    maps = logits.flatten(2).softmax(-1)
    entropy, spread = sharpness(maps.unflatten(2, (4, 5)))
    assert entropy == pytest.approx(-(maps * maps.log()).sum(2).mean().item(), rel=1e-5)
    assert spread == pytest.approx(logits.flatten(2).numpy().std(2).mean(), rel=1e-5)
    assert sharpness(torch.full((1, 1, 8), 1 / 8)) == pytest.approx((np.log(8), 0), abs=1e-5)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        entropy, spread = sharpness(torch.tensor([[[1.0, 0.0]]], dtype=dtype))
        assert entropy == pytest.approx(0, abs=1e-3) and np.isfinite(spread)


@pytest.mark.parametrize(
    ("pool", "entropy"), [("gap", pytest.approx(np.log(36))), ("max", None), ("cls", None)], ids=["gap", "max", "cls"]
)
def test_curves_follow_the_attention_where_there_is_a_map(pool, entropy):
    """In the forward passes that the accuracy takes anyway."""
    data = load_data("photo-digits", "test", num_images=40)
    model = create_model("vit_micro", pool, 10)
    batches = []
    model.register_forward_hook(lambda *_: batches.append(1))
    scores = evaluate(model, data, CPU, batch_size=16)
    assert len(batches) == 3
    if entropy is None:
        assert np.isnan([scores["attention_entropy"], scores["logit_spread"]]).all()
    else:
        assert scores["attention_entropy"] == entropy and scores["logit_spread"] == pytest.approx(0, abs=1e-5)


def test_attention_that_is_all_on_the_object():
    objects = torch.zeros(1, 2, 2, dtype=torch.bool)
    objects[0, 0, 1] = True
    assert average_precision(objects.float(), objects) == 1.0
    assert average_precision(1 - objects.float(), objects) == 0.25  # the last of four
    masks = torch.zeros(1, 4, 8, dtype=torch.bool)
    masks[0, :2, 4:] = True
    assert torch.equal(object_positions(masks, (2, 2)), objects)


@pytest.mark.parametrize(
    ("pixels", "of", "is_object"), [(3, 20, False), (4, 20, True), (29, 200, False), (31, 200, True)]
)
def test_a_position_is_object_above_a_share_of_015(pixels, of, is_object):
    """3 of 20 pixels are that share, and not more."""
    mask = torch.arange(of).view(1, 4, -1) < pixels
    assert object_positions(mask, (1, 1)).item() is is_object


def test_hash_names_the_whole_configuration(monkeypatch):
    config = RunConfig(**TINY, pool="gap")
    assert config.hash() == RunConfig(**TINY, pool="gap").hash()
    other = {"backbone": "b", "pool": "p", "pool_kwargs": {"k": 1}, "norm_first": False, "pretrained": True}
    other |= {"model_options": {"drop_rate": 0.1}}
    other |= {"dataset": "d", "target": "photo", "data_options": {}, "data_root": "r", "seed": 5, "epochs": 3}
    other |= {"batch_size": 1, "learning_rate": 1.0, "weight_decay": 1.0, "start": "model.safetensors"}
    younger = {"regime": "head", "measured_on": "val", "trunk": {"pool": "gap"}}
    assert set(other | younger) == {field.name for field in dataclasses.fields(RunConfig)}
    hashes = {dataclasses.replace(config, **{name: value}).hash() for name, value in other.items()}
    head = dataclasses.replace(config, regime="head", trunk={"pool": "gap"})
    for changed in (dataclasses.replace(config, measured_on="val"), head):
        hashes.add(changed.hash())
    hashes.add(dataclasses.replace(head, trunk={"pool": "gap", "seed": 1}).hash())
    hashes.add(dataclasses.replace(config, model_options={"drop_rate": 0.2}).hash())
    hashes.add(dataclasses.replace(config, start="another.safetensors").hash())
    assert len(hashes | {config.hash()}) == len(other) + 6
    assert RunConfig("vit_micro", "gap").hash() == "a13b1135d7d0"  # else recorded runs lose their names
    before = config.hash()
    monkeypatch.setattr("simpool_lite.experiments.config.PROTOCOL", PROTOCOL + 1)
    assert config.hash() != before


def test_a_head_needs_a_trunk_and_a_network_has_none():
    with pytest.raises(ValueError, match="trunk: expected the fields"):
        RunConfig(**TINY, pool="gap", regime="head")
    with pytest.raises(ValueError, match="trunk: expected None"):
        RunConfig(**TINY, pool="gap", regime="once", trunk={"pool": "gap"})
    with pytest.raises(ValueError, match=r"regime: expected .* did you mean .once."):
        RunConfig(**TINY, pool="gap", regime="onces")


def test_a_half_written_record_is_not_seen(tmp_path):
    (tmp_path / ".0123.parquet").write_bytes(b"half")
    assert Store(tmp_path).records().empty


def test_older_curves_are_read(tmp_path):
    """Curves recorded before they followed the attention stand beside newer ones."""
    config = RunConfig(**TINY, pool="gap")
    label = {"experiment": "e", "variant": "v", "profile": "smoke", "device": "cpu"}
    curve = pd.DataFrame({"epoch": [1], "step": [2], "train_loss": [2.3], "top1": [9.0], "loss": [2.2]})
    store = Store(tmp_path)
    store.add(make_record(config, {}, **label), curve)
    assert list(store.curves()) == CURVE_COLUMNS and store.curves().logit_spread.isna().all()
    newer = curve.assign(attention_entropy=3.0, logit_spread=0.5)
    store.add(make_record(dataclasses.replace(config, seed=1), {}, **label), newer)
    assert sorted(store.curves().logit_spread.fillna(0)) == [0, 0.5]


def test_record_copies_an_experiment(tmp_path, monkeypatch):
    store, configs = Store(tmp_path / "runs"), [RunConfig(**TINY, pool="gap", seed=seed) for seed in (0, 1)]
    for config in configs:
        train_and_record(config, store.folder, "test", device="cpu", keep_model=config.seed == 0, progress=False)
    target = tmp_path / "results"
    monkeypatch.setattr("simpool_lite.experiments.store.recorded_results", lambda: target)
    assert record("test", store) == [target / "test-once.parquet"]
    head = dataclasses.replace(configs[0], regime="head", trunk={"pool": "gap", "seed": 0})
    labels = {"experiment": "both", "variant": "v", "device": "cpu"}
    store.add(make_record(head, {"top1": 1.0}, **labels, profile="laptop"))
    store.add(make_record(dataclasses.replace(head, seed=1), {"top1": 1.0}, **labels, profile="smoke"))
    store.add(make_record(dataclasses.replace(head, seed=2), {}, **labels, profile="laptop", status="failed"))
    assert (
        record("both", store) == [target / "both-head.parquet"] and not (target / "curves/both-head.parquet").exists()
    )
    assert pd.read_parquet(target / "both-head.parquet").config_hash.tolist() == [head.hash()]
    (target / "both-head.parquet").unlink()
    recorded = Store(target)
    assert recorded.records().config_hash.tolist() == [config.hash() for config in configs]
    assert len(recorded.curves()) == 2 * 4
    assert recorded.model_path(configs[0]).parent == target / "models"
    with pytest.raises(ValueError, match=r"experiment: expected one with finished runs in .* got 'nonesuch'"):
        record("nonesuch", store)


def test_a_run_that_fails_is_recorded(tmp_path):
    config = RunConfig(**TINY, pool="simpool", pool_kwargs={"gamma": -1.0})
    written = train_and_record(config, tmp_path, device="cpu", progress=False)
    [read] = Store(tmp_path).records().to_dict("records")
    assert read["status"] == "failed" and read["reason"] == written["reason"] and np.isnan(read["top1"])
    assert read["reason"].startswith("ValueError: gamma: expected a finite number above 0")
    assert (read["experiment"], read["variant"]) == ("single", "simpool")


def test_record_columns_of_the_design():
    row = make_record(
        RunConfig(**TINY, pool="gap"), {"top1": 50.0}, experiment="e", variant="v", profile="smoke", device="cpu"
    )
    designed = """experiment variant seed dataset target backbone pool pool_kwargs profile top1 loss attention_mass
        attention_ap attention_entropy parameters images_per_second peak_memory_mb seconds status reason config_hash
        protocol package_version git_revision torch_version device started""".split()
    assert set(designed) <= set(row) and set(row) == set(COLUMNS)


def test_more_training_images_keep_the_test_images():
    configs = [RunConfig("vit_micro", "gap", data_options=options) for options in ({}, {"num_images": 9999})]
    usual, same = (load_split(config, "test", at_most=256) for config in configs)
    assert len(same) == 256 and torch.equal(usual.images, same.images)
    assert len(load_split(RunConfig("vit_micro", "gap", data_options={"num_images": 64}), "test")) == 64


def test_device_names():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device().type in {"cuda", "mps", "cpu"}
    with pytest.raises(ValueError, match="device: expected one of auto, cuda, mps, cpu, got 'tpu'"):
        resolve_device("tpu")


def test_command_line_records(tmp_path):
    command = [sys.executable, "-m", "simpool_lite", "record", "nonesuch", "--store", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(tmp_path))
    assert done.returncode == 2 and "experiment: expected one with finished runs" in done.stderr
