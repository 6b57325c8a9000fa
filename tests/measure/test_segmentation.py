"""Linear segmentation of features whose answer is known."""

import pytest
import torch

from simpool_lite.measure.segmentation import linear_segmentation

QUIET = {"progress": False, "rates": [0.05]}


@pytest.fixture
def labels() -> torch.Tensor:
    """Three classes in every image, in blocks of 2 x 2 pixels."""
    blocks = torch.tensor([[0, 0, 0, 1], [0, 0, 2, 1]]).repeat(64, 1, 1)
    return blocks.repeat_interleave(2, 1).repeat_interleave(2, 2)


def test_features_without_information_give_the_background(labels):
    """All is predicted to be class 0: its overlap is 5 of 8 positions, that of the other two is 0."""
    nothing = torch.zeros(64, 8, 3), labels
    assert linear_segmentation(nothing, nothing, nothing, (2, 4), epochs=10, **QUIET) == pytest.approx(100 * 5 / 8 / 3)


def test_the_grid_and_the_test_set_are_minded(labels):
    """Features that name the class of their position: nothing is missed, until two positions of the test swap."""
    tokens = torch.eye(3)[labels[:, ::2, ::2].flatten(1)]
    known = tokens, labels
    exact = linear_segmentation(known, known, known, (2, 4), epochs=40, **QUIET)
    assert exact > 95
    wrong = tokens[:, [0, 1, 2, 6, 4, 5, 3, 7]], labels  # two of eight positions swapped
    assert linear_segmentation(known, known, wrong, (2, 4), epochs=40, **QUIET) < exact - 20


def test_wrong_arguments(labels):
    known = torch.zeros(64, 8, 3), labels
    with pytest.raises(ValueError, match="grid: expected rows × columns = 8 positions, got"):
        linear_segmentation(known, known, known, (3, 3), **QUIET)
    with pytest.raises(
        ValueError, match=r"val: expected features \(n, N, d\) and labels \(n, h, w\), got \(64, 8, 3\)"
    ):
        linear_segmentation(known, (known[0], labels[:5]), known, (2, 4), **QUIET)
