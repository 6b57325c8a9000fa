"""Data sets by name: the embedded photo-digits, and image sets in the layouts torchvision knows.

`load_data` is the only entry point. Every set it returns has the same few attributes (`LabelledImages`), so
that a notebook or a training loop can change the data set by changing a name. Heavy imports (torchvision,
timm, scikit-learn) happen only when a set that needs them is asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["DATASETS", "SPLITS", "LabelledImages", "load_data"]

DATASETS = ("photo-digits", "imagenette", "oxford-pets", "cifar10", "cifar100", "imagenet", "folder")
SPLITS = ("train", "test")


class LabelledImages(Dataset):
    """What every data set of the workbook offers.

    Attributes:
        name, split: As given to `load_data`.
        classes: One name per class, `list[str]`.
        targets: The labels, int64 `(n,)`.
        mean, std: What images are normalised with, three floats each, for pixels in [0, 1].
        masks: The object's pixels, bool `(n, H, W)`, or None where nobody drew them.
        boxes: Per image a float tensor `(k, 4)` of x0 y0 x1 y1 in pixels (x1, y1 exclusive), or None.
        collate: `collate_fn` for torch's DataLoader; None means its default.
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

    def denormalize(self, image: Tensor) -> Tensor:
        """Undo the normalisation, for plotting: `(..., 3, H, W)` to floats of the same shape in [0, 1]."""
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (image * std + mean).clamp(0, 1)

    def __repr__(self) -> str:
        numbers = f"n={len(self)}, classes={len(self.classes)}"
        return f"{type(self).__name__}({self.name!r}, {self.split!r}, {numbers})"


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
    **options: Any,
) -> LabelledImages:
    """Load a data set by name.

    Args:
        name: One of `DATASETS`. "folder" is any tree `data_root/train/<class>/*.jpg` with `test/` (or `val/`)
            beside `train/`; "imagenet" is the same with its usual folders `train/` and `val/`.
        split: "train" or "test". Where a set has only a validation split with labels, that is "test".
        target: photo-digits only: "digit" (10 classes, the default) or "photo" (6 classes).
        data_root: Where the files are. "folder" and "imagenet" need it; the downloadable sets default to the
            cache folder (`cache_folder`).
        download: Fetch what is missing. Nothing is ever downloaded unless this is True; photo-digits has
            nothing to fetch.
        image_size: Side of the images in pixels; 224 by default, 32 for CIFAR. For photo-digits this is
            another name of its option `size`.
        mean, std: Normalisation, three floats each; ImageNet's by default, its own for photo-digits.
        augment: True for timm's training augmentation, False for its evaluation transform, or a dict of
            keywords for `timm.data.create_transform`. None means True on "train" and False on "test".
            photo-digits has no augmentation.
        **options: photo-digits: see `simpool_lite.datasets.photo_digits.PhotoDigits`. imagenette: `size`,
            "full", "320px" (default) or "160px". The others take none.

    Returns:
        A `LabelledImages`: `image, label = data[0]` is a float32 `(3, H, W)` normalised image and an int.

    Raises:
        ValueError: An argument that is not one of the above; the message says what was expected.
        FileNotFoundError: The files are not there; the message says what to put where.

    >>> data = load_data("photo-digits", "test", target="photo", num_images=8)
    >>> image, label = data[0]
    >>> image.shape, data.classes[:2]
    (torch.Size([3, 48, 48]), ['astronaut', 'chelsea'])
    """
    check_choice("name", name, DATASETS)
    check_choice("split", split, SPLITS)
    for argument, value in (("mean", mean), ("std", std)):
        if value is not None and len(value) != 3:
            raise ValueError(f"{argument}: expected three floats (R, G, B), got {value!r}; pass one a channel")

    if name == "photo-digits":
        from .photo_digits import PhotoDigits

        if data_root is not None:
            raise ValueError(f"data_root: photo-digits reads no folder, got {data_root!r}; its cache is cache_dir")
        if augment:
            raise ValueError(f"augment: photo-digits has no augmentation, got {augment!r}; leave it out")
        if image_size is not None:
            if "size" in options:
                raise ValueError("image_size: is another name of size for photo-digits; pass only one of them")
            options["size"] = image_size
        return PhotoDigits(split, target="digit" if target is None else target, mean=mean, std=std, **options)

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
        **options,
    )


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/simpool_lite`, or `~/.cache/simpool_lite`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "simpool_lite"


def check_choice(argument: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument}: expected one of {', '.join(choices)}; got {value!r}; choose one of those")
