"""Wrong use of the commands that compute: one line, status 2, and nothing has begun."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from simpool_lite.__main__ import main


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two photographs per class, a file, and a file of no run."""
    place = tmp_path_factory.mktemp("place")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (place / "photographs" / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (32, 32)).save(place / "photographs" / split / name / f"{number}.png")
    (place / "file").write_text("x")
    (place / "empty").mkdir()
    return place


PHOTOGRAPHS = ["--data-root", "photographs"]
TRAIN = ["train", "--backbone", "vit_micro", "--pool", "gap", "--epochs", "1", "--store", "out"]
DINO = ["dino", "--backbone", "vit_micro", "--pool", "simpool", *PHOTOGRAPHS, "--output", "out"]
PROBE = ["probe", "--backbone", "resnet18", "--pretrained", "false", *PHOTOGRAPHS, "--output", "out"]
LOCALISE = ["localise", *PHOTOGRAPHS, "--output", "out"]
ROWS = [  # words, what the line says
    ([*TRAIN, "--backbone", "vit_mirco"], "did you mean 'vit_micro'"),
    ([*TRAIN, "--pool", "simpol"], "did you mean 'simpool'"),
    ([*TRAIN, "--seed", "-1"], "seed: expected an int of at least 0, got -1"),
    ([*TRAIN, "--seed", "x"], "seed"),
    ([*TRAIN, "--epochs", "1.5"], "epochs"),
    ([*TRAIN, "--batch-size", "0"], "batch_size: expected"),
    ([*TRAIN, "--learning-rate", "nan"], "learning_rate"),
    ([*TRAIN, "--pool-kwargs", "gamma=2"], "pool_kwargs"),
    ([*TRAIN, "--pool-kwargs", '{"gamma": 2}'], "gamma"),
    ([*TRAIN, "--pretrained", "true"], "vit_micro has no published weights"),
    ([*TRAIN, "--device", "gpu"], "device: expected one of auto"),
    ([*TRAIN, "--start", "none"], "start: expected a file of save_model()"),
    ([*TRAIN, "--dataset", "folder", "--data-root", "none"], "data_root: expected a folder"),
    ([*TRAIN, "--dataset", "folder", "--data-root", "file"], "data_root: expected a folder"),
    ([*TRAIN, "--store", "file"], "store: expected a folder, got the file file"),
    ([*TRAIN, "--store", "file/below"], "store: cannot write to the folder file/below"),
    ([*TRAIN, "--stor", "out"], "stor"),
    ([*TRAIN, "more"], "more"),
    (TRAIN[:3], "pool"),
    ([*DINO, "--backbone", "vit_mirco"], "did you mean 'vit_micro'"),
    ([*DINO, "--data-root", "none"], "data_root: expected a folder"),
    ([*DINO, "--data-root", "empty"], "was not found under empty"),
    ([*DINO, "--device", "gpu"], "device: expected one of auto"),
    ([*DINO, "--output", "file"], "--output: cannot write to the folder file"),
    ([*DINO, "--output", "file/below"], "--output: cannot write to the folder"),
    ([*DINO, "--batch-size", "0"], "batch_size: expected"),
    ([*DINO, "--epochs", "x"], "epochs"),
    ([*DINO, "--config", "none.json"], "none.json"),
    ([*DINO, "--config", "file"], "config"),
    ([*PROBE, "--backbone", "resnt18"], "backbone"),
    ([*PROBE, "--pools", "[simpol]"], "did you mean 'simpool'"),
    ([*PROBE, "--seeds", "0"], "seeds: expected an int of at least 1, got 0"),
    ([*PROBE, "--margin", "0"], "margin: expected a finite number above 0, got 0"),
    ([*PROBE, "--margin", "nan"], "margin"),
    ([*PROBE, "--precision", "-1"], "precision: expected"),
    ([*PROBE, "--budget", "soon"], "budget: expected"),
    ([*PROBE, "--batch-size", "0"], "batch_size: expected"),
    ([*PROBE, "--device", "gpu"], "device: expected one of auto"),
    ([*PROBE, "--output", "file"], "--output: cannot write to the folder file"),
    ([*PROBE, "--data-root", "none"], "was not found under none"),
    ([*PROBE, "--data-root", "file"], "was not found under file"),
    ([*LOCALISE, "--backbone", "vit_mirco"], "did you mean 'vit_micro'"),
    ([*LOCALISE, "--backbone", "vit_micro", "--pretrained", "true"], "vit_micro has no published weights"),
    ([*LOCALISE, "--pools", "[simpol]"], "did you mean 'simpool'"),
    ([*LOCALISE, "--seeds", "0"], "seeds: expected an int of at least 1, got 0"),
    ([*LOCALISE, "--gamma", "0"], "gamma: expected a finite number above 0, got 0"),
    ([*LOCALISE, "--epochs", "-1"], "epochs: expected"),
    ([*LOCALISE, "--batch-size", "0"], "batch_size: expected"),
    ([*LOCALISE, "--device", "gpu"], "device: expected one of auto"),
    ([*LOCALISE, "--output", "file"], "--output: cannot write to the folder file"),
    ([*LOCALISE, "--data-root", "file"], "was not found under file"),
    (["localise"], "data_root"),
    (["record", "nonesuch", "--store", "empty"], "experiment: expected one with finished runs"),
    (["record", "nonesuch", "--store", "none"], "experiment: expected one with finished runs"),
    (["record", "nonesuch", "--store", "file"], "store: expected a folder, got the file"),
    (["record", "without-labels", "--store", "empty"], "store: no runs in empty"),
    (["record"], "experiment"),
    (["list", "--notebooks", "none"], "none"),
    (["list", "--notebooks", "file"], "file"),
    (["list", "more"], "more"),
    *(([edition, *words], said) for edition in ("student", "slides") for words, said in (
        (["--output", "file"], "--output: cannot write to the folder"),
        (["99"], "99"),
        (["--notebooks", "file"], "file"),
    )),
    (["lst"], "lst"),
    ([], "COMMAND"),
]  # fmt: skip


@pytest.mark.parametrize("words,said", ROWS, ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "")
def test_one_line_and_nothing_has_begun(place, monkeypatch, capsys, words, said):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    try:
        status = main(words)
    except SystemExit as stop:  # argparse's and jsonargparse's own
        status = stop.code
    error = capsys.readouterr().err.strip()
    assert status == 2 and said in error
    assert re.search(r"^(python -m simpool_lite( \w+)?: )?error: ", error, re.MULTILINE)
    left = {Path(folder) / name for folder, _, names in os.walk("out") for name in names}
    assert not left, "something was written"
