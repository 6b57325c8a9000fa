"""Boxes that people drew around objects: Pascal VOC's XML, COCO's JSON, the text files of CUB-200.

Each format is read by a library (torchvision's VOC parser behind defusedxml, pycocotools, pandas). Here is what they
leave open: which file belongs to which picture, whether a box can be right, and where it is after the picture was
turned upright, resized and cropped.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, parse
from PIL import ExifTags, Image
from timm.data.transforms import MaybePILToTensor, MaybeToTensor
from torch import Tensor
from torchvision import transforms, tv_tensors
from torchvision.datasets import VOCDetection
from torchvision.transforms import v2

__all__ = ["BoxFiles", "Drawn", "coco_boxes", "cub_boxes", "find_boxes", "geometry_of", "placed", "read_voc"]

FOLDER = "Annotations"  # where Pascal VOC keeps its XML


@dataclass(frozen=True)
class Drawn:
    """Boxes as a file has them.

    Attributes:
        boxes: ``(k, 4)`` float64, x0 y0 x1 y1 in pixels, x1 and y1 exclusive.
        file: where they are written.
        size: (width, height) of the picture that they were drawn on, or None where the file does not say.
    """

    boxes: np.ndarray
    file: Path
    size: tuple[int, int] | None = None


@dataclass
class BoxFiles:
    """The boxes of pictures, by path; a picture that nothing is written about has none.

    Attributes:
        known: path to boxes, or to the XML file that has them.
        files: all files that boxes are read from.
    """

    known: dict[str, Drawn | Path]
    files: set[str] = field(default_factory=set)

    def __getitem__(self, path: str) -> Drawn | None:
        found = self.known.get(str(path))
        return read_voc(found) if isinstance(found, Path) else found


def find_boxes(root: Path, folder: Path, paths: Iterable[str], others: Iterable[str]) -> BoxFiles | None:
    """The boxes that lie beside pictures.

    Of Pascal VOC the XML file of a picture has its name. It lies beside the picture, or in a folder ``Annotations`` of
    a folder around it, at the same relative path or with nothing but the name. COCO's JSON files, looked for where
    there is no XML, lie in ``root``, in ``root/annotations`` or in ``folder``, and name the pictures relative to one
    of these or by nothing but the name.

    Args:
        root: The data set's folder; nothing outside is looked at.
        folder: Where the pictures of a split are, in ``root``.
        paths: The pictures.
        others: The other files below ``folder``.

    Returns:
        None where no file with boxes was found.

    Raises:
        ValueError: one XML file for two pictures; a JSON file that is damaged or names one picture for two.
    """
    paths = [str(path) for path in paths]
    xmls = (Path(other) for other in others if other.lower().endswith(".xml"))
    beside = {str(xml.with_suffix("")): xml for xml in xmls if xml.is_file()}
    listed: dict[Path, dict[str, Path]] = {}
    known: dict[str, Drawn | Path] = {}
    owner: dict[Path, str] = {}
    for path in paths:
        xml = beside.get(os.path.splitext(path)[0]) or _in_annotations(Path(path), root, listed)
        if xml is None:
            continue
        if xml in owner:
            raise ValueError(
                f"{xml}: expected to belong to one picture, got two, {owner[xml]} and {path}; "
                f"put each picture's XML beside it, or into {FOLDER}/ at the same relative path"
            )
        known[path], owner[xml] = xml, path
    files = {str(xml) for xml in owner}
    if not known:
        for place in dict.fromkeys((root, root / "annotations", folder)):
            for file in sorted(filter(Path.is_file, place.glob("*.json"))):
                if (found := coco_boxes(file, paths, (folder, root, place))) is not None:
                    known |= found
                    files.add(str(file))
    return BoxFiles(known, files) if files else None


def _in_annotations(path: Path, root: Path, listed: dict[Path, dict[str, Path]]) -> Path | None:
    """The XML file of a picture in a folder ``Annotations``, of the nearest folder around the picture first."""
    for around in path.parents:
        place = around / FOLDER
        if place not in listed:
            found = sorted(filter(Path.is_file, place.rglob("*.[xX][mM][lL]")))
            listed[place] = {str(file.relative_to(place).with_suffix("")): file for file in found}
        if names := listed[place]:
            for name in (str(path.relative_to(around).with_suffix("")), path.stem):
                if name in names:
                    return names[name]
        if around == root:
            break
    return None


def read_voc(file: Path) -> Drawn:
    """The boxes in a Pascal VOC annotation file, whose pixels are counted from 1 and whose last ones are inside.

    Raises:
        ValueError: the file is empty, no XML, no annotation, or has a box without four numbers; the message has its
            path.
    """
    try:
        tree = parse(file).getroot()
        content = VOCDetection.parse_voc_xml(tree).get("annotation")
    except (ParseError, DefusedXmlException, UnicodeError) as error:
        reason = "empty" if not os.path.getsize(file) else error
        raise ValueError(f"{file}: cannot be read as Pascal VOC's XML ({reason}); repair or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected <annotation> as in Pascal VOC, got <{tree.tag}>; repair or remove it")
    boxes = []
    for number, thing in enumerate(content.get("object", ())):
        corners = thing.get("bndbox") if isinstance(thing, dict) else None
        names = ("xmin", "ymin", "xmax", "ymax")
        try:
            boxes.append([float(corners[name]) for name in names])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{file}: object {number}: expected a <bndbox> with numbers in {', '.join(names)}, got {corners!r}"
            ) from error
    size = content.get("size")
    try:
        width, height = (int(float(size[name])) for name in ("width", "height"))
    except (TypeError, KeyError, ValueError):
        width = height = 0
    drawn = np.array(boxes, dtype=float).reshape(-1, 4) - [1, 1, 0, 0]
    return Drawn(drawn, file, (width, height) if width and height else None)  # some tools write a size of 0 x 0


def coco_boxes(file: Path, paths: Iterable[str], places: Iterable[Path]) -> dict[str, Drawn] | None:
    """The boxes of pictures in a COCO file; those of crowds are left out.

    Args:
        file: COCO's JSON.
        paths: The pictures.
        places: Folders that the file's names of pictures may be relative to.

    Returns:
        Path to boxes, for those of ``paths`` that the file names; None for JSON of another kind, such as captions.

    Raises:
        ValueError: the file is damaged, a box has not four numbers, or two pictures have the one name in the file.
    """
    from pycocotools.coco import COCO

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{file}: cannot be read as COCO's JSON ({error}); repair or remove it") from error
    is_coco = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))
    if not is_coco or (content["annotations"] and not any("bbox" in entry for entry in content["annotations"])):
        return None
    coco = COCO()
    coco.dataset = content
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports to the standard output
            coco.createIndex()
        pictures = {str(image["file_name"]): image for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected COCO's fields, {error} is missing or wrong; repair or remove it") from error
    found: dict[str, Drawn] = {}
    owner: dict[str, str] = {}
    for path in paths:
        names = [str(Path(path).relative_to(place)) for place in places if Path(path).is_relative_to(place)]
        name = next((name for name in (*names, Path(path).name) if name in pictures), None)
        if name is None:
            continue
        if name in owner:
            raise ValueError(f"{file}: {name!r}: expected one picture, got two, {owner[name]} and {path}")
        image, owner[name] = pictures[name], path
        entries = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]], iscrowd=False))
        try:
            boxes = np.array([entry["bbox"] for entry in entries], dtype=float).reshape(len(entries), 4)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{file}: {name!r}: expected a bbox of four numbers each ({error})") from error
        boxes[:, 2:] += boxes[:, :2]
        size = (image.get("width"), image.get("height"))
        found[path] = Drawn(boxes, file, size if all(isinstance(side, int) and side > 0 for side in size) else None)
    return found


def cub_boxes(folder: Path) -> tuple[pd.DataFrame, list[str], BoxFiles]:
    """The lists of CUB-200-2011: pictures, classes and boxes.

    Args:
        folder: ``CUB_200_2011`` with images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt and
            classes.txt.

    Returns:
        One row per picture: path, label from 0, training (bool); the class names; the boxes.

    Raises:
        FileNotFoundError: one of the lists is missing.
        ValueError: a list is damaged or names other pictures than images.txt.
    """
    names = ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    lists = {name: _read_list(folder / f"{name}.txt", 5 if name == "bounding_boxes" else 2) for name in names}
    images, classes = lists["images"], _read_list(folder / "classes.txt", 2)
    for name, values in lists.items():
        if odd := sorted(set(values.index) ^ set(images.index)):
            raise ValueError(f"{folder / name}.txt: expected the pictures of images.txt, differs in number {odd[0]}")
    labels = lists["image_class_labels"].loc[images.index, 1]
    if not labels.isin(classes.index).all():
        raise ValueError(f"{folder / 'image_class_labels.txt'}: expected the classes of classes.txt")
    table = pd.DataFrame({"path": [str(folder / "images" / name) for name in images[1]]})
    table["label"] = [classes.index.get_loc(number) for number in labels]
    table["training"] = (lists["train_test_split"].loc[images.index, 1] == 1).to_numpy()
    boxes = lists["bounding_boxes"].loc[images.index].to_numpy(float)
    boxes[:, 2:] += boxes[:, :2]
    file = folder / "bounding_boxes.txt"
    known = {path: Drawn(box[None], file) for path, box in zip(table["path"], boxes, strict=True)}
    return table, [name.split(".", 1)[-1].replace("_", " ") for name in classes[1]], BoxFiles(known, {str(file)})


def _read_list(file: Path, columns: int) -> pd.DataFrame:
    """A list of CUB-200: a number per line, which becomes the index, and one or more words."""
    try:
        values = pd.read_csv(file, sep=" ", header=None, index_col=0)
    except FileNotFoundError:
        raise
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{file}: cannot be read as a list of CUB-200 ({error})") from error
    numbers = file.name in ("classes.txt", "images.txt") or all(kind.kind in "iuf" for kind in values.dtypes)
    if values.shape[1] != columns - 1 or not numbers or values.isna().any(axis=None) or not values.index.is_unique:
        raise ValueError(f"{file}: expected {columns} words per line, the first a number of its own, the rest complete")
    return values


def geometry_of(transform: Callable[[Any], Tensor]) -> Callable[[Any], Any] | None:
    """What a transform of pictures does to places in them, or None where it is random or unknown.

    torchvision's resizing and central crops are repeated by those of its second version, which also take boxes.
    """
    steps: list[Callable] = [v2.Identity()]
    for step in getattr(transform, "transforms", [transform]):
        if type(step) is transforms.Resize:
            steps.append(v2.Resize(step.size))
        elif type(step) is transforms.CenterCrop:
            steps.append(v2.CenterCrop(step.size))
        elif not isinstance(
            step,
            transforms.ToTensor | transforms.PILToTensor | transforms.Normalize | MaybeToTensor | MaybePILToTensor,
        ):
            return None
    return v2.Compose(steps)


def placed(drawn: Drawn | None, path: str | Path, geometry: Callable[[Any], Any]) -> Tensor:
    """Boxes of a picture on what `geometry` makes of it, upright: float32 ``(k, 4)``.

    What lies outside is cut off; a box of which less than a pixel is left is dropped. The EXIF orientation is applied
    as to the picture, unless the file says that the boxes were drawn on the upright one.

    Raises:
        ValueError: a box that has no area, does not touch the picture or is no number; a size that is not the
            picture's. The message has the path of the file.
    """
    if drawn is None or not len(drawn.boxes):
        return torch.zeros(0, 4)
    size, orientation = stored(path)
    upright = size if orientation < 5 else size[::-1]
    if drawn.size == upright != size:
        size, orientation = upright, 1
    if drawn.size not in (None, size):
        raise ValueError(f"{drawn.file}: drawn on a picture of {drawn.size} pixels, {path} has {size}; repair one")
    bad = ~(np.isfinite(drawn.boxes).all(1) & (drawn.boxes[:, 2:] > drawn.boxes[:, :2]).all(1))
    bad |= (drawn.boxes[:, :2] >= size).any(1) | (drawn.boxes[:, 2:] <= 0).any(1)
    if bad.any():
        raise ValueError(
            f"{drawn.file}: box {int(bad.argmax())}: expected x0 y0 x1 y1 with x0 < x1 and y0 < y1 on a picture of "
            f"{size} pixels, got {drawn.boxes[bad.argmax()].tolist()}; repair or remove it"
        )
    boxes = _boxes(torch.as_tensor(drawn.boxes, dtype=torch.float32), size)
    boxes = geometry(_turned(v2.functional.clamp_bounding_boxes(boxes), orientation))
    return v2.functional.sanitize_bounding_boxes(boxes, min_size=1)[0].as_subclass(Tensor)


def stored(path: str | Path) -> tuple[tuple[int, int], int]:
    """(width, height) of a picture as its file has it, and which way up that is (EXIF, 1 to 8)."""
    with Image.open(path) as image:  # the head of the file only
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # damaged metadata around a sound picture
            orientation = 1
        return image.size, orientation if orientation in range(1, 9) else 1


def _boxes(values: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(values, format="XYXY", canvas_size=(size[1], size[0]))


def _turned(boxes: tv_tensors.BoundingBoxes, orientation: int) -> tv_tensors.BoundingBoxes:
    """What `PIL.ImageOps.exif_transpose` does to a picture, for its boxes: swap the axes, then mirror them."""
    if orientation in (5, 6, 7, 8):
        boxes = _boxes(boxes.as_subclass(Tensor)[:, [1, 0, 3, 2]], boxes.canvas_size)
    if orientation in (2, 3, 6, 7):
        boxes = v2.functional.horizontal_flip(boxes)
    if orientation in (3, 4, 7, 8):
        boxes = v2.functional.vertical_flip(boxes)
    return boxes
