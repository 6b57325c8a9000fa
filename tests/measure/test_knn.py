"""The k-nearest-neighbour accuracy against scikit-learn's classifier, the algorithm in numpy, and by hand."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from simpool_lite.measure import knn
from simpool_lite.measure.knn import knn_accuracy


def noisy_classes(n: int, classes: int = 7, d: int = 12, noise: float = 1.5, seed: int = 0):
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    y = generator.integers(classes, size=n)
    return torch.from_numpy(centres[y] + noise * generator.normal(size=(n, d))), torch.from_numpy(y)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (10, 0.07), (20, 0.07), (20, 1.0), (50, 0.01)])
def test_equals_scikit_learns_classifier(k, temperature):
    train, test = noisy_classes(300), noisy_classes(200, seed=1)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(*train)
    expected = 100 * reference.score(*test)
    assert 30 < expected < 95
    assert knn_accuracy(*train, *test, k=k, temperature=temperature) == pytest.approx(expected)


def test_equals_the_algorithm_in_numpy_whatever_the_chunks(monkeypatch):
    """Votes counted one test image at a time; three images at once here, and the last chunk is not full."""
    (train_z, train_y), (test_z, test_y) = noisy_classes(90), noisy_classes(100, seed=1)
    right = 0
    for z, y in zip(normalize(test_z), test_y.numpy(), strict=True):
        similarity = normalize(train_z) @ z
        votes = np.zeros(7)
        for neighbour in np.argsort(-similarity)[:10]:
            votes[train_y[neighbour]] += np.exp(similarity[neighbour] / 0.07)
        right += votes.argmax() == y
    monkeypatch.setattr(knn, "SIMILARITIES", 3 * 90)
    assert [len(z) for (z,) in knn.in_chunks(test_z, others=90)] == [3] * 33 + [1]
    assert knn_accuracy(train_z, train_y, test_z, test_y) == pytest.approx(100 * right / 100)


def test_near_neighbours_outvote_many_far_ones():
    """At 0 degrees one vote for class 5, at 60 degrees two for class 2: exp(1 / T) against 2 exp(0.5 / T)."""
    far = [[0.5, 0.75**0.5], [0.5, -(0.75**0.5)]]
    train_z, train_y = torch.tensor([[1.0, 0.0], *far]), torch.tensor([5, 2, 2])
    one, five = torch.tensor([[3.0, 0.0]]), torch.tensor([5])
    assert np.exp(1 / 0.7) > 2 * np.exp(0.5 / 0.7) and np.exp(1 / 0.8) < 2 * np.exp(0.5 / 0.8)
    assert knn_accuracy(train_z, train_y, one, five, k=3, temperature=0.7) == 100
    assert knn_accuracy(train_z, train_y, one, five, k=3, temperature=0.8) == 0
    assert knn_accuracy(train_z, train_y, one, five, k=3, temperature=1e-4) == 100  # exp(10,000) is no number


def test_half_precision_labels_of_any_value_and_lengths_that_do_not_matter():
    (train_z, train_y), (test_z, test_y) = noisy_classes(200), noisy_classes(100, seed=1)
    expected = knn_accuracy(train_z, train_y, test_z, test_y)
    scaled = train_z * torch.logspace(-3, 3, 200)[:, None]
    assert knn_accuracy(scaled, 10**9 * train_y - 5, test_z, 10**9 * test_y - 5) == expected
    half = knn_accuracy(train_z.bfloat16(), train_y, test_z.bfloat16(), test_y)
    assert half == pytest.approx(expected, abs=5)
    assert knn_accuracy(train_z, train_y, test_z, test_y + 100) == 0  # classes that nobody votes for


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 31}, "k: expected at most 30, the number of training images, got 31"),
        ({"k": 0}, "k: expected an int of at least 1"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0"),
        ({"test_z": torch.zeros(8, 3)}, r"test_z: expected floating-point features \(n, 12\), got .* \(8, 3\)"),
        ({"train_y": torch.zeros(29, dtype=int)}, "train_y: expected 30 integer labels"),
        ({"train_z": torch.full((30, 12), torch.nan)}, "train_z: expected finite features"),
    ],
)
def test_what_does_not_fit_is_an_error(change, message):
    (train_z, train_y), (test_z, test_y) = noisy_classes(30), noisy_classes(8, seed=1)
    arguments = {"train_z": train_z, "train_y": train_y, "test_z": test_z, "test_y": test_y}
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**arguments | change)
