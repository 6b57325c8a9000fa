"""The command ``dino``: from a folder of images to a saved backbone; the published recipes."""

import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from simpool_lite import create_model, load_model
from simpool_lite.__main__ import main
from simpool_lite.files import repository_root
from simpool_lite.training.crops import MultiCrop
from simpool_lite.training.dino import ProjectionHead, pretrain

OPTIONS = [
    "--crops",
    '{"global_size": 32, "local_size": 16, "local_crops": 1, "blur": 0.5}',
    "--head",
    '{"outputs": 16, "hidden": 8, "bottleneck": 4}',
    "--data-options",
    '{"image_size": 40}',
    *"--epochs 1 --batch-size 4 --weight-decay [0.04,0.4] --device cpu --progress false".split(),
]


@pytest.fixture
def photographs(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(4):
        folder = tmp_path / "photographs" / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (40 + 9 * number, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photographs"


@pytest.mark.parametrize(
    ("backbone", "width", "norm"), [("resnet18", 512, "fc"), ("vit_micro", 96, "pooled_norm")], ids=["resnet", "vit"]
)
def test_a_run_on_a_folder(photographs, tmp_path, capsys, backbone, width, norm):
    command = ["dino", "--backbone", backbone, "--pool", "simpool", "--pool-kwargs", '{"gamma": 1.5}']
    command += ["--data-root", str(photographs), "--output", str(tmp_path / "out"), *OPTIONS]
    assert main(command) == 0
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"checkpoint.pt", "curve.csv", "model.safetensors"}
    said = capsys.readouterr().out
    assert "epoch 1, step 1, loss" in said and "model.safetensors" in said
    columns = ["epoch", "step", "loss", "entropy", "kl", "information", "spread"]
    assert list(pd.read_csv(tmp_path / "out" / "curve.csv")) == columns

    model = load_model(tmp_path / "out" / "model.safetensors")
    assert model.pooling.gamma == 1.5
    assert model(torch.randn(2, 3, 48, 48)).shape == (2, width)
    assert model.create_config["norm_first"] is False
    assert isinstance(model.get_submodule(norm), torch.nn.Identity) == (norm == "fc")  # the norm is after the pooling
    teacher = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["teacher"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, teacher[f"backbone.{name}"])

    assert main(command) == 0  # finished already: says the same and trains no more
    assert capsys.readouterr().out == said
    assert (tmp_path / "out" / "checkpoint.pt").stat().st_mtime_ns == files["checkpoint.pt"]
    assert main([*command, "--momentum", "0.9"]) == 2
    assert "is of a run with momentum=0.996, got 0.9" in capsys.readouterr().err


def test_wrong_use(tmp_path, capsys):
    command = ["dino", "--backbone", "resnet18", "--pool", "simpool", "--output", str(tmp_path), *OPTIONS]
    assert main(command) == 2
    assert "data_root: 'folder' needs a folder" in capsys.readouterr().err
    assert main([*command, "--data-root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "rate"), [("dino-vit-small", 5e-4), ("dino-resnet50", 0.3), ("dino-convnext-small", 1e-3)]
)
def test_the_published_recipes_are_configurations(monkeypatch, recipe, rate):
    calls = []
    monkeypatch.setattr(
        "simpool_lite.experiments.pretraining.pretrain_and_save",
        lambda config, folder, **options: calls.append((config, folder, options)) or (folder, [{"epoch": 100}]),
    )
    path = repository_root() / "data" / "recipes" / f"{recipe}.json"
    assert main(["dino", "--config", str(path), "--data-root", "imagenet", "--seed", "3"]) == 0
    (config, folder, options), recorded = calls[0], json.loads(path.read_text())
    assert folder == Path("runs", f"dino-{config.backbone}-simpool")
    inspect.signature(pretrain).bind(None, None, **options)
    assert options["seed"] == 3 and options["learning_rate"] == pytest.approx(rate * options["batch_size"] / 256)
    for name, value in recorded.items():
        chosen = options[name] if name in options else getattr(config, name)
        assert (list(chosen) if isinstance(chosen, tuple) else chosen) == value
    MultiCrop((0.5,) * 3, (0.5,) * 3, **options["crops"])
    with torch.device("meta"):
        model = create_model(config.backbone, config.pool, 0, pool_kwargs=config.pool_kwargs, **config.model_options)
        ProjectionHead(model.num_features, **options["head"])


def test_the_supervised_recipes_are_of_models_that_timm_knows():
    recipes = list((repository_root() / "data" / "recipes").glob("supervised-*.json"))
    models = {json.loads(path.read_text())["model"] for path in recipes}
    assert len(models) == 3 and models <= set(timm.list_models("*_simpool"))
