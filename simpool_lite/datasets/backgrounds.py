"""Images whose background was taken away or exchanged: what does a classifier owe to it?

The variants of ImageNet-9 (Xiao et al., "Noise or Signal: The Role of Image Backgrounds in Object Recognition", ICLR
2021), made from the masks and boxes of the objects.
"""

import torch
from torch import Tensor

from ..checks import check_int

ORIGINAL = "original"
BACKGROUNDS = (
    ORIGINAL,
    "only foreground",
    "mixed same",
    "mixed random",
    "mixed next",
    "no foreground",
    "only background box",
    "only background texture",
)


def background_variants(
    images: Tensor, masks: Tensor, boxes: Tensor, labels: Tensor, seed: int = 0
) -> dict[str, Tensor]:
    """The images as they are and in seven variants, by their names in :data:`BACKGROUNDS`.

    =========================== =========== =======================================================
    name                        ImageNet-9  what is seen
    =========================== =========== =======================================================
    only foreground             OF          the object on black
    mixed same, random, next    MS, MR, MN  the object on the background of another image: of its
                                            class, of any image, of the next class
    no foreground               NF          the background, the object's pixels black
    only background box         OBB         the background, the object's box black
    only background texture     OBT         the background, the box filled with texture
    =========================== =========== =======================================================

    The texture is that of the largest strip beside the box, repeated; the background of another image is its "only
    background texture".

    Args:
        images: pixels that are not normalised (black is 0), ``(n, 3, H, W)``, of any type.
        masks: the objects' pixels, bool ``(n, H, W)``.
        boxes: one per image, ``(n, 4)``, x0 y0 x1 y1 in pixels, x1 and y1 exclusive.
        labels: the classes, int64 ``(n,)``; the class after the last is the first.
        seed: of the choice of the other images.

    Returns:
        Eight tensors ``(n, 3, H, W)``.

    Raises:
        ValueError: a box that covers its image, a class without a second image, shapes that do not fit.

    >>> images, masks = torch.rand(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.bool)
    >>> masks[:, 2:4, 3:6] = True
    >>> variants = background_variants(images, masks, torch.tensor([[3, 2, 6, 4]] * 4), torch.tensor([0, 0, 1, 1]))
    >>> variants["only foreground"][0].count_nonzero().item()
    18
    """
    n, size = len(images), tuple(images.shape[-2:])
    for name, given, shape in (("masks", masks, (n, *size)), ("boxes", boxes, (n, 4)), ("labels", labels, (n,))):
        if tuple(given.shape) != shape:
            raise ValueError(f"{name}: expected {shape} beside images {tuple(images.shape)}, got {tuple(given.shape)}")
    edges, on = boxes.long(), masks[:, None]
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
    x0, y0, x1, y1 = edges.T[:, :, None, None]
    in_box = ((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1))[:, None]
    textures = torch.stack([_textured(image, box.tolist()) for image, box in zip(images, edges, strict=True)])
    donors = _donors(labels, check_int("seed", seed, 0))
    black = torch.zeros_like(images)
    return {
        ORIGINAL: images,
        "only foreground": torch.where(on, images, black),
        **{f"mixed {name}": torch.where(on, images, textures[donor]) for name, donor in donors.items()},
        "no foreground": torch.where(on, black, images),
        "only background box": torch.where(in_box, black, images),
        "only background texture": textures,
    }


def _donors(labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Whose background each image gets: another one of its class, any other one, one of the next class."""
    generator = torch.Generator().manual_seed(seed)
    n, classes = len(labels), int(labels.max()) + 1
    members = [(labels == label).nonzero()[:, 0] for label in range(classes)]
    if short := [label for label, of_class in enumerate(members) if len(of_class) < 2]:
        raise ValueError(f"labels: expected at least two images of each class, got fewer of {short}")
    counts = torch.tensor([len(of_class) for of_class in members])
    everyone, starts = torch.cat(members), counts.cumsum(0) - counts
    place = torch.empty(n, dtype=torch.int64)
    place[everyone] = torch.arange(n) - starts.repeat_interleave(counts)  # of an image within its class

    def drawn(limit: Tensor) -> Tensor:
        return (torch.rand(n, generator=generator, dtype=torch.float64) * limit).long()

    after = (labels + 1) % classes
    own = counts[labels]
    return {
        "same": everyone[starts[labels] + (place + 1 + drawn(own - 1)) % own],
        "random": (torch.arange(n) + 1 + drawn(torch.full((n,), n - 1))) % n,
        "next": everyone[starts[after] + drawn(counts[after])],
    }


def _textured(image: Tensor, box: list[int]) -> Tensor:
    """An image ``(3, H, W)`` whose box is filled with the largest strip beside it, repeated in both directions."""
    height, width = image.shape[1:]
    x0, y0, x1, y1 = box
    strips = [(0, 0, x0, height), (x1, 0, width, height), (0, 0, width, y0), (0, y1, width, height)]
    left, top, right, bottom = max(strips, key=lambda strip: (strip[2] - strip[0]) * (strip[3] - strip[1]))
    if left >= right or top >= bottom:
        raise ValueError(f"boxes: expected some background beside each box, got {box}, all of {width} × {height}")
    rows = top + (torch.arange(y0, y1) - top) % (bottom - top)
    columns = left + (torch.arange(x0, x1) - left) % (right - left)
    filled = image.clone()
    filled[:, y0:y1, x0:x1] = image[:, rows][:, :, columns]
    return filled
