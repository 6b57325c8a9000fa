"""Heads on frozen trunks, networks in one pass, and runs that are added until an interval is narrow enough."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from simpool_lite import load_model
from simpool_lite.experiments.config import RunConfig
from simpool_lite.experiments.evidence import image_errors
from simpool_lite.experiments.grid import Grid, run
from simpool_lite.experiments.run import load_split
from simpool_lite.experiments.store import Store, make_record, unpack
from simpool_lite.experiments.suite import Setting
from simpool_lite.measure.decide import decide
from simpool_lite.training.probes import Head, measure_head, train_heads

TINY_DIGITS = {"num_images": 64, "size": 32, "object_size": (13, 22)}
TINY_ONCE = {"backbone": "convnet_micro", "regime": "once", "epochs": 1, "batch_size": 16}
TINY_ONCE |= {"model_options": {"width": 8}, "data_options": TINY_DIGITS}


def test_heads_are_pooled_from_a_trunk_that_is_trained_first(tmp_path):
    base = {"backbone": "convnet_micro", "regime": "head", "epochs": 2, "batch_size": 16, "data_options": TINY_DIGITS}
    variants = {"GAP": {"pool": "gap"}, "SimPool": {"pool": "simpool"}, "bad": {"learning_rate": 1e30}}
    variants["bad"]["pool"] = "simpool"
    grid = Grid("heads", base, variants, seeds=2, trunk=TINY_ONCE | {"pool": "gem"})
    store = Store(tmp_path)
    table = run(grid, store, device="cpu", workers=1, progress=False)
    assert table.trunk.tolist() == ["gem 0"] * 3 + ["gem 1"] * 3
    assert table.status.tolist() == ["ok", "ok", "failed"] * 2 and "loss" in table.reason[2]
    finished = table[table.status == "ok"]
    assert (100 * unpack(finished.correct, 64).mean(1) == finished.top1).all()
    # the trunk's own record, and a head made again by hand on its features
    trunks = store.records()[lambda t: t.experiment == "trunks"]
    assert len(trunks) == 3 and store.has_model(grid.config("GAP", 0).trunk_config())
    config = grid.config("SimPool", 1)
    trunk = load_model(store.model_path(config.trunk_config()))
    data = {split: load_split(config, split) for split in ("train", "test")}
    assert data["train"].options.seed == 2 and data["test"].options.seed == 0  # unseen by the trunk; the same for all
    with torch.no_grad():
        features = {split: trunk.forward_features(stack(part)).flatten(2).mT for split, part in data.items()}
    torch.manual_seed(1)
    head = Head("simpool", 32, 10)
    how = {"epochs": 2, "batch_size": 16, "weight_decay": 0.05, "seed": 1, "progress": False}
    train_heads([head], [config.learning_rate], features["train"], data["train"].targets, (8, 8), **how)
    correct, _, _ = measure_head(head, features["test"], data["test"].targets, (8, 8))
    assert 100 * correct.float().mean().item() == pytest.approx(table.top1[4], abs=1.6)  # one image of 64


def stack(data):
    return torch.stack([data[i][0] for i in range(len(data))])


def test_runs_are_added_until_the_interval_is_narrow_enough(tmp_path, monkeypatch):
    """Simulated runs: GAP's spread is three times the baseline's. The same call again computes nothing."""
    computed = []

    def simulate(grid, runs, store, **_):
        done = set(store.records().config_hash)
        for variant, config in runs:
            if config.hash() not in done:
                spread = {"GAP": 3.0, "SimPool": 1.0}[variant]
                top1 = 50 + spread * np.random.default_rng([config.seed, len(variant)]).normal()
                label = {"experiment": "e", "variant": variant, "profile": "laptop", "device": "cpu"}
                store.add(make_record(config, {"top1": top1}, **label))
                computed.append(variant)

    monkeypatch.setattr("simpool_lite.experiments.grid._compute", simulate)
    variants = {"GAP": {"pool": "gap"}, "SimPool": {"pool": "simpool"}}
    grid, store = Grid("e", TINY_ONCE, variants, seeds=5), Store(tmp_path)
    table = run(grid, store, precision=2.0, device="cpu", progress=False)
    decided = decide(table, "SimPool", margin=4.0)
    assert (decided.high - decided.low)["GAP"] / 2 <= 2.0 and decided.verdict["GAP"] == "equivalent"
    counts = table.variant.value_counts()
    assert counts["GAP"] > counts["SimPool"] >= 5 and len(computed) == len(table)
    again = run(grid, store, precision=2.0, device="cpu", progress=False)
    assert len(computed) == len(again) == len(table)
    assert len(run(grid, store, device="cpu", progress=False)) == len(table)  # further seeds that are there are shown
    few = run(grid, Store(tmp_path / "other"), precision=0.1, budget="20 runs", device="cpu", progress=False)
    assert 20 <= len(few) < 45
    with pytest.raises(ValueError, match=r"budget: expected .60 runs. or .40 minutes., got 'an hour'"):
        run(grid, store, precision=1.0, budget="an hour", device="cpu")


def test_a_network_of_one_pass_is_chosen_on_val_and_tested_on_thousands(tmp_path):
    grid = Grid("once", TINY_ONCE, {"GAP": {"pool": "gap"}}, seeds=1)
    row = run(grid, Store(tmp_path), device="cpu", workers=1, progress=False).iloc[0]
    curve = Store(tmp_path).curves()
    assert row.status == "ok" and row.protocol == 2 and curve.step.tolist() == [1, 2, 3, 4]  # four steps, four points
    (full,) = Setting().grids("exponent", "once")
    config = full.config("SimPool", 0)
    fewer = replace(config, data_options=config.data_options | {"num_images": 512})
    data = [load_split(fewer, "train"), load_split(config, "val"), load_split(config, "test")]
    assert config.data_options["num_images"] == 65536 and [len(part) for part in data[1:]] == [8192, 8192]
    of_train, of_val, of_test = (set(part.glyphs.flatten().tolist()) for part in data)
    assert not of_train & of_val and not of_train & of_test and not of_val & of_test


def test_errors_of_test_images_are_those_of_a_bootstrap_over_glyphs(tmp_path):
    """Against the bootstrap written out, glyph by glyph."""
    config = RunConfig("convnet_micro", "gap", regime="once", data_options=TINY_DIGITS)
    glyphs = load_split(config, "test").glyphs[:, 0].numpy()
    generator = np.random.default_rng(0)
    rows, correct = [], {}
    for variant, chance in {"GAP": 0.5, "SimPool": 0.7}.items():
        correct[variant] = generator.random(64) < chance
        label = {"experiment": "e", "variant": variant, "profile": "smoke", "device": "cpu"}
        rows.append(make_record(config, {"correct": torch.from_numpy(correct[variant])}, **label))
    errors = image_errors(pd.DataFrame(rows), "SimPool")
    difference = correct["GAP"].astype(float) - correct["SimPool"]
    names, drawn = np.unique(glyphs), []
    for _ in range(4000):
        images = np.concatenate([np.flatnonzero(glyphs == g) for g in generator.choice(names, len(names))])
        drawn.append(100 * difference[images].mean())
    assert errors.keys() == {"GAP"} and errors["GAP"] == pytest.approx(np.std(drawn), rel=0.06)
    with pytest.raises(ValueError, match="runs: expected records of protocol 2"):
        image_errors(pd.DataFrame(rows).assign(correct=None), "SimPool")
