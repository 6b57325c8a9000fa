"""load_official on files as the authors' code writes them: its names and shapes, written anew, and random weights."""

import argparse
import math
import pickle
import re
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import nn
from torch.nn import functional as F

from simpool_lite import load_model, save_model
from simpool_lite.models import load_official
from simpool_lite.models.official import OFFICIAL

# The names and shapes of the authors' code.


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name, rows, *columns):
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def vit(positions):
    shapes = {"pos_embed": (1, positions, 384)} | linear("patch_embed.proj", 384, 3, 16, 16) | norm("norm", 384)
    if positions == 197:
        shapes["cls_token"] = (1, 1, 384)
    for block in (f"blocks.{i}" for i in range(12)):
        shapes |= norm(f"{block}.norm1", 384) | norm(f"{block}.norm2", 384)
        shapes |= linear(f"{block}.attn.qkv", 1152, 384) | linear(f"{block}.attn.proj", 384, 384)
        shapes |= linear(f"{block}.mlp.fc1", 1536, 384) | linear(f"{block}.mlp.fc2", 384, 1536)
    return shapes


def resnet(auxiliary=0):
    def conv_norm(conv, bn, *shape):
        shapes = {f"{conv}.weight": shape}
        for name in (bn, *(f"{bn}.aux_bn.{i}" for i in range(auxiliary))):
            width = shape[0]
            shapes |= norm(name, width) | {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
            shapes[f"{name}.num_batches_tracked"] = ()
        return shapes

    shapes, before = conv_norm("conv1", "bn1", 64, 3, 7, 7), 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        for block in (f"layer{stage}.{i}" for i in range(blocks)):
            shapes |= conv_norm(f"{block}.conv1", f"{block}.bn1", width, before, 1, 1)
            shapes |= conv_norm(f"{block}.conv2", f"{block}.bn2", width, width, 3, 3)
            shapes |= conv_norm(f"{block}.conv3", f"{block}.bn3", 4 * width, width, 1, 1)
            if block.endswith(".0"):
                shapes |= conv_norm(f"{block}.downsample.0", f"{block}.downsample.1", 4 * width, before, 1, 1)
            before = 4 * width
    return shapes


def convnext():
    shapes, widths = norm("norm", 768), (96, 192, 384, 768)
    shapes |= linear("downsample_layers.0.0", 96, 3, 4, 4) | norm("downsample_layers.0.1", 96)
    for i in (1, 2, 3):
        shapes |= norm(f"downsample_layers.{i}.0", widths[i - 1])
        shapes |= linear(f"downsample_layers.{i}.1", widths[i], widths[i - 1], 2, 2)
    for stage, (blocks, width) in enumerate(zip((3, 3, 27, 3), widths, strict=True)):
        for block in (f"stages.{stage}.{i}" for i in range(blocks)):
            shapes |= linear(f"{block}.dwconv", width, 1, 7, 7) | norm(f"{block}.norm", width)
            shapes |= linear(f"{block}.pwconv1", 4 * width, width) | linear(f"{block}.pwconv2", width, 4 * width)
            shapes[f"{block}.gamma"] = (width,)
    return shapes


def simpool(name, d, beta=False):
    maps = {f"{name}.wq.weight": (d, d), f"{name}.wk.weight": (d, d)}
    return norm(f"{name}.norm_patches", d) | maps | ({f"{name}.beta": (1,)} if beta else {})


def dino_head(d, out, bn=False):
    layers = [linear(f"head.mlp.{i}", *shape) for i, shape in zip((0, 3 if bn else 2, 6 if bn else 4), (
        (2048, d), (2048, 2048), (256, 2048)), strict=True)]  # fmt: skip
    norms = [norm(f"head.mlp.{i}", 2048) for i in (1, 4) if bn]
    last = {"head.last_layer.weight_g": (out, 1), "head.last_layer.weight_v": (out, 256)}
    return {key: shape for part in (*layers, *norms, last) for key, shape in part.items()}


VIT_HEAD, RESNET_HEAD = linear("head", 1000, 384), linear("fc", 1000, 2048)
POOL = {"": {}, "vit": simpool("gp.pool", 384), "vit beta": simpool("gp.pool", 384, beta=True)}
POOL |= {d: simpool("simpool", d) for d in (384, 768, 2048)} | {"dino beta": simpool("simpool", 384, beta=True)}

LAYOUTS = {
    "vits_supervised_official_ep100": vit(197) | VIT_HEAD,
    "vits_supervised_simpool_no_gamma_ep100": vit(196) | VIT_HEAD | POOL["vit"],
    "vits_supervised_simpool_ep100": vit(196) | VIT_HEAD | POOL["vit beta"],
    "vits_supervised_simpool_ep300": vit(196) | VIT_HEAD | POOL["vit"],
    "resnet50_supervised_official_ep100": resnet(auxiliary=2) | RESNET_HEAD,
    "resnet50_supervised_simpool_ep100": resnet(auxiliary=2) | RESNET_HEAD | simpool("global_pool.pool", 2048),
    "vits_dino_official_ep100": vit(197),
    "vits_dino_simpool_ep100": vit(196) | POOL["dino beta"],
    "vits_dino_simpool_ep300": vit(196) | POOL["dino beta"],
    "vits_dino_simpool_no_gamma_ep100": vit(196) | POOL[384],
    "resnet50_dino_official_ep100": resnet(),
    "resnet50_dino_simpool_ep100": resnet() | POOL[2048],
    "resnet50_dino_simpool_no_gamma_ep100": resnet() | POOL[2048],
    "convnext_small_dino_official_ep100": convnext(),
    "convnext_small_dino_simpool_ep100": convnext() | POOL[768],
    "convnext_small_dino_simpool_no_gamma_ep100": convnext() | POOL[768],
}
VIT, DINO, RESNET = "vits_supervised_simpool_ep100", "vits_dino_simpool_ep100", "resnet50_dino_simpool_ep100"

NUMBERS = torch.randn(2048 * 2048 + 10**5, generator=torch.Generator().manual_seed(0))


def slices(shapes):
    """Different tensors that share one memory, so that a file is small and soon written."""
    tensors, start = {}, 0
    for key, shape in shapes.items():
        start = (start + 997) % 10**5
        tensors[key] = NUMBERS[start : start + math.prod(shape)].view(shape)
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(start)
    return tensors


def drawn(shapes, seed=0):
    """Weights with which every part of a network matters."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if key in ("pos_embed", "cls_token") or key.endswith((".gamma", ".beta")):
            tensors[key] = noise / 4
        elif len(shape) > 1:
            tensors[key] = noise * math.prod(shape[1:]) ** -0.5 * (4 if ".wq." in key else 1)
        elif key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(7)
        else:
            tensors[key] = noise / 10 + float(key.endswith((".weight", ".running_var")))
    return tensors


def wrapped(name, weights):
    """The checkpoint around these weights; every other weight in it is 0."""
    zeros = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in weights.items()}
    rate = np.linspace(0.0, 1.0, 3)[1]  # of a schedule: numpy's scalar
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": rate, "params": [0]}]}
    if "_dino_" in name:
        d, bn = {"v": 384, "c": 768, "r": 2048}[name[0]], name[0] == "r"
        head = {key: torch.zeros(()).expand(s) for key, s in dino_head(d, 60000 if bn else 65536, bn).items()}
        student = {f"module.backbone.{k}": v for k, v in zeros.items()} | {f"module.{k}": v for k, v in head.items()}
        prefix = "module." if bn else ""
        teacher = {f"{prefix}backbone.{k}": v for k, v in weights.items()}
        return {
            "student": student,
            "teacher": teacher | {f"{prefix}{k}": v for k, v in head.items()},
            "optimizer": optimizer,
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_small", global_crops_scale=(0.25, 1.0), nb_knn=[10, 20]),
            "dino_loss": {"center": torch.zeros(1, 9)},
        }
    weighted = {"state_dict": zeros, "state_dict_ema": weights} if name[0] == "v" else {"state_dict": weights}
    args = argparse.Namespace(model="resnet50", gamma=1.25, mean=None)
    return weighted | {"epoch": 99, "arch": "resnet50", "optimizer": optimizer, "version": 2, "args": args, "metric": 7}


def saved(folder, name, weights, file=None):
    suffix = ".pth" if "_dino_" in name else ".pth.tar"
    path = folder / (file or name + suffix)
    torch.save(wrapped(name, weights), path)
    return path


def our_name(name, key):
    """Where a weight belongs, by rules."""
    key = re.sub(r"^(gp\.pool|global_pool\.pool|simpool)\.", "pooling.", key)
    if name.startswith("vits_dino_simpool"):
        return re.sub(r"^norm\.", "pooled_norm.", key)
    if name.startswith("convnext"):
        key = re.sub(r"^norm\.", "head.norm.", key)
        key = re.sub(r"^downsample_layers\.0\.", "stem.", key)
        key = re.sub(r"^downsample_layers\.(\d)\.", r"stages.\1.downsample.", key)
        key = re.sub(r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2.", key)
        return key.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
    return key


def resampled(embeddings):
    """Bicubic interpolation (a = -0.75), written as a matrix, on a grid that is finer by 14.1 / 14."""
    matrix = np.zeros((14, 14))
    for i in range(14):
        source = (i + 0.5) * 14 / 14.1 - 0.5
        for j in range(math.floor(source) - 1, math.floor(source) + 3):
            x, a = abs(source - j), -0.75
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[i, min(max(j, 0), 13)] += near if x <= 1 else far
    grid = embeddings.double().view(14, 14, -1).numpy()
    return torch.from_numpy(np.einsum("ik,jl,klc->ijc", matrix, matrix, grid)).float().view(1, 196, -1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_arrives(tmp_path, name):
    weights = slices(LAYOUTS[name])
    model = load_official(saved(tmp_path, name, weights))
    expected = {our_name(name, key): tensor for key, tensor in weights.items() if "aux_bn" not in key}
    state = model.state_dict()
    if name.startswith("vits_dino_simpool"):
        torch.testing.assert_close(state.pop("pos_embed"), resampled(expected.pop("pos_embed")), atol=2e-5, rtol=0)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    assert not model.training and model.num_classes == (0 if "_dino_" in name else 1000)
    gamma = None if "no_gamma" in name else 1.25 if name[0] == "v" else 2.0
    if "official" not in name:
        assert (model.pooling.gamma, model.pooling.shift) == (gamma, "batch" if gamma else "image")
    prepared = resolve_model_data_config(model)
    assert prepared["mean"] == ((0.5, 0.5, 0.5) if name.startswith("vits_supervised") else (0.485, 0.456, 0.406))
    crop = 224 / 256 if "_dino_" in name else 0.9 if name[0] == "v" else 0.95
    assert (prepared["crop_pct"], prepared["interpolation"]) == (crop, "bicubic")
    assert model.create_config["pool"] == ("simpool" if "simpool" in name else "cls" if name[0] == "v" else "gap")


def pooled(x, weights, prefix, gamma):
    """SimPool of positions (B, N, d), as published: its minimum is the whole batch's."""
    x = x.double()
    w = {key.removeprefix(prefix): tensor.double() for key, tensor in weights.items() if key.startswith(prefix)}
    v = F.layer_norm(x, x.shape[-1:], w["norm_patches.weight"], w["norm_patches.bias"], 1e-6)
    q, k = x.mean(1) @ w["wq.weight"].T, v @ w["wk.weight"].T
    a = (k @ q[:, :, None] / x.shape[-1] ** 0.5).softmax(1)
    return ((a * (v - v.min() + 1e-6) ** gamma).sum(1) ** (1 / gamma) + w.get("beta", 0)).float()


def trunk_of(model, weights):
    """A model of timm or torchvision with those of the weights that it knows by name."""
    known = model.state_dict().keys()
    weights = {key: tensor for key, tensor in weights.items() if key in known}
    model.load_state_dict(weights, assign=True)  # strict: all of its own
    return model.eval()


def vit_features(images, weights, final_norm):
    with torch.device("meta"):
        trunk = timm.create_model("vit_small_patch16_224", class_token=False, global_pool="", num_classes=0)
    trunk = trunk_of(trunk, weights)
    trunk.norm = trunk.norm if final_norm else nn.Identity()
    return trunk(images)


def resnet_features(images, weights):
    with torch.device("meta"):
        trunk = torchvision.models.resnet50()
    trunk.fc = nn.Identity()
    trunk = trunk_of(trunk, weights)
    return nn.Sequential(*[*trunk.children()][:-2])(images).flatten(2).mT


def convnext_features(x, w):
    def layer_norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def dense(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def conv(x, name, **kwargs):  # positions last but one, as everywhere here
        return F.conv2d(x.movedim(-1, 1), w[f"{name}.weight"], w[f"{name}.bias"], **kwargs).movedim(1, -1)

    x = layer_norm(conv(x.movedim(1, -1), "downsample_layers.0.0", stride=4), "downsample_layers.0.1")
    for stage, blocks in enumerate((3, 3, 27, 3)):
        if stage:
            x = layer_norm(x, f"downsample_layers.{stage}.0")
            x = conv(x, f"downsample_layers.{stage}.1", stride=2)
        for block in (f"stages.{stage}.{i}" for i in range(blocks)):
            y = layer_norm(conv(x, f"{block}.dwconv", padding=3, groups=x.shape[-1]), f"{block}.norm")
            y = dense(F.gelu(dense(y, f"{block}.pwconv1")), f"{block}.pwconv2")
            x = x + w[f"{block}.gamma"] * y
    return x.flatten(1, 2)


def vit_supervised(images, w):
    z = pooled(vit_features(images, w, final_norm=True), w, "gp.pool.", 1.25)
    return F.linear(z, w["head.weight"], w["head.bias"])


def vit_dino(images, w):
    w = w | {"pos_embed": resampled(w["pos_embed"])}
    z = pooled(vit_features(images, w, final_norm=False), w, "simpool.", 1.25)
    return F.layer_norm(z, (384,), w["norm.weight"], w["norm.bias"], 1e-6)


def resnet_supervised(images, w):
    z = pooled(resnet_features(images, w), w, "global_pool.pool.", 2.0)
    return F.linear(z, w["fc.weight"], w["fc.bias"])


def resnet_dino(images, w):
    return pooled(resnet_features(images, w), w, "simpool.", 2.0)


def convnext_dino(images, w):
    z = pooled(convnext_features(images, w), w, "simpool.", 2.0)
    return F.layer_norm(z, (768,), w["norm.weight"], w["norm.bias"], 1e-6)


@pytest.mark.parametrize(
    ("name", "size", "reference"),
    [
        (VIT, 224, vit_supervised),
        (DINO, 224, vit_dino),
        ("resnet50_supervised_simpool_ep100", 64, resnet_supervised),
        (RESNET, 64, resnet_dino),
        ("convnext_small_dino_simpool_ep100", 64, convnext_dino),
    ],
)
@torch.no_grad()
def test_it_computes_what_was_published(tmp_path, name, size, reference):
    weights = drawn({key: shape for key, shape in LAYOUTS[name].items() if "aux_bn" not in key})
    path = saved(tmp_path, name, weights)
    model = load_official(path)
    path.unlink()  # large; and the model needs it no more
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = reference(images, weights)
    assert expected.std(0).mean() > 0.02, "the images look alike to these weights"
    torch.testing.assert_close(model(images), expected, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_the_minimum_is_the_batchs_unless_told_otherwise(tmp_path):
    weights = drawn(LAYOUTS[RESNET])
    path = saved(tmp_path, RESNET, weights)
    model = load_official(path, shift="image")
    path.unlink()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    images[2] *= 9
    alone, maps = torch.cat([model(image[None]) for image in images]), model.attention(images)
    torch.testing.assert_close(model(images), alone, atol=1e-4, rtol=1e-4)
    model.pooling.shift = "batch"  # what every other test has by default
    assert (model(images) - alone).abs().max() > 1e-3
    torch.testing.assert_close(model.attention(images), maps)


def test_where_the_name_comes_from(tmp_path):
    """From the file, then from its folder, unless it is given."""
    weights = slices(LAYOUTS[DINO])
    folder, other = tmp_path / DINO, tmp_path / RESNET
    folder.mkdir(), other.mkdir()
    assert load_official(saved(folder, DINO, weights, "checkpoint.pth")).pooling.gamma == 1.25
    assert load_official(str(saved(other, DINO, weights))).pooling.gamma == 1.25
    assert load_official(saved(other, DINO, weights, "checkpoint.pth"), name=DINO).pooling.gamma == 1.25
    unknown = saved(tmp_path, DINO, weights, "checkpoint.pth")
    with pytest.raises(ValueError, match=r"name: expected one of vits_.*checkpoint\.pth does not say"):
        load_official(unknown)


def test_safetensors_and_the_old_format(tmp_path):
    weights = slices(LAYOUTS[DINO])
    path = tmp_path / f"{DINO}.safetensors"
    save_file({f"backbone.{key}": tensor.clone() for key, tensor in weights.items()}, path)
    torch.save(wrapped(DINO, weights), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for model in (load_official(path), load_official(tmp_path / "old.pth", name=DINO)):
        assert torch.equal(model.pooling.wq.weight, weights["simpool.wq.weight"])


def test_numpy_under_its_name_of_2023(tmp_path):
    """The published files were pickled by a numpy whose scalars lived in another module."""
    new = saved(tmp_path, DINO, slices(LAYOUTS[DINO]), "new.pth")
    old = tmp_path / f"{DINO}.pth"
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for item in source.namelist():
            content = source.read(item)
            if item.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(item, content)
    assert torch.equal(load_official(old).pooling.wk.weight, slices(LAYOUTS[DINO])["simpool.wk.weight"])


@pytest.mark.parametrize(
    ("name", "missing", "unexpected"),
    [
        (VIT, ["blocks.3.attn.qkv.weight", "norm.bias"], {"fc_norm.bias": (384,), "blocks.12.norm1.bias": (384,)}),
        (DINO, ["simpool.beta"], {}),
        ("vits_dino_simpool_no_gamma_ep100", [], {"simpool.beta": (1,)}),
        ("vits_supervised_simpool_no_gamma_ep100", [], {"gp.pool.beta": (1,)}),
        (RESNET, ["layer4.2.bn3.running_var"], {"simpool.beta": (1,)}),
        ("convnext_small_dino_simpool_ep100", ["stages.2.26.pwconv1.weight"], {"stages.2.27.pwconv1.weight": (1, 1)}),
        ("resnet50_dino_official_ep100", [], POOL[2048]),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path, name, missing, unexpected):
    shapes = {key: shape for key, shape in LAYOUTS[name].items() if key not in missing} | unexpected
    path = saved(tmp_path, name, slices(shapes))
    with pytest.raises(ValueError, match=re.escape(f"the weights of {name!r}, got {path}: ")) as caught:
        load_official(path)
    said = str(caught.value).partition(f"{path}: ")[2]
    lists = dict(part.split(": ") for part in said.split("; "))
    assert sorted(lists.get("missing", "").split(", ")) == sorted(our_name(name, key) for key in missing or [""])
    assert sorted(lists.get("unexpected", "").split(", ")) == sorted(unexpected or [""])


def test_shapes_that_do_not_fit_are_listed(tmp_path):
    shapes = LAYOUTS[DINO] | {"pos_embed": (1, 197, 384), "simpool.wk.weight": (192, 384)}
    with pytest.raises(ValueError, match=r"of another shape: .*simpool.wk.weight \(192, 384\) for \(384, 384\)") as e:
        load_official(saved(tmp_path, DINO, slices(shapes)))
    assert "pos_embed (1, 197, 384) for (1, 196, 384)" in str(e.value)


def test_one_model_is_not_another(tmp_path):
    path = saved(tmp_path, DINO, slices(LAYOUTS[DINO]), "some.pth")
    with pytest.raises(ValueError, match=r"missing: .*unexpected: .*simpool"):
        load_official(path, name="vits_dino_official_ep100")
    with pytest.raises(ValueError, match="expected state_dict_ema in it, got student, teacher, optimizer"):
        load_official(path, name=VIT)


class Touch:
    """What runs when a pickle of it is read by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["whole", "args", "weight", "bare pickle", "old format"])
def test_a_pickle_with_code_is_refused_unrun(tmp_path, where):
    path, ran = tmp_path / f"{DINO}.pth", tmp_path / "ran"
    checkpoint = wrapped(DINO, slices(LAYOUTS[DINO]))
    if where == "weight":
        checkpoint["teacher"]["backbone.norm.bias"] = Touch(ran)
    else:
        checkpoint["args"] = Touch(ran)
    if where == "bare pickle":
        path.write_bytes(pickle.dumps(Touch(ran), 2))
    else:
        what = Touch(ran) if where == "whole" else checkpoint
        torch.save(what, path, _use_new_zipfile_serialization=where != "old format")
    with pytest.raises(ValueError, match=re.escape(f"got {path}: ")) as caught:
        load_official(path)
    assert not ran.exists()
    assert where == "bare pickle" or "which is no weight" in str(caught.value)
    torch.save(Touch(ran), tmp_path / "proof.pth")
    torch.load(tmp_path / "proof.pth", weights_only=False)
    assert ran.exists(), "the pickle is harmless: this test proves nothing"


FILES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "a list": lambda path: torch.save([torch.zeros(3)], path),
    "an empty dict": lambda path: torch.save({}, path),
    "numbers": lambda path: torch.save({"teacher": {"backbone.norm.bias": 3}}, path),
    "the student alone": lambda path: torch.save({"student": slices(LAYOUTS[DINO])}, path),
    "a module": lambda path: torch.save(nn.Linear(2, 2), path),
}


@pytest.mark.parametrize("case", FILES)
def test_other_files(tmp_path, case):
    path = saved(tmp_path, DINO, slices(LAYOUTS[DINO]))
    FILES[case](path)
    with pytest.raises(ValueError, match=re.escape(f"source: expected the weights of {DINO!r}, got {path}: ")):
        load_official(path)


def test_a_name_is_downloaded(tmp_path, monkeypatch):
    path = saved(tmp_path, VIT, slices(LAYOUTS[VIT]), "vits_gem1.25_supervised_beta.pth.tar")
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: asked.append(args) or str(path))
    assert load_official(VIT).pooling.beta is not None and load_official(path).num_classes == 1000
    assert asked == [(f"billpsomas/{VIT}", "vits_gem1.25_supervised_beta.pth.tar")]


def test_without_a_connection(monkeypatch):
    def offline(*args):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(FileNotFoundError, match=rf"Download it at https://huggingface.co/billpsomas/{DINO} and pass"):
        load_official(DINO)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"source: expected one of .*did you mean 'vits_dino_simpool_ep100'"):
        load_official("vits_dino_simpool_ep10")
    with pytest.raises(FileNotFoundError, match=r"found no file at .*none\.pth"):
        load_official(tmp_path / "none.pth", name=DINO)
    with pytest.raises(ValueError, match=r"name: expected one of .*did you mean"):
        load_official(tmp_path / "none.pth", name="vits_dino_simpool_ep101")
    with pytest.raises(ValueError, match="shift: expected one of image, batch, channel"):
        load_official(DINO, shift="all")
    with pytest.raises(TypeError, match="source: expected a name or a path, got int"):
        load_official(3)


def test_it_is_saved_as_any_model(tmp_path):
    model = load_official(saved(tmp_path, DINO, slices(LAYOUTS[DINO])))
    again = load_model(save_model(model, tmp_path / "ours.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert again.pooling.shift == "batch"


def test_the_table_of_the_docstring_is_the_data():
    rows = [line.split() for line in load_official.__doc__.splitlines() if line.count("_") > 2]
    rows = [row for row in rows if len(row) == 5]
    said = {name: (pool, *(None if score == "-" else float(score) for score in scores)) for name, pool, *scores in rows}
    assert said == {
        entry.name: (
            {"simpool": str(entry.gamma).lower(), "cls": "CLS", "gap": "GAP"}[entry.pool],
            entry.top1,
            entry.knn,
            entry.linear,
        )
        for entry in OFFICIAL.values()
    }
    assert OFFICIAL.keys() == LAYOUTS.keys()
