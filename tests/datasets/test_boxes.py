"""Boxes of every format: each is painted white into its picture and has to be found there again."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simpool_lite import load_data

BOX, SIZE = (60, 30, 130, 90), (180, 120)  # x0 y0 x1 y1, exclusive; width, height


def picture(path: Path, box=BOX, size=SIZE, orientation: int | None = None) -> Path:
    """Black, the box white."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=100, exif=exif)
    return path


def voc(path: Path, boxes=(BOX,), size=SIZE) -> Path:
    """Pascal VOC counts pixels from 1, and the last one is inside."""
    things = "".join(
        f"<object><name>x</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    head = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>x</filename>{head}{things}</annotation>")
    return path


def coco(path: Path, names, boxes=(BOX,), **fields) -> Path:
    images = [{"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(names)]
    entries = [
        {"image_id": i, "category_id": 1, "iscrowd": 0, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i in range(len(names))
        for x0, y0, x1, y1 in boxes
    ]
    entries = [{"id": number, **entry} for number, entry in enumerate(entries, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": entries, "categories": [{"id": 1}]} | fields))
    return path


@pytest.fixture
def tree(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / part / name / f"{name}.jpg")
    return tmp_path


def load(root: Path, split="test", image_size=96, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is ignored
        return load_data("folder", split, data_root=root, image_size=image_size, **options)


def white(data, index: int) -> list[int]:
    rows, columns = (data.denormalize(data[index][0]).mean(0) > 0.5).nonzero().unbind(1)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


def assert_on_the_object(data) -> None:
    assert len(data.boxes) == len(data)
    for index, boxes in enumerate(data.boxes):
        assert boxes.dtype == torch.float32 and type(boxes) is torch.Tensor and boxes.shape == (1, 4)
        torch.testing.assert_close(boxes[0], torch.tensor(white(data, index)).float(), rtol=0, atol=1)


def beside(root):
    for image in root.rglob("*.jpg"):
        voc(image.with_suffix(".xml"))


def in_annotations_of_the_class(root):
    for image in root.rglob("*.jpg"):
        voc(image.parent / "Annotations" / f"{image.stem}.xml")


def in_annotations_of_the_root(root):
    for image in list(root.rglob("*.jpg")):
        voc(root / "Annotations" / image.relative_to(root).with_suffix(".xml"))


def in_annotations_of_the_split(root):
    for image in list(root.rglob("*.jpg")):
        voc(root / image.relative_to(root).parts[0] / "Annotations" / f"{image.stem}.xml")


def coco_in_annotations(root):
    for part in ("train", "test"):
        coco(root / "annotations" / f"instances_{part}.json", [f"{part}/{name}/{name}.jpg" for name in ("cat", "dog")])
    (root / "annotations" / "captions.json").write_text(json.dumps({"images": [], "annotations": [{"caption": "x"}]}))


def coco_in_the_split(root):
    for part in ("train", "test"):
        coco(root / part / "_annotations.coco.json", ["cat.jpg", "dog.jpg"])


@pytest.mark.parametrize(
    "write",
    [
        beside,
        in_annotations_of_the_class,
        in_annotations_of_the_root,
        in_annotations_of_the_split,
        coco_in_annotations,
        coco_in_the_split,
    ],
)
def test_boxes_of_a_folder(tree, write):
    write(tree)
    data = load(tree)
    assert data.classes == ["cat", "dog"]
    assert_on_the_object(data)
    assert load(tree, "train").boxes is None  # augmented
    assert_on_the_object(load(tree, "train", augment=False))
    assert len(load(tree, "train", augment=False, without_val=True).boxes) == 2


@pytest.mark.parametrize(
    ("orientation", "drawn_upright"), [*((number, False) for number in range(1, 9)), *((k, True) for k in (5, 6, 7, 8))]
)
@pytest.mark.parametrize("augment", [False, {"is_training": False, "crop_pct": 1.0}])
def test_exif_orientation(tmp_path, orientation, drawn_upright, augment):
    """Tools that draw on the picture as stored write its size, those that draw on the upright one the other."""
    for name in ("cat", "dog"):
        image = picture(tmp_path / "test" / name / "1.jpg", orientation=orientation)
        if drawn_upright:
            with Image.open(image) as stored:
                upright = np.asarray(stored.transpose({5: 5, 6: 4, 7: 6, 8: 2}[orientation]))[..., 0] > 128
            rows, columns = upright.nonzero()
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            voc(image.with_suffix(".xml"), [box], SIZE[::-1])
        else:
            voc(image.with_suffix(".xml"))
    assert_on_the_object(load(tmp_path, augment=augment))


def test_small_pictures_and_those_of_any_proportion(tmp_path):
    sizes = {"a": ((40, 60), (5, 20, 25, 40)), "b": ((60, 40), (20, 5, 40, 25)), "c": ((48, 48), (10, 10, 30, 40))}
    for name, (size, box) in sizes.items():
        voc(picture(tmp_path / "test" / "cat" / f"{name}.png", box, size).with_suffix(".xml"), [box], size)
        voc(picture(tmp_path / "test" / "dog" / f"{name}.png", box, size).with_suffix(".xml"), [box], None)
    for side in (32, 96):  # decoded once and kept as bytes; opened each time
        assert_on_the_object(load(tmp_path, image_size=side))


def test_what_is_cut_off(tree):
    """A box that reaches out of the picture is cut; one outside of the crop is gone; no file means no boxes."""
    voc(tree / "test" / "cat" / "cat.xml", [(-9, 30, 130, 140), (0, 0, 8, 120), BOX])
    data = load(tree)
    cat, dog = data.boxes
    scale, left, top = 109 / 120, (163 - 96) / 2, (109 - 96) / 2  # the shorter side to 96 / 0.875, then the middle
    expected = [[0, 30 * scale - top, 130 * scale - left, 96], [60, 30, 130, 90]]
    torch.testing.assert_close(cat[0], torch.tensor(expected[0]).float(), rtol=0, atol=1)
    assert cat.shape == (2, 4) and dog.shape == (0, 4)


def test_crowds_are_no_objects(tree):
    file = coco(tree / "instances.json", ["cat.jpg"], [BOX, (0, 0, 180, 120)])
    content = json.loads(file.read_text())
    content["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    assert [len(boxes) for boxes in load(tree).boxes] == [1, 0]


def test_photographs_without_boxes_have_none(tree):
    assert load(tree).boxes is None
    (tree / "notes.json").write_text('{"images": "none"}')
    assert load(tree).boxes is None


BILLION_LAUGHS = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation><x>&c;</x></annotation>'
VOC_DAMAGE = {
    "empty": ("", "cannot be read as Pascal VOC's XML .empty."),
    "cut off": ("<annotation><object>", "cannot be read as Pascal VOC's XML"),
    "entities": (BILLION_LAUGHS, "cannot be read as Pascal VOC's XML"),
    "another root": ("<html></html>", "expected <annotation>.* got <html>"),
    "no box": ("<annotation><object><name>x</name></object></annotation>", "object 0: expected a <bndbox>"),
    "no object": ("<annotation><object>x</object></annotation>", "object 0: expected a <bndbox>"),
    "no number": (
        "<annotation><object><bndbox><xmin>a</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "</annotation>",
        "object 0: expected a <bndbox> with numbers",
    ),
}


@pytest.mark.parametrize(("content", "message"), VOC_DAMAGE.values(), ids=VOC_DAMAGE)
def test_damaged_xml_is_named(tree, content, message):
    (tree / "test" / "dog" / "dog.xml").write_text(content)
    data = load(tree)
    with pytest.raises(ValueError, match=rf"dog\.xml: {message}"):
        _ = data.boxes
    assert data[0][0].shape == (3, 96, 96)  # who needs no boxes is not held up


@pytest.mark.parametrize(
    ("boxes", "size", "message"),
    [
        ([BOX, (90, 30, 60, 90)], SIZE, "box 1: expected x0 y0 x1 y1 with x0 < x1"),
        ([(200, 30, 220, 90)], SIZE, "box 0: expected x0 y0 x1 y1 .* on a picture of .180, 120. pixels"),
        ([(float("nan"), 30, 60, 90)], SIZE, "box 0: expected x0 y0 x1 y1"),
        ([BOX], (500, 375), r"drawn on a picture of \(500, 375\) pixels, .*dog\.jpg has \(180, 120\)"),
    ],
)
def test_boxes_that_cannot_be_right_are_named(tree, boxes, size, message):
    voc(tree / "test" / "dog" / "dog.xml", boxes, size)
    with pytest.raises(ValueError, match=rf"dog\.xml: {message}"):
        _ = load(tree).boxes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "cannot be read as COCO's JSON"),
        ({"images": [{"id": 0}]}, "expected COCO's fields, 'file_name'"),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, "bbox": [1, 2, 3]}]},
            "'cat.jpg': expected a bbox of four numbers",
        ),
    ],
)
def test_damaged_json_is_named(tree, content, message):
    file = coco(tree / "boxes.json", ["cat.jpg", "dog.jpg"])
    file.write_text(content if isinstance(content, str) else json.dumps(json.loads(file.read_text()) | content))
    with pytest.raises(ValueError, match=rf"boxes\.json: .*{message}"):
        load(tree)


def test_one_file_for_two_pictures_is_named(tree):
    for name in ("cat", "dog"):
        picture(tree / "test" / name / "same.jpg")
    voc(tree / "Annotations" / "same.xml")
    with pytest.raises(ValueError, match=r"same\.xml: expected to belong to one picture, got two"):
        load(tree)
    (tree / "Annotations" / "same.xml").unlink()
    coco(tree / "boxes.json", ["same.jpg"])
    with pytest.raises(ValueError, match=r"boxes\.json: 'same.jpg': expected one picture, got two"):
        load(tree)


@pytest.fixture
def cub(tmp_path):
    base = tmp_path / "CUB_200_2011"
    names = [f"00{k}.Some_bird/{k}_{i}.jpg" for k in (1, 2) for i in range(4)]
    for name in names:
        picture(base / "images" / name)
    x0, y0, x1, y1 = BOX
    lists = {
        "images": names,
        "image_class_labels": [1] * 4 + [2] * 4,
        "train_test_split": [1, 1, 0, 1] * 2,
        "bounding_boxes": [f"{x0}.0 {y0}.0 {x1 - x0}.0 {y1 - y0}.0"] * 8,
        "classes": ["001.Black_footed_Albatross", "002.Laysan_Albatross"],
    }
    for name, values in lists.items():
        (base / f"{name}.txt").write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, 1)))
    return tmp_path


def test_cub(cub):
    data = load_data("cub-200", "test", data_root=cub, image_size=96)
    assert data.classes == ["Black footed Albatross", "Laysan Albatross"] and data.targets.tolist() == [0, 1]
    assert_on_the_object(data)
    train = load_data("cub-200", "train", data_root=cub, image_size=96, augment=False, without_val=True)
    assert train.targets.tolist() == [0, 0, 1, 1]
    assert_on_the_object(train)
    assert_on_the_object(load_data("cub-200", "val", data_root=cub, image_size=96))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bounding_boxes", "1 60 30 70\n", r"bounding_boxes\.txt: expected 5 words per line"),
        ("bounding_boxes", "1 60 30 70 60\n", r"bounding_boxes\.txt: expected the pictures of images\.txt"),
        ("image_class_labels", "1 x\n", r"image_class_labels\.txt: expected 2 words per line"),
        ("image_class_labels", "".join(f"{i} 3\n" for i in range(1, 9)), r"expected the classes of classes\.txt"),
        ("images", "", r"images\.txt: cannot be read"),
    ],
)
def test_damaged_lists_of_cub_are_named(cub, name, content, message):
    (cub / "CUB_200_2011" / f"{name}.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_data("cub-200", "test", data_root=cub)
