"""python -m simpool_lite probe: a folder of photographs, a timm backbone, one command."""

import json

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
    assert (tmp_path / "out" / "picture.png").stat().st_size > 10_000 and "simpool is" in capsys.readouterr().out
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
