"""The weighted nearest-neighbour classifier that self-supervised features are judged by."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_int, check_number

SIMILARITIES = 2**25  # held at once: 128 MB in float32


@torch.no_grad()
def knn_accuracy(
    train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor, k: int = 10, temperature: float = 0.07
) -> float:
    """Accuracy of the k nearest training images' votes, in percent.

    A neighbour votes for its class with the weight exp(s / T), s the cosine similarity; the class with the most votes
    is predicted (Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, which
    DINO's evaluation follows: Caron et al., 2021). SimPool's Table 3 has k = 10.

    Args:
        train_z: features of the images that vote, ``(n, d)``. All is computed on their device.
        train_y: their labels, ``(n,)``.
        test_z: features of the images to classify, ``(m, d)``.
        test_y: their labels, ``(m,)``.
        k: how many neighbours vote.
        temperature: T; with a smaller one the nearest counts for more.

    Raises:
        ValueError: shapes that do not fit together, features that are not finite, or a ``k`` of more than n.

    >>> train_z, train_y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([7, 8, 8])
    >>> knn_accuracy(train_z, train_y, torch.tensor([[2.0, 0.1], [0.0, 5.0]]), torch.tensor([7, 7]), k=1)
    50.0
    """
    train_z, train_y = check_features("train", train_z, train_y)
    test_z, test_y = check_features("test", test_z, test_y, width=train_z.shape[1])
    if check_int("k", k) > len(train_z):
        raise ValueError(f"k: expected at most {len(train_z)}, the number of training images, got {k}")
    check_number("temperature", temperature, above_zero=True)
    classes, votes_for = train_y.unique(return_inverse=True)
    keys = F.normalize(train_z, dim=1).T
    correct = 0
    for z, y in in_chunks(test_z.to(keys.device), test_y.to(keys.device), others=len(train_z)):
        similarity, neighbours = (F.normalize(z, dim=1) @ keys).topk(k)
        # Weights relative to the nearest neighbour's: the same winner, and no overflow with a small temperature.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(z), len(classes)).scatter_add_(1, votes_for[neighbours], weights)
        correct += (classes[votes.argmax(1)] == y).sum().item()
    return 100 * correct / len(test_y)


def check_features(name: str, z: Tensor, y: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Features ``(n, d)``, in float32 at least, and labels ``(n,)``; a ValueError if they are anything else."""
    z, y = torch.as_tensor(z), torch.as_tensor(y)
    d = "d" if width is None else width
    if z.ndim != 2 or not z.is_floating_point() or not len(z) or width not in (None, z.shape[1]):
        raise ValueError(f"{name}_z: expected floating-point features (n, {d}), got {z.dtype} {tuple(z.shape)}")
    if not z.isfinite().all():
        raise ValueError(f"{name}_z: expected finite features, got NaN or infinity; see what the model makes of them")
    if y.shape != (len(z),) or y.is_floating_point():
        raise ValueError(f"{name}_y: expected {len(z)} integer labels, got {y.dtype} {tuple(y.shape)}")
    return z.to(torch.promote_types(z.dtype, torch.float32)), y.to(z.device)


def in_chunks(*tensors: Tensor, others: int) -> zip:
    """Rows of the tensors, so many at once that their similarities to ``others`` rows stay in bounds."""
    rows = max(1, SIMILARITIES // others)
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
