"""Attention maps over their images."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from ..measure.localisation import box_accuracy, largest_boxes, stretched


def attention_grid(
    images: Tensor,
    maps: Mapping[str, Tensor | None] | None = None,
    *,
    masks: Tensor | None = None,
    boxes: Mapping[str, Tensor] | None = None,
    titles: Mapping[str, Sequence[object]] | Sequence[object] = (),
    title: str = "",
    across: bool = False,
    columns: int | None = None,
    vmax: float | None = None,
    size: float = 1.35,
) -> Figure:
    """One row per method and one column per image: where each method looks.

    An attention map lies over its image in grey. Dark is no attention, bright the most: the colour scale goes from 0
    to the map's own maximum, or to ``vmax`` for all maps, which makes them comparable. Each weight is drawn as a
    square of one colour (nearest neighbour, no smoothing).

    Args:
        images: ``(n, 3, h, w)``, values 0 to 1; a single one, ``(1, 3, h, w)``, stands behind all n maps of a row.
        maps: what each row shows, by the name at its left: attention ``(n, H, W)``; colours ``(n, 3, H, W)``, shown
            as they are; or None, the images themselves. By default one row with the images.
        masks: objects ``(n, h, w)``, outlined in white on everything but the images themselves.
        boxes: by the row's name, one box per image ``(n, 4)``, drawn in cyan: the edges x0 y0 x1 y1 in pixels, the
            image from 0 to its width and height; NaN is no box.
        titles: by the row's name, a text above each cell; a plain sequence belongs to the first row.
        title: the figure's message.
        across: one column per method, its name above, and one row per image.
        columns: begin a new row of the figure after this many cells.
        vmax: the attention that is drawn brightest.
        size: width of a cell in inches.

    Raises:
        ValueError: a shape does not fit, or a name of ``boxes`` or ``titles`` is not a row's.

    >>> import torch
    >>> images, a = torch.rand(4, 3, 48, 48), torch.rand(4, 6, 12, 12)  # six heads
    >>> heads = {f"head {m}": a[:, m] for m in range(6)}
    >>> figure = attention_grid(images, {"image": None} | heads, title="Six heads look at four images")
    >>> figure = attention_grid(images[:1], {"SimPool": a[0]}, titles=list(heads))  # one image, heads side by side
    """
    rows = {"": None} if maps is None else dict(maps)
    n = max(len(shown) for shown in (images, *rows.values()) if shown is not None)
    boxes = boxes or {}
    if not isinstance(titles, Mapping):
        titles = {next(iter(rows)): titles} if len(titles) else {}
    if len(images) == 1:
        images = images.expand(n, -1, -1, -1)
    _check_shapes(n, images, rows, masks, boxes, titles)
    names, height, width = list(rows), *images.shape[-2:]
    cells = [(name, i) for name in names for i in range(n)]
    if across:
        cells.sort(key=lambda cell: cell[1])
    columns = columns or (len(names) if across else n)
    deep = -(-len(cells) // columns)
    label_room, title_room = 0 if across else 0.4, 0.4 * bool(title) + 0.2 * deep * bool(titles or across)
    figure, axes = plt.subplots(
        deep, columns, figsize=(size * columns + label_room, size * height / width * deep + title_room), squeeze=False,
        layout="compressed",
    )  # fmt: skip
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, (name, i) in zip(axes.flat, cells, strict=False):
        draw(axis, images[i], None if rows[name] is None else rows[name][i], vmax)
        if masks is not None and rows[name] is not None and masks[i].any():
            axis.contour(_array(masks[i]), levels=[0.5], colors="white", linewidths=1.2)
        if name in boxes and not boxes[name][i].isnan().any():
            x0, y0, x1, y1 = boxes[name][i].tolist()
            axis.add_patch(
                Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="cyan", linewidth=1.5)
            )
        above = [name] if across and i == 0 else []
        above += [str(titles[name][i])] if name in titles else []
        axis.set_title("\n".join(above), fontsize=10)
        if i == 0 and not across:
            axis.set_ylabel(name, fontsize=10)
    figure.suptitle(title)
    return figure


def localisation_grid(
    images: Tensor, boxes: Sequence[Tensor], maps: Mapping[str, Tensor], *, at_most: int = 8, title: str = ""
) -> Figure:
    """Photographs, and below each where every method looks: drawn boxes in white, the box of the map in cyan.

    The box of a map is that of its contour with the largest area at the method's best threshold for an overlap of 0.5,
    the same for all photographs of the method. Photographs are taken at equal distances from the whole set.

    Args:
        images: ``(n, 3, h, w)``, values 0 to 1.
        boxes: per image the drawn boxes ``(k, 4)``.
        maps: by method ``(n, H, W)``; smoothed as they are measured, bicubic, to the images' size.
        at_most: number of photographs.
        title: the figure's message.
    """
    size = tuple(images.shape[-2:])
    shown = np.unique(np.linspace(0, len(images) - 1, min(at_most, len(images))).round().astype(int))
    y, x = np.indices(size) + 0.5
    masks = [
        [(x0 <= x) & (x < x1) & (y0 <= y) & (y < y1) for x0, y0, x1, y1 in boxes[i].tolist()] for i in shown.tolist()
    ]
    rows, found = {"photograph": None}, {}
    for name, values in maps.items():
        threshold = box_accuracy(values, boxes, size, (0.5,))["threshold"][0.5]
        found[name] = largest_boxes(values[shown], size, threshold).float()
        rows[name] = torch.from_numpy(np.stack(list(stretched(values[shown].double(), size))))
    outlines = torch.from_numpy(np.stack([np.any(of_image, axis=0) for of_image in masks]))
    return attention_grid(images[shown], rows, masks=outlines, boxes=found, title=title)


def draw(
    axis: Axes,
    image: Tensor,
    shown: Tensor | None,
    vmax: float | None = None,
    *,
    place: Sequence[float] | None = None,
    map_place: Sequence[float] | None = None,
) -> AxesImage:
    """The image, colours in its place, or attention over it, all in the image's pixels.

    ``place`` and ``map_place``, by default ``place``, are other edges x0 y0 x1 y1, where ``image`` is a smaller copy.
    """
    place = (0, 0, image.shape[2], image.shape[1]) if place is None else place
    if shown is None or shown.ndim == 3:
        return axis.imshow(_array(image if shown is None else shown).transpose(1, 2, 0), **_pixels(place))
    axis.imshow(_array(image).mean(0), cmap="gray", **_pixels(place))
    place = place if map_place is None else map_place
    return axis.imshow(_array(shown), cmap="inferno", alpha=0.75, vmin=0, vmax=vmax, **_pixels(place))


def _pixels(place: Sequence[float]) -> dict[str, object]:
    x0, y0, x1, y1 = place
    return {"extent": (x0 - 0.5, x1 - 0.5, y1 - 0.5, y0 - 0.5), "interpolation": "nearest"}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _check_shapes(n: int, images: Tensor, rows: Mapping, masks: Tensor | None, boxes: Mapping, titles: Mapping) -> None:
    """Raise a ValueError that names the argument which does not fit n images."""
    expected = {"images": (images, f"({n}, 3, h, w)", images.shape[:-2] == (n, 3))}
    for name, shown in rows.items():
        fits = shown is None or shown.shape[:-2] in [(n,), (n, 3)]
        expected[f"maps[{name!r}]"] = shown, f"({n}, H, W) or ({n}, 3, H, W)", fits
    size = (n, *images.shape[-2:])
    expected["masks"] = masks, str(size), masks is None or masks.shape == size
    expected |= {f"boxes[{name!r}]": (part, f"({n}, 4)", part.shape == (n, 4)) for name, part in boxes.items()}
    for argument, (given, shape, fits) in expected.items():
        if not fits:
            raise ValueError(f"{argument}: expected a tensor {shape}, got {tuple(given.shape)}")
    if unknown := [name for name in (*boxes, *titles) if name not in rows]:
        raise ValueError(f"boxes, titles: expected names of rows ({', '.join(rows)}), got {', '.join(unknown)}")
    if wrong := [name for name, texts in titles.items() if len(texts) != n]:
        raise ValueError(f"titles: expected {n} texts per row, got {len(titles[wrong[0]])} for {wrong[0]!r}")
