"""Accuracy of a model on a data set.

Where several processes train one model, :func:`evaluate` takes its ``Accelerator``: each process then looks at its
share of the images, and all return the same figures, those of the whole data set.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..datasets import LabelledImages
from .attention import sharpness
from .batches import batches, is_shared


def evaluate(
    model: nn.Module,
    data: LabelledImages,
    device: torch.device,
    batch_size: int = 256,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Accuracy of a model on a data set and how sharp its attention is, in evaluation mode, in one pass.

    Returns:
        ``top1`` in percent; ``loss``, the cross-entropy; ``attention_entropy`` and ``logit_spread``, means over
        images and maps (see :func:`sharpness`), NaN for a model without ``last_attention``.
    """
    return evaluate_each(model, data, device, batch_size, accelerator)[0]


@torch.no_grad()
def evaluate_each(
    model: nn.Module,
    data: LabelledImages,
    device: torch.device,
    batch_size: int = 256,
    accelerator: Accelerator | None = None,
) -> tuple[dict[str, float], Tensor]:
    """The figures of :func:`evaluate`, and of each image whether it was classified correctly: bool ``(n,)``."""
    model.eval()
    sums, correct = torch.zeros(3, dtype=torch.float64), []
    for images, labels in batches(data, batch_size, accelerator):
        labels = labels.to(device)
        logits = model(images.to(device)).float()
        correct.append((logits.argmax(1) == labels).cpu())
        loss = F.cross_entropy(logits, labels, reduction="sum").item()
        attention = getattr(model, "last_attention", None)
        entropy, spread = (math.nan, math.nan) if attention is None else sharpness(attention)
        sums += torch.tensor([loss, len(labels) * entropy, len(labels) * spread], dtype=torch.float64)
    each = torch.cat(correct)
    if is_shared(accelerator):
        sums, each = accelerator.reduce(sums.to(device)), torch.cat(gather_object([each]))
    loss, entropy, spread = (sums / len(data)).tolist()
    top1 = 100 * each.sum().item() / len(data)
    return {"top1": top1, "loss": loss, "attention_entropy": entropy, "logit_spread": spread}, each
