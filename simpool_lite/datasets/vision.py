"""Image sets on disk: CIFAR, Imagenette, Oxford-IIIT Pet, ImageNet and any folder of images.

`images` finds and opens the files (torchvision those of CIFAR), `timm.data.create_transform` turns a picture of any
size into a tensor; here is only what joins them to the interface of `LabelledImages`. Small images are another
matter: opening a file and augmenting a picture cost more than a training step of a small network, so they are
decoded once (`SmallImages`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo, create_transform
from torch import Tensor
from torchvision import datasets, transforms
from torchvision.transforms import v2

from ..checks import check_choice, check_int
from . import LabelledImages, PixelImages, cache_folder, check_normalisation
from .boxes import FOLDER as ANNOTATIONS
from .boxes import BoxFiles, cub_boxes, find_boxes, geometry_of, placed, stored
from .cache import cached_arrays
from .images import IMG_EXTENSIONS, ImageFiles, list_images, open_image, unreadable, warn_ignored, why_ignored

__all__ = ["OxfordPets", "SmallImages", "VisionImages", "load_vision"]

DEFAULT_CROP = 0.875  # share of the resized image's side that the evaluation crop keeps, timm's default
SMALL = 64  # pixels: images of at most this side are decoded once and kept as bytes
DECODER_VERSION = 2  # raise it whenever the decoded bytes change
LAYOUTS = {  # what the error says when files are missing
    "cifar10": "cifar-10-batches-py/ with the set's Python pickles",
    "cifar100": "cifar-100-python/ with the set's Python pickles",
    "imagenette": "imagenette2-320/ (imagenette2/ or imagenette2-160/ for another size) with train/ and val/",
    "oxford-pets": "oxford-iiit-pet/ with images/ and annotations/ (list files and trimaps/)",
    "imagenet": "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG",
    "cub-200": "CUB_200_2011/ with images/ and the lists (images.txt, bounding_boxes.txt, ...)",
    "folder": "train/<class>/*.jpg and test/<class>/*.jpg (or val/ in place of test/)",
}
DOWNLOADABLE = ("cifar10", "cifar100", "imagenette", "oxford-pets")
IMAGENETTE_FOLDERS = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}


class VisionImages(LabelledImages):
    """PIL images behind the workbook's interface.

    Args:
        name, split: As given to `load_data`.
        source: Yields (PIL image in RGB, label).
        targets: All labels, without opening an image.
        classes: One name per class.
        indices: Which images of `source` are in the split; None means all. `targets` has only theirs.
        transform: PIL image of any size to a normalised float tensor `(3, H, W)`.
        mean, std: What `transform` normalises with.

    Boxes are read on first use, from the files that `find_boxes` found, and moved as the transform moves the pictures;
    None where it is random.
    """

    def __init__(
        self,
        name: str,
        split: str,
        source: Any,
        targets: Tensor,
        classes: list[str],
        indices: Tensor | None,
        transform: Callable[[Any], Tensor],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        self.name, self.split = name, split
        self.source, self.transform, self.indices = source, transform, indices
        self.targets, self.classes = targets, classes
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.source[index if self.indices is None else int(self.indices[index])]
        return self.transform(image), int(label)

    @cached_property
    def boxes(self) -> list[Tensor] | None:  # type: ignore[override]
        return _boxes(self.source, self.indices, self.transform)


class OxfordPets(VisionImages):
    """Oxford-IIIT Pet, 37 breeds, with masks from its trimaps (foreground; the uncertain border is not in).

    A trimap lies on the pixels as the picture's file has them: it is turned with the picture (EXIF).

    Masks take the evaluation transform's resize and centre crop, so they fit the images only where nothing
    is random: `evaluation_size` is None, and so are masks and boxes, for an augmented set. They are read on
    first use (all of them: 180 MB for the 3,669 test images at 224 pixels).
    """

    evaluation_size: int | None = None

    @cached_property
    def masks(self) -> Tensor | None:  # type: ignore[override]
        if self.evaluation_size is None:
            return None
        size = int(self.evaluation_size / DEFAULT_CROP)
        resize = transforms.Resize(size, transforms.InterpolationMode.NEAREST)
        geometry = transforms.Compose([resize, transforms.CenterCrop(self.evaluation_size)])
        to_tensor = transforms.PILToTensor()
        masks = torch.empty(len(self), self.evaluation_size, self.evaluation_size, dtype=torch.bool)
        paths = self.source.trimaps
        for index, position in enumerate(range(len(self)) if self.indices is None else self.indices.tolist()):
            with Image.open(paths[position]) as trimap:
                turned = _as_the_picture(trimap, self.source.paths[position])
                masks[index] = to_tensor(geometry(turned))[0] == 1  # 1 foreground, 2 background, 3 border
        return masks

    @cached_property
    def boxes(self) -> list[Tensor] | None:  # type: ignore[override]
        return None if self.masks is None else [_tight_box(mask) for mask in self.masks]


def _as_the_picture(trimap: Image.Image, path: str | Path) -> Image.Image:
    """A trimap the way up its picture is shown, unless it was drawn on the upright one."""
    size, orientation = stored(path)
    if trimap.size != size and trimap.size == size[::-1]:
        return trimap
    trimap.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(trimap)


class SmallImages(PixelImages):
    """Images of at most `SMALL` pixels, decoded once and augmented as tensors, a batch at a time.

    Augmentation is the usual one of CIFAR (He et al. 2016): a crop of the image with an eighth of its side
    (4 of 32 pixels) added on each side, black, and a mirror image half of the time.
    """

    def __init__(
        self,
        name: str,
        split: str,
        images: Tensor,
        targets: Tensor,
        classes: list[str],
        augmented: bool,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        boxes: Callable[[], list[Tensor] | None] = lambda: None,
    ) -> None:
        self.name, self.split = name, split
        self.images, self.targets, self.classes = images, targets, classes
        self.mean, self.std = mean, std
        self.augment = crop_and_flip if augmented else None
        self._read_boxes = boxes

    @cached_property
    def boxes(self) -> list[Tensor] | None:  # type: ignore[override]
        return None if self.augment else self._read_boxes()


def crop_and_flip(images: Tensor) -> Tensor:
    """Shift each image `(B, C, H, W)` by up to an eighth of its side, in black, and mirror half of them.

    torchvision's transforms move all images of a batch alike; here each one has its own shift.
    """
    count, _, height, width = images.shape
    margin = max(height, width) // 8
    padded = v2.functional.pad(images, [margin] * 4)
    top, left = torch.randint(2 * margin + 1, (2, count, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
    without_val: bool,
    on_bad_image: str | None,
    **options: Any,
) -> LabelledImages:
    """The part of `load_data` for sets on disk; its arguments and errors are described there."""
    size = options.pop("size", "320px") if name == "imagenette" else None
    if options:
        allowed = "only size" if name == "imagenette" else "none"
        raise ValueError(f"options: {name!r} takes {allowed}, got {', '.join(options)}; check the spelling")
    if size is not None:
        check_choice("size", size, IMAGENETTE_FOLDERS)
    if on_bad_image is not None:
        check_choice("on_bad_image", on_bad_image, ("error", "skip"))
        if name.startswith("cifar"):
            raise ValueError(f"on_bad_image: {name!r} has no image files, got {on_bad_image!r}; leave it out")
    elif name != "imagenet":
        on_bad_image = "error"
    image_size = (32 if name.startswith("cifar") else 224) if image_size is None else image_size
    image_size = check_int("image_size", image_size)
    if download and name not in DOWNLOADABLE:
        raise ValueError(f"download: {name!r} cannot be downloaded, got True; put {LAYOUTS[name]} under data_root")
    if data_root is None and name not in DOWNLOADABLE:
        raise ValueError(f"data_root: {name!r} needs a folder, got None; pass one that holds {LAYOUTS[name]}")

    mean, std = check_normalisation(
        IMAGENET_DEFAULT_MEAN if mean is None else mean, IMAGENET_DEFAULT_STD if std is None else std
    )
    transform = _transform(name, split, image_size, mean, std, augment)
    root = cache_folder() if data_root is None else Path(data_root).expanduser()
    part, rule = _part(name, split, root, without_val)
    source, classes, ignored = _open(name, part, root, download, size, on_bad_image)
    targets = torch.as_tensor(source.labels if isinstance(source, ImageFiles) else source.targets, dtype=torch.int64)
    indices = None
    if rule is not None:
        held_out = _tenth(targets)
        indices = (held_out if rule == "tenth" else ~held_out).nonzero()[:, 0]
        if not len(indices):
            raise ValueError(f'split: "val" takes images from classes of two or more, {root} has none; add images')
        targets = targets[indices]
    images = None if isinstance(augment, dict) else _small_images(name, source, indices, image_size)
    if images is not None:
        read = partial(_boxes, source, indices, _small_geometry(image_size))
        data = SmallImages(name, split, images, targets, classes, _augmented(split, augment), mean, std, read)
    else:
        kind = OxfordPets if name == "oxford-pets" else VisionImages
        data = kind(name, split, source, targets, classes, indices, transform, mean, std)
    data.ignored = ignored
    if name == "oxford-pets" and not _augmented(split, augment):
        data.evaluation_size = image_size
    return data


def _part(name: str, split: str, root: Path, without_val: bool) -> tuple[str, str | None]:
    """The part on disk a split is taken from, and which of its images: all (None), a "tenth" or the "rest"."""
    if name == "folder" and all((root / part).is_dir() for part in ("test", "val")):
        return split, None  # a validation part of its own
    if split == "val":
        return "train", "tenth"
    return split, "rest" if split == "train" and without_val else None


def _tenth(targets: Tensor) -> Tensor:
    """Which images are for "val", bool (n,): of each class a tenth, one at least and never all, always the same."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(2023))
    held_out = torch.zeros(len(targets), dtype=torch.bool)
    for label in targets.unique():
        members = order[targets[order] == label]
        held_out[members[: min(max(1, len(members) // 10), len(members) - 1)]] = True
    return held_out


class _LargeImage(Exception):
    """An image with a side of more than `SMALL` pixels."""


def _small_images(name: str, source: Any, indices: Tensor | None, size: int) -> Tensor | None:
    """The images of a split as uint8 (n, 3, size, size), or None where they are no case for `SmallImages`.

    A folder's are decoded once and mapped from the cache as long as no file's name, size or time changes.
    """
    if isinstance(source, datasets.CIFAR10) and size == source.data.shape[1]:  # CIFAR100 is a CIFAR10, too
        pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2)
        return pixels if indices is None else pixels[indices]
    if size > SMALL or name not in ("folder", "imagenet"):
        return None
    files = source.paths if indices is None else [source.paths[index] for index in indices.tolist()]
    geometry = _small_geometry(size)

    def decode(path: str) -> np.ndarray:
        image = open_image(path)
        if max(image.size) > SMALL:
            raise _LargeImage
        return geometry(image).numpy()

    def make() -> dict[str, np.ndarray]:
        images = np.empty((len(files), 3, size, size), np.uint8)
        with ThreadPoolExecutor() as pool:  # Pillow frees the interpreter
            for start in range(0, len(files), 1024):
                images[start : start + 1024] = list(pool.map(decode, files[start : start + 1024]))
        return {"images": images}

    try:
        decode(files[0])  # most folders of large images are known by their first
        listing = hashlib.sha256()
        for path in files:
            stat = os.stat(path)
            listing.update(os.fsencode(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
        root, part = str(Path(source.root).resolve()), "all" if indices is None else len(indices)
        place = hashlib.sha256(os.fsencode(f"{root}\0{part}\0{size}")).hexdigest()[:16]
        arrays, _ = cached_arrays(
            cache_folder() / f"{name}-{place}",
            {"decoder": DECODER_VERSION, "folder": root, "size": size, "listing": listing.hexdigest()},
            {"images": ("uint8", (len(files), 3, size, size))},
            make,
        )
    except _LargeImage:
        return None
    return torch.from_numpy(arrays["images"])


def _small_geometry(size: int) -> transforms.Compose:
    return transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])


def _boxes(source: Any, indices: Tensor | None, transform: Callable[[Any], Tensor]) -> list[Tensor] | None:
    """The boxes of a split where there are any and nothing is random."""
    files, geometry = getattr(source, "boxes", None), geometry_of(transform)
    if files is None or geometry is None:
        return None
    paths = source.paths if indices is None else [source.paths[index] for index in indices.tolist()]
    return [placed(files[path], path, geometry) for path in paths]


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


def _open(
    name: str, part: str, root: Path, download: bool, size: str | None, on_bad_image: str | None
) -> tuple[Any, list[str], dict[str, str]]:
    """The images of a part on disk with all their labels, the class names, and what was ignored, path to reason."""
    if download:
        root.mkdir(parents=True, exist_ok=True)
    ignored: dict[str, str] = {}
    try:
        if name in ("cifar10", "cifar100"):
            cifar = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
            source = cifar(root, train=part == "train", download=download)
            return source, source.classes, ignored
        if name == "oxford-pets":
            pets = datasets.OxfordIIITPet(root, "trainval" if part == "train" else "test", download=download)
            folder, classes = root / "oxford-iiit-pet", pets.classes
            # torchvision has no public names for the files
            source = ImageFiles(folder, pets._images, pets._labels)
            source.trimaps = pets._segs
        elif name == "cub-200":
            folder = root / "CUB_200_2011"
            table, classes, boxes = cub_boxes(folder)
            rows = table[table["training"] == (part == "train")]
            source = ImageFiles(folder / "images", rows["path"].tolist(), rows["label"].tolist())
            source.boxes = boxes
        else:
            if name == "imagenette":
                if download:
                    datasets.Imagenette(root, size=size, download=True)
                folder = _split_folder(root / IMAGENETTE_FOLDERS[size], "train" if part == "train" else "val")
            else:
                folder = _split_folder(root, part)
            samples, classes, ignored = list_images(folder, (".jpeg",) if name == "imagenette" else IMG_EXTENSIONS)
            source = ImageFiles(folder, [path for path, _ in samples], [label for _, label in samples])
            if name in ("folder", "imagenet"):
                source.boxes = find_boxes(root, folder, source.paths, ignored)
                ignored = {path: reason for path, reason in ignored.items() if not _is_read(path, source.boxes)}
    except (FileNotFoundError, RuntimeError) as error:
        if download:
            raise
        hint = ", or pass download=True" if name in DOWNLOADABLE else ""
        raise FileNotFoundError(
            f"{name!r} ({part}) was not found under {root} ({error}); put {LAYOUTS[name]} there{hint}"
        ) from error
    if name in ("folder", "imagenet"):
        _check_classes(root, classes)
    _check_filled(folder, source, classes, ignored)
    if on_bad_image is not None and (bad := unreadable(folder, source.paths)):
        if on_bad_image == "error":
            listed = "".join(f"\n  {path}: {reason}" for path, reason in bad.items())
            raise ValueError(
                f"data_root: {len(bad)} of {len(source)} images in {folder} cannot be read; repair or remove them, "
                f'or pass on_bad_image="skip":{listed}'
            )
        ignored |= bad
        _drop(source, bad)
        _check_filled(folder, source, classes, ignored)
    warn_ignored(folder, len(source), ignored)
    return source, _readable(classes) if name in ("imagenet", "imagenette") else classes, ignored


def _is_read(path: str, boxes: BoxFiles | None) -> bool:
    return boxes is not None and (path in boxes.files or Path(path).name == ANNOTATIONS)


def _drop(source: ImageFiles, bad: dict[str, str]) -> None:
    kept = [index for index, path in enumerate(source.paths) if str(path) not in bad]
    for name in ("paths", "labels", "trimaps"):
        if (values := getattr(source, name, None)) is not None:
            setattr(source, name, [values[index] for index in kept])


def _check_filled(folder: Path, source: ImageFiles, classes: list[str], ignored: dict[str, str]) -> None:
    """Refuse fewer than two classes, and classes without an image."""
    if len(classes) < 2:
        found = f"one, {classes[0]}" if classes else "none"
        raise ValueError(f"data_root: expected two or more class folders with images in {folder}, got {found}")
    filled = set(source.labels)
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty:
        there = {Path(path).suffix or Path(path).name for path in ignored if Path(path).parent.name in empty}
        beside = f" (what lies there is ignored: {', '.join(sorted(there))})" if there else ""
        raise ValueError(
            f"data_root: expected images in every class folder of {folder}, got none in {', '.join(empty)}{beside}; "
            "add some or remove the folder"
        )


def _split_folder(root: Path, split: str) -> Path:
    names = ("test", "val") if split == "test" else (split,)
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"no sub-folder {' or '.join(names)}")


def _check_classes(root: Path, classes: list[str]) -> None:
    """Labels are positions in the sorted class folders, so both splits must have the same ones."""
    if not (root / "train").is_dir():  # evaluation only
        return
    above = {os.path.realpath(root / "train")}
    expected = {entry.name for entry in os.scandir(root / "train") if entry.is_dir() and not why_ignored(entry, above)}
    if set(classes) != expected:
        odd = sorted(expected ^ set(classes))
        raise ValueError(
            f"data_root: expected the same class folders in both splits of {root}, got {', '.join(odd[:5])} "
            "in one only; rename or move them"
        )


def _readable(wnids: list[str]) -> list[str]:
    """n01440764 to tench; what is no ImageNet class keeps its name."""
    info = ImageNetInfo()
    known = set(info.label_names())
    return [info.label_name_to_description(wnid).split(",")[0] if wnid in known else wnid for wnid in wnids]


def _tight_box(mask: Tensor) -> Tensor:
    """(k, 4) x0 y0 x1 y1 of a mask (H, W), x1 and y1 exclusive: k = 1, or 0 for an empty mask."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return torch.empty(0, 4)
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()[None]
