"""Data sets by name: the embedded photo-digits, and image sets in the layouts torchvision knows.

`load_data` is the only entry point. Every set it returns has the same few attributes (`LabelledImages`), so
that a notebook or a training loop can change the data set by changing a name. Heavy imports (torchvision,
timm, scikit-learn) happen only when a set that needs them is asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..checks import check_choice

__all__ = ["DATASETS", "SPLITS", "LabelledImages", "PixelImages", "load_data"]

DATASETS = ("photo-digits", "imagenette", "oxford-pets", "cifar10", "cifar100", "imagenet", "cub-200", "folder")
SPLITS = ("train", "val", "test")


class LabelledImages(Dataset):
    """What every data set of the workbook offers.

    Attributes:
        name, split: As given to `load_data`.
        classes: One name per class, `list[str]`.
        targets: The labels, int64 `(n,)`.
        mean, std: What images are normalised with, three floats each, for pixels in [0, 1].
        masks: The object's pixels, bool `(n, H, W)`, or None where nobody drew them.
        boxes: Per image a float tensor `(k, 4)` of x0 y0 x1 y1 in pixels (x1, y1 exclusive), or None where there are
            no files with boxes and where images are augmented. Boxes that are cut off by the crop have k = 0 left.
        collate: `collate_fn` for torch's DataLoader; None means its default.
        ignored: Files and folders under `data_root` that are not used, path to reason.
    """

    name: str
    split: str
    classes: list[str]
    targets: Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    masks: Tensor | None = None
    boxes: list[Tensor] | None = None
    collate: Any = None
    ignored: Mapping[str, str] = MappingProxyType({})

    def denormalize(self, image: Tensor) -> Tensor:
        """Undo the normalisation, for plotting: `(..., 3, H, W)` to floats of the same shape in [0, 1]."""
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (image * std + mean).clamp(0, 1)

    def __repr__(self) -> str:
        numbers = f"n={len(self)}, classes={len(self.classes)}"
        return f"{type(self).__name__}({self.name!r}, {self.split!r}, {numbers})"


class PixelImages(LabelledImages):
    """Images that are kept as bytes; a batch is converted and normalised when it is asked for.

    Attributes:
        images: Raw pixels, uint8 `(n, 3, H, W)`.
        augment: Changes a batch of such pixels, `(B, 3, H, W)`, or None.
    """

    images: Tensor
    augment: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._prepare(self.images[index][None])[0], int(self.targets[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once, `(B, 3, H, W)` and `(B,)`; torch's DataLoader calls it, see `collate`."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self._prepare(self.images[index]), self.targets[index]

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Pass a batch of `__getitems__` through: `DataLoader(data, collate_fn=data.collate)`."""
        return batch

    def _prepare(self, images: Tensor) -> Tensor:
        if self.augment is not None:
            images = self.augment(images)
        offset, scale = (
            255 * torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std)
        )
        return (images.float() - offset) / scale


def load_data(
    name: str,
    split: str = "train",
    *,
    target: str | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    augment: bool | dict[str, Any] | None = None,
    without_val: bool = False,
    on_bad_image: str | None = None,
    **options: Any,
) -> LabelledImages:
    """Load a data set by name.

    Args:
        name: One of `DATASETS`. "folder" is any tree `data_root/train/<class>/*.jpg` with `test/` (or `val/`)
            beside `train/`; "imagenet" is the same with its usual folders `train/` and `val/`. Boxes are read from
            Pascal VOC's XML, beside each picture or in folders `Annotations/`, or from COCO's JSON in `data_root`, in
            `data_root/annotations/` or in the folder of the split: `simpool_lite.datasets.boxes.find_boxes`. "cub-200"
            is CUB-200-2011 as published.
        split: "train", "val" or "test". Choices are made on "val", "test" is for the result. Where a set has only
            a validation split with labels, that is "test", and "val" is a tenth of the training images, always the
            same, as many of each class; a "folder" that has `val/` beside `test/` has its own. For photo-digits
            see `PhotoDigits`.
        target: photo-digits only: "digit" (10 classes, the default), "photo" (6 classes) or "odd" (10 classes).
        data_root: Where the files are. "folder" and "imagenet" need it; the downloadable sets default to the
            cache folder (`cache_folder`).
        download: Fetch what is missing. Nothing is ever downloaded unless this is True; photo-digits has
            nothing to fetch.
        image_size: Side of the images in pixels; 224 by default, 32 for CIFAR. For photo-digits this is
            another name of its option `size`.
        mean, std: Normalisation, three floats each; ImageNet's by default, its own for photo-digits.
        augment: True for timm's training augmentation, False for its evaluation transform, or a dict of
            keywords for `timm.data.create_transform`. None means True on "train" and False elsewhere.
            photo-digits has no augmentation.
            Small images go another way unless a dict is given: CIFAR at 32 pixels, and a "folder" or "imagenet"
            with `image_size` of at most 64 whose images all have sides of at most 64. They are decoded once,
            kept in the cache folder as bytes, and augmented as tensors, a batch at a time, by random shifts and
            mirror images (`SmallImages`).
        without_val: True leaves out of "train" what is in "val". By default "train" is all of it and overlaps
            with "val". It changes nothing in the other splits, so all three can be asked for alike.
        on_bad_image: "error" names every image file that cannot be read, before anything is trained; "skip" goes on
            without them and has them in `data.ignored`. To know, every file is decoded once, in threads (some 200
            photographs of 500 pixels a second and core), and again only when it changes. None is "error" for
            "folder", "imagenette" and "oxford-pets"; the 1.3 million files of "imagenet" are then not checked, and
            a bad one is an error with its path when its turn comes.
        **options: photo-digits: see `simpool_lite.datasets.photo_digits.PhotoDigits`. imagenette: `size`,
            "full", "320px" (default) or "160px". The others take none.

    Returns:
        A `LabelledImages`: `image, label = data[0]` is a float32 `(3, H, W)` normalised image and an int. How files
        of other kinds than 8-bit RGB are read: `simpool_lite.datasets.images.open_image`.

    Raises:
        ValueError: An argument that is not one of the above; the message says what was expected. Images that
            cannot be read; a class folder without images; fewer than two classes.
        FileNotFoundError: The files are not there; the message says what to put where.
        ValueError, by `data.boxes`: a file with boxes that is damaged or does not fit its picture, with its path.

    >>> data = load_data("photo-digits", "test", target="photo", num_images=8)
    >>> image, label = data[0]
    >>> image.shape, data.classes[:2]
    (torch.Size([3, 48, 48]), ['astronaut', 'chelsea'])
    """
    check_choice("name", name, DATASETS)
    check_choice("split", split, SPLITS)
    if not isinstance(without_val, bool):
        raise ValueError(f"without_val: expected True or False, got {without_val!r}; pass one of them")

    if name == "photo-digits":
        from .photo_digits import PhotoDigits

        if data_root is not None:
            raise ValueError(f"data_root: photo-digits reads no folder, got {data_root!r}; its cache is cache_dir")
        if on_bad_image is not None:
            raise ValueError(f"on_bad_image: photo-digits reads no image files, got {on_bad_image!r}; leave it out")
        if augment:
            raise ValueError(f"augment: photo-digits has no augmentation, got {augment!r}; leave it out")
        if image_size is not None:
            if "size" in options:
                raise ValueError("image_size: is another name of size for photo-digits; pass only one of them")
            options["size"] = image_size
        target = "digit" if target is None else target
        return PhotoDigits(split, target=target, without_val=without_val, mean=mean, std=std, **options)

    from .vision import load_vision

    if target is not None:
        raise ValueError(
            f"target: only photo-digits has a choice of targets, got {target!r} for {name!r}; leave it out"
        )
    return load_vision(
        name,
        split,
        data_root=data_root,
        download=download,
        image_size=image_size,
        mean=mean,
        std=std,
        augment=augment,
        without_val=without_val,
        on_bad_image=on_bad_image,
        **options,
    )


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/simpool_lite`, or `~/.cache/simpool_lite`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "simpool_lite"


def check_normalisation(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Both as tuples of three finite floats, or a ValueError; a standard deviation is above zero."""
    checked = []
    for argument, values, above in (("mean", mean, -math.inf), ("std", std, 0)):
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != 3 or not all(math.isfinite(number) and number > above for number in numbers):
            wanted = "three finite numbers" + (" above 0" if above == 0 else "")
            raise ValueError(f"{argument}: expected {wanted} (R, G, B), got {values!r}; pass one per channel")
        checked.append(numbers)
    return checked[0], checked[1]
