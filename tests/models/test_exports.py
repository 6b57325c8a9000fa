"""Ways out of Python: docs/exporting.md says which work, and what the others say."""

import io
import warnings

import pytest
import timm
import torch
from torch.export import Dim
from torch.func import jvp
from torchvision.models.feature_extraction import create_feature_extractor

from simpool_lite import create_model
from simpool_lite.files import repository_root

PAGE = (repository_root() / "docs" / "exporting.md").read_text()
IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def model(backbone: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(backbone, "simpool", 3, pool_kwargs={"gamma": 2.0 if "conv" in backbone else None}).eval()


def trace_and_save(model: torch.nn.Module) -> None:
    torch.jit.save(torch.jit.trace(model, IMAGES), io.BytesIO())


def quantised(model: torch.nn.Module, what: set) -> torch.Tensor:
    return torch.ao.quantization.quantize_dynamic(model, what, dtype=torch.qint8)(IMAGES)


WAYS_THAT_FAIL = {
    "trace": ("convnet_micro", trace_and_save, "Could not export Python function call '_Average'"),
    "trace of a transformer": ("vit_micro", trace_and_save, "type Tensor doesn't define __round__ method"),
    "script": ("convnet_micro", torch.jit.script, "Comprehension ifs are not supported yet"),
    "feature extractor": (
        "vit_micro",
        lambda model: create_feature_extractor(model, ["pooling"]),
        "images: expected a floating-point tensor (B, 3, h, w), got Proxy",
    ),
    "quantised layers": (
        "vit_micro",
        lambda model: quantised(model, {torch.nn.Linear}),
        "'function' object has no attribute 'unflatten'",
    ),
    "forward mode through fused attention": (
        "vit_micro",
        lambda model: jvp(model, (IMAGES,), (IMAGES,)),
        "NotImplementedError",
    ),
}


@pytest.mark.parametrize("way", WAYS_THAT_FAIL)
@pytest.mark.filterwarnings("ignore")
def test_the_page_tells_the_error(way):
    backbone, call, said = WAYS_THAT_FAIL[way]
    with pytest.raises(Exception) as caught:
        call(model(backbone))
    assert said in f"{type(caught.value).__name__}: {caught.value}" and said in PAGE


@pytest.mark.parametrize("backbone", ["convnet_micro", "vit_micro"])
def test_an_export_takes_any_number_of_images(backbone):
    original, more = model(backbone), torch.cat([IMAGES, -IMAGES[:1]])
    exported = torch.export.export(original, (IMAGES,), dynamic_shapes=({0: Dim("batch")},)).module()
    torch.testing.assert_close(exported(more), original(more), rtol=1e-4, atol=1e-5)


def test_an_export_takes_images_of_any_size():
    original, other = model("convnet_micro"), torch.randn(3, 3, 64, 96)
    shapes = ({0: Dim("batch"), 2: Dim.AUTO, 3: Dim.AUTO},)
    exported = torch.export.export(original, (IMAGES,), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(other), original(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("backbone", "classifier"), [("convnet_micro", "head.fc"), ("vit_micro", "head")])
def test_the_classifier_can_be_quantised(backbone, classifier):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = model(backbone)(IMAGES), quantised(model(backbone), {classifier})
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_forward_mode_without_fused_attention():
    timm.layers.set_fused_attn(False)
    try:
        _, tangent = jvp(model("vit_micro"), (IMAGES,), (IMAGES,))
    finally:
        timm.layers.set_fused_attn(True)
    assert tangent.shape == (2, 3) and tangent.isfinite().all()
