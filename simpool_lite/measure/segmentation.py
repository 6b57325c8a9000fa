"""Linear segmentation: what one linear layer reads from each position of a frozen network's features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_int
from ..training.probes import train_heads

RATES = (1e-3, 1e-2)


class _PerPosition(nn.Module):
    """Features ``(B, N, d)`` to logits ``(B, classes, h, w)``: BatchNorm without affine, linear, bilinear."""

    def __init__(self, dim: int, classes: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.norm, self.classifier, self.size = nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, classes), size

    def forward(self, features: Tensor, grid: tuple[int, int]) -> tuple[Tensor, None]:
        logits = self.classifier(self.norm(features.flatten(0, 1))).unflatten(0, features.shape[:2])
        return F.interpolate(logits.mT.unflatten(2, grid), self.size, mode="bilinear"), None


def linear_segmentation(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    grid: tuple[int, int],
    *,
    rates: Sequence[float] = RATES,
    epochs: int = 5,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """Mean intersection over union in percent, over the classes of ``test``: scikit-learn's Jaccard score.

    One linear layer is trained on frozen features and its logits are enlarged to the labels' size; the learning rate is
    the best on ``val``. The counts are of all pixels of the set together, and the background is a class. The paper has
    no such table.

    Args:
        train, val, test: features ``(n, N, d)`` in reading order, and labels of the pixels, int64 ``(n, h, w)``.
        grid: rows and columns of the N positions.
        rates: learning rates to choose from.
        epochs: passes over the training features.
        batch_size: images per step.
        seed: of the layer and of the order of the images.
        progress: show a bar over the epochs.

    Raises:
        ValueError: features and labels of different lengths, or a grid that is not N positions.

    >>> labels = torch.tensor([[[0, 1], [0, 1]]]).repeat(64, 1, 1)
    >>> tokens = torch.randn(64, 4, 3) + 5 * labels.flatten(1)[..., None]
    >>> linear_segmentation(*[(tokens, labels)] * 3, grid=(2, 2), rates=[0.1], epochs=20, progress=False)
    100.0
    """
    for name, (tokens, labels) in {"train": train, "val": val, "test": test}.items():
        if tokens.ndim != 3 or labels.ndim != 3 or len(tokens) != len(labels):
            raise ValueError(
                f"{name}: expected features (n, N, d) and labels (n, h, w), got {tuple(tokens.shape)} and "
                f"{tuple(labels.shape)}"
            )
    if grid[0] * grid[1] != train[0].shape[1]:
        raise ValueError(f"grid: expected rows × columns = {train[0].shape[1]} positions, got {grid!r}")
    check_int("epochs", epochs)
    classes, size = 1 + int(max(labels.max() for _, labels in (train, val, test))), tuple(train[1].shape[1:])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = [_PerPosition(train[0].shape[2], classes, size).to(train[0].device) for _ in rates]
        how = {"epochs": epochs, "batch_size": batch_size, "weight_decay": 0.0, "seed": seed, "progress": progress}
        train_heads(heads, list(rates), *train, grid, **how)
    best = max(heads, key=lambda head: _mean_iou(head, *val, grid))
    return _mean_iou(best, *test, grid)


@torch.no_grad()
def _mean_iou(head: _PerPosition, tokens: Tensor, labels: Tensor, grid: tuple[int, int]) -> float:
    from sklearn.metrics import jaccard_score

    head.eval()
    predicted = torch.cat([head(some.float(), grid)[0].argmax(1) for some in tokens.split(256)]).flatten().cpu()
    truth = labels.flatten().cpu()
    return 100 * float(jaccard_score(truth, predicted, labels=truth.unique(), average="macro", zero_division=0))
