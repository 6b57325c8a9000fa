"""Exchanged backgrounds, beside what each variant promises."""

import pytest
import torch
from torch import Tensor

from simpool_lite.datasets import load_data
from simpool_lite.datasets.backgrounds import BACKGROUNDS, background_variants


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_data("photo-digits", "test", num_images=80, size=32, object_size=(13, 22),
                     cache_dir=tmp_path_factory.mktemp("cache"))  # fmt: skip


@pytest.fixture(scope="module")
def variants(data) -> dict[str, Tensor]:
    return background_variants(data.images, data.masks, torch.cat(data.boxes), data.targets)


def painted(labels: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of one colour each, ten times the label and the image's number; the object in the middle is 255."""
    n = len(labels)
    colours = 30 * torch.tensor(labels) + torch.arange(n)
    images = colours[:, None, None, None].expand(n, 3, 9, 9).clone().to(torch.uint8)
    masks = torch.zeros(n, 9, 9, dtype=torch.bool)
    masks[:, 3:6, 4:6] = True
    images.masked_fill_(masks[:, None], 255)
    return images, masks, torch.tensor([[4, 3, 6, 6]] * n), torch.tensor(labels)


def test_names(variants):
    assert tuple(variants) == BACKGROUNDS
    assert {images.dtype for images in variants.values()} == {torch.uint8}


def test_object_and_background_add_up_to_the_image(data, variants):
    assert torch.equal(variants["only foreground"] + variants["no foreground"], data.images)
    assert not variants["only foreground"][~data.masks[:, None].expand_as(data.images)].any()


def test_a_box_is_black_inside_and_unchanged_outside(data, variants):
    for image, box, changed in zip(data.images, data.boxes, variants["only background box"], strict=True):
        x0, y0, x1, y1 = box[0].long().tolist()
        assert not changed[:, y0:y1, x0:x1].any()
        restored = changed.clone()
        restored[:, y0:y1, x0:x1] = image[:, y0:y1, x0:x1]
        assert torch.equal(restored, image)


def test_texture_goes_on_where_the_strip_ends():
    """Rows of different grey: a strip beside the box has them all, so the object vanishes without a trace."""
    rows = torch.arange(9, dtype=torch.float)[:, None].expand(1, 3, 9, 9).clone()
    masks, box = torch.zeros(2, 9, 9, dtype=torch.bool), [6, 3, 9, 6]
    masks[:, 3:6, 6:9] = True
    images = rows.expand(2, -1, -1, -1).masked_fill(masks[:, None], 99)
    changed = background_variants(images, masks, torch.tensor([box] * 2), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(changed["only background texture"], rows.expand(2, -1, -1, -1))


def test_texture_has_no_pixel_of_the_box(data, variants):
    spoiled = data.images.clone()
    for image, box in zip(spoiled, data.boxes, strict=True):
        x0, y0, x1, y1 = box[0].long().tolist()
        image[:, y0:y1, x0:x1] = 77
    again = background_variants(spoiled, data.masks, torch.cat(data.boxes), data.targets)
    assert torch.equal(again["only background texture"], variants["only background texture"])


@pytest.mark.parametrize("seed", range(5))
def test_whose_background_an_image_gets(seed):
    images, masks, boxes, labels = painted([0, 1, 2, 0, 1, 2, 0, 1, 2, 2])
    own = images[:, 0, 0, 0]
    for name, changed in background_variants(images, masks, boxes, labels, seed).items():
        if name.startswith("mixed"):
            assert (changed[masks[:, None].expand_as(changed)] == 255).all()
            colour = changed[:, 0, 0, 0]
            assert (colour != own).all()
            giver = torch.stack([labels[own == value][0] for value in colour])
            if name == "mixed same":
                assert torch.equal(giver, labels)
            if name == "mixed next":
                assert torch.equal(giver, (labels + 1) % 3)


def test_the_seed_decides():
    parts = painted([0, 1] * 8)
    one, same, other = (background_variants(*parts, seed)["mixed random"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("wrong", ["masks", "boxes", "labels", "alone", "covers", "seed"])
def test_what_does_not_fit_is_named(wrong):
    images, masks, boxes, labels = painted([0, 0, 1, 1])
    seed = 0
    if wrong == "masks":
        masks = masks[:, :5]
    elif wrong == "boxes":
        boxes = boxes[0]
    elif wrong == "labels":
        labels = labels[:3]
    elif wrong == "alone":
        labels, wrong = torch.tensor([0, 0, 0, 1]), r"labels.*\[1\]"
    elif wrong == "covers":
        boxes[2], wrong = torch.tensor([0, 0, 9, 9]), "boxes.*9 × 9"
    else:
        seed = -1
    with pytest.raises(ValueError, match=wrong):
        background_variants(images, masks, boxes, labels, seed)
