"""Train poolings on frozen features: many heads at once, each batch of features read once for all of them.

A head is a pooling, a BatchNorm without affine parameters and a linear classifier, as in attentive probing (Psomas et
al., "Attention, Please! Revisiting Attentive Probing", 2025).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from ..pooling import create_pool


class Head(nn.Module):
    """A pooling and a classifier: features ``(B, N, d)`` to logits ``(B, num_classes)``.

    Args:
        pool: a name for :func:`~simpool_lite.create_pool`.
        dim: d.
        num_classes: of the classifier.
        max_logits: of a pooling into k vectors, classify each and take the largest logit of each class; otherwise they
            are concatenated.
        **pool_kwargs: arguments of the pooling.

    >>> Head("simpool", 64, 10)(torch.randn(2, 16, 64), grid=(4, 4))[0].shape
    torch.Size([2, 10])
    """

    def __init__(self, pool: str, dim: int, num_classes: int, *, max_logits: bool = False, **pool_kwargs) -> None:
        super().__init__()
        self.pooling = create_pool(pool, dim, **pool_kwargs)
        self.vectors = self.pooling.out_dim // dim if max_logits else 1
        width = self.pooling.out_dim // self.vectors
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, features: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Logits and the pooling's map ``(B, M, N)`` or None."""
        pooled, attention = self.pooling(features, grid=grid, return_attention=True)
        logits = self.classifier(self.norm(pooled.reshape(len(features) * self.vectors, -1)))
        return logits.reshape(len(features), self.vectors, -1).amax(1), attention


def train_heads(
    heads: list[nn.Module],
    rates: list[float],
    features: Tensor,
    labels: Tensor,
    grid: tuple[int, int],
    *,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    seed: int,
    progress: bool = True,
) -> list[list[float]]:
    """Train heads on the same batches of features, each as if it were alone: AdamW, one cycle.

    Args:
        heads: of the class :class:`Head`, on the device of the features; trained in place.
        rates: the maximum of each head's learning rate.
        features: ``(n, N, d)``, or whatever gives such tensors by ``features[index]``.
        labels: ``(n,)``.
        grid: of the N positions.
        epochs: passes over the features.
        batch_size: features per step; the last incomplete batch is left out.
        weight_decay: of AdamW.
        seed: of the order.
        progress: show a bar over the epochs.

    Returns:
        For each head its mean training loss per epoch; infinite or NaN where it diverged, which stops no other head.
    """
    groups = [{"params": list(head.parameters()), "lr": rate} for head, rate in zip(heads, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
    batch_size = min(batch_size, len(labels))
    steps = len(labels) // batch_size
    schedule = OneCycleLR(optimizer, rates, total_steps=epochs * steps)
    order = torch.Generator().manual_seed(seed)
    curves: list[list[float]] = [[] for _ in heads]
    for _ in tqdm(range(epochs), "heads", disable=not progress):
        losses = torch.zeros(len(heads), device=labels.device)
        for index in torch.randperm(len(labels), generator=order)[: steps * batch_size].split(batch_size):
            batch, target = features[index].float(), labels[index]
            for number, head in enumerate(heads):
                head.train()
                loss = F.cross_entropy(head(batch, grid)[0], target)
                loss.backward()
                losses[number] += loss.detach()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        for curve, loss in zip(curves, (losses / steps).tolist(), strict=True):
            curve.append(loss)
    return curves


@torch.no_grad()
def measure_head(
    head: nn.Module, features: Tensor, labels: Tensor, grid: tuple[int, int], batch_size: int = 512
) -> tuple[Tensor, float, Tensor | None]:
    """Of each image whether the head is right, bool ``(n,)``; the mean loss; the maps ``(n, H, W)``, mean over M."""
    head.eval()
    correct, maps, loss = [], [], 0.0
    for batch, target in zip(features.split(batch_size), labels.split(batch_size), strict=True):
        logits, attention = head(batch.float(), grid)
        correct.append(logits.argmax(1) == target)
        loss += F.cross_entropy(logits, target, reduction="sum").item()
        if attention is not None:
            maps.append(attention.mean(1).unflatten(-1, grid))
    return torch.cat(correct).cpu(), loss / len(labels), torch.cat(maps).cpu() if maps else None
