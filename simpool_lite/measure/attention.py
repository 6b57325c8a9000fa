"""How sharp a model's attention is, and how well it finds the object."""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..datasets import LabelledImages
from .batches import batches, is_shared

OBJECT_SHARE = 0.15  # a position of the map is object when more than this share of its area is


def sharpness(attention: Tensor) -> tuple[float, float]:
    """Entropy and logit spread of attention maps ``(B, M, ...)``, means over images and maps.

    The entropy is in nats: 0 for one position, ln N for a uniform map. The logit spread is the standard
    deviation of log a over the positions: of a softmax's map that is the spread of its logits, which the
    softmax only shifts. A weight of zero counts as the smallest positive one.

    >>> logits = torch.tensor([[[1.0, 3.0]]])
    >>> entropy, spread = sharpness(logits.softmax(-1))
    >>> round(entropy, 4), round(spread, 4)
    (0.3653, 1.0)
    """
    positive = attention.clamp_min(torch.finfo(attention.dtype).tiny)
    maps = positive.to(torch.promote_types(attention.dtype, torch.float32)).flatten(2)
    return torch.special.entr(maps).sum(-1).mean().item(), maps.log().std(-1, correction=0).mean().item()


def evaluate_attention(
    model: nn.Module,
    data: LabelledImages,
    device: torch.device,
    batch_size: int = 256,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """How well a model's attention finds the object, averaged over the images of a data set.

    Several maps of one image are averaged first.

    Returns:
        ``attention_mass``, the share of the attention on object positions (0 to 1; the object's share of the
        positions for a uniform map); ``attention_ap``, average precision of the map as a score for object
        positions; ``attention_entropy`` in nats (0 for one position, ln N for a uniform map). NaN for a model
        without a map, the first two also for data without masks.
    """
    try:
        maps = torch.cat(
            [
                model.attention(images.to(device)).float().mean(1).cpu()
                for images, _ in batches(data, batch_size, accelerator)
            ]
        )
    except ValueError:  # a pooling without a map
        return map_figures(None, data.masks)
    if is_shared(accelerator):
        maps = torch.cat(gather_object([maps]))
    return map_figures(maps, data.masks)


def map_figures(maps: Tensor | None, masks: Tensor | None) -> dict[str, float]:
    """The figures of :func:`evaluate_attention` from maps ``(n, H, W)`` and masks ``(n, h, w)``; NaN without them."""
    figures = dict.fromkeys(("attention_mass", "attention_ap", "attention_entropy"), math.nan)
    if maps is None:
        return figures
    figures["attention_entropy"] = torch.special.entr(maps).sum((1, 2)).mean().item()
    if masks is not None:
        objects = object_positions(masks, maps.shape[1:])
        figures["attention_mass"] = (maps * objects).sum((1, 2)).mean().item()
        figures["attention_ap"] = average_precision(maps, objects)
    return figures


def object_positions(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which positions of a map are object: masks ``(n, h, w)`` to bool ``(n, H, W)`` for the grid (H, W).

    >>> masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> masks[0, 0, 0] = True  # a quarter of the area of the first position
    >>> object_positions(masks, (2, 2)).tolist()
    [[[True, False], [False, False]]]
    """
    share = F.adaptive_avg_pool2d(masks.float(), tuple(grid))
    return share > OBJECT_SHARE


def average_precision(maps: Tensor, objects: Tensor) -> float:
    """Average precision of maps ``(n, H, W)`` as scores for object positions, mean over images with an object.

    Of one image: the mean, over its object positions, of the precision among all positions that score at least as high.
    That is scikit-learn's ``average_precision_score``, ties included, for all images at once.

    >>> average_precision(torch.tensor([[[0.5, 0.3, 0.2]]]), torch.tensor([[[True, False, True]]]))  # (1 + 2 / 3) / 2
    0.8333333333333333
    """
    total = number = 0
    for scores, truth in zip(maps.flatten(1).split(256), objects.flatten(1).split(256), strict=True):
        at_least = scores[:, None, :] >= scores[:, :, None]  # (n, N, N): is the last position as high as the other
        precision = (at_least & truth[:, None, :]).sum(-1).double() / at_least.sum(-1)
        positives = truth.sum(1)
        of_image = (precision * truth).sum(1) / positives
        total, number = total + of_image[positives > 0].sum().item(), number + (positives > 0).sum().item()
    return total / number
