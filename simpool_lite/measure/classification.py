"""Accuracy of a model on a data set.

Where several processes train one model, :func:`evaluate` takes its ``Accelerator``: each process then looks at its
share of the images, and all return the same figures, those of the whole data set.
"""

import math

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from ..datasets import LabelledImages
from .attention import sharpness
from .batches import batches, is_shared


@torch.no_grad()
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
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for images, labels in batches(data, batch_size, accelerator):
        labels = labels.to(device)
        logits = model(images.to(device)).float()
        correct = (logits.argmax(1) == labels).sum().item()
        loss = F.cross_entropy(logits, labels, reduction="sum").item()
        attention = getattr(model, "last_attention", None)
        entropy, spread = (math.nan, math.nan) if attention is None else sharpness(attention)
        sums += torch.tensor([correct, loss, len(labels) * entropy, len(labels) * spread], dtype=torch.float64)
    if is_shared(accelerator):
        sums = accelerator.reduce(sums.to(device))
    correct, loss, entropy, spread = sums.tolist()
    n = len(data)
    return {"top1": 100 * correct / n, "loss": loss / n, "attention_entropy": entropy / n, "logit_spread": spread / n}
