"""Grids of attention maps against the tensors they draw."""

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color

from simpool_lite.figures import attention_grid

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MAPS = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
MASKS = torch.zeros(3, 8, 8, dtype=torch.bool)
MASKS[:2, 2:4, 2:6] = True  # the third image has no object


def cells(figure) -> list[dict]:
    """What each cell shows, row by row."""
    return [
        {
            "pictures": [picture.get_array() for picture in axis.images],
            "outlines": [path for c in axis.collections for path in c.get_paths()],
            "title": axis.get_title(),
            "label": axis.get_ylabel(),
            "axis": axis,
        }
        for axis in figure.axes
    ]


def test_rows_are_methods_and_columns_images():
    figure = attention_grid(IMAGES, {"image": None, "SimPool": MAPS}, masks=MASKS, title="a message")
    assert figure.get_suptitle() == "a message"
    found = cells(figure)
    assert [cell["label"] for cell in found] == ["image", "", "", "SimPool", "", ""]
    for i in range(3):
        (photograph,) = found[i]["pictures"]
        np.testing.assert_array_equal(photograph, IMAGES[i].permute(1, 2, 0))
        grey, attention = found[3 + i]["pictures"]
        np.testing.assert_allclose(grey, IMAGES[i].mean(0), rtol=1e-6)
        np.testing.assert_array_equal(attention, MAPS[i])
    assert [len(cell["outlines"]) for cell in found] == [0, 0, 0, 1, 1, 0]
    corners = found[3]["outlines"][0].vertices
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [(1.5, 1.5), (5.5, 3.5)])  # half way to the next pixel


def test_a_map_covers_its_image_in_squares_from_zero_to_its_maximum():
    for vmax, tops in {None: MAPS.amax((1, 2)).tolist(), 2.0: [2.0] * 3}.items():
        for cell, top in zip(cells(attention_grid(IMAGES, {"": MAPS}, vmax=vmax)), tops, strict=True):
            grey, attention = cell["axis"].images
            assert tuple(attention.get_extent()) == tuple(grey.get_extent()) == (-0.5, 7.5, 7.5, -0.5)
            assert attention.get_clim() == pytest.approx((0, top))
            assert attention.get_interpolation() == "nearest"


def test_one_image_carries_all_its_heads():
    found = cells(attention_grid(IMAGES[:1], {"heads": MAPS}, titles=["a", "b", "c"]))
    assert [cell["title"] for cell in found] == ["a", "b", "c"]
    for cell, head in zip(found, MAPS, strict=True):
        np.testing.assert_allclose(cell["pictures"][0], IMAGES[0].mean(0), rtol=1e-6)
        np.testing.assert_array_equal(cell["pictures"][1], head)


def test_methods_across_and_broken_into_rows():
    rows = {"image": None, "A": MAPS, "B": MAPS + 1}
    found = cells(attention_grid(IMAGES, rows, across=True, titles={"A": ["1 %", "2 %", "3 %"]}))
    assert [cell["title"] for cell in found] == ["image", "A\n1 %", "B", "", "2 %", "", "", "3 %", ""]
    np.testing.assert_array_equal(found[5]["pictures"][1], MAPS[1] + 1)
    figure = attention_grid(IMAGES[:1], {name: maps if maps is None else maps[:1] for name, maps in rows.items()},
                            across=True, columns=2)  # fmt: skip
    assert [cell["title"] for cell in cells(figure)] == ["image", "A", "B", ""]
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 2)


def test_colours_and_boxes():
    colours = torch.rand(3, 3, 2, 2)
    boxes = torch.tensor([[0.0, 1.0, 4.0, 8.0], [2.0, 2.0, 3.0, 3.0], [torch.nan] * 4])
    figure = attention_grid(IMAGES, {"A": MAPS, "parts": colours}, boxes={"A": boxes})
    found = cells(figure)
    np.testing.assert_array_equal(found[4]["pictures"][0], colours[1].permute(1, 2, 0))
    assert [len(cell["axis"].patches) for cell in found] == [1, 1, 0, 0, 0, 0]
    box = found[0]["axis"].patches[0]
    assert box.get_bbox().extents.tolist() == [-0.5, 0.5, 3.5, 7.5]  # pixel 0 begins at -0.5
    assert same_color(box.get_edgecolor(), "cyan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES[:, 0]}, r"images: expected a tensor \(3, 3, h, w\), got \(3, 8, 8\)"),
        ({"maps": {"A": MAPS[:2]}}, r"maps\['A'\]: expected a tensor \(3, H, W\) or \(3, 3, H, W\), got \(2, 4, 4\)"),
        ({"masks": MASKS[:, :4]}, r"masks: expected a tensor \(3, 8, 8\), got \(3, 4, 8\)"),
        ({"boxes": {"A": torch.zeros(3, 5)}}, r"boxes\['A'\]: expected a tensor \(3, 4\), got \(3, 5\)"),
        ({"boxes": {"B": torch.zeros(3, 4)}}, r"boxes, titles: expected names of rows \(A\), got B"),
        ({"titles": ["one"]}, "titles: expected 3 texts per row, got 1 for 'A'"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        attention_grid(**{"images": IMAGES, "maps": {"A": MAPS}} | arguments)


def test_the_callers_style_stays():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    attention_grid(IMAGES, {"A": MAPS})
    assert dict(mpl.rcParams) == before
