"""A photograph and a model's map over it: what is read from files, what the model is given, what is drawn."""

import matplotlib as mpl
import numpy as np
import pytest
import timm
import torch
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from simpool_lite import create_model
from simpool_lite.datasets.images import open_image
from simpool_lite.figures import show, show_attention

COLOURS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
ORIENTATION = 0x0112  # the EXIF tag


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_model("vit_micro", pool="simpool", num_classes=10)


def pixels(path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


# (2, 3) pixels turned as a camera stores them: 6 means "turn a quarter to the right to see it", 2 is a mirror image.
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [(1, lambda seen: seen), (2, lambda seen: seen[:, ::-1]), (3, lambda seen: seen[::-1, ::-1]),
     (6, lambda seen: np.rot90(seen, 1)), (8, lambda seen: np.rot90(seen, -1))],
)  # fmt: skip
def test_exif_rotation(tmp_path, orientation, stored):
    seen = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored(seen))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), seen)


def test_transparency_is_laid_on_white(tmp_path):
    colours = Image.fromarray(np.array([[[200, 0, 40, 255], [200, 0, 40, 0], [200, 0, 40, 51]]], np.uint8))
    colours.save(tmp_path / "rgba.png")
    expected = [[[200, 0, 40], [255, 255, 255], [244, 204, 212]]]  # 51 is a fifth
    np.testing.assert_allclose(pixels(tmp_path / "rgba.png"), expected, atol=1)
    colours.convert("LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(pixels(tmp_path / "la.png")[0, 1], [255] * 3)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 90, 80, 70])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(pixels(tmp_path / "opaque.png"), [[[10, 20, 30], [90, 80, 70]]])
    np.testing.assert_array_equal(pixels(tmp_path / "p.png"), [[[255] * 3, [90, 80, 70]]])


def test_grey_of_16_bits_and_floats_is_scaled_not_cut_off(tmp_path):
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(ramp / 65535 * 255)
    for name, values in {"16.png": ramp, "16.tif": ramp, "float.tif": (ramp / 65535).astype(np.float32)}.items():
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_allclose(pixels(tmp_path / name), np.stack([expected] * 3, -1), atol=1, err_msg=name)
    half = np.full((2, 2), 2**15, np.uint16)  # a viewer shows grey, whatever else is in the picture
    Image.fromarray(half).save(tmp_path / "half.png")
    np.testing.assert_allclose(pixels(tmp_path / "half.png"), 128, atol=1)


def test_printers_colours_and_black_and_white(tmp_path):
    Image.new("CMYK", (2, 2), (255, 0, 0, 0)).save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "cmyk.tif")[0, 0], [0, 255, 255])
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    np.testing.assert_allclose(pixels(tmp_path / "cmyk.jpg")[0, 0], [255, 0, 0], atol=3)
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png")
    np.testing.assert_array_equal(pixels(tmp_path / "1.png"), [[[255] * 3, [0] * 3]])


def test_files_that_cannot_be_read_are_named(tmp_path, model):
    Image.fromarray(COLOURS).save(tmp_path / "whole.jpg")
    damaged = {"empty.png": b"", "text.jpg": b"no image", "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:900]}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}.* read"):
            show_attention(model, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
        show_attention(model, tmp_path / "absent.jpg")


def drawn(figure: Figure) -> list[np.ndarray]:
    """The photograph; it in grey; the map."""
    return [np.asarray(picture.get_array()) for axis in figure.axes[:2] for picture in axis.images]


def test_the_same_picture_in_any_form_gives_the_same_figure(tmp_path, model):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    floats = torch.from_numpy(COLOURS).permute(2, 0, 1) / 255
    opaque = np.dstack([COLOURS, np.full((40, 60), 255, np.uint8)])
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(COLOURS), COLOURS.transpose(2, 0, 1), opaque]
    forms += [COLOURS / 255, COLOURS.astype(np.uint16) * 257, torch.from_numpy(COLOURS), floats, floats[None]]
    forms += [floats.clone().requires_grad_()]
    expected = drawn(show_attention(model, COLOURS))
    np.testing.assert_allclose(expected[0], COLOURS / 255, atol=1e-6)
    for form in forms:
        for one, other in zip(drawn(show_attention(model, form)), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(drawn(show_attention(model, floats.bfloat16()))[0], expected[0], atol=4e-3)


def test_grey_pictures(model):
    grey = COLOURS[..., 0]
    for form in (grey, grey[None], torch.from_numpy(grey), Image.fromarray(grey)):
        np.testing.assert_allclose(drawn(show_attention(model, form))[0], np.stack([grey / 255] * 3, -1), atol=1e-6)
    np.testing.assert_array_equal(drawn(show_attention(model, grey > 99))[0][..., 1], grey > 99)


def given_to(model: nn.Module, image) -> torch.Tensor:
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    show_attention(model, image)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((320, 256), {}),  # after timm's resize its crop is on whole pixels, so the two can agree
        ((256, 320), {}),
        ((640, 512), {}),
        ((320, 256), {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"}),
    ],
)
def test_the_model_is_given_what_timms_evaluation_transform_gives(size, changes):
    model = create_model("resnet18.tv_in1k", pool="simpool", num_classes=5, pretrained_cfg_overlay=changes)
    config = resolve_model_data_config(model)
    assert config == config | {"input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center"} | changes
    photograph = Image.fromarray(COLOURS).resize(size, Image.Resampling.BICUBIC)
    expected = create_transform(**config)(photograph)[None]
    step = 1 / 255 / min(config["std"])
    torch.testing.assert_close(given_to(model, photograph), expected, rtol=0, atol=2 * step)


def test_the_size_follows_the_model_and_the_normalisation_its_configuration():
    x = given_to(create_model("convnet_micro", pool="simpool", num_classes=5), np.full((30, 30), 255, np.uint8))
    torch.testing.assert_close(x, torch.ones(1, 3, 48, 48))  # (1 - 0.5) / 0.5
    larger = create_model("vit_micro", pool="simpool", num_classes=5, img_size=(64, 96))
    assert drawn(show_attention(larger, COLOURS))[2].shape == (8, 12)
    assert drawn(show_attention(larger, COLOURS, image_size=48))[2].shape == (6, 6)


def test_the_map_lies_where_the_model_looked(model):
    x = torch.rand(3, 48, 48)
    overlay = show_attention(model, x).axes[1].images[1]
    expected = model.attention(torch.from_numpy(np.rint(x.numpy() * 255) / 255).float()[None] * 2 - 1)[0, 0]
    np.testing.assert_allclose(overlay.get_array(), expected, atol=1e-6)
    assert tuple(overlay.get_extent()) == (-0.5, 47.5, 47.5, -0.5)
    assert overlay.get_clim() == (0, pytest.approx(expected.max().item()))
    assert overlay.get_interpolation() == "nearest"

    figure = show_attention(model, COLOURS)  # 60 x 40: the middle square
    assert tuple(figure.axes[1].images[1].get_extent()) == (9.5, 49.5, 39.5, -0.5)
    assert tuple(figure.axes[1].images[0].get_extent()) == (-0.5, 59.5, 39.5, -0.5)
    assert figure.axes[1].get_xlim() == (-0.5, 59.5) and figure.axes[1].get_ylim() == (39.5, -0.5)
    [frame] = figure.axes[0].patches
    assert frame.get_bbox().extents.tolist() == [9.5, -0.5, 49.5, 39.5]
    figure = show_attention(model, COLOURS, image_size=(64, 96))
    assert figure.axes[0].patches[:] == []
    assert drawn(figure)[2].shape == (8, 12)


def box(figure: Figure) -> list[float]:
    [rectangle] = figure.axes[1].patches
    assert same_color(rectangle.get_edgecolor(), "cyan")
    return rectangle.get_bbox().extents.tolist()


def test_the_box_bounds_the_largest_region(monkeypatch, model):
    values = torch.tensor([[10, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 3, 0, 0, 0], [0, 0, 4, 3, 0], [0, 1, 0, 0, 0]])
    monkeypatch.setattr(show, "attention_maps", lambda *_, **__: values[None, None].float())
    picture = np.zeros((50, 100), np.uint8)  # the model sees x from 25 to 75, each position is 10 x 10 pixels
    assert box(show_attention(model, picture)) == [34.5, 19.5, 64.5, 39.5]  # 3, 4 and 3, corner to corner
    assert box(show_attention(model, picture, threshold=0.1)) == [34.5, 19.5, 64.5, 49.5]
    assert box(show_attention(model, picture, threshold=0.35)) in ([24.5, -0.5, 34.5, 9.5], [44.5, 29.5, 54.5, 39.5])
    figure = show_attention(model, picture, threshold=1)
    assert box(figure) == [24.5, -0.5, 34.5, 9.5]
    assert "at least 100% of the maximum" in figure.get_supxlabel()
    monkeypatch.setattr(show, "attention_maps", lambda *_, **__: -torch.ones(1, 1, 5, 5))
    assert show_attention(model, picture).axes[1].patches[:] == []


def test_a_uniform_map_has_a_box_around_everything():
    figure = show_attention(create_model("vit_micro", pool="gap", num_classes=5), np.zeros((48, 48), np.uint8))
    assert box(figure) == [-0.5, -0.5, 47.5, 47.5]


def test_other_kinds_and_several_maps():
    model = create_model("vit_micro", pool="cls", num_classes=5)
    figure = show_attention(model, COLOURS, "cls", block=0, each_head=True)
    assert figure.axes[1].get_title() == "vit_micro, cls: cls"
    assert "mean of 3 maps, 6 × 6, not smoothed" in figure.get_supxlabel()
    plain = timm.create_model("resnet18", num_classes=5)
    assert show_attention(plain, COLOURS, "cam", target=2).axes[1].get_title() == "ResNet: cam"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2000, 1500)])
def test_pictures_of_any_size_and_proportion(model, size):
    figure = show_attention(model, np.zeros(size, np.uint8))
    figure.canvas.draw()
    assert isinstance(figure, Figure)
    assert max(drawn(figure)[0].shape) <= 1024
    assert all(figure.get_size_inches() < 12)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_nothing_of_the_callers_changes(model, style):
    with mpl.rc_context():
        mpl.style.use(style)
        before, training = dict(mpl.rcParams), model.training
        figure = show_attention(model, COLOURS, image_size=64)
        assert dict(mpl.rcParams) == before
        assert same_color(figure.get_facecolor(), before["figure.facecolor"])
    assert model.training == training and model.patch_embed.img_size == (48, 48)


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (7, {}, TypeError, "image: expected a path, PIL image, array or tensor, got int"),
        (torch.zeros(2, 3, 8, 8), {}, ValueError, r"one image only, got shape \(2, 3, 8, 8\)"),
        (np.zeros((0, 8)), {}, ValueError, r"got shape \(0, 8\)"),
        (np.zeros((8, 8, 2)), {}, ValueError, r"1, 3 or 4 channels first or last, .* \(8, 8, 2\)"),
        (torch.randn(3, 8, 8), {}, ValueError, r"floats from 0 to 1, got values from -.*denormalize"),
        (np.full((8, 8), np.nan), {}, ValueError, "got values from nan to nan"),
        (np.zeros((8, 8), np.int64), {}, ValueError, "expected uint8, uint16, bool or floats from 0 to 1, got int64"),
        (COLOURS, {"threshold": 1.5}, ValueError, "threshold: expected a share .* got 1.5"),
        (COLOURS, {"threshold": 0}, ValueError, "threshold: expected .* got 0"),
        (COLOURS, {"image_size": 50}, ValueError, r"expected multiples of the patch \(8, 8\), got \(50, 50\)"),
        (COLOURS, {"image_size": (64, 0)}, ValueError, "image_size: expected an int of at least 1, got 0"),
        (COLOURS, {"kind": "cls"}, ValueError, "'cls' does not exist for vit_micro with pool 'simpool'"),
    ],
)
def test_errors(model, image, options, error, message):
    with pytest.raises(error, match=message):
        show_attention(model, image, **options)


def test_errors_of_the_model():
    with pytest.raises(TypeError, match="model: expected a model of create_model"):
        show_attention("vit_micro", COLOURS)
    with pytest.raises(ValueError, match="weighs no positions"):
        show_attention(create_model("convnet_micro", pool="max"), COLOURS)
