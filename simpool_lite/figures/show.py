"""One photograph, and where a model looks in it."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor, nn

from ..checks import check_int, check_number
from ..datasets.images import open_image, to_rgb
from ..measure.maps import attention_maps
from .maps import draw

SHOWN_PIXELS = 1024  # a photograph's longer side in the figure; more would only make it slow
FULL_SCALE = {"bool": 1, "uint8": 255, "uint16": 65535}  # white; of floats it is 1


def show_attention(
    model: nn.Module,
    image: str | Path | Image.Image | np.ndarray | Tensor,
    kind: str = "pool",
    *,
    threshold: float = 0.2,
    image_size: int | tuple[int, int] | None = None,
    **options: object,
) -> Figure:
    """Draw a photograph, and over it where a model looks.

    At the left the photograph, with a dashed frame around what the model sees if that is not all of it. At the right
    the map over the photograph in grey, each position a square of one colour (nearest neighbour); several maps are
    averaged. The colour bar goes from 0 to the map's maximum, and what is below 0 is drawn as 0. The cyan box bounds
    the largest connected region of at least ``threshold`` times the maximum (Zhou et al. 2016, section 3.2, with their
    20 %); positions that touch at a corner are connected. A map without a value above 0 has no box.

    Args:
        model: made by :func:`~simpool_lite.create_model`, or any timm model that has the kind of map.
        image: a path; a PIL image; or an array or tensor, grey ``(h, w)`` or with 1, 3 (RGB) or 4 (RGBA) channels
            first or last, of type uint8, uint16, bool or float from 0 to 1. Not normalised; of any size.
        kind: see :func:`simpool_lite.measure.maps.attention_maps`.
        threshold: share of the map's maximum, above 0 and at most 1.
        image_size: pixels, one number or (height, width), of what the model is given; the photograph is scaled and
            its largest central part of these proportions is taken. By default the size that the model was
            made for (``img_size``), else that of its timm configuration; with its evaluation crop.
        **options: of ``attention_maps``: ``block``, ``each_head``, ``target``.

    Returns:
        A figure with the photograph, the map over it and a colour bar. Coordinates are the photograph's pixels.

    Raises:
        TypeError: ``model`` is no model, or ``image`` none of the above.
        ValueError: the file or array cannot be read as an image; the model has no map of that kind; a number is out
            of its range.
        FileNotFoundError: there is no such file.

    >>> from simpool_lite import create_model
    >>> model = create_model("vit_micro", pool="simpool", num_classes=10)
    >>> figure = show_attention(model, torch.rand(3, 60, 80))
    >>> [axis.get_title() for axis in figure.axes[:2]]
    ['80 × 60 pixels', 'vit_micro, simpool']
    """
    if not 0 < check_number("threshold", threshold) <= 1:
        raise ValueError(f"threshold: expected a share of the map's maximum, above 0 and at most 1, got {threshold!r}")
    photograph = _photograph(image)
    pixels, crop = model_input(model, photograph, image_size)
    maps = attention_maps(model, pixels, kind, **options)[0].float().cpu()
    return _figure(photograph, crop, maps, threshold, _name(model, kind))


def _photograph(image: object) -> Image.Image:
    """Anything that is an image as 8-bit RGB."""
    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"image: expected a path, PIL image, array or tensor, got {type(image).__name__}")
    values = image
    if isinstance(image, Tensor):
        values = image.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[..., None]
    channels_first = values.ndim == 3 and values.shape[0] in (1, 3, 4)
    channels_last = values.ndim == 3 and values.shape[2] in (1, 3, 4)
    if not values.size or not (channels_first or channels_last):
        raise ValueError(
            "image: expected (h, w) or 1, 3 or 4 channels first or last, one image only, "
            f"got shape {tuple(image.shape)}"
        )
    if channels_first and (isinstance(image, Tensor) or not channels_last):  # where both fit, each library's own order
        values = np.moveaxis(values, 0, 2)
    white = 1 if values.dtype.kind == "f" else FULL_SCALE.get(values.dtype.name)
    if white is None:
        raise ValueError(f"image: expected uint8, uint16, bool or floats from 0 to 1, got {values.dtype}")
    if not (values.min() >= 0 and values.max() <= white):  # NaN fails, too
        raise ValueError(
            f"image: expected floats from 0 to 1, got values from {values.min():.3g} to {values.max():.3g}; "
            "undo the normalisation (data.denormalize(image)) or divide by 255"
        )
    values = np.rint(values.astype(np.float64) / white * 255).astype(np.uint8)
    return to_rgb(Image.fromarray(values[..., 0] if values.shape[2] == 1 else values))


def model_input(
    model: nn.Module, photograph: Image.Image, image_size: int | tuple[int, int] | None
) -> tuple[Tensor, tuple[float, float, float, float]]:
    """What the model is given, ``(1, 3, h, w)``, and which part of the photograph that is: x0, y0, x1, y1 in pixels."""
    import timm
    from timm.data import resolve_data_config
    from timm.data.transforms import str_to_pil_interp
    from timm.layers import to_2tuple

    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a model of create_model() or timm, got {type(model).__name__}")
    config = getattr(model, "pretrained_cfg", None)
    if not config and hasattr(model, "create_config"):  # timm writes it into the models of its own builder only
        config = timm.get_pretrained_cfg(model.create_config["backbone"]).to_dict()
    config = resolve_data_config(pretrained_cfg=config, model=model)
    squash, share = False, 1.0
    if image_size is None:
        own = getattr(getattr(model, "patch_embed", None), "img_size", None)
        own = own or getattr(model, "create_config", {}).get("img_size")  # a ConvNet has no other note of it
        height, width = to_2tuple(own or config["input_size"][-2:])
        squash = config["crop_mode"] == "squash"
        share = height / math.floor(height / config["crop_pct"])  # of the shorter side, as timm rounds it
    elif isinstance(image_size, tuple | list) and len(image_size) == 2:
        height, width = (check_int("image_size", side) for side in image_size)
    else:
        height = width = check_int("image_size", image_size)
    w, h = photograph.size
    scale = share * min(w / width, h / height)  # of the photograph's pixels in one of the model's
    across, down = (share * w, share * h) if squash else (scale * width, scale * height)
    x0, y0 = max(0.0, (w - across) / 2), max(0.0, (h - down) / 2)
    crop = x0, y0, w - x0, h - y0
    seen = photograph.resize((width, height), str_to_pil_interp(config["interpolation"]), box=crop)
    parameter = next(model.parameters())
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    pixels = (_channels_first(seen) - mean) / std
    return pixels[None].to(parameter.device, parameter.dtype), crop


def _name(model: nn.Module, kind: str) -> str:
    config = getattr(model, "create_config", None)
    name = f"{config['backbone']}, {config['pool']}" if config else type(model).__name__
    return name if kind == "pool" else f"{name}: {kind}"


def _figure(photograph: Image.Image, crop: tuple[float, ...], maps: Tensor, threshold: float, name: str) -> Figure:
    w, h = photograph.size
    stacked = w > 1.8 * h
    inches = (6.5 if stacked else 4.2) / max(w, h)
    width, height = max(2.4, inches * w), max(1.0, inches * h)
    size = (width + 1, 2 * height + 1) if stacked else (2 * width + 1, height + 0.9)
    figure, axes = plt.subplots(*((2, 1) if stacked else (1, 2)), figsize=size, layout="constrained")
    shown = photograph.copy()
    shown.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    pixels, whole = _channels_first(shown), (0.0, 0.0, float(w), float(h))
    attention = maps.mean(0)
    greatest = max(attention.max().item(), 0.0)
    draw(axes[0], pixels, None, place=whole)
    overlay = draw(axes[1], pixels, attention, greatest or 1.0, place=whole, map_place=crop)
    for axis in axes:
        axis.set(xticks=[], yticks=[], frame_on=False, xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))
    axes[0].set_title(f"{w} × {h} pixels", fontsize=10)
    axes[1].set_title(name, fontsize=10)
    if crop != whole:
        _frame(axes[0], crop, edgecolor="white", linestyle="--", linewidth=1.5)
    if greatest > 0:
        _frame(axes[1], largest_region(attention, threshold * greatest, crop), edgecolor="cyan", linewidth=2)
    beside = axes[1].inset_axes((1.03, 0, 0.04 * max(1, h / w), 1))  # as high as the picture, whatever its proportions
    bar = figure.colorbar(overlay, cax=beside)
    bar.solids.set(alpha=1)
    bar.set_ticks([0, threshold * greatest, greatest], labels=["0", f"{threshold:.0%}", f"{greatest:.2g}"])
    bar.ax.axhline(threshold * greatest, color="cyan", linewidth=2)
    form = (
        f"{maps.shape[1]} × {maps.shape[2]} map" if len(maps) == 1 else "mean of {} maps, {} × {}".format(*maps.shape)
    )
    box = f"box: largest region of at least {threshold:.0%} of the maximum"
    figure.supxlabel(f"{form}, not smoothed\n{box}", fontsize=9)
    return figure


def largest_region(attention: Tensor, least: float, crop: tuple[float, ...]) -> tuple[float, ...]:
    """x0, y0, x1, y1 in the photograph's pixels of the map's largest region of at least that value."""
    from scipy import ndimage

    regions, _ = ndimage.label((attention >= least).numpy(), np.ones((3, 3)))
    largest = np.bincount(regions.ravel())[1:].argmax() + 1  # 0 is what is below
    rows, columns = ndimage.find_objects(regions)[largest - 1]
    (height, width), (x0, y0, x1, y1) = attention.shape, crop
    across, down = (x1 - x0) / width, (y1 - y0) / height
    return x0 + columns.start * across, y0 + rows.start * down, x0 + columns.stop * across, y0 + rows.stop * down


def _frame(axis: Axes, box: tuple[float, ...], **look: object) -> None:
    x0, y0, x1, y1 = box
    outline = [withStroke(linewidth=3.5, foreground="black")]  # visible on bright pictures, too
    corner = x0 - 0.5, y0 - 0.5  # pixel 0 begins at -0.5
    axis.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, path_effects=outline, **look))


def _channels_first(image: Image.Image) -> Tensor:
    """An RGB image as ``(3, h, w)``, values 0 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
