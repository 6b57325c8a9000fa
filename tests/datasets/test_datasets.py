"""The data sets: photo-digits to the byte, the others through small trees written here."""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from simpool_lite.datasets import DATASETS, load_data, photo_digits
from simpool_lite.datasets.photo_digits import CHECKSUMS, PHOTOS, photograph_folder

SMALL = {"num_images": 60}


def luminance(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 3, H, W) to float (n, H, W)."""
    return (images * torch.tensor([0.30, 0.59, 0.11])[:, None, None]).sum(1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def full(cache):
    """The default sets of both splits, generated once."""
    return {split: load_data("photo-digits", split, cache_dir=cache) for split in ("train", "test")}


@pytest.fixture
def digits(tmp_path):
    """A function that loads a small photo-digits set from an empty cache."""

    def load(split="test", **options):
        return load_data("photo-digits", split, cache_dir=tmp_path, **{**SMALL, **options})

    return load


@pytest.mark.parametrize("split", ["train", "test"])
def test_default_set_has_the_recorded_checksum(full, split):
    assert len(full[split]) == {"train": 4096, "test": 1024}[split]
    assert full[split].checksum == CHECKSUMS[split]


def test_recorded_normalisation_is_the_training_sets(full):
    pixels = full["train"].images[::4, :, ::3, ::3].double() / 255
    data = full["train"]
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(data.mean).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(data.std).double(), atol=0.01, rtol=0)


def test_bytes_depend_on_the_seed_and_on_nothing_else(tmp_path, monkeypatch):
    first = load_data("photo-digits", "test", cache_dir=tmp_path / "a", seed=3, **SMALL)
    monkeypatch.setattr(photo_digits, "CHUNK", 7)
    monkeypatch.setattr(photo_digits.os, "cpu_count", lambda: 1)
    again = load_data("photo-digits", "test", cache_dir=tmp_path / "b", seed=3, **SMALL)
    other = load_data("photo-digits", "test", cache_dir=tmp_path / "b", seed=4, **SMALL)
    assert first.checksum == again.checksum
    assert torch.equal(first.images, again.images)
    assert first.checksum != other.checksum
    assert not torch.equal(first.images, other.images)


def test_splits_share_no_glyph(full):
    used = {split: set(data.glyphs.unique().tolist()) for split, data in full.items()}
    assert full["train"].glyphs.shape == (4096, 5)
    assert not used["train"] & used["test"]
    assert len(used["train"]) > 1400
    assert len(used["test"]) > 340


def test_object_glyph_has_the_label(full):
    from sklearn.datasets import load_digits

    labels = torch.from_numpy(load_digits().target)
    for data in full.values():
        assert torch.equal(labels[data.glyphs[:, 0]], data.targets)


def test_splits_share_no_photograph_pixel(full):
    for photo, name in enumerate(PHOTOS):
        width, height = Image.open(photograph_folder() / f"{name}.png").size
        seen = {}
        for split, data in full.items():
            seen[split] = np.zeros((height, width), bool)
            windows = data.windows[data.photos == photo]
            assert (windows[:, 2:] - windows[:, :2]).min() >= 40
            assert windows.min() >= 0
            assert windows[:, 2].max() <= width
            assert windows[:, 3].max() <= height
            for x0, y0, x1, y1 in windows.tolist():
                seen[split][y0:y1, x0:x1] = True
        assert not (seen["train"] & seen["test"]).any()
        assert min(seen["train"].mean(), seen["test"].mean()) > 0.45


def test_pixels_come_from_the_window_alone(digits, monkeypatch):
    """Overwrite every pixel of the photographs that no window holds: no image changes."""
    before = digits("train")
    photo_half = photo_digits._photo_half

    def spoiled(name, split):
        pixels, column = photo_half(name, split)
        inside = np.zeros(pixels.shape[1:], bool)
        for x0, y0, x1, y1 in before.windows[before.photos == PHOTOS.index(name)].tolist():
            inside[y0:y1, x0 - column : x1 - column] = True
        return np.where(inside, pixels, np.array([255, 0, 255], np.uint8)[:, None, None]), column

    monkeypatch.setattr(photo_digits, "_photo_half", spoiled)
    generated = photo_digits._generate(before.options)
    assert np.array_equal(generated["images"], before.images.numpy())


def test_labels_are_balanced_and_independent(full):
    for data in full.values():
        assert data.digits.bincount().float().std() < 1
        assert data.photos.bincount().float().std() < 1
        table = torch.bincount(data.digits * 6 + data.photos, minlength=60)
        assert table.min() > 0.4 * len(data) / 60


def test_boxes_are_the_tight_boxes_of_the_masks(full):
    data = full["test"]
    assert len(data.boxes) == len(data)
    for mask, box in zip(data.masks[:200], data.boxes[:200], strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.dtype == torch.float32
        assert box.tolist() == [[float(edge) for edge in expected]]


def test_objects_have_the_promised_size_and_lie_inside(full):
    boxes = torch.cat(full["train"].boxes)
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    turned = math.cos(math.radians(15)) + math.sin(math.radians(15))
    assert side.min() >= 18 * math.cos(math.radians(15)) - 1
    assert side.max() <= 32 * turned + 1
    assert side.min() < 20 < 30 < side.max()
    assert boxes.min() >= 0
    assert boxes.max() <= 48


def test_objects_cover_a_seventh_of_the_positions(full):
    share = torch.nn.functional.avg_pool2d(full["train"].masks.float()[:, None], 4)
    assert 0.12 < (share > 0.15).float().mean() < 0.16


def test_digit_differs_from_a_flat_background(digits):
    data = digits(clutter=0, distractors=0)
    grey = luminance(data.images)
    near = torch.nn.functional.max_pool2d(data.masks.float(), 9, 1, 4) > 0
    for image, mask, surrounding in zip(grey, data.masks, ~near, strict=True):
        assert image[surrounding].max() - image[surrounding].min() <= 1
        assert (image[mask].median() - image[surrounding].mean()).abs() > 60


def test_digit_differs_from_what_surrounds_it(full):
    data = full["test"]
    grey, masks = luminance(data.images), data.masks.float()
    ring = torch.nn.functional.max_pool2d(masks, 7, 1, 3) - torch.nn.functional.max_pool2d(masks, 3, 1, 1)
    inner = (grey * masks).sum((1, 2)) / masks.sum((1, 2))
    outer = (grey * ring).sum((1, 2)) / ring.sum((1, 2))
    contrast = (inner - outer).abs()
    assert (contrast > 30).float().mean() > 0.97
    assert contrast.median() > 60


def test_digit_lies_on_top_of_the_fragments(digits):
    """However many fragments there are, a digit's pixels away from its edge have one colour."""
    data = digits(distractors=12)
    assert data.glyphs.shape == (60, 13)
    core = torch.nn.functional.max_pool2d((~data.masks).float(), 5, 1, 2) == 0
    same = []
    for image, inner in zip(data.images.int(), core, strict=True):
        colours = image[:, inner]
        if colours.numel():
            same.append((colours - colours.median(1, keepdim=True).values).abs().amax(0) <= 8)
    assert len(same) > 20
    assert torch.cat(same).float().mean() > 0.97


def test_options_change_what_they_say(digits):
    larger = digits(object_size=(36, 36), size=64)
    assert larger.images.shape == (60, 3, 64, 64)
    assert torch.cat(larger.boxes)[:, 2:].max() > 48
    assert larger[0][0].shape == (3, 64, 64)
    by_image_size = digits(object_size=(36, 36), image_size=64)
    assert by_image_size.checksum == larger.checksum
    flat, plain, busy = (digits(clutter=c, distractors=0).images.float().std((2, 3)).mean() for c in (0, 1, 2))
    assert flat < plain < busy


def test_photo_target_is_on_the_same_images(digits):
    digit, photo = digits(), digits(target="photo")
    assert torch.equal(digit.images, photo.images)
    assert digit.classes == list("0123456789")
    assert photo.classes == list(PHOTOS)
    assert torch.equal(photo.targets, photo.photos)
    assert photo[5][1] == int(photo.photos[5])
    assert photo.targets.dtype == torch.int64


def test_items_are_normalised_and_come_back(digits):
    data = digits()
    image, label = data[7]
    assert image.dtype == torch.float32
    assert image.shape == (3, 48, 48)
    assert isinstance(label, int)
    torch.testing.assert_close(data.denormalize(image), data.images[7] / 255)
    batch = torch.stack([data[0][0], image])
    torch.testing.assert_close(data.denormalize(batch), data.images[[0, 7]] / 255)
    plain = digits(mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(plain[7][0], data.images[7] / 255)


def test_batches_equal_stacked_items(digits):
    data = digits()
    loader = DataLoader(data, batch_size=16, collate_fn=data.collate)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 12]
    expected = default_collate([data[index] for index in range(len(data))])
    assert torch.equal(torch.cat([images for images, _ in batches]), expected[0])
    assert torch.equal(torch.cat([labels for _, labels in batches]), expected[1])


def test_iteration_ends(digits):
    assert len(list(digits(num_images=3))) == 3


def cache_file(folder: Path) -> Path:
    (path,) = folder.glob("photo-digits-*.npz")
    return path


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def test_cache_is_read(digits, tmp_path, monkeypatch):
    first = digits()
    monkeypatch.setattr(photo_digits, "_generate", lambda options: pytest.fail("generated again"))
    assert digits().checksum == first.checksum
    assert [path.name for path in tmp_path.iterdir()] == [cache_file(tmp_path).name]


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, lambda content: b"", lambda content: b"not a zip"])
def test_damaged_cache_is_built_again(digits, tmp_path, caplog, damage):
    first = digits()
    path = cache_file(tmp_path)
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    with caplog.at_level(logging.WARNING):
        again = digits()
    assert "generating the set again" in caplog.text
    assert torch.equal(again.images, first.images)
    assert again.checksum == first.checksum
    assert path.read_bytes() != damage(sound)
    digits()


def test_archive_that_is_sound_but_not_the_set_is_built_again(digits, tmp_path):
    first = digits()
    with np.load(cache_file(tmp_path)) as archive:
        arrays = dict(archive)
    arrays["images"] = arrays["images"].copy()
    arrays["images"][0, 0, 0, 0] ^= 1
    np.savez(cache_file(tmp_path), **arrays)
    assert torch.equal(digits().images, first.images)


def test_concurrent_builds_agree(digits, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        sets = list(pool.map(lambda _: digits(), range(3)))
    assert len({data.checksum for data in sets}) == 1
    assert digits().checksum == sets[0].checksum
    assert list(tmp_path.iterdir()) == [cache_file(tmp_path)]


def test_unwritable_cache_is_not_fatal(tmp_path, caplog):
    (tmp_path / "file").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        data = load_data("photo-digits", "test", cache_dir=tmp_path / "file" / "cache", **SMALL)
    assert len(data) == 60
    assert "not cached" in caplog.text


def test_default_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_data("photo-digits", "test", num_images=2)
    assert cache_file(tmp_path / "simpool_lite").is_file()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "photodigits"}, "name"),
        ({"split": "val"}, "split"),
        ({"target": "colour"}, "target"),
        ({"num_images": 0}, "num_images"),
        ({"num_images": 2.5}, "num_images"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"object_size": (18, 40)}, "object_size"),
        ({"object_size": (30, 20)}, "object_size"),
        ({"object_size": (18,)}, "object_size"),
        ({"object_size": 18}, "object_size"),
        ({"object_size": "ab"}, "object_size"),
        ({"distractors": -1}, "distractors"),
        ({"clutter": -0.1}, "clutter"),
        ({"clutter": float("nan")}, "clutter"),
        ({"clutter": "busy"}, "clutter"),
        ({"size": "48"}, "size"),
        ({"size": 48, "image_size": 64}, "image_size"),
        ({"distracters": 2}, "distracters"),
        ({"augment": True}, "augment"),
        ({"data_root": "somewhere"}, "data_root"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (1, 1)}, "std"),
    ],
)
def test_bad_photo_digits_arguments_are_named(tmp_path, arguments, named):
    with pytest.raises(ValueError, match=named):
        load_data(**{"name": "photo-digits", "cache_dir": tmp_path, **arguments})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "cifar10", "target": "digit"}, "target"),
        ({"name": "cifar10", "num_images": 10}, "num_images"),
        ({"name": "cifar10", "image_size": 0}, "image_size"),
        ({"name": "cifar10", "augment": "strong"}, "augment"),
        ({"name": "cifar10", "augment": {"no_such_keyword": 1}}, "augment"),
        ({"name": "imagenette", "size": "64px"}, "size"),
        ({"name": "folder", "data_root": None}, "data_root"),
        ({"name": "imagenet", "download": True}, "download"),
    ],
)
def test_bad_vision_arguments_are_named(tmp_path, arguments, named):
    with pytest.raises(ValueError, match=named):
        load_data(**{"data_root": tmp_path, **arguments})


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "photo-digits"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_data_says_what_to_do(tmp_path, name, split):
    with pytest.raises(FileNotFoundError, match=r"put .* there") as raised:
        load_data(name, split, data_root=tmp_path)
    offered = name not in ("imagenet", "folder")
    assert ("download=True" in str(raised.value)) == offered
    assert not list(tmp_path.iterdir())


def test_missing_photographs_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(photo_digits, "__file__", str(tmp_path / "simpool_lite" / "datasets" / "x.py"))
    with pytest.raises(FileNotFoundError, match="photographs"):
        photograph_folder()


def test_photographs_are_small_and_credited():
    credits = (photograph_folder() / "CREDITS.md").read_text(encoding="utf-8")
    for name in PHOTOS:
        assert (photograph_folder() / f"{name}.png").stat().st_size < 120_000
        assert f"`{name}.png`" in credits


def write_tree(root: Path, parts=("train", "test"), classes=("cat", "dog")) -> Path:
    """Two images of odd sizes a class, one of them grey."""
    for part in parts:
        for shade, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (37, 91), (80 * shade, 100, 200)).save(folder / "tall.png")
            Image.new("L", (301, 53), 90).save(folder / "wide.jpg")
    return root


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_folder(tmp_path, test_folder):
    root = write_tree(tmp_path, ("train", test_folder))
    for split in ("train", "test"):
        data = load_data("folder", split, data_root=root, image_size=64)
        assert len(data) == 4
        assert data.classes == ["cat", "dog"]
        assert data.targets.tolist() == [0, 0, 1, 1]
        assert data.masks is None
        assert data.boxes is None
        images, labels = next(iter(DataLoader(data, batch_size=4, collate_fn=data.collate)))
        assert images.shape == (4, 3, 64, 64)
        assert images.dtype == torch.float32
        assert torch.equal(labels, data.targets)
    shown = data.denormalize(data[2][0])  # the evaluation transform keeps the colour
    torch.testing.assert_close(shown[:, 32, 32], torch.tensor([80, 100, 200]) / 255)
    assert load_data("folder", "train", data_root=root)[0][0].shape == (3, 224, 224)


def test_augmentation_is_for_training_unless_asked(tmp_path):
    root = write_tree(tmp_path)
    Image.effect_noise((90, 70), 80).convert("RGB").save(root / "train" / "cat" / "tall.png")

    def varies(**arguments):
        data = load_data("folder", "train", data_root=root, image_size=32, **arguments)
        return not all(torch.equal(data[0][0], data[0][0]) for _ in range(5))

    assert varies()
    assert varies(augment=True)
    assert varies(augment={"re_prob": 0.5})
    assert not varies(augment=False)


def test_folder_with_different_classes_is_refused(tmp_path):
    write_tree(tmp_path, ("train",))
    write_tree(tmp_path, ("test",), ("cat", "horse"))
    with pytest.raises(ValueError, match="dog, horse"):
        load_data("folder", "test", data_root=tmp_path)


def test_imagenet_names_its_classes(tmp_path):
    write_tree(tmp_path, ("train", "val"), ("n01440764", "something"))
    data = load_data("imagenet", "test", data_root=tmp_path, image_size=48)
    assert data.classes == ["tench", "something"]


def test_imagenette(tmp_path):
    write_tree(tmp_path / "imagenette2-160", ("train", "val"), ("n01440764", "n02102040"))
    for path in tmp_path.rglob("wide.jpg"):
        path.rename(path.with_suffix(".JPEG"))
    data = load_data("imagenette", "test", data_root=tmp_path, size="160px", image_size=32)
    assert data.classes == ["tench", "English springer"]
    assert data.targets.tolist() == [0, 1]
    assert data[1][0].shape == (3, 32, 32)


def test_oxford_pets_masks_lie_on_the_images(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations" / "trimaps").mkdir(parents=True)
    trimap = np.full((180, 120), 2, np.uint8)
    trimap[50:110, 30:80] = 3
    trimap[55:105, 35:75] = 1
    names = ["Abyssinian_1", "beagle_2"]
    for name in names:
        picture = np.where(trimap == 1, 255, 0).astype(np.uint8)
        Image.fromarray(picture).convert("RGB").save(base / "images" / f"{name}.jpg", quality=100)
        Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{name}.png")
    for part in ("trainval", "test"):
        lines = [f"{name} {label} 1 1" for label, name in enumerate(names, start=1)]
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines))

    data = load_data("oxford-pets", "test", data_root=tmp_path, image_size=96)
    assert data.classes == ["Abyssinian", "Beagle"]
    assert data.targets.tolist() == [0, 1]
    assert data.masks.shape == (2, 96, 96)
    bright = data.denormalize(data[0][0]).mean(0) > 0.5
    assert (bright == data.masks[0]).float().mean() > 0.97
    (x0, y0, x1, y1) = data.boxes[0][0].int().tolist()
    assert data.masks[0].sum() == (x1 - x0) * (y1 - y0)
    augmented = load_data("oxford-pets", "train", data_root=tmp_path, image_size=96)
    assert augmented.masks is None
    assert augmented.boxes is None
    assert load_data("oxford-pets", "train", data_root=tmp_path, augment=False).masks is not None
