"""Image retrieval by pooled features: how high the images of a query's class are ranked.

Both measures rank a gallery by cosine similarity to each query. Without a gallery the queries are each other's, and
none is ranked for itself. A query whose class has no image in the gallery has no right answer and is left out.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_int
from .knn import check_features, in_chunks


def mean_average_precision(
    query_z: Tensor,
    query_y: Tensor,
    gallery_z: Tensor | None = None,
    gallery_y: Tensor | None = None,
    *,
    whiten: bool = False,
) -> float:
    """Mean over the queries of scikit-learn's average precision, in percent.

    Average precision is the precision at the rank of each positive, averaged: AP = 1/P sum_j j / rank_j. (The Oxford
    and Paris benchmarks interpolate between ranks instead, which gives a little less.)

    Args:
        query_z: features of the queries, ``(m, d)``.
        query_y: their labels, ``(m,)``.
        gallery_z: features of the images to rank, ``(n, d)``; without them each query ranks the other queries.
        gallery_y: their labels, ``(n,)``.
        whiten: project all features on the gallery's principal components, each scaled to unit variance, before the
            cosine. Components without variance are dropped.

    Raises:
        ValueError: shapes that do not fit together, features that are not finite, or no query with a positive.

    >>> z, y = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]]), torch.tensor([0, 1, 0, 2])
    >>> mean_average_precision(z, y)  # the queries 0 and 2 each find the other one second; 1 and 3 are alone
    50.0
    """
    from sklearn.metrics import average_precision_score

    return _mean_over_queries(average_precision_score, query_z, query_y, gallery_z, gallery_y, whiten)


def precision_at(
    k: int,
    query_z: Tensor,
    query_y: Tensor,
    gallery_z: Tensor | None = None,
    gallery_y: Tensor | None = None,
    *,
    whiten: bool = False,
) -> float:
    """Share of a query's class among the k images ranked first, mean over the queries, in percent.

    Arguments as in :func:`mean_average_precision`. A class of fewer than k images in the gallery cannot reach 100 %.

    Raises:
        ValueError: as there, or a ``k`` of more than the images that are ranked.

    >>> z, y = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]]), torch.tensor([0, 1, 0, 2])
    >>> precision_at(2, z, y)
    50.0
    """
    check_int("k", k)

    def share(positive: np.ndarray, similarity: np.ndarray) -> float:
        if k > len(positive):
            raise ValueError(f"k: expected at most {len(positive)}, the number of images that are ranked, got {k}")
        return positive[np.argpartition(-similarity, k - 1)[:k]].mean()

    return _mean_over_queries(share, query_z, query_y, gallery_z, gallery_y, whiten)


def _mean_over_queries(
    score: Callable[[np.ndarray, np.ndarray], float],
    query_z: Tensor,
    query_y: Tensor,
    gallery_z: Tensor | None,
    gallery_y: Tensor | None,
    whiten: bool,
) -> float:
    query_z, query_y = check_features("query", query_z, query_y)
    leave_one_out = gallery_z is None
    if leave_one_out != (gallery_y is None):
        raise ValueError("gallery_z, gallery_y: expected both or neither; pass the features and their labels")
    if leave_one_out:
        gallery_z, gallery_y = query_z, query_y
    else:
        gallery_z, gallery_y = check_features("gallery", gallery_z, gallery_y, width=query_z.shape[1])
        query_z, query_y = query_z.to(gallery_z.device), query_y.to(gallery_z.device)
    if whiten:
        query_z, gallery_z = _whitened(query_z, gallery_z)
    ranked = _rankings(query_z, query_y, gallery_z, gallery_y, leave_one_out)
    scores = [score(positive, similarity) for positive, similarity in ranked if positive.any()]
    if not scores:
        raise ValueError("query_y: expected a query with an image of its class in the gallery, got none")
    return 100 * float(np.mean(scores))


def _rankings(
    query_z: Tensor, query_y: Tensor, gallery_z: Tensor, gallery_y: Tensor, leave_one_out: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per query which images are of its class, bool ``(n,)``, and their similarities ``(n,)``."""
    keys, number = F.normalize(gallery_z, dim=1).T, 0
    for z, y in in_chunks(query_z, query_y, others=len(gallery_z)):
        similarities = (F.normalize(z, dim=1) @ keys).cpu().numpy()
        positives = (y[:, None] == gallery_y).cpu().numpy()
        for positive, similarity in zip(positives, similarities, strict=True):
            itself = [number] if leave_one_out else []
            yield np.delete(positive, itself), np.delete(similarity, itself)
            number += 1


def _whitened(query_z: Tensor, gallery_z: Tensor) -> tuple[Tensor, Tensor]:
    from sklearn.decomposition import PCA

    if (gallery_z == gallery_z[:1]).all():
        raise ValueError("whiten: expected features that differ, got the same for the whole gallery; use whiten=False")
    pca = PCA(whiten=True, svd_solver="full").fit(gallery_z.double().cpu().numpy())
    kept = pca.explained_variance_ > 1e-10 * pca.explained_variance_[0]
    return tuple(torch.from_numpy(pca.transform(z.double().cpu().numpy())[:, kept]).to(z) for z in (query_z, gallery_z))
