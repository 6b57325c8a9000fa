"""DINO-seg and LOST: cases worked by hand, and the published algorithms step by step."""

import math

import pytest
import torch
from torch import Tensor

from simpool_lite.measure.discovery import dino_seg_boxes, lost_boxes


def component(on: set[tuple[int, int]], start: tuple[int, int]) -> set[tuple[int, int]]:
    """The positions that are reached from one, by sides."""
    found, new = set(), {start}
    while new:
        found |= new
        steps = {(y + dy, x + dx) for y, x in new for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))}
        new = (steps & on) - found
    return found


def box(part: set[tuple[int, int]], patch: int) -> list[float]:
    ys, xs = zip(*part, strict=True)
    return [patch * float(side) for side in (min(xs), min(ys), max(xs) + 1, max(ys) + 1)]


def lost(features: Tensor, grid: tuple[int, int], patch: int, k: int) -> list[float]:
    """Section 3 of the paper, a patch at a time."""
    n = len(features)
    product = [[float(torch.dot(features[p], features[q])) for q in range(n)] for p in range(n)]
    degree = [sum(product[p][q] > 0 for q in range(n) if q != p) for p in range(n)]
    fewest = sorted(range(n), key=lambda p: (degree[p], p))
    seed = fewest[0]
    similar = [q for q in fewest[:k] if product[seed][q] > 0]
    mask = {divmod(p, grid[1]) for p in range(n) if sum(product[p][q] for q in similar) > 0}
    return box(component(mask, divmod(seed, grid[1])), patch)


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("seed", range(4))
def test_lost_is_its_algorithm(seed, k):
    grid, generator = (6, 9), torch.Generator().manual_seed(seed)
    # neighbours are alike, as patches are
    coarse = torch.randn(3, 8, 2, 3, generator=generator)
    features = torch.nn.functional.interpolate(coarse, size=grid, mode="bilinear").flatten(2).transpose(1, 2).double()
    found = lost_boxes(features, grid, (6 * 16, 9 * 16), k=k)
    assert found.tolist() == [lost(each, grid, 16, k) for each in features]


def test_lost_finds_the_small_object_and_not_what_looks_the_same_elsewhere():
    features = -torch.ones(5, 6, 1)
    features[1:3, 1:4] = 1
    features[4, 5] = 1
    assert lost_boxes(features.reshape(1, 30, 1), (5, 6), (50, 60)).tolist() == [[10, 10, 40, 30]]


def test_lost_on_features_of_zeros_is_the_first_patch():
    assert lost_boxes(torch.zeros(1, 6, 2), (2, 3), (20, 30)).tolist() == [[0, 0, 10, 10]]


def test_dino_seg_keeps_the_fewest_positions_with_the_mass_and_the_largest_part():
    maps = torch.tensor(
        [
            [
                [0.00, 0.15, 0.14, 0.00],
                [0.00, 0.00, 0.00, 0.05],
                [0.22, 0.00, 0.00, 0.05],
                [0.20, 0.10, 0.04, 0.05],
            ]
        ]
    )
    # .22 + .20 + .15 are not 60 %, with .14 they are; two parts of two positions, the first of which counts
    assert dino_seg_boxes(maps, (40, 40)).tolist() == [[10, 0, 30, 10]]
    maps[0, 3, 1], maps[0, 0, 1:3] = 0.145, torch.tensor([0.15, 0.095])
    assert dino_seg_boxes(maps, (40, 80)).tolist() == [[0, 20, 40, 40]]


@pytest.mark.parametrize("seed", range(5))
def test_dino_seg_is_its_definition(seed):
    scores = torch.rand(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    ranked = sorted(((float(scores[y, x]), (y, x)) for y in range(7) for x in range(5)), reverse=True)
    kept, mass = set(), 0.0
    for weight, place in ranked:
        if mass >= 0.6 * float(scores.sum()):
            break
        kept.add(place)
        mass += weight
    parts = [component(kept, place) for place in sorted(kept)]
    best = max(parts, key=len)
    assert dino_seg_boxes(scores[None], (70, 50)).tolist() == [box(best, 10)]


def test_dino_seg_of_a_constant_map_is_the_whole_image():
    for value in (0.0, 0.1):
        assert dino_seg_boxes(torch.full((1, 3, 4), value), (30, 50)).tolist() == [[0, 0, 50, 30]]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda bad: dino_seg_boxes(bad.reshape(2, 2, 3), 8), r"maps\[1\]: expected finite"),
        (lambda bad: lost_boxes(bad.reshape(2, 6, 1), (2, 3), 8), r"features\[1\]: expected finite"),
        (lambda bad: dino_seg_boxes(torch.tensor([[[0.5]], [[-0.5]]]), 8), r"maps\[1\]: expected weights"),
        (lambda bad: lost_boxes(torch.rand(2, 6, 1), (2, 2), 8), "grid: .* 6 patches"),
        (lambda bad: lost_boxes(torch.rand(6, 1), (2, 3), 8), "features: "),
        (lambda bad: lost_boxes(torch.rand(2, 6, 1), (2, 3), 8, k=0), "k: "),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    bad = torch.rand(12)
    bad[8] = math.nan
    with pytest.raises(ValueError, match=message):
        call(bad)
