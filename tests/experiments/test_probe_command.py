"""python -m simpool_lite probe: a folder of photographs, a timm backbone, one command."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from simpool_lite.__main__ import main
from simpool_lite.experiments.store import Store


@pytest.fixture
def photographs(tmp_path):
    generator = np.random.default_rng(0)
    for split, number in (("train", 20), ("test", 6)):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(120 * label, 120 * label + 100, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photographs"


def test_a_folder_is_probed_by_one_command(tmp_path, photographs, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = ["probe", "--backbone=resnet18", "--pretrained=false", f"--data-root={photographs}", "--pools=[simpool]"]
    command += ["--epochs=1", "--batch-size=8", f"--output={tmp_path / 'out'}", "--progress=false", "--device=cpu"]
    command += ['--data-options={"image_size": 64}']
    assert main(command) == 0
    table = pd.read_csv(tmp_path / "out" / "table.csv", index_col="variant")
    assert set(table.index) == {"gap", "simpool"} and (table.runs == 5).all() and table["mean"].between(0, 100).all()
    assert all((tmp_path / "out" / name).stat().st_size > 10_000 for name in ("picture.png", "price.png"))
    assert "simpool is" in capsys.readouterr().out
    records = Store(tmp_path / "out").records()
    rates = records[records.experiment == "probe-rates"]
    assert set(records.status) == {"ok"}
    for _, tried in rates.assign(rate=rates.variant.str.split().str[1].astype(float)).groupby("pool"):
        assert {0.001, 0.003, 0.01} <= set(tried.rate)
        best = tried[tried.top1 == tried.top1.max()].rate
        assert len(best) > 1 or tried.rate.min() < best.item() < tried.rate.max()  # not at an end alone
    assert {str(json.loads(config)["data_options"]) for config in records.config} == {"{'image_size': 64}"}
    assert len(list((tmp_path / "cache" / "simpool_lite").glob("features-*/set.json"))) == 3  # train, val, test
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    assert main(command) == 0  # nothing is left to do
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}


def test_wrong_use_is_named(tmp_path, capsys):
    assert main(["probe", "--backbone=resnet18", "--pools=[simpol]", f"--output={tmp_path}"]) == 2
    assert "did you mean 'simpool'" in capsys.readouterr().err
    missing = ["probe", "--backbone=resnet18", "--pretrained=false", f"--data-root={tmp_path / 'no'}"]
    assert main([*missing, f"--output={tmp_path / 'out'}", "--progress=false"]) == 2
    assert "was not found under" in capsys.readouterr().err


def test_a_killed_command_goes_on_after_its_last_epoch(tmp_path, photographs):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "simpool_lite", "probe", "--backbone=resnet18", "--pretrained=false"]
    command += [f"--data-root={photographs}", '--data-options={"image_size": 64}', "--pools=[simpool, kmeans]"]
    command += ["--epochs=3", "--batch-size=8", "--seeds=1", "--workers=1", "--device=cpu"]
    how = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*command, f"--output={tmp_path / 'killed'}"], **how) as cut:
        first = next(line for line in cut.stdout if "epoch 1 of 3" in line)
        cut.kill()
    lines = {
        name: subprocess.run([*command, f"--output={tmp_path / name}"], check=True, **how).stdout.splitlines()
        for name in ("killed", "whole")
    }
    assert (
        first.startswith("probe-rates, seed 100, epoch 1 of 3: best of 9 on val: ") and first.strip() in lines["whole"]
    )
    again = [line for line in lines["killed"] if "epoch" in line]
    assert "epoch 1 of 3" not in again[0] and again == [line for line in lines["whole"] if line in again]
    expected, found = (
        Store(tmp_path / name).records().set_index("config_hash").sort_index() for name in ("whole", "killed")
    )
    pd.testing.assert_frame_equal(expected[["variant", "top1", "loss"]], found[["variant", "top1", "loss"]])
    assert not list((tmp_path / "killed" / "unfinished").iterdir())


def test_processes_of_a_launcher_share_the_heads_out(tmp_path, photographs, capsys, monkeypatch):
    """Two of accelerate's, over gloo: each head is trained once, and one process speaks at the end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    launch += " --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1 -m simpool_lite"
    command = ["probe", "--backbone=resnet18", "--pretrained=false", "--pools=[simpool]", "--device=cpu", "--seeds=2"]
    command += [f"--data-root={photographs}", '--data-options={"image_size": 64}', "--epochs=1", "--batch-size=8"]
    two = [sys.executable, "-m", *launch.split(), *command, f"--output={tmp_path / 'two'}"]
    said = subprocess.run(two, check=True, capture_output=True, text=True).stdout
    assert [said.count(f"probe, seed {seed}, epoch 1 of 1: best of 2 on val: ") for seed in (0, 1)] == [1, 1]
    assert said.count("simpool is ") == 1
    assert main([*command, f"--output={tmp_path / 'one'}", "--workers=1"]) == 0
    assert capsys.readouterr().out.splitlines()[-2] in said  # the sentence
    one, other = (Store(tmp_path / name).records().set_index("config_hash").sort_index() for name in ("one", "two"))
    pd.testing.assert_frame_equal(one[["variant", "seed", "top1"]], other[["variant", "seed", "top1"]])
