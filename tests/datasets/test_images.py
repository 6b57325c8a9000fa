"""Image files as people have them: every mode, damaged ones, and what else lies in a folder."""

import os
import signal
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simpool_lite.datasets import images, load_data
from simpool_lite.datasets.images import list_images, open_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
HALF = np.repeat(np.array([[0, 255]], np.uint8), 8, axis=1).repeat(16, 0)  # left clear, right opaque


def palette_with_transparency() -> Image.Image:
    picture = Image.fromarray(np.where(HALF > 0, 7, 3).astype(np.uint8), "L").convert("P")
    picture.putpalette([value for index in range(256) for value in (index * 10 % 256, 0, 0)])
    return picture


def grey_with_alpha() -> Image.Image:
    return Image.merge("LA", [Image.fromarray(np.full_like(HALF, 70)), Image.fromarray(HALF)])


WIDE = RAMP.astype(np.uint16) * 257  # 0 to 65535
ON_WHITE = np.where(HALF[..., None] > 0, 70, 255) * np.ones(3)
RGB_RAMP = np.repeat(RAMP[..., None], 3, 2)
GREEN = np.broadcast_to([0, 255, 0], (16, 16, 3))

# file name, what is written, options of its writing, what must be seen
KINDS = {
    "grey of 16 bits": ("a.png", Image.fromarray(WIDE), {}, RGB_RAMP),
    "grey of 16 bits, big-endian": ("a.tif", Image.fromarray(WIDE.astype(">u2")), {}, RGB_RAMP),
    "grey of 16 bits in 32": ("a.tif", Image.fromarray(WIDE.astype(np.int32)), {}, RGB_RAMP),
    "grey of 16 bits, a transparent level": (
        "a.png", Image.fromarray(WIDE), {"transparency": 257}, np.where(RGB_RAMP == 1, 255, RGB_RAMP),
    ),
    "floats": ("a.tiff", Image.fromarray(RAMP.astype(np.float32) / 255), {}, RGB_RAMP),
    "grey": ("a.png", Image.fromarray(RAMP), {}, RGB_RAMP),
    "one bit": ("a.png", Image.fromarray(HALF).convert("1"), {}, np.repeat(HALF[..., None], 3, 2)),
    "grey with alpha": ("a.png", grey_with_alpha(), {}, ON_WHITE),
    "RGB with alpha": ("a.png", grey_with_alpha().convert("RGBA"), {}, ON_WHITE),
    "RGB, a transparent colour": ("a.png", Image.new("RGB", (16, 16)), {"transparency": (0, 0, 0)}, 0 * GREEN + 255),
    "palette": ("a.png", palette_with_transparency(), {}, np.where(HALF[..., None] > 0, [70, 0, 0], [30, 0, 0])),
    "palette, a transparent colour": (
        "a.png", palette_with_transparency(), {"transparency": 3},
        np.where(HALF[..., None] > 0, [70, 0, 0], [255, 255, 255]),
    ),
    "palette, transparency of each colour": (
        "a.webp", grey_with_alpha().convert("RGBA"), {"lossless": True}, ON_WHITE,
    ),
    "CMYK": ("a.tif", Image.new("CMYK", (16, 16), (255, 0, 255, 0)), {}, GREEN),
    "a GIF by another name": ("a.jpg", palette_with_transparency(), {"format": "GIF"}, ON_WHITE * 0 + [70, 0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_seen_as_it_looks(tmp_path, kind):
    name, picture, options, expected = KINDS[kind]
    picture.save(tmp_path / name, **options)
    seen = open_image(tmp_path / name)
    assert seen.mode == "RGB"
    right_half = slice(8, 16) if "GIF" in kind else slice(None)
    np.testing.assert_array_equal(np.asarray(seen)[:, right_half], np.asarray(expected)[:, right_half])


def tiff(values: np.ndarray, white_is_zero: bool = False, bits: int | None = None) -> bytes:
    """A TIFF of one strip without compression, as the standard's section 3 describes it."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    if bits:  # unsigned values of so many bits, the highest first
        data = np.packbits(values[..., None] >> np.arange(bits - 1, -1, -1) & 1).tobytes()
    height, width = values.shape
    bits, sample_format = bits or 8 * values.itemsize, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1}
    tags |= {273: 8, 277: 1, 278: height, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def grey_png(values: np.ndarray, bits: int, transparent: int, size: tuple[int, int] | None = None) -> bytes:
    """A PNG of few bits with one transparent level; its head may say another size."""
    rows = np.packbits(values[..., None] >> np.arange(bits - 1, -1, -1) & 1, axis=None).reshape(len(values), -1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", *(size or values.shape[::-1]), bits, 0, 0, 0, 0),
        b"tRNS": struct.pack(">H", transparent),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


FOUR = np.tile(np.arange(4, dtype=np.uint8), (4, 1))
BYTES = {  # what Pillow alone shows too dark, upside down or without its transparency
    "white is zero, 8 bits": (tiff(RAMP, white_is_zero=True), 255 - RAMP),
    "white is zero, 16 bits": (tiff(WIDE, white_is_zero=True), 255 - RAMP),
    "white is zero, floats": (tiff(RAMP.astype(np.float32) / 255, white_is_zero=True), 255 - RAMP),
    "12 bits": (tiff(np.array([[0, 455, 2730, 4095]], np.uint16), bits=12), [[0, 28, 170, 255]]),
    "black is zero, 16 bits": (tiff(WIDE), RAMP),
    "2 bits, one transparent": (grey_png(FOUR, 2, transparent=1), [[0, 255, 170, 255]] * 4),
    "4 bits, one transparent": (grey_png(FOUR, 4, transparent=2), [[0, 17, 255, 51]] * 4),
    "8 bits, one transparent": (grey_png(FOUR, 8, transparent=2), [[0, 1, 255, 3]] * 4),
}


@pytest.mark.parametrize("kind", BYTES)
def test_every_scale_of_grey_is_seen_as_it_looks(tmp_path, kind):
    content, expected = BYTES[kind]
    (tmp_path / "a").write_bytes(content)
    seen = np.asarray(open_image(tmp_path / "a"))
    np.testing.assert_array_equal(seen, np.repeat(np.asarray(expected)[..., None], 3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """Each orientation is a transformation of the stored pixels, as the EXIF standard draws it."""
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(str(tmp_path / "a.png")))[..., 0], upright)


def test_damaged_metadata_leave_a_sound_picture(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=b"Exif\0\0not a directory of tags")
    assert np.asarray(open_image(tmp_path / "a.png"))[0, 5].tolist() == [5, 5, 5]


def truncated(path: Path) -> None:
    Image.effect_noise((90, 70), 80).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def numbers(values: list[float], kind: type) -> object:
    return lambda path: Image.fromarray(np.array([values], kind)).save(path)


DAMAGE = {
    "cut.jpg": truncated,
    "cut.png": truncated,
    "empty.jpg": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("<html>404 Not Found</html>"),
    "header.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"),
    "bright.tif": numbers([0.0, 900.0], np.float32),
    "negative.tif": numbers([-0.5, 0.5], np.float32),
    "nan.tif": numbers([0.5, np.nan], np.float32),
    "wide.tif": numbers([0, 2**20], np.int32),
    "signed.tif": lambda path: path.write_bytes(tiff(RAMP.astype(np.int8))),
    "signed16.tif": lambda path: path.write_bytes(tiff(RAMP.astype(np.int16))),
    "no pixels.png": lambda path: path.write_bytes(grey_png(FOUR, 8, 0, size=(0, 4))),
    "bomb.png": lambda path: path.write_bytes(grey_png(FOUR, 8, 0, size=(20_000, 20_000))),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_read_is_refused_with_its_path(tmp_path, name):
    DAMAGE[name](tmp_path / name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        open_image(tmp_path / name)


def pipe_socket_and_folder(folder: Path) -> list[str]:
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.open(".", os.O_RDONLY)
        os.chdir(folder)  # a socket's name has at most a hundred characters
        one.bind("socket.png")
        os.fchdir(here)
        os.close(here)
    (folder / "link.png").symlink_to("/dev/zero")
    return ["pipe.png", "socket.png", "link.png"]


@pytest.fixture
def no_waiting():
    """Opening a pipe would wait for ever."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def test_pipes_and_devices_are_refused_at_once(tmp_path, no_waiting):
    for name in [*pipe_socket_and_folder(tmp_path), "."]:
        with pytest.raises(ValueError, match="neither a file nor a link to one"):
            open_image(tmp_path / name)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        open_image(tmp_path / "none.png")


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two classes of five pictures in train/ and test/, each of its own grey."""
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(5):
                Image.new("L", (30, 20), 100 + 10 * label + number).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def greys(data) -> list[int]:
    return [round(float(data.denormalize(data[i][0])[0, 8, 8] * 255)) for i in range(len(data))]


@pytest.mark.parametrize("image_size", [16, 70])
def test_all_bad_images_are_named_before_training(tree, image_size):
    for name, damage in DAMAGE.items():
        damage(tree / "train" / "cat" / name)
    with pytest.raises(ValueError, match=f"{len(DAMAGE)} of {len(DAMAGE) + 10} images") as raised:
        load_data("folder", "train", data_root=tree, image_size=image_size)
    assert all(str(tree / "train" / "cat" / name) in str(raised.value) for name in DAMAGE)
    assert 'on_bad_image="skip"' in str(raised.value)
    assert len(load_data("folder", "test", data_root=tree, image_size=image_size)) == 10


@pytest.mark.parametrize("image_size", [16, 70])
@pytest.mark.parametrize("split", ["train", "val"])
def test_skip_goes_on_and_says_which(tree, image_size, split):
    options = {"data_root": tree, "image_size": image_size, "augment": False, "on_bad_image": "skip"}
    before = load_data("folder", split, **options)
    assert not before.ignored
    for name, damage in DAMAGE.items():
        damage(tree / "train" / "cat" / name)
    with pytest.warns(UserWarning, match=f"10 images found, {len(DAMAGE)} files") as caught:
        data = load_data("folder", split, **options)
    assert len(caught) == 1
    assert {Path(path).name for path in data.ignored} == set(DAMAGE)
    assert data.ignored[str(tree / "train" / "cat" / "empty.jpg")].endswith("(empty)")
    assert greys(data) == greys(before)
    assert torch.equal(data.targets, before.targets)


def test_the_check_reads_only_what_changed(tree, monkeypatch):
    opened = []
    fault = images._fault
    monkeypatch.setattr(images, "_fault", lambda path: opened.append(Path(path).name) or fault(path))

    def load():
        opened.clear()
        return load_data("folder", "train", data_root=tree)

    load()
    assert len(opened) == 10
    load()
    assert not opened
    bad = tree / "train" / "dog" / "3.png"
    sound = bad.read_bytes()
    bad.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of 10 images .*\n.*dog/3\.png"):
            load()
    assert not opened  # a bad file is remembered as bad
    bad.write_bytes(sound)
    assert len(load()) == 10
    assert opened == ["3.png"]


@pytest.mark.parametrize("damage", ["", "[]", '{"version": 1, "files": 3}', "{"])
def test_a_damaged_record_of_the_check_is_made_again(tree, damage):
    load_data("folder", "train", data_root=tree)
    (record,) = images.cache_folder().glob("checked-*.json")
    record.write_text(damage)
    (tree / "train" / "dog" / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"dog/3\.png"):
        load_data("folder", "train", data_root=tree)


def test_imagenet_is_checked_when_asked(tmp_path):
    for part in ("train", "val"):
        for name in ("n01440764", "n02102040"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (80, 80)).save(tmp_path / part / name / f"{number}.JPEG")
    (tmp_path / "train" / "n02102040" / "1.JPEG").write_bytes(b"")
    data = load_data("imagenet", "train", data_root=tmp_path)
    with pytest.raises(ValueError, match=r"1\.JPEG"):
        data[3]
    with pytest.raises(ValueError, match="1 of 4"):
        load_data("imagenet", "train", data_root=tmp_path, on_bad_image="error")
    with pytest.warns(UserWarning, match="3 images found"):
        assert len(load_data("imagenet", "train", data_root=tmp_path, on_bad_image="skip")) == 3


def test_oxford_pets_skips_the_trimap_with_its_image(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations" / "trimaps").mkdir(parents=True)
    names = ["Abyssinian_1", "Abyssinian_2", "beagle_1"]
    for number, name in enumerate(names, start=1):
        trimap = np.full((40, 40), 2, np.uint8)
        trimap[: 10 * number] = 1
        Image.new("L", (40, 40)).save(base / "images" / f"{name}.jpg")
        Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{name}.png")
    lines = [f"{name} {label} 1 1" for name, label in zip(names, (1, 1, 2), strict=True)]
    (base / "annotations" / "test.txt").write_text("\n".join(lines))
    (base / "images" / "Abyssinian_1.jpg").unlink()
    with pytest.raises(ValueError, match=r"Abyssinian_1\.jpg: there is no such file"):
        load_data("oxford-pets", "test", data_root=tmp_path)
    with pytest.warns(UserWarning, match="2 images found"):
        data = load_data("oxford-pets", "test", data_root=tmp_path, image_size=28, on_bad_image="skip")
    assert data.targets.tolist() == [0, 1]
    assert data.masks[:, :, 5].sum(1).tolist() == [14, 22]  # of 40 rows, scaled to 32, the middle 28


def test_pipes_and_devices_in_a_folder_are_ignored(tree, no_waiting):
    names = pipe_socket_and_folder(tree / "train" / "cat")
    for place in ("0.xml", "Annotations/1.xml", "../../boxes.json"):
        (tree / "train" / "cat" / place).parent.mkdir(exist_ok=True)
        os.mkfifo(tree / "train" / "cat" / place)
    with pytest.warns(UserWarning, match="10 images found"):
        data = load_data("folder", "train", data_root=tree)
    reasons = {Path(path).name: reason for path, reason in data.ignored.items()}
    assert {reasons[name] for name in names} == {"neither file nor folder"}
    assert len(data) == 10 and data.boxes is None


LITTER = {  # a file, what of it is ignored, why
    "train/cat/.ipynb_checkpoints/0-checkpoint.png": ("train/cat/.ipynb_checkpoints", "hidden"),
    "train/__MACOSX/x.png": ("train/__MACOSX", "operating system"),
    "train/cat/__MACOSX/x.png": ("train/cat/__MACOSX", "operating system"),
    "train/dog/Thumbs.db": ("train/dog/Thumbs.db", "not a file of"),
    "train/desktop.ini": ("train/desktop.ini", "in no class folder"),
    "train/.ipynb_checkpoints/x.png": ("train/.ipynb_checkpoints", "hidden"),
    "train/cat/._0.png": ("train/cat/._0.png", "hidden"),
    "train/cat/.DS_Store": ("train/cat/.DS_Store", "hidden"),
    "train/cat/moving.gif": ("train/cat/moving.gif", "not a file of"),
    "train/dog/labels.csv": ("train/dog/labels.csv", "not a file of"),
    "train/stray.png": ("train/stray.png", "in no class folder"),
}
LINKS = {  # a link, where it leads, why it is ignored
    "train/cat/nowhere.png": ("none.png", "leads nowhere"),
    "train/cat/itself.png": ("itself.png", "leads nowhere"),
    "train/cat/up": ("..", "around it"),
    "train/cat/far up": ("../..", "around it"),
}


def test_litter_is_ignored_with_one_warning(tree):
    for name in LITTER:
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes((tree / "train" / "cat" / "0.png").read_bytes())
    for name, (target, _) in LINKS.items():
        (tree / name).symlink_to(target)
    with pytest.warns(UserWarning) as caught:
        data = load_data("folder", "train", data_root=tree, image_size=16, augment=False)
    assert len(caught) == 1
    assert f"10 images found, {len(LITTER) + len(LINKS)} files or folders ignored" in str(caught[0].message)
    assert "moving.gif" in str(caught[0].message)
    assert greys(data) == [100, 101, 102, 103, 104, 110, 111, 112, 113, 114]
    reasons = {os.path.relpath(path, tree): reason for path, reason in data.ignored.items()}
    expected = dict(LITTER.values()) | {name: reason for name, (_, reason) in LINKS.items()}
    assert set(reasons) == set(expected)
    assert all(expected[name] in reason for name, reason in reasons.items())


def test_a_clean_folder_warns_of_nothing(tree):
    (tree / "elsewhere").mkdir()
    (tree / "train" / "dog" / "4.png").rename(tree / "elsewhere" / "4.png")
    (tree / "train" / "dog" / "more").symlink_to(tree / "elsewhere")  # a link to another folder is followed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_data("folder", "train", data_root=tree)
    assert len(data) == 10
    assert not data.ignored


def test_order_is_that_of_torchvision(tree):
    from torchvision.datasets import ImageFolder

    for name in ("b/2.png", "a b/1.png", "a/1.png", "B.png"):
        (tree / "train" / "cat" / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tree / "train" / "cat" / name)
    samples, classes, ignored = list_images(tree / "train")
    reference = ImageFolder(tree / "train")
    assert samples == reference.samples
    assert classes == reference.classes
    assert not ignored


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda train: (train / "horse").mkdir(), "none in horse|none in .*horse"),
        (lambda train: [path.rename(path.with_suffix(".gif")) for path in train.glob("dog/*")], r"none in dog .*\.gif"),
        (lambda train: (train / "dog").rename(train.parent / "away"), "two or more class folders.*one, cat"),
        (lambda train: [(train / name).rename(train.parent / name) for name in ("cat", "dog")], "two or more.*none"),
        (lambda train: [path.write_bytes(b"") for path in train.glob("dog/*")], "5 of 10 images"),
    ],
)
def test_classes_that_cannot_be_trained_are_named(tree, prepare, message):
    prepare(tree / "train")
    with pytest.raises(ValueError, match=message):
        load_data("folder", "train", data_root=tree)


def test_a_class_whose_images_are_all_skipped_is_named(tree):
    for path in (tree / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none in dog"):
        load_data("folder", "train", data_root=tree, on_bad_image="skip")


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "Annotations", "@eaDir"])
def test_folders_of_other_kinds_are_no_class_of_one_split_alone(tree, name):
    (tree / "train" / name).mkdir()
    assert len(load_data("folder", "test", data_root=tree)) == 10


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "folder", "on_bad_image": "ignore"}, "on_bad_image"),
        ({"name": "folder", "on_bad_image": True}, "on_bad_image"),
        ({"name": "folder", "image_size": True}, "image_size"),
        ({"name": "folder", "image_size": 32.0}, "image_size"),
        ({"name": "photo-digits", "on_bad_image": "skip", "data_root": None}, "on_bad_image"),
        ({"name": "photo-digits", "clutter": np.True_, "data_root": None}, "clutter"),
        ({"name": "photo-digits", "num_images": np.True_, "data_root": None}, "num_images"),
        ({"name": "photo-digits", "num_images": 10**12, "data_root": None}, "num_images.* GiB"),
        ({"name": "cifar10", "on_bad_image": "skip"}, "on_bad_image"),
    ],
)
def test_bad_arguments_are_named(tree, arguments, named):
    with pytest.raises(ValueError, match=named):
        load_data(**{"data_root": tree, **arguments})


def test_numpy_sizes_are_sizes(tree):
    assert load_data("folder", "test", data_root=tree, image_size=np.int64(16))[0][0].shape == (3, 16, 16)
