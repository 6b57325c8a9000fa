"""Image sets on disk: CIFAR, Imagenette, Oxford-IIIT Pet, ImageNet and any folder of images.

torchvision reads the files, `timm.data.create_transform` turns a picture of any size into a tensor; here is
only what joins them to the interface of `LabelledImages`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo, create_transform
from torch import Tensor
from torchvision import datasets, transforms

from . import LabelledImages, cache_folder, check_choice

__all__ = ["OxfordPets", "VisionImages", "load_vision"]

DEFAULT_CROP = 0.875  # share of the resized image's side that the evaluation crop keeps, timm's default
LAYOUTS = {  # what the error says when files are missing
    "cifar10": "cifar-10-batches-py/ with the set's Python pickles",
    "cifar100": "cifar-100-python/ with the set's Python pickles",
    "imagenette": "imagenette2-320/ (imagenette2/ or imagenette2-160/ for another size) with train/ and val/",
    "oxford-pets": "oxford-iiit-pet/ with images/ and annotations/ (list files and trimaps/)",
    "imagenet": "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG",
    "folder": "train/<class>/*.jpg and test/<class>/*.jpg (or val/ in place of test/)",
}
DOWNLOADABLE = ("cifar10", "cifar100", "imagenette", "oxford-pets")


class VisionImages(LabelledImages):
    """A torchvision data set of PIL images behind the workbook's interface.

    Args:
        name, split: As given to `load_data`.
        source: Yields (PIL image in RGB, label).
        targets: All labels, without opening an image.
        classes: One name per class.
        transform: PIL image of any size to a normalised float tensor `(3, H, W)`.
        mean, std: What `transform` normalises with.
    """

    def __init__(
        self,
        name: str,
        split: str,
        source: Any,
        targets: list[int],
        classes: list[str],
        transform: Callable[[Any], Tensor],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.name, self.split = name, split
        self.source, self.transform = source, transform
        self.targets = torch.as_tensor(targets, dtype=torch.int64)
        self.classes = list(classes)
        self.mean, self.std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.source[index]
        return self.transform(image), int(label)


class OxfordPets(VisionImages):
    """Oxford-IIIT Pet, 37 breeds, with masks from its trimaps (foreground; the uncertain border is not in).

    Masks take the evaluation transform's resize and centre crop, so they fit the images only where nothing
    is random: `evaluation_size` is None, and so are masks and boxes, for an augmented set. They are read on
    first use (all of them: 180 MB for the 3,669 test images at 224 pixels).
    """

    evaluation_size: int | None = None

    @cached_property
    def masks(self) -> Tensor | None:  # type: ignore[override]
        from PIL import Image

        if self.evaluation_size is None:
            return None
        size = int(self.evaluation_size / DEFAULT_CROP)
        resize = transforms.Resize(size, transforms.InterpolationMode.NEAREST)
        geometry = transforms.Compose([resize, transforms.CenterCrop(self.evaluation_size)])
        to_tensor = transforms.PILToTensor()
        masks = torch.empty(len(self), self.evaluation_size, self.evaluation_size, dtype=torch.bool)
        for index, path in enumerate(self.source._segs):  # torchvision has no public name for the paths
            with Image.open(path) as trimap:
                masks[index] = to_tensor(geometry(trimap))[0] == 1  # 1 foreground, 2 background, 3 border
        return masks

    @cached_property
    def boxes(self) -> list[Tensor] | None:  # type: ignore[override]
        return None if self.masks is None else [_tight_box(mask) for mask in self.masks]


def load_vision(
    name: str,
    split: str,
    *,
    data_root: str | Path | None,
    download: bool,
    image_size: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    augment: bool | dict[str, Any] | None,
    **options: Any,
) -> VisionImages:
    """The part of `load_data` for sets on disk; its arguments and errors are described there."""
    size = options.pop("size", "320px") if name == "imagenette" else None
    if options:
        allowed = "only size" if name == "imagenette" else "none"
        raise ValueError(f"options: {name!r} takes {allowed}, got {', '.join(options)}; check the spelling")
    if size is not None:
        check_choice("size", size, ("full", "320px", "160px"))
    image_size = (32 if name.startswith("cifar") else 224) if image_size is None else image_size
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size: expected a positive int, got {image_size!r}; pass the side in pixels")
    if download and name not in DOWNLOADABLE:
        raise ValueError(f"download: {name!r} cannot be downloaded, got True; put {LAYOUTS[name]} under data_root")
    if data_root is None and name not in DOWNLOADABLE:
        raise ValueError(f"data_root: {name!r} needs a folder, got None; pass one that holds {LAYOUTS[name]}")

    mean, std = mean or IMAGENET_DEFAULT_MEAN, std or IMAGENET_DEFAULT_STD
    transform = _transform(name, split, image_size, mean, std, augment)
    root = cache_folder() if data_root is None else Path(data_root).expanduser()
    source, targets, classes = _open(name, split, root, download, size)
    kind = OxfordPets if name == "oxford-pets" else VisionImages
    data = kind(name, split, source, targets, classes, transform, mean, std)
    if name == "oxford-pets" and not _augmented(split, augment):
        data.evaluation_size = image_size
    return data


def _augmented(split: str, augment: bool | dict[str, Any] | None) -> bool:
    return split == "train" if augment is None else augment is not False


def _transform(
    name: str, split: str, image_size: int, mean: Any, std: Any, augment: bool | dict[str, Any] | None
) -> Callable[[Any], Tensor]:
    training = _augmented(split, augment)
    keywords = {"input_size": image_size, "is_training": training, "mean": tuple(mean), "std": tuple(std)}
    if name.startswith("cifar"):
        # Crops of a twelfth of a 32-pixel image would show nothing, and its border is no margin to cut off.
        keywords |= {"scale": (0.5, 1.0)} if training else {"crop_pct": 1.0}
    elif not training:
        keywords["crop_pct"] = DEFAULT_CROP
    if isinstance(augment, dict):
        keywords |= augment
    elif augment not in (None, True, False):
        raise ValueError(f"augment: expected True, False, None or a dict of keywords, got {augment!r}; pass one")
    try:
        return create_transform(**keywords)
    except TypeError as error:
        raise ValueError(
            f"augment: expected keywords of timm.data.create_transform, got {augment!r}; {error}"
        ) from error


def _open(name: str, split: str, root: Path, download: bool, size: str | None) -> tuple[Any, list[int], list[str]]:
    """The torchvision data set, its labels and its class names."""
    if download:
        root.mkdir(parents=True, exist_ok=True)
    try:
        if name in ("cifar10", "cifar100"):
            cifar = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
            source = cifar(root, train=split == "train", download=download)
            return source, source.targets, source.classes
        if name == "imagenette":
            part = "train" if split == "train" else "val"
            source = datasets.Imagenette(root, part, size=size, download=download)
            return source, [label for _, label in source._samples], [names[0] for names in source.classes]
        if name == "oxford-pets":
            part = "trainval" if split == "train" else "test"
            source = datasets.OxfordIIITPet(root, part, download=download)
            return source, source._labels, source.classes
        source = datasets.ImageFolder(_split_folder(root, split))
    except (FileNotFoundError, RuntimeError) as error:
        if download:
            raise
        hint = ", or pass download=True" if name in DOWNLOADABLE else ""
        raise FileNotFoundError(
            f"{name!r} ({split}) was not found under {root} ({error}); put {LAYOUTS[name]} there{hint}"
        ) from error
    _check_classes(root, source.classes)
    return source, source.targets, _readable(source.classes) if name == "imagenet" else source.classes


def _split_folder(root: Path, split: str) -> Path:
    names = ("train",) if split == "train" else ("test", "val")
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"no sub-folder {' or '.join(names)}")


def _check_classes(root: Path, classes: list[str]) -> None:
    """Labels are positions in the sorted class folders, so both splits must have the same ones."""
    if not (root / "train").is_dir():  # evaluation only
        return
    expected = {entry.name for entry in (root / "train").iterdir() if entry.is_dir()}
    if set(classes) != expected:
        odd = sorted(expected ^ set(classes))
        raise ValueError(
            f"data_root: expected the same class folders in both splits of {root}, got {', '.join(odd[:5])} "
            "in one only; rename or move them"
        )


def _readable(wnids: list[str]) -> list[str]:
    """n01440764 -> tench; what is no ImageNet class keeps its name."""
    info = ImageNetInfo()
    known = set(info.label_names())
    return [info.label_name_to_description(wnid).split(",")[0] if wnid in known else wnid for wnid in wnids]


def _tight_box(mask: Tensor) -> Tensor:
    """(k, 4) x0 y0 x1 y1 of a mask (H, W), x1 and y1 exclusive: k = 1, or 0 for an empty mask."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return torch.empty(0, 4)
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()[None]
