"""How well maps find objects: boxes and points from score maps, beside boxes and masks that people drew.

A map is brought to the size of its image (bicubic) and stretched to 0 ... 1, as in Choe et al., "Evaluation for
weakly supervised object localization: protocol, metrics, and datasets" (2022). How much of a map lies on the object,
and its average precision, are in :mod:`simpool_lite.measure.attention`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_int
from .contours import contour_boxes

THRESHOLDS = np.arange(0, 1, 0.001)
# Maps are cut as bytes: byte > level. The thousand thresholds have these 255 different levels.
LEVELS = (THRESHOLDS * 255).astype(int)
NO_CONTOUR = np.zeros((255, 4), dtype=int)
TOGETHER = 8  # maps that are enlarged at a time: they stay in a processor's cache


def box_accuracy(
    maps: Tensor,
    boxes: Sequence[Tensor],
    image_size: int | tuple[int, int],
    iou: Sequence[float] = (0.3, 0.5, 0.7),
    contours: str = "all",
) -> dict[str, float | dict[float, float]]:
    """MaxBoxAcc and MaxBoxAccV2 (Choe et al. 2022): percent of images with a right box, at the best threshold.

    A map is cut at a share of its maximum, 0 to 0.999 in steps of 0.001; each contour of what stays has a bounding
    box, also the contour around a hole. An image is right where the overlap (IoU) of a box with any true box is at
    least ``iou``. The threshold is the best one for the data set. The figures are those of the paper's released
    code, with its pixel conventions (x1 and y1 exclusive but inside the image, widths plus one in the overlap). A
    constant map has no contour, and its box is the pixel (0, 0).

    Args:
        maps: Scores ``(n, H, W)``, any finite numbers.
        boxes: Per image ``(k, 4)`` of x0 y0 x1 y1 in pixels of an image of ``image_size``, k at least 1.
        image_size: (height, width), or the side of a square; the paper's is 224.
        iou: The overlaps to be reached.
        contours: "all" (V2: the best of all boxes) or "largest" (V1: the box of the contour with the largest area).

    Returns:
        ``max_box_acc``, percent per overlap; ``threshold``, the best threshold per overlap (the lowest of equals);
        ``max_box_acc_v2``, the mean of ``max_box_acc`` over the overlaps.

    Raises:
        ValueError: a map with NaN or infinity, an image without a box, numbers of maps and boxes that differ.

    >>> maps = torch.zeros(1, 8, 8)
    >>> maps[0, 2:5, 1:4] = 1
    >>> box_accuracy(maps, [torch.tensor([[1, 2, 4, 5]])], 8)["max_box_acc"]
    {0.3: 100.0, 0.5: 100.0, 0.7: 100.0}
    """
    right = box_hits(maps, boxes, image_size, iou, contours).sum(1)
    percent = 100 * right[:, LEVELS] / len(maps)
    best = percent.argmax(1)
    return {
        "max_box_acc_v2": float(percent.max(1).mean()),
        "max_box_acc": {x: float(row.max()) for x, row in zip(iou, percent, strict=True)},
        "threshold": {x: float(THRESHOLDS[at]) for x, at in zip(iou, best, strict=True)},
    }


def box_hits(
    maps: Tensor,
    boxes: Sequence[Tensor],
    image_size: int | tuple[int, int],
    iou: Sequence[float] = (0.3, 0.5, 0.7),
    contours: str = "all",
) -> np.ndarray:
    """Of each image and at each threshold, whether :func:`box_accuracy` counts it as right.

    Args:
        maps, boxes, image_size, iou, contours: as there.

    Returns:
        Bool (overlaps, images, 255): maps are cut as bytes, byte > level, with the levels 0 to 254.
    """
    check_choice("contours", contours, ("all", "largest"))
    maps, size = check_finite("maps", maps), check_size(image_size)
    boxes = _check_boxes(boxes, len(maps))
    if not iou or not all(0 < x <= 1 for x in iou):
        raise ValueError(f"iou: expected overlaps above 0 and up to 1, got {iou!r}")
    parts = [boxes[start : start + TOGETHER] for start in range(0, len(boxes), TOGETHER)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # numpy lets other threads run while it computes
        best = list(threads.map(_best_overlaps, maps.split(TOGETHER), parts, repeat(size), repeat(contours)))
    return np.concatenate(best) >= np.array(iou)[:, None, None]


def _best_overlaps(maps: Tensor, boxes: list[Tensor], size: tuple[int, int], contours: str) -> np.ndarray:
    """Of each map and at each level the largest overlap of a contour's box with a true one, ``(n, 255)``."""
    best = np.zeros((len(maps), 255))
    for row, scores, truth in zip(best, stretched(maps, size), boxes, strict=True):
        constant = scores.min() == scores.max()
        levels, found = (np.arange(255), NO_CONTOUR) if constant else contour_boxes(scores, contours)
        np.maximum.at(row, levels, _overlap_plus_one(found, truth.numpy()).max(0))
    return best


def largest_boxes(maps: Tensor, image_size: int | tuple[int, int], threshold: float) -> Tensor:
    """The box of each map's contour with the largest area, cut as for :func:`box_accuracy` at one threshold.

    Args:
        maps: Scores ``(n, H, W)``.
        image_size: (height, width), or the side of a square.
        threshold: Share of the maximum, from 0 to below 1.

    Returns:
        ``(n, 4)`` of x0 y0 x1 y1 in pixels, int64; of a constant map the pixel (0, 0).

    Raises:
        ValueError: a map with NaN or infinity, a threshold out of its range.

    >>> maps = torch.zeros(1, 8, 8)
    >>> maps[0, 2:5, 1:4] = 1
    >>> largest_boxes(maps, 8, 0.5)
    tensor([[1, 2, 4, 5]])
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: expected a share of the maximum from 0 to below 1, got {threshold!r}")
    found = []
    for scores in stretched(check_finite("maps", maps), check_size(image_size)):
        constant = scores.min() == scores.max()
        levels, boxes = (np.arange(255), NO_CONTOUR) if constant else contour_boxes(scores, "largest")
        found.append(boxes[levels == int(threshold * 255)][0])
    return torch.as_tensor(np.stack(found)).long()


def pointing_game(
    maps: Tensor, boxes: Sequence[Tensor] | Tensor, image_size: int | tuple[int, int] | None = None
) -> float:
    """Percent of images whose highest pixel lies on the object (Zhang et al., "Top-down neural attention", 2018).

    There is no tolerance around the object. Where several pixels are the highest, their share on the object counts,
    so a constant map scores the object's share of the image.

    Args:
        maps: Scores ``(n, H, W)``.
        boxes: Per image ``(k, 4)`` of x0 y0 x1 y1 in pixels, x1 and y1 exclusive; or bool masks ``(n, height, width)``.
        image_size: (height, width), or the side of a square; not needed with masks.

    Raises:
        ValueError: a map with NaN or infinity, an image without a box, sizes or numbers that do not fit.

    >>> maps = torch.zeros(2, 8, 8)
    >>> maps[0, 2, 1] = maps[1, 7, 7] = 1
    >>> pointing_game(maps, [torch.tensor([[1, 2, 4, 5]])] * 2, 8)
    50.0
    """
    maps = check_finite("maps", maps)
    if isinstance(boxes, Tensor) and boxes.dtype == torch.bool:
        masks = _check_masks(boxes, len(maps), image_size)
        objects = iter(masks.numpy())
        size = tuple(masks.shape[1:])
    elif image_size is None:
        raise ValueError("image_size: expected (height, width) beside boxes, got None; only masks go without")
    else:
        size = check_size(image_size)
        objects = (_inside(truth.numpy(), size) for truth in _check_boxes(boxes, len(maps)))
    hits = [on[scores == scores.max()].mean() for on, scores in zip(objects, stretched(maps, size), strict=True)]
    return 100 * float(np.mean(hits))


def corloc(predicted_boxes: Tensor, boxes: Sequence[Tensor]) -> float:
    """CorLoc: percent of images whose predicted box overlaps a true box by more than a half (IoU > 0.5).

    Args:
        predicted_boxes: One box per image, ``(n, 4)`` of x0 y0 x1 y1, x1 and y1 exclusive.
        boxes: Per image the true boxes ``(k, 4)``, k at least 1.

    Raises:
        ValueError: a box with NaN or infinity, an image without a true box, numbers that differ.

    >>> corloc(torch.tensor([[0, 0, 4, 4], [0, 0, 4, 4]]), [torch.tensor([[0, 0, 4, 3]]), torch.tensor([[0, 0, 4, 2]])])
    50.0
    """
    from torchvision.ops import box_iou

    predicted = check_finite("predicted_boxes", predicted_boxes, "(n, 4)")
    pairs = zip(predicted, _check_boxes(boxes, len(predicted)), strict=True)
    return 100 * sum((box_iou(box[None], truth) > 0.5).any().item() for box, truth in pairs) / len(predicted)


def best_mean_iou(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Overlap (IoU) of maps and masks, mean over the images with an object, at the best threshold for the data set.

    Maps are cut as for :func:`box_accuracy`.

    Args:
        maps: Scores ``(n, H, W)``.
        masks: Bool ``(n, height, width)``; maps are brought to this size.

    Returns:
        ``best_mean_iou`` in percent; ``threshold``, the lowest of the best ones.

    Raises:
        ValueError: a map with NaN or infinity, no mask with an object, numbers that differ.

    >>> masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> masks[0, 1:3, 1:3] = True
    >>> best_mean_iou(masks.float(), masks)
    {'best_mean_iou': 100.0, 'threshold': 0.0}
    """
    maps = check_finite("maps", maps)
    masks = _check_masks(masks, len(maps))
    there = masks.flatten(1).any(1)
    if not there.any():
        raise ValueError("masks: expected an object on at least one image, got none")
    total = np.zeros(255)
    pairs = zip(stretched(maps[there], tuple(masks.shape[1:])), masks[there].numpy(), strict=True)
    for scores, on in pairs:
        levels = (scores * 255).astype(np.uint8)
        above = [np.bincount(part, minlength=256)[::-1].cumsum()[::-1][1:] for part in (levels[on], levels.ravel())]
        total += above[0] / (above[1] + on.sum() - above[0])
    mean = 100 * total[LEVELS] / int(there.sum())
    return {"best_mean_iou": float(mean.max()), "threshold": float(THRESHOLDS[mean.argmax()])}


def stretched(maps: Tensor, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Maps ``(n, H, W)`` one by one at the size of their images and from 0 to 1, float64; a constant one is all 1."""
    for some in maps.split(TOGETHER):
        constant = some.amax((1, 2)) == some.amin((1, 2))  # before interpolation, whose rounding makes it look varied
        if some.shape[1:] != size:
            some = F.interpolate(some[:, None], size=size, mode="bicubic")[:, 0]
        some = some - some.amin((1, 2), keepdim=True)
        highest = some.amax((1, 2), keepdim=True)
        constant = constant[:, None, None] | (highest == 0)
        yield from torch.where(constant, 1, some / highest).numpy()


def check_finite(name: str, values: Tensor, shape: str = "(n, H, W)") -> Tensor:
    """``values`` in float64 on the CPU.

    Raises:
        ValueError: they are not of that shape, or those of an image, which the message names, are not all finite.
    """
    if values.ndim != len(shape.split(",")) or not values.numel() or (shape == "(n, 4)" and values.shape[1] != 4):
        raise ValueError(f"{name}: expected a tensor {shape}, got {tuple(values.shape)}")
    finite = values.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0, 0])
        raise ValueError(f"{name}[{first}]: expected finite numbers, got NaN or infinity")
    return values.detach().cpu().double()


def check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """``image_size`` as (height, width); one number is the side of a square."""
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size: expected a side or (height, width), got {image_size!r}")
    return check_int("image_size", sides[0]), check_int("image_size", sides[1])


def _check_boxes(boxes: Sequence[Tensor], count: int) -> list[Tensor]:
    if len(boxes) != count:
        raise ValueError(f"boxes: expected one tensor of boxes per image, {count} of them, got {len(boxes)}")
    checked = []
    for index, box in enumerate(boxes):
        box = torch.as_tensor(box)
        if box.ndim != 2 or box.shape[1] != 4 or not len(box):
            raise ValueError(f"boxes[{index}]: expected (k, 4) with at least one box, got {tuple(box.shape)}")
        box = box.detach().cpu().double()
        if not (box[:, 2:] >= box[:, :2]).all():  # NaN, too
            raise ValueError(f"boxes[{index}]: expected x0 y0 x1 y1 with x1 >= x0 and y1 >= y0, got {box.tolist()}")
        checked.append(box)
    return checked


def _check_masks(masks: Tensor, count: int, image_size: int | tuple[int, int] | None = None) -> Tensor:
    if masks.ndim != 3 or masks.dtype != torch.bool or len(masks) != count:
        got = f"{masks.dtype} {tuple(masks.shape)}"
        raise ValueError(f"masks: expected one per map, torch.bool ({count}, height, width), got {got}")
    if image_size is not None and check_size(image_size) != tuple(masks.shape[1:]):
        raise ValueError(f"image_size: expected that of the masks, {tuple(masks.shape[1:])}, got {image_size!r}")
    return masks.cpu()


def _inside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres are in one of the boxes ``(k, 4)``, bool ``(height, width)``."""
    y, x = np.indices(size)[:, None] + 0.5
    x0, y0, x1, y1 = boxes.T[:, :, None, None]
    return ((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)).any(0)


def _overlap_plus_one(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU of boxes ``(m, 4)`` and ``(k, 4)`` with x1 and y1 counted as inside, ``(k, m)``."""
    x0, y0, x1, y1 = np.ascontiguousarray(found.T, dtype=float)  # whole rows of numbers are fast, rows of four are not
    left, top, right, bottom = truth.T[:, :, None]
    wide = np.minimum(x1, right) - np.maximum(x0, left) + 1
    high = np.minimum(y1, bottom) - np.maximum(y0, top) + 1
    shared = wide.clip(0) * high.clip(0)
    return shared / ((x1 - x0 + 1) * (y1 - y0 + 1) + (right - left + 1) * (bottom - top + 1) - shared)
