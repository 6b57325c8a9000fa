"""Unsupervised object discovery, one box per image: DINO-seg from an attention map and LOST from patch features.

Compare the boxes with :func:`simpool_lite.measure.localisation.corloc`.
"""

import numpy as np
import torch
from torch import Tensor

from ..checks import check_int
from .localisation import check_finite, check_size

MASS = 0.6  # of the attention that DINO-seg keeps


def dino_seg_boxes(maps: Tensor, image_size: int | tuple[int, int]) -> Tensor:
    """Boxes by DINO-seg (Caron et al. 2021; as a baseline, Siméoni et al. 2021): where most of the attention is.

    The positions with the highest weights that hold 60 % of the sum are kept, with all that are equal to
    the lowest kept one; the box is that of the largest component (by sides, not corners; the first of equals).

    Siméoni et al.'s released code never looks at the last of the components, and returns the box of the background
    where there is only one; here all components count.

    Args:
        maps: Attention ``(n, H, W)``, at least 0; it need not sum to one.
        image_size: (height, width) of the image that a map covers, or the side of a square.

    Returns:
        ``(n, 4)``, x0 y0 x1 y1 in pixels, x1 and y1 exclusive.

    Raises:
        ValueError: a map with NaN, infinity or weights below 0.

    >>> maps = torch.tensor([[[0.0, 0.0, 0.0], [0.1, 0.5, 0.4]]])
    >>> dino_seg_boxes(maps, (20, 30)).tolist()
    [[10.0, 10.0, 30.0, 20.0]]
    """
    maps = check_finite("maps", maps)
    below = (maps < 0).flatten(1).any(1)
    if below.any():
        raise ValueError(f"maps[{int(below.nonzero()[0, 0])}]: expected weights of at least 0, got one below")
    weights = maps.flatten(1).sort(1).values
    sums = weights.cumsum(1)
    left_out = (sums <= (1 - MASS) * sums[:, -1:]).sum(1, keepdim=True).clamp(max=weights.shape[1] - 1)
    kept = maps >= weights.gather(1, left_out)[:, None]
    return torch.stack([_box(each, check_size(image_size)) for each in kept.numpy()])


def lost_boxes(features: Tensor, grid: tuple[int, int], image_size: int | tuple[int, int], k: int = 100) -> Tensor:
    """Boxes by LOST (Siméoni et al., "Localizing objects with self-supervised transformers and no labels", 2021).

    Two patches are alike when their features' inner product is above 0. The seed is the patch that is like the fewest
    others, on the assumption that objects cover less than the background. Of the ``k`` patches like the fewest
    others those like the seed stay, and the mask is where the sum of inner products with them is above 0. The
    box is that of the mask's component (by sides, not corners) with the seed. Of patches that are like equally many
    the first in reading order comes first; the released code leaves that to the sort, and its box can differ.

    Args:
        features: Patches ``(n, N, d)`` in reading order, no CLS token; the paper's are the keys of the last layer.
        grid: Rows and columns of patches, N = rows × columns.
        image_size: (height, width) of the image that the grid covers, or the side of a square.

    Returns:
        ``(n, 4)``, x0 y0 x1 y1 in pixels, x1 and y1 exclusive.

    Raises:
        ValueError: features with NaN or infinity, a grid that is not N patches.

    >>> features = torch.tensor([[[-1.0], [1.0], [-1.0], [-1.0], [1.0], [-1.0]]])
    >>> lost_boxes(features, (2, 3), (20, 30)).tolist()
    [[10.0, 0.0, 20.0, 20.0]]
    """
    features = check_finite("features", features, "(n, N, d)")
    check_int("k", k)
    size, (rows, columns) = check_size(image_size), check_size(grid)
    if rows * columns != features.shape[1]:
        raise ValueError(f"grid: expected rows × columns = {features.shape[1]} patches, got {grid!r}")
    boxes = []
    for patches in features:
        products = patches @ patches.T
        alike = products > 0
        degrees = alike.sum(1) - alike.diagonal().long()
        order = degrees.argsort(stable=True)  # the first of equals in reading order
        seed, chosen = order[0], order[:k]
        mask = products[chosen[alike[seed, chosen]]].sum(0) > 0
        mask[seed] = True  # also a seed of zeros, which is not even like itself
        boxes.append(_box(mask.reshape(rows, columns).numpy(), size, int(seed)))
    return torch.stack(boxes)


def _box(mask: np.ndarray, size: tuple[int, int], seed: int | None = None) -> Tensor:
    """The box of a mask's component with the position ``seed``, or of the largest one, in pixels of an image."""
    from scipy.ndimage import find_objects, label

    parts, _ = label(mask)
    part = np.bincount(parts[mask]).argmax() if seed is None else parts.flat[seed]
    rows, columns = find_objects((parts == part).astype(int))[0]
    height, width = size[0] / mask.shape[0], size[1] / mask.shape[1]
    return torch.tensor([columns.start * width, rows.start * height, columns.stop * width, rows.stop * height])
