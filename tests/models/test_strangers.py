"""load_model and files that save_model did not write; save_model and models that were changed after they were made."""

import json
import re
import struct

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import simpool_lite.models.checkpoint as checkpoint
from simpool_lite import create_model, create_pool, load_model, replace_pooling, save_model

CONFIG = {
    "backbone": "convnet_micro",
    "pool": "otk",
    "num_classes": 3,
    "pool_kwargs": {"k": 2},
    "norm_first": True,
    "max_logits": False,
    "img_size": None,
    "width": 8,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A file as save_model writes it; every row of the tables below changes one thing in it."""
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    return save_model(create_model(**CONFIG), path)


@pytest.fixture
def devices(monkeypatch):
    """Where load_model made models."""
    seen = []

    def watched(*args, **kwargs):
        seen.append(torch.get_default_device().type)
        return create_model(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "create_model", watched)
    return seen


def refused(path, devices):
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_model(path)
    assert str(caught.value).startswith("path: expected a file of save_model(), got ")
    assert set(devices) <= {"meta"}, "memory was allocated before the file was refused"


def test_the_file_is_good(good, devices):
    assert load_model(good).create_config == CONFIG
    assert devices == ["meta", "cpu"]


def frame(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


BYTES = {
    "empty": lambda good: b"",
    "one byte": lambda good: b"\x00",
    "text": lambda good: b"not a model " * 100,
    "a pickle": lambda good: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "a zip": lambda good: b"PK\x03\x04" + b"\x00" * 200,
    "half": lambda good: good[: len(good) // 2],
    "one byte short": lambda good: good[:-1],
    "one byte more": lambda good: good + b"\x00",
    "header cut": lambda good: good[:100],
    "header longer than the file": lambda good: struct.pack("<Q", 2**60) + good[8:],
    "header is no JSON": lambda good: frame(b"{no json"),
    "header is a list": lambda good: frame(b"[]"),
    "header is no UTF-8": lambda good: frame(b'{"\xff\xfe": 1}'),
    "tensor out of the file": lambda good: frame(
        b'{"stem.conv.weight":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    ),
    "tensor of absurd size": lambda good: frame(
        json.dumps({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}).encode()
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes(good, tmp_path, devices, case):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BYTES[case](good.read_bytes()))
    refused(path, devices)


def test_torch_files(tmp_path, devices):
    torch.save({"x": torch.zeros(1)}, tmp_path / "bad.safetensors")
    refused(tmp_path / "bad.safetensors", devices)


HEADERS = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "no keys": "{}",
    "deep": "[" * 100_000,
    "NaN": json.dumps(CONFIG | {"pool_kwargs": {"k": float("nan")}}),
    "infinity": json.dumps(CONFIG | {"drop_rate": float("inf")}),
    "many digits": json.dumps(CONFIG).replace('"num_classes": 3', '"num_classes": ' + "9" * 5000),
    "400 digits": json.dumps(CONFIG | {"num_classes": 10**400}),
    "python": "__import__('os').system('true')",
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers(good, tmp_path, devices, case):
    save_file(load_file(good), tmp_path / "bad.safetensors", metadata={"simpool_lite": HEADERS[case]})
    refused(tmp_path / "bad.safetensors", devices)


def test_header_of_another_package(good, tmp_path, devices):
    save_file(load_file(good), tmp_path / "bad.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "bad.safetensors", devices)


OVERLAY = {"url": "http://example.invalid/weights.pth", "file": "/etc/passwd", "hf_hub_id": "some/one"}
CHANGES = {
    # what reaches out or runs code
    "pretrained": {"pretrained": True},
    "pretrained false": {"pretrained": False},
    "pretrained_cfg": {"pretrained_cfg": OVERLAY},
    "pretrained_cfg_overlay": {"pretrained": True, "pretrained_cfg_overlay": OVERLAY},
    "pretrained_strict": {"pretrained_strict": False},
    "checkpoint_path": {"checkpoint_path": "evil.pth"},
    "cache_dir": {"cache_dir": "/tmp/elsewhere"},  # noqa: S108  (refused, never used)
    "features_only": {"features_only": True},
    "norm_layer": {"norm_layer": "batchnorm2d"},
    "device": {"device": "cuda"},
    "scriptable": {"scriptable": True},
    "unknown key": {"unknown": 1},
    "hf-hub": {"backbone": "hf-hub:some/one"},
    "hf_hub": {"backbone": "hf_hub:some/one"},
    "local-dir": {"backbone": "local-dir:/tmp"},
    "drive": {"backbone": "C:\\model"},
    "a path": {"backbone": "../../model"},
    "an absolute path": {"backbone": "/etc/passwd"},
    "a tag that is a path": {"backbone": "resnet18.../x"},
    "unknown backbone": {"backbone": "resnet1"},
    "unknown pool": {"pool": "average"},
    # types
    "backbone null": {"backbone": None},
    "backbone a list": {"backbone": ["resnet18"]},
    "pool a number": {"pool": 1},
    "classes text": {"num_classes": "3"},
    "classes true": {"num_classes": True},
    "classes null": {"num_classes": None},
    "classes a fraction": {"num_classes": 3.0},
    "classes negative": {"num_classes": -1},
    "pool_kwargs text": {"pool_kwargs": "k=2"},
    "pool_kwargs null": {"pool_kwargs": None},
    "pool_kwargs a list": {"pool_kwargs": [["k", 2]]},
    "pool_kwargs nested": {"pool_kwargs": {"k": {"k": 2}}},
    "pool_kwargs unknown": {"pool_kwargs": {"file": "x"}},
    "long text": {"pool_kwargs": {"reduce": "x" * 10_000}},
    "norm_first text": {"norm_first": "no"},
    "max_logits a number": {"max_logits": 1},
    "img_size text": {"img_size": "48"},
    "img_size of one": {"img_size": [48]},
    "img_size nested": {"img_size": [[48], [48]]},
    "img_size negative": {"img_size": -48},
    "in_chans 0": {"in_chans": 0},
    "width 0": {"width": 0},
    # sizes
    "12 million classes": {"num_classes": 12_000_000},
    "999,999 classes": {"num_classes": 999_999},
    "8 million vectors": {"pool_kwargs": {"k": 8_000_000}},
    "4,000 vectors": {"pool_kwargs": {"k": 4_000}},
    "width 1200": {"width": 1200},
    "width of a million": {"width": 10**6},
    "all three": {"num_classes": 12_000_000, "pool_kwargs": {"k": 8_000_000}, "width": 1200},
    "a billion iterations": {"pool_kwargs": {"k": 2, "iterations": 10**9}},
    "a billion blocks": {"backbone": "vit_micro", "depth": 10**9},
    "4,000 blocks": {"backbone": "vit_micro", "depth": 4000},
    "a large image": {"backbone": "vit_micro", "img_size": 4096},
    "another network": {"backbone": "vit_giant_patch14_dinov2", "width": 8},
    # what does not fit the tensors
    "other classes": {"num_classes": 4},
    "other pool": {"pool": "gap", "pool_kwargs": {}},
    "other channels": {"in_chans": 4},
}


@pytest.mark.parametrize("case", CHANGES)
def test_configurations(good, tmp_path, devices, case):
    header = json.dumps(CONFIG | CHANGES[case])
    save_file(load_file(good), tmp_path / "bad.safetensors", metadata={"simpool_lite": header})
    refused(tmp_path / "bad.safetensors", devices)


TENSORS = {
    "none": lambda tensors: {},
    "one missing": lambda tensors: dict(list(tensors.items())[1:]),
    "one more": lambda tensors: tensors | {"more": torch.zeros(1)},
    "other shape": lambda tensors: tensors | {"head.fc.bias": torch.zeros(4)},
    "one number": lambda tensors: tensors | {"head.fc.bias": torch.zeros(())},
    "other dtype": lambda tensors: tensors | {"head.fc.bias": torch.zeros(3, dtype=torch.float64)},
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors(good, tmp_path, devices, case):
    tensors = TENSORS[case](load_file(good))
    save_file(tensors, tmp_path / "bad.safetensors", metadata={"simpool_lite": json.dumps(CONFIG)})
    refused(tmp_path / "bad.safetensors", devices)


def test_a_mask_larger_than_the_file(tmp_path, devices):
    """Swin's masks for an image of 4,032 pixels are no tensors of the file and would take 265 MB."""
    config = {"backbone": "swin_tiny_patch4_window7_224", "pool": "gap", "num_classes": 3, "img_size": 224}
    path = save_model(create_model(**config), tmp_path / "swin.safetensors")
    header = json.dumps(config | {"img_size": 4032})
    save_file(load_file(path), tmp_path / "bad.safetensors", metadata={"simpool_lite": header})
    refused(tmp_path / "bad.safetensors", devices)


@pytest.mark.parametrize("device", ["auto", "cpu", torch.device("cpu")])
def test_devices(good, device):
    assert load_model(good, device=device).training is False


@pytest.mark.parametrize("device", ["gpu", "disk:0"])
def test_unknown_devices(good, device):
    with pytest.raises(ValueError, match="device: expected one of auto"):
        load_model(good, device=device)


def vit(pool="simpool", **kwargs):
    return create_model("vit_tiny_patch16_224", pool, 3, img_size=64, depth=1, **kwargs)


def changed(model, change):
    change(model)
    return model


LIVES = {
    "reset_classifier": lambda: changed(vit(), lambda m: m.reset_classifier(20)),
    "reset_classifier to none": lambda: changed(vit(), lambda m: m.reset_classifier(0)),
    "reset_classifier of cls": lambda: changed(vit("cls"), lambda m: m.reset_classifier(20)),
    "reset_classifier of k vectors": lambda: changed(
        vit("otk", pool_kwargs={"reduce": "concat"}), lambda m: m.reset_classifier(20)
    ),
    "set_input_size": lambda: changed(vit(), lambda m: m.set_input_size(96)),
    "set_input_size, not square": lambda: changed(vit("cls"), lambda m: m.set_input_size((64, 96))),
    "another pooling": lambda: replace_pooling(vit(), "simpool", gamma=2.0),
    "another pooling without weights": lambda: replace_pooling(vit("gap"), "max"),
    "another number of vectors": lambda: replace_pooling(vit(), "otk", k=2, reduce="concat"),
    "another pooling after cls": lambda: replace_pooling(vit("cls"), "simpool", norm_first=False),
    "order of the norm": lambda: replace_pooling(vit(norm_first=False), "simpool", gamma=2.0),
    "torch.compile": lambda: torch.compile(vit(), backend="eager"),
    "DataParallel": lambda: torch.nn.DataParallel(vit()),
    "DataParallel of a compiled one": lambda: torch.nn.DataParallel(torch.compile(vit(), backend="eager")),
    "compile in place": lambda: changed(vit(), lambda m: m.compile(backend="eager")),
    "channels_last": lambda: create_model("resnet18", "simpool", 3).to(memory_format=torch.channels_last),
    "class token kept": lambda: vit(class_token=True),
    "in_chans": lambda: vit(in_chans=4),
    "all at once": lambda: changed(
        replace_pooling(changed(vit(), lambda m: m.set_input_size(32)), "gem"), lambda m: m.reset_classifier(5)
    ),
}


@pytest.mark.parametrize("life", LIVES)
def test_what_is_saved_loads(tmp_path, life):
    torch.manual_seed(0)
    model = LIVES[life]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    loaded = load_model(save_model(model, tmp_path / "model.safetensors"))
    original = getattr(model, "module", model)
    original = getattr(original, "_orig_mod", original)
    assert str(loaded) == str(original)
    pixels = original.patch_embed.img_size if hasattr(original, "patch_embed") else (64, 64)
    images = torch.randn(2, 4 if life == "in_chans" else 3, *pixels)
    torch.testing.assert_close(loaded(images), model(images))
    save_model(loaded, tmp_path / "again.safetensors")


REFUSED = {
    "replace_pooling": (
        lambda: replace_pooling(timm.create_model("resnet18"), "gap"),
        r"create_model\(\), got PooledResNet",
    ),
    "half precision": (lambda: vit().half(), "expected float32 .*, got float16"),
    "a layer of another width": (lambda: changed(vit(), lambda m: setattr(m, "head", torch.nn.Linear(192, 4))), "head"),
    "a module more": (lambda: changed(vit(), lambda m: m.add_module("more", torch.nn.Linear(1, 1))), "more"),
    "a pooling by hand": (
        lambda: changed(vit("gap"), lambda m: setattr(m, "pooling", create_pool("max", 192))),
        "pooling is not what",
    ),
    "a scale by hand": (
        lambda: changed(vit(), lambda m: setattr(m.pooling, "scale", 2.0)),
        "pooling.scale: .* got 2.0",
    ),
    "an exponent by hand": (
        lambda: changed(vit("gem", pool_kwargs={"learn_gamma": False}), lambda m: setattr(m.pooling, "gamma", 9.0)),
        "pooling.gamma: expected 3.0, got 9.0",
    ),
    "an epsilon by hand": (lambda: changed(vit("otk"), lambda m: setattr(m.pooling, "eps", 9.0)), "pooling.eps"),
    "a function": (lambda: vit(norm_layer=torch.nn.LayerNorm), "norm_layer: expected one of"),
    "patch size": (lambda: changed(vit(), lambda m: m.set_input_size(patch_size=8)), "pos_embed"),
    "other windows": (
        lambda: changed(create_model("swin_tiny_patch4_window7_224", "gap", 3), lambda m: m.set_input_size(112)),
        "relative_position_bias_table",
    ),
    "pooling by average": (lambda: changed(vit("cls"), lambda m: m.reset_classifier(3, "avg")), "class token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_saving_says_why_not(tmp_path, case):
    make, message = REFUSED[case]
    with pytest.raises(TypeError, match=message) as caught:
        save_model(make(), tmp_path / "model.safetensors")
    assert str(caught.value).startswith("model: ") and not list(tmp_path.iterdir())


def test_weights_from_elsewhere_are_not_recorded(tmp_path):
    """Where weights came from is no part of the file: it loads where they are not."""
    source = timm.create_model("resnet18", num_classes=3)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 3}
    model = create_model("resnet18", "gap", 3, pretrained=True, pretrained_cfg_overlay=overlay)
    path = save_model(model, tmp_path / "model.safetensors")
    (tmp_path / "weights.safetensors").unlink()
    torch.testing.assert_close(load_model(path).state_dict(), source.state_dict())
