"""The command ``dino``: from a folder of images to a saved backbone; the published recipes."""

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from simpool_lite import create_model, load_model
from simpool_lite.__main__ import main
from simpool_lite.experiments.config import RunConfig
from simpool_lite.experiments.run import load_split, make_model, train_and_record
from simpool_lite.files import repository_root
from simpool_lite.models import save_model
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


def test_fine_tuning_starts_from_a_saved_backbone(tmp_path):
    """The trunk and the pooling are the file's, the classifier is new and of the data's classes."""
    torch.manual_seed(7)
    backbone = create_model("convnet_micro", "simpool", 0, pool_kwargs={"gamma": 1.5}, norm_first=False, width=8)
    path = tmp_path / "backbone.safetensors"
    save_model(backbone, path)
    config = RunConfig("convnet_micro", "simpool", start=str(path), target="photo", epochs=1, learning_rate=1e-3)
    config = replace(config, data_options={"num_images": 64}, batch_size=16)
    started = make_model(config, load_split(config, "train"))
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, started.state_dict()[name])
    assert started.get_classifier().weight.shape == (6, 32) and started.pooling.gamma == 1.5

    record = train_and_record(config, tmp_path / "store", device="cpu", keep_model=True, progress=False)
    assert record["status"] == "ok" and record["config_hash"] == config.hash()
    tuned = load_model(tmp_path / "store" / "models" / f"{config.hash()}.safetensors")
    before, after = (model.get_parameter("stem.conv.weight") for model in (backbone, tuned))
    assert 0 < (after - before).abs().max() < 0.05 < before.abs().max()  # moved, from where it was

    assert replace(config, start=None).hash() != config.hash()
    with pytest.raises(ValueError, match=r"start: .* has pool='simpool', got 'gap'; pass what it has"):
        make_model(replace(config, pool="gap"), load_split(config, "train"))


TOGETHER = """
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from simpool_lite import create_model, load_data
from simpool_lite.training.dino import pretrain

data, folder = load_data("photo-digits", "train", num_images=8), Path(sys.argv[1])
rank = PartialState(cpu=True).process_index
options = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "progress": False}
options["crops"] = {"global_size": 24, "local_size": 12, "local_crops": 1, "blur": 0.5}
options["head"] = {"outputs": 16, "hidden": 8, "bottleneck": 4}


class Stop(Exception):
    pass


def run(name, model_seed, after_epoch=None):
    torch.manual_seed(model_seed)  # each process brings another network; the first one's counts
    model = create_model("convnet_micro", "simpool", 0, norm_first=False, width=8)
    return pretrain(model, data, "cpu", folder=folder / name, after_epoch=after_epoch, **options)


def stop(_):
    stop.calls += 1
    if stop.calls == 2:
        raise Stop
    return {}


stop.calls = 0
teacher, curve = run("whole", rank)
try:
    run("stopped", rank, stop)
except Stop:
    pass
again, same = run("stopped", 7 + rank)
torch.save([curve, same, teacher.state_dict(), again.state_dict()], folder / f"{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_go_on_where_they_stopped(tmp_path):
    """Both begin with the first one's network; a run that was stopped ends as one that was not."""
    (tmp_path / "together.py").write_text(TOGETHER)
    together = launched(str(tmp_path / "together.py"), str(tmp_path))
    assert together.returncode == 0, together.stderr
    (curve, resumed, teacher, again), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert curve == resumed and [row["step"] for row in curve] == [2, 4]
    for state in (again, *other[2:]):
        torch.testing.assert_close(state, teacher, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_pretrain_one_backbone(photographs, tmp_path):
    """Launched by accelerate, over gloo: one curve, one backbone, and one process that speaks."""
    backbone = ["dino", "--backbone", "convnet_micro", "--pool", "simpool", "--data-root", str(photographs)]
    together = launched("-m", "simpool_lite", *backbone, "--output", str(tmp_path / "two"), *OPTIONS)
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("epoch 1, step 1, loss") == 1
    curve = pd.read_csv(tmp_path / "two" / "curve.csv")
    assert curve.step.tolist() == [1] and np.isfinite(curve.to_numpy()).all()
    assert load_model(tmp_path / "two" / "model.safetensors")(torch.zeros(1, 3, 32, 32)).shape == (1, 96)


def launched(*arguments: str) -> subprocess.CompletedProcess:
    """Two processes on a CPU, by accelerate."""
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    precision = "--mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1"
    command = [sys.executable, "-m", *launch.split(), *precision.split(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_wrong_use(tmp_path, capsys):
    command = ["dino", "--backbone", "resnet18", "--pool", "simpool", "--output", str(tmp_path), *OPTIONS]
    assert main(command) == 2
    assert "data_root: 'folder' needs a folder" in capsys.readouterr().err
    assert main([*command, "--data-root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "rate"), [("dino-vit-small", 5e-4), ("dino-resnet50", 0.3), ("dino-convnext-small", 1e-3)]
)
def test_the_published_recipes_are_configurations(monkeypatch, tmp_path, recipe, rate):
    calls = []
    monkeypatch.setattr(
        "simpool_lite.experiments.pretraining.pretrain_and_save",
        lambda config, folder, **options: calls.append((config, folder, options)) or (folder, [{"epoch": 100}]),
    )
    path = repository_root() / "data" / "recipes" / f"{recipe}.json"
    assert main(["dino", "--config", str(path), "--data-root", str(tmp_path), "--seed", "3"]) == 0
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
