"""Boxes from maps and their scores: each level on its own, the definitions, and cases worked by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.measure import find_contours
from torch import Tensor

from simpool_lite.measure.contours import contour_boxes
from simpool_lite.measure.localisation import best_mean_iou, box_accuracy, box_hits, corloc, pointing_game

THRESHOLDS = np.arange(0, 1, 0.001)
CORNERS = np.ones((3, 3))


def smooth_map(seed: int, grid: int, size: tuple[int, int]) -> np.ndarray:
    coarse = torch.from_numpy(np.random.default_rng(seed).random((1, 1, grid, grid)))
    fine = F.interpolate(coarse, size=size, mode="bicubic")[0, 0].numpy()
    return (fine - fine.min()) / (fine - fine.min()).max()


def pixel_boxes(parts: np.ndarray) -> list[list[int]]:
    found = []
    for rows, columns in ndimage.find_objects(parts):
        y1, x1 = (min(part.stop, side - 1) for part, side in zip((rows, columns), parts.shape, strict=True))
        found.append([columns.start, rows.start, x1, y1])
    return found


def all_boxes(above: np.ndarray) -> list[list[int]]:
    """Of the components, and of the pixels around each hole."""
    boxes = pixel_boxes(ndimage.label(above, CORNERS)[0])
    outside, count = ndimage.label(np.pad(~above, 1, constant_values=True))
    for hole in set(range(1, count + 1)) - {outside[0, 0]}:
        around = ndimage.binary_dilation(outside == hole)[1:-1, 1:-1]
        boxes += pixel_boxes(around.astype(int))
    return boxes


def largest_box(above: np.ndarray) -> list[list[int]]:
    """Of the component whose outline through the pixels' centres holds the most, the last of equals."""
    parts, count = ndimage.label(above, CORNERS)
    areas = []
    for part in range(1, count + 1):
        filled = np.pad(ndimage.binary_fill_holes(parts == part), 1).astype(float)
        outlines = find_contours(filled, 1 - 1e-9, fully_connected="high")
        areas.append(round(sum(abs(shoelace(outline)) for outline in outlines), 3))
    best = max(range(count), key=lambda part: (areas[part], part))  # ndimage numbers them in reading order
    return [pixel_boxes(parts)[best]]


def shoelace(outline: np.ndarray) -> float:
    y, x = outline.T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


MAPS = [
    *(smooth_map(seed, grid, (24, 32)) for seed, grid in enumerate((2, 3, 5, 8, 12))),
    np.random.default_rng(7).permutation(13 * 17).reshape(13, 17) / (13 * 17 - 1),
    np.random.default_rng(8).integers(0, 3, (16, 16)) / 2,  # plateaus, many equal areas
    np.random.default_rng(9).integers(0, 2, (9, 40)).astype(float),
]


@pytest.mark.parametrize("contours, boxes_of", [("all", all_boxes), ("largest", largest_box)])
@pytest.mark.parametrize("scores", MAPS, ids=range(len(MAPS)))
def test_boxes_are_those_of_each_level_on_its_own(scores, contours, boxes_of):
    levels, boxes = contour_boxes(scores, contours)
    pixels = (scores * 255).astype(np.uint8)
    for level in {*range(0, 255, 6), 126, 127, 128, 254}:
        assert sorted(boxes[levels == level].tolist()) == sorted(boxes_of(pixels > level))


def test_a_map_of_zeros_has_no_contour():
    for contours in ("all", "largest"):
        levels, boxes = contour_boxes(np.zeros((4, 5)), contours)
        assert levels.shape == (0,) and boxes.shape == (0, 4)


def test_pixels_touch_at_corners_and_background_does_not():
    scores = np.zeros((7, 7))
    scores[[2, 3, 3, 4], [3, 2, 4, 3]] = 1  # a diamond of four around one hole
    levels, boxes = contour_boxes(scores)
    assert boxes[levels == 0].tolist() == [[2, 2, 5, 5]] * 2  # outside and hole


def test_of_equal_areas_the_last_in_reading_order_counts():
    scores = np.zeros((9, 9))
    scores[0, 6] = scores[1, 6] = scores[2, 1] = scores[2, 8] = 1  # lines and points hold no area
    levels, boxes = contour_boxes(scores, "largest")
    assert boxes[levels == 0].tolist() == [[8, 2, 8, 3]]


def blobs(*rectangles: tuple[int, int, int, int, float], side: int = 12) -> Tensor:
    """One map ``(1, side, side)``, 0 but in rectangles x0 y0 x1 y1 (x1 and y1 exclusive) of a value."""
    scores = torch.zeros(1, side, side)
    for x0, y0, x1, y1, value in rectangles:
        scores[0, y0:y1, x0:x1] = value
    return scores


def boxes(*corners: tuple[float, float, float, float]) -> list[Tensor]:
    return [torch.tensor(corners)]


def overlap(found: list[int], true: list[int]) -> float:
    wide, high = (min(found[i + 2], true[i + 2]) - max(found[i], true[i]) + 1 for i in (0, 1))
    shared = max(wide, 0) * max(high, 0)
    return shared / (sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (found, true)) - shared)


@pytest.mark.parametrize("contours, boxes_of", [("all", all_boxes), ("largest", largest_box)])
def test_box_accuracy_is_its_definition(contours, boxes_of):
    maps = np.stack([smooth_map(seed, 4, (16, 16)) for seed in range(5)])
    near = [boxes_of(scores * 255 > 130 + 20 * index)[0] for index, scores in enumerate(maps)]
    truth = np.stack([[np.add(box, [0, 0, 3, 3]), np.add(box, [1, 0, 1, 2])] for box in near])
    hits = np.zeros((3, len(THRESHOLDS)))
    for scores, true in zip(maps, truth.tolist(), strict=True):
        pixels, best = (scores * 255).astype(np.uint8), {}
        for at, threshold in enumerate(THRESHOLDS):
            level = int(threshold * pixels.max())
            if level not in best:
                best[level] = max(overlap(found, box) for found in boxes_of(pixels > level) for box in true)
            hits[:, at] += best[level] >= np.array([0.3, 0.5, 0.7])
    percent = 100 * hits / len(maps)
    result = box_accuracy(torch.from_numpy(maps), [torch.from_numpy(true) for true in truth], 16, contours=contours)
    assert result["max_box_acc"] == dict(zip((0.3, 0.5, 0.7), percent.max(1), strict=True))
    assert result["threshold"] == dict(zip((0.3, 0.5, 0.7), THRESHOLDS[percent.argmax(1)], strict=True))
    assert result["max_box_acc_v2"] == pytest.approx(percent.max(1).mean())
    assert 0 < percent[2].max() < percent[0].max()


@pytest.mark.parametrize(
    "scores, true, exact",
    [
        (blobs((2, 3, 6, 8, 1)), boxes((2, 3, 6, 8)), 1),
        (blobs((2, 3, 6, 8, 1)), boxes((9, 9, 11, 11), (2, 3, 6, 8)), 1),  # any true box will do
        (blobs((2, 3, 6, 8, -1)) + 5, boxes((0, 0, 11, 11)), 1),  # all but a hole
        (blobs((9, 9, 12, 12, 1)), boxes((9, 9, 12, 12)), 9 / 16),  # found: 9 9 11 11, three pixels and not four
        (blobs((0, 5, 3, 8, 1)), boxes((0, 5, 3, 8)), 1),
        (blobs((2, 2, 4, 4, 1)), boxes((8, 8, 10, 10)), 0),
        (blobs((2, 2, 4, 4, 1)), boxes((4, 4, 6, 6)), 1 / 17),  # they share the pixel (4, 4)
        (torch.zeros(1, 12, 12), boxes((0, 0, 5, 11)), 1 / 72),  # a constant map has the pixel 0 0 of 6 times 12
        (torch.full((1, 3, 3), 0.1), boxes((0, 0, 5, 11)), 1 / 72),  # also where it is enlarged
    ],
)
@pytest.mark.parametrize("contours", ["all", "largest"])
def test_one_map_worked_by_hand(scores, true, exact, contours):
    below, above = max(exact - 1e-6, 1e-6), min(exact + 1e-6, 1)
    accuracy = box_accuracy(scores, true, 12, iou=(below, above), contours=contours)["max_box_acc"]
    assert accuracy == {below: 100.0 if exact else 0.0, above: 100.0 if exact == 1 else 0.0}


def test_largest_takes_one_box_and_all_takes_the_best():
    scores, true = blobs((1, 1, 3, 3, 1), (5, 5, 10, 10, 1)), boxes((1, 1, 3, 3))
    assert box_accuracy(scores, true, 12)["max_box_acc_v2"] == 100
    assert box_accuracy(scores, true, 12, contours="largest")["max_box_acc_v2"] == 0


def test_the_contour_around_a_hole_counts():
    ring, true = blobs((1, 1, 10, 10, 1)), boxes((2, 2, 8, 8))
    ring[0, 3:7, 3:7] = 0
    assert box_accuracy(ring, true, 12)["max_box_acc"][0.7] == 100  # the pixels around the hole: 2 2 8 8
    assert box_accuracy(ring, true, 12, contours="largest")["max_box_acc"][0.5] == 0  # 49 of 100


def test_the_threshold_is_one_for_all_images_and_the_lowest_of_the_best():
    scores = blobs((1, 1, 9, 9, 0.5), (2, 2, 5, 5, 1)).repeat(3, 1, 1)
    wide, narrow = torch.tensor([[1, 1, 9, 9]]), torch.tensor([[2, 2, 5, 5]])
    assert box_accuracy(scores, [wide, wide, wide], 12)["threshold"][0.7] == 0
    result = box_accuracy(scores, [wide, narrow, narrow], 12)
    assert result["max_box_acc"][0.7] == pytest.approx(200 / 3)
    assert result["threshold"][0.7] == pytest.approx(0.499)  # a half is the byte 127, 0.498 × 255 = 126.99


def test_scale_shift_and_dtype_of_a_map_do_not_matter():
    scores = torch.from_numpy(smooth_map(3, 5, (16, 16)) * 64).round()
    true = [torch.tensor([[3, 2, 9, 12]])]
    expected = box_accuracy(scores[None], true, 16)
    for same in (scores.to(torch.int64), scores.half(), scores * 4 - 70):
        assert box_accuracy(same[None], true, 16) == expected


def test_a_small_map_is_enlarged_with_the_image_not_square():
    coarse = torch.zeros(1, 3, 4)
    coarse[0, 1, 2] = 1
    fine = F.interpolate(coarse[None].double(), size=(30, 40), mode="bicubic", align_corners=False)[0]
    true = [torch.tensor([[20, 10, 30, 20]])]
    assert box_accuracy(coarse, true, (30, 40)) == box_accuracy(fine, true, (30, 40))
    assert box_accuracy(coarse, true, (30, 40))["max_box_acc"][0.7] == 100
    assert pointing_game(coarse, true, (30, 40)) == 100


def test_pointing_game_by_hand():
    scores = torch.cat([blobs((3, 2, 4, 3, 1)), blobs((7, 2, 8, 3, 1)), blobs((11, 11, 12, 12, 1))])
    true = [torch.tensor([[3, 2, 7, 5]])] * 2 + [torch.tensor([[0, 0, 1, 1], [9, 9, 12, 12]])]
    assert pointing_game(scores, true, 12) == pytest.approx(200 / 3)  # x1 is outside
    masks = torch.zeros(3, 12, 12, dtype=torch.bool)
    masks[:2, 2:5, 3:7] = masks[2, 9:, 9:] = True
    assert pointing_game(scores, masks) == pointing_game(scores, masks, 12) == pytest.approx(200 / 3)


def test_equally_high_pixels_count_by_their_share():
    true = boxes((0, 0, 6, 4))
    assert pointing_game(torch.ones(1, 3, 3), true, 12) == pytest.approx(100 * 24 / 144)
    assert pointing_game(blobs((5, 0, 7, 2, 1)), true, 12) == 50


def test_corloc_needs_more_than_a_half():
    found = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [10, 10, 12, 12]])
    true = boxes((0, 0, 4, 2)) + boxes((0, 0, 4, 3)) + boxes((8, 8, 9, 9), (0, 1, 4, 4)) + boxes((0, 0, 4, 4))
    assert corloc(found, true) == 50


def test_best_mean_iou_is_its_definition():
    maps = np.stack([smooth_map(seed, 5, (14, 18)) for seed in range(4)])
    masks = np.stack([smooth_map(seed, 3, (14, 18)) for seed in (10, 11, 12, 13)]) > 0.6
    masks[3] = False  # no object: left out
    cut = [(maps * 255).astype(np.uint8)[:3] > int(threshold * 255) for threshold in THRESHOLDS]
    means = np.mean([(on & masks[:3]).sum((1, 2)) / (on | masks[:3]).sum((1, 2)) for on in cut], 1)
    result = best_mean_iou(torch.from_numpy(maps), torch.from_numpy(masks))
    assert result == {"best_mean_iou": pytest.approx(100 * means.max()), "threshold": THRESHOLDS[means.argmax()]}


TRUE = [torch.tensor([[0, 0, 4, 4]])] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_is_named(value):
    maps = torch.rand(3, 5, 5)
    maps[1, 2, 3] = value
    masks = torch.ones(3, 8, 8, dtype=torch.bool)
    for measure in (
        lambda: box_accuracy(maps, TRUE, 8),
        lambda: pointing_game(maps, TRUE, 8),
        lambda: best_mean_iou(maps, masks),
    ):
        with pytest.raises(ValueError, match=r"maps\[1\]: expected finite numbers"):
            measure()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: box_accuracy(torch.rand(3, 5, 5), TRUE[:2], 8), "boxes: .* 3 of them, got 2"),
        (lambda: box_accuracy(torch.rand(1, 5, 5), [torch.zeros(0, 4)], 8), r"boxes\[0\]: .* at least one"),
        (lambda: box_accuracy(torch.rand(1, 5, 5), boxes((4, 0, 2, 3)), 8), r"boxes\[0\]: .* x1 >= x0"),
        (lambda: box_accuracy(torch.rand(1, 1, 5, 5), TRUE[:1], 8), r"maps: .*\(n, H, W\)"),
        (lambda: box_accuracy(torch.rand(3, 5, 5), TRUE, 0), "image_size"),
        (lambda: box_accuracy(torch.rand(3, 5, 5), TRUE, (8, 8, 3)), "image_size"),
        (lambda: box_accuracy(torch.rand(3, 5, 5), TRUE, 8, iou=(30, 50)), "iou"),
        (lambda: box_accuracy(torch.rand(3, 5, 5), TRUE, 8, contours="larges"), "did you mean 'largest'"),
        (lambda: pointing_game(torch.rand(3, 5, 5), TRUE), "image_size"),
        (lambda: pointing_game(torch.rand(3, 5, 5), torch.ones(2, 8, 8, dtype=torch.bool)), "masks: "),
        (lambda: pointing_game(torch.rand(3, 5, 5), torch.ones(3, 8, 8, dtype=torch.bool), 9), "image_size"),
        (lambda: corloc(torch.rand(3, 5), TRUE), "predicted_boxes"),
        (lambda: best_mean_iou(torch.rand(3, 5, 5), torch.ones(3, 8, 8)), "masks: .*torch.bool"),
        (lambda: best_mean_iou(torch.rand(1, 5, 5), torch.zeros(1, 8, 8, dtype=torch.bool)), "masks: "),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_hits_of_an_image_are_its_own_accuracy():
    maps = torch.from_numpy(np.stack([smooth_map(seed, 6, (24, 24)) for seed in range(6)]))
    boxes = [torch.tensor([[4.0, 4, 16, 18]]), torch.tensor([[0.0, 10, 12, 24], [12.0, 0, 24, 9]])] * 3
    hits = box_hits(maps, boxes, 24, (0.3, 0.5))
    assert hits.shape == (2, 6, 255)
    for i in range(6):
        alone = box_accuracy(maps[i : i + 1], boxes[i : i + 1], 24, (0.3, 0.5))["max_box_acc"]
        assert [100.0 * of_overlap[i].any() for of_overlap in hits] == [alone[0.3], alone[0.5]]
    best = box_accuracy(maps, boxes, 24, (0.3, 0.5))["max_box_acc"]
    assert (100 * hits.mean(1).max(1)).tolist() == pytest.approx([best[0.3], best[0.5]])
