"""Pictures in folders: which files they are, what each one looks like in RGB, and which cannot be read."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm.auto import tqdm

from ..files import write_atomically
from . import cache_folder

__all__ = ["ImageFiles", "list_images", "open_image", "to_rgb", "unreadable", "warn_ignored", "why_ignored"]

CHECK_VERSION = 2  # raise it whenever `open_image` accepts other files
BY_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
SHOWN = 5  # ignored files a warning names of each kind; `LabelledImages.ignored` has all


def open_image(path: str | Path) -> Image.Image:
    """A picture of any common kind as 8-bit RGB, the way up its EXIF orientation says.

    Transparency is laid on white. Grey values of 16 bits are scaled by their type's range, so that two files
    stay comparable, those of a TIFF with 12 bits by theirs; floats must lie in [0, 1]. Of an animation it is the first
    frame.

    Raises:
        ValueError: The file is empty, cut off, no image, larger than Pillow's limit (179 million pixels), no file but a
            pipe or a device, or has values whose range is not known; the message has the path and what is wrong.
        FileNotFoundError: There is no such file.
    """
    return _open(path)


def _open(path: str | Path, draft: bool = False) -> Image.Image:
    """`open_image`; a `draft` is smaller where that is faster, which JPEG offers, but reads every byte."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise ValueError("neither a file nor a link to one")
        with Image.open(path) as file:
            if draft:
                file.draft(None, (1, 1))
            _scale_transparent_level(file)
            file.load()
            return _tiff_to_rgb(file) if file.format == "TIFF" else to_rgb(file)
    except (FileNotFoundError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        reason = "empty" if not os.path.getsize(path) else "not an image, or one of an unknown format"
        raise ValueError(f"{path}: cannot be read as an image ({reason})") from None
    except Exception as error:  # a damaged file makes a decoder raise almost anything
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def _scale_transparent_level(file: Image.Image) -> None:
    """Pillow scales the grey values of a PNG with 2 or 4 bits to 8, but not the one that is transparent."""
    if file.format == "PNG" and file.tile and isinstance(level := file.info.get("transparency"), int):
        file.info["transparency"] = level * {"L;2": 85, "L;4": 17}.get(file.tile[0].args, 1)


def _tiff_to_rgb(file: Image.Image) -> Image.Image:
    """`to_rgb` for what Pillow takes for something else: signed values, 12 bits, wide values whose white is zero."""
    bits, signed = file.tag_v2.get(BITSPERSAMPLE, (1,))[0], 2 in file.tag_v2.get(SAMPLEFORMAT, (1,))
    if signed and bits < 32:
        raise ValueError(f"signed values of {bits} bits, whose range is not known; save it with unsigned ones")
    white_is_zero = file.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0 and file.mode.startswith(("I", "F"))
    if not white_is_zero and bits != 12:
        return to_rgb(file)
    values = np.asarray(_upright(file)) / np.float32(1 if file.mode == "F" else 2**bits - 1)
    return to_rgb(Image.fromarray(1 - values if white_is_zero else values))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata around a sound picture
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture in memory as `open_image` has one from a file.

    >>> to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = _upright(image)
    if image.mode.startswith(("I", "F")):  # Pillow would cut these off at 255
        return Image.fromarray(_to_bytes(np.asarray(image), image.info.get("transparency"))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray, transparent: Any) -> np.ndarray:
    """Grey values of 16 bits, in whatever type, or floats from 0 to 1, as uint8."""
    least, greatest = values.min(), values.max()
    scale = 1 if values.dtype.kind == "f" else 2**16 - 1
    if not (least >= 0 and greatest <= scale):  # NaN fails, too
        raise ValueError(f"values from {least} to {greatest}, expected 0 to {scale}; save it with 8 or 16 bits")
    levels = np.rint(values / scale * 255).astype(np.uint8)
    if isinstance(transparent, int):
        levels[values == transparent] = 255
    return levels


class ImageFiles:
    """Pictures and their labels: item i is (RGB picture, label).

    Args:
        root: The folder they are in.
        paths, labels: One of each per picture.
    """

    def __init__(self, root: Path, paths: Sequence[str | Path], labels: Sequence[int]) -> None:
        self.root, self.paths, self.labels = root, paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.paths[index]), self.labels[index]


def list_images(
    folder: Path, extensions: tuple[str, ...] = IMG_EXTENSIONS
) -> tuple[list[tuple[str, int]], list[str], dict[str, str]]:
    """The pictures of a tree `folder/<class>/...`, in the order of torchvision's `ImageFolder`.

    Args:
        folder: One folder per class; pictures may lie in further folders inside it.
        extensions: How the names of pictures end, in lower case.

    Returns:
        The samples (path, label), the class names, sorted, and what was ignored, path to reason: hidden files and
        folders, those that operating systems make, folders ``Annotations``, links that lead nowhere or round in a
        circle, and files of other kinds than pictures.
    """
    ignored: dict[str, str] = {}
    classes, samples = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if reason := why_ignored(entry, {os.path.realpath(folder)}):
            ignored[entry.path] = reason
        elif entry.is_dir():
            files: list[tuple[str, str]] = []
            _walk(entry.path, {os.path.realpath(folder)}, extensions, files, ignored)
            samples += [(os.path.join(*file), len(classes)) for file in sorted(files)]
            classes.append(entry.name)
        else:
            ignored[entry.path] = "in no class folder"
    return samples, classes, ignored


def _walk(
    folder: str,
    above: set[str],
    extensions: tuple[str, ...],
    files: list[tuple[str, str]],
    ignored: dict[str, str],
) -> None:
    """Add the pictures in a folder and its sub-folders to `files`, as (folder, name)."""
    above = above | {os.path.realpath(folder)}
    for entry in os.scandir(folder):
        if reason := why_ignored(entry, above):
            ignored[entry.path] = reason
        elif entry.is_dir():
            _walk(entry.path, above, extensions, files, ignored)
        elif entry.name.lower().endswith(extensions):
            files.append((folder, entry.name))
        else:
            ignored[entry.path] = f"not a file of {' '.join(extensions)}"


def why_ignored(entry: os.DirEntry, above: set[str]) -> str | None:
    """Why an entry is ignored whatever its kind, if it is; `above` are the folders it lies in."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.name in BY_SYSTEMS:
        return "made by an operating system"
    if entry.name == "Annotations" and entry.is_dir():
        return "a folder of annotations, none of these pictures'"
    if entry.is_symlink():
        if not os.path.exists(entry.path):
            return "a link that leads nowhere"
        target = os.path.join(os.path.realpath(entry.path), "")
        if any(os.path.join(place, "").startswith(target) for place in above):
            return "a link to a folder around it"
    return None if entry.is_file() or entry.is_dir() else "neither file nor folder"


def unreadable(root: Path, paths: Sequence[str | Path]) -> dict[str, str]:
    """The files among `paths` that `open_image` refuses, path to reason.

    Every file is decoded once, in threads. What was found is kept in the cache folder, per `root`, so that the
    next time only files of another size or time of change are read.
    """
    root = Path(os.path.realpath(root))
    record = cache_folder() / f"checked-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"
    known = _known(record)
    stamps = {str(path): _stamp(path) for path in paths}
    new = [path for path, stamp in stamps.items() if stamp and known.get(path, [])[:2] != stamp]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow frees the interpreter while it decodes
        progress = tqdm(pool.map(_fault, new), f"checking {root.name}", len(new), unit="file", delay=5, leave=False)
        known |= {path: [*stamps[path], fault] for path, fault in zip(new, progress, strict=True)}
    if new:
        with suppress(OSError), write_atomically(record) as temporary:  # a cache that cannot be written is slower
            temporary.write_text(json.dumps({"version": CHECK_VERSION, "files": known}), encoding="utf-8")
    faults = {path: known[path][2] if stamp else "there is no such file" for path, stamp in stamps.items()}
    return {path: fault for path, fault in faults.items() if fault}


def _known(record: Path) -> dict[str, list]:
    """What an earlier check found, path to (size, time of change, fault or nothing)."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        files = content["files"] if content["version"] == CHECK_VERSION else {}
        return {path: entry for path, entry in files.items() if len(entry) == 3}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged
        return {}


def _stamp(path: str | Path) -> list[int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _fault(path: str) -> str:
    try:
        _open(path, draft=True)
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def warn_ignored(folder: Path, found: int, ignored: dict[str, str]) -> None:
    """One warning about everything in a folder that is not used, by reason."""
    if not ignored:
        return
    by_reason: dict[str, list[str]] = {}
    for path, reason in ignored.items():
        by_reason.setdefault(reason, []).append(os.path.relpath(path, folder))
    lines = [
        f"{len(names)}, {reason}: {', '.join(sorted(names)[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for reason, names in sorted(by_reason.items())
    ]
    text = f"{folder}: {found} images found, {len(ignored)} files or folders ignored\n  " + "\n  ".join(lines)
    warnings.warn(text, stacklevel=5)  # the caller of load_data
