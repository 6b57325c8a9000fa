"""Retrieval by hand-worked rankings, against scikit-learn called in a plain loop, and by what must not change it."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from simpool_lite.measure import knn
from simpool_lite.measure.retrieval import mean_average_precision, precision_at


def at_angles(*degrees: float) -> torch.Tensor:
    """Unit vectors at these angles: the cosine with one at 0 falls with the angle."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], 1)


def test_by_hand_with_a_gallery():
    """Seen from 0 degrees the gallery is A B A B A, from 90 degrees the other way round; class C has no image."""
    gallery_z, gallery_y = at_angles(10, 20, 30, 40, 45), torch.tensor([0, 1, 0, 1, 0])
    query_z, query_y = at_angles(0, 90, 5), torch.tensor([0, 1, 2])
    first, second = (1 / 1 + 2 / 3 + 3 / 5) / 3, (1 / 2 + 2 / 4) / 2
    expected = 100 * (first + second) / 2
    assert mean_average_precision(query_z, query_y, gallery_z, gallery_y) == pytest.approx(expected)
    precisions = [precision_at(k, query_z, query_y, gallery_z, gallery_y) for k in (1, 2, 3, 5)]
    assert precisions == pytest.approx([50 * (1 + 0), 50 * (1 / 2 + 1 / 2), 50 * (2 / 3 + 1 / 3), 50 * (3 / 5 + 2 / 5)])


def test_by_hand_each_query_among_the_others():
    """0 A, 10 B, 25 A, 60 B, 200 C. The first A sees B A B C, then B sees A A B C, A sees B A B C, B sees A B A C."""
    z, y = at_angles(0, 10, 25, 60, 200), torch.tensor([0, 1, 0, 1, 2])
    expected = 100 * np.mean([1 / 2, 1 / 3, 1 / 2, 1 / 2])
    assert mean_average_precision(z, y) == pytest.approx(expected)
    assert precision_at(1, z, y) == 0
    assert precision_at(2, z, y) == pytest.approx(100 * np.mean([1 / 2, 0, 1 / 2, 1 / 2]))
    # With itself in the gallery every query finds itself first.
    assert precision_at(1, z, y, z, y) == 100


@pytest.fixture(scope="module")
def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(5, (80,), generator=generator)
    z = torch.randn(5, 6, generator=generator, dtype=torch.float64)[y]
    return z + torch.randn(80, 6, generator=generator, dtype=torch.float64), y


def test_equals_a_plain_loop_whatever_the_chunks(features, monkeypatch):
    z, y = features
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    scores, first_ten = [], []
    for i in range(80):
        others = np.arange(80) != i
        positive, similarity = (y[others] == y[i]).numpy(), unit[others] @ unit[i]
        scores.append(average_precision_score(positive, similarity))
        first_ten.append(positive[np.argsort(-similarity)][:10].mean())
    assert mean_average_precision(z, y) == pytest.approx(100 * np.mean(scores))
    monkeypatch.setattr(knn, "SIMILARITIES", 7 * 80)
    assert mean_average_precision(z, y) == pytest.approx(100 * np.mean(scores))
    assert precision_at(10, z, y) == pytest.approx(100 * np.mean(first_ten))


def test_whitening_undoes_any_linear_map(features):
    """Whitened features know their principal axes no more: scaled and mixed features rank as they did before."""
    z, y = features
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixed = z @ (mixing * torch.tensor([100.0, 10, 1, 1, 1, 1])) + 3
    assert mean_average_precision(mixed, y) != pytest.approx(mean_average_precision(z, y), abs=0.5)
    whitened = mean_average_precision(z, y, whiten=True)
    assert mean_average_precision(mixed, y, whiten=True) == pytest.approx(whitened)
    # By hand: centred, rotated to the axes of the covariance, divided by the standard deviations.
    values, axes = torch.linalg.eigh(z.T.cov())
    by_hand = (z - z.mean(0)) @ axes / values.sqrt()
    assert mean_average_precision(by_hand, y) == pytest.approx(whitened)
    # A dead channel and a copied one have no variance of their own to scale up.
    padded = torch.cat([z, torch.zeros(80, 1), z[:, :1]], 1)
    doubled = torch.cat([z, z[:, :1]], 1)
    assert precision_at(5, padded, y, whiten=True) == pytest.approx(precision_at(5, doubled, y, whiten=True))
    assert mean_average_precision(z[:4], y.new_tensor([0, 0, 1, 1]), whiten=True) > 0  # fewer images than channels


def test_whitening_is_learnt_on_the_gallery(features):
    z, y = features
    one_by_one = [mean_average_precision(z[i : i + 1], y[i : i + 1], z[40:], y[40:], whiten=True) for i in range(40)]
    together = mean_average_precision(z[:40], y[:40], z[40:], y[40:], whiten=True)
    assert together == pytest.approx(np.mean(one_by_one))


def test_what_does_not_fit_is_an_error(features):
    z, y = features
    with pytest.raises(ValueError, match="gallery_z, gallery_y: expected both or neither"):
        mean_average_precision(z, y, z)
    with pytest.raises(ValueError, match=r"gallery_z: expected floating-point features \(n, 6\), got .* \(80, 5\)"):
        mean_average_precision(z, y, z[:, :5], y)
    with pytest.raises(ValueError, match="query_y: expected 80 integer labels"):
        precision_at(1, z, y[:9])
    with pytest.raises(ValueError, match="query_y: expected a query with an image of its class in the gallery"):
        mean_average_precision(z, torch.arange(80))
    with pytest.raises(ValueError, match="k: expected at most 79, the number of images that are ranked, got 80"):
        precision_at(80, z, y)
    with pytest.raises(ValueError, match="whiten: expected features that differ"):
        mean_average_precision(torch.ones(4, 3), y.new_tensor([0, 0, 1, 1]), whiten=True)
