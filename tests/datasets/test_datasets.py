"""The data sets: photo-digits to the byte, the others through small trees written here."""

import itertools
import json
import logging
import math
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, default_collate

from simpool_lite.datasets import DATASETS, SPLITS, cache, load_data, photo_digits, vision
from simpool_lite.datasets.cache import checksum_of
from simpool_lite.datasets.photo_digits import CHECKSUMS, PHOTOS, photograph_folder
from simpool_lite.datasets.vision import SmallImages, VisionImages

SMALL = {"num_images": 60}


def luminance(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 3, H, W) to float (n, H, W)."""
    return (images * torch.tensor([0.30, 0.59, 0.11])[:, None, None]).sum(1)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def full(cache_dir):
    """The default sets, generated once."""
    return {split: load_data("photo-digits", split, cache_dir=cache_dir) for split in ("train", "test")}


@pytest.fixture(scope="module")
def three(cache_dir):
    """Three sets that share nothing, as large as needed to meet most glyphs and photograph pixels."""
    form = {"without_val": True, "num_images": 1500, "object_size": (13, 22), "size": 32, "cache_dir": cache_dir}
    return {split: load_data("photo-digits", split, **form) for split in SPLITS}


@pytest.fixture
def digits(tmp_path):
    """A function that loads a small photo-digits set from an empty cache."""

    def load(split="test", **options):
        return load_data("photo-digits", split, cache_dir=tmp_path, **{**SMALL, **options})

    return load


@pytest.mark.parametrize(("split", "size"), [("train", 4096), ("val", 1024), ("test", 1024)])
def test_default_set_has_the_recorded_checksum(full, cache_dir, split, size):
    data = full[split] if split in full else load_data("photo-digits", split, cache_dir=cache_dir)
    assert len(data) == size
    assert data.checksum == CHECKSUMS[split]
    names = ("images", "masks", "digits", "photos", "glyphs", "windows")
    arrays = {name: getattr(data, name).numpy() for name in names}
    arrays["boxes"] = torch.cat(data.boxes).long().numpy()
    assert checksum_of(arrays) == CHECKSUMS[split]


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


def test_three_splits_share_no_glyph(three):
    used = {split: set(data.glyphs.unique().tolist()) for split, data in three.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not used[one] & used[other]
    assert [len(used[split]) for split in SPLITS] == pytest.approx([1260, 178, 358], abs=15)


def test_three_splits_share_no_photograph_pixel(three):
    for photo, name in enumerate(PHOTOS):
        width, height = Image.open(photograph_folder() / f"{name}.png").size
        seen = {split: np.zeros((height, width), bool) for split in SPLITS}
        for split, data in three.items():
            windows = data.windows[data.photos == photo]
            assert (windows[:, 2:] - windows[:, :2]).min() >= 40
            assert windows.min() >= 0
            for x0, y0, x1, y1 in windows.tolist():
                seen[split][y0:y1, x0:x1] = True
        for one, other in itertools.combinations(SPLITS, 2):
            assert not (seen[one] & seen[other]).any()
        assert [seen[split].mean() for split in SPLITS] == pytest.approx([0.3, 0.2, 0.5], abs=0.02)


def test_val_and_test_do_not_depend_on_what_train_leaves_out(digits):
    for split in ("val", "test"):
        assert digits(split).checksum == digits(split, without_val=True).checksum
    assert digits("train").checksum != digits("train", without_val=True).checksum


def test_pixels_come_from_the_window_alone(digits, monkeypatch):
    """Overwrite every pixel of the photographs that no window holds: no image changes."""
    before = digits("train")
    photo_region = photo_digits._photo_region

    def spoiled(name, split, without_val):
        pixels, (column, row) = photo_region(name, split, without_val)
        assert row == 0
        inside = np.zeros(pixels.shape[1:], bool)
        for x0, y0, x1, y1 in before.windows[before.photos == PHOTOS.index(name)].tolist():
            inside[y0:y1, x0 - column : x1 - column] = True
        return np.where(inside, pixels, np.array([255, 0, 255], np.uint8)[:, None, None]), (column, row)

    monkeypatch.setattr(photo_digits, "_photo_region", spoiled)
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


def test_a_photograph_that_gives_the_digit_away(digits):
    """Own photographs are as frequent as asked for, the others have any; digits and glyphs stay."""
    plain = digits(num_images=600, size=16, object_size=(8, 8))
    for correlation in (0.5, 1):
        data = digits(num_images=600, size=16, object_size=(8, 8), correlation=correlation)
        own = data.photos == data.digits % 6
        expected = correlation + (1 - correlation) / 6
        assert own.float().mean().item() == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 600))
        assert torch.equal(data.digits, plain.digits)
        assert torch.equal(data.glyphs, plain.glyphs)
        assert pickle.loads(pickle.dumps(data)).checksum == data.checksum
    rest = data.photos[~own].bincount(minlength=6)
    assert rest.sum() == 0
    assert digits(num_images=20, correlation=0).checksum == digits(num_images=20).checksum


def test_caches_from_before_the_correlation_stay_good(digits, tmp_path):
    digits()
    (described,) = (json.loads(file.read_text()) for file in tmp_path.rglob("set.json"))
    assert "correlation" not in json.dumps(described)


def test_photo_target_is_on_the_same_images(digits):
    digit, photo = digits(), digits(target="photo")
    assert torch.equal(digit.images, photo.images)
    assert digit.classes == list("0123456789")
    assert photo.classes == list(PHOTOS)
    assert torch.equal(photo.targets, photo.photos)
    assert photo[5][1] == int(photo.photos[5])
    assert photo.targets.dtype == torch.int64


@pytest.fixture
def odd(digits):
    return digits("train", target="odd", num_images=600, size=32)


def test_odd_names_the_digit_that_occurs_once(odd):
    from sklearn.datasets import load_digits

    shown = torch.from_numpy(load_digits().target)[odd.glyphs]
    assert shown.shape == (600, 3)
    for labels, target in zip(shown.tolist(), odd.targets.tolist(), strict=True):
        assert [label for label in labels if labels.count(label) == 1] == [target]
    assert (odd.glyphs[:, 1] != odd.glyphs[:, 2]).all()
    assert odd.classes == list("0123456789")
    assert odd.targets.bincount().tolist() == [60] * 10
    pairs = torch.bincount(odd.targets * 10 + shown[:, 1], minlength=100).view(10, 10)
    assert (pairs.diag() == 0).all()
    assert (pairs > 0).sum() == 90
    assert odd.images.shape == (600, 3, 32, 32)


def test_odd_masks_are_the_odd_digits_alone(digits):
    """On flat grey, what is drawn falls into three separate parts, and the mask is one of them."""
    from scipy.ndimage import label

    data = digits(target="odd", clutter=0, size=64)
    grey = luminance(data.images)
    drawn = (grey - grey[:, :1, :1]).abs() > 24  # the corner is background
    for picture, mask, box in zip(drawn, data.masks, data.boxes, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == [[float(edge) for edge in edges]]
        parts, count = label(picture, np.ones((3, 3)))
        own = {parts[row, column] for row, column in mask.nonzero().tolist()} - {0}
        others = {number for number in range(1, count + 1) if (parts == number).sum() > 8} - own
        assert len(others) >= 2
        assert picture[mask].float().mean() > 0.9


def test_odd_lies_anywhere(odd):
    boxes = torch.cat(odd.boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    quarter = (centres[:, 0] > 16).long() * 2 + (centres[:, 1] > 16).long()
    assert quarter.bincount().min() > 100
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert 7 <= side.min() < 10 < side.max() <= 14


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


def cache_entry(folder: Path) -> Path:
    (path,) = folder.glob("photo-digits-*")
    return path


def is_mapped(path: Path) -> bool:
    """Whether this process has the file mapped into its memory."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux")
    return str(path) in maps.read_text()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_cache_is_mapped(digits, tmp_path, monkeypatch):
    first = digits()
    monkeypatch.setattr(photo_digits, "_generate", lambda options: pytest.fail("generated again"))
    again = digits()
    assert again.checksum == first.checksum
    assert list(tmp_path.iterdir()) == [cache_entry(tmp_path)]
    assert is_mapped(cache_entry(tmp_path) / "images.npy")
    del first, again
    assert not is_mapped(cache_entry(tmp_path) / "images.npy")
    again = digits()
    first = digits()
    again.images[0] = 0  # this set's memory changes, the file does not
    assert torch.equal(digits().images, first.images)
    assert first.images[0].any()


@pytest.mark.parametrize("file", ["images.npy", "boxes.npy", "set.json"])
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_byte,
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"neither array nor JSON"),
        lambda path: path.write_text("{}"),
    ],
)
def test_damaged_cache_is_built_again(digits, tmp_path, caplog, file, damage):
    first = digits(num_images=20)
    expected = first.images.clone(), first.boxes
    damage(cache_entry(tmp_path) / file)
    with caplog.at_level(logging.WARNING):
        again = digits(num_images=20)
    assert "generating the set again" in caplog.text
    assert torch.equal(again.images, expected[0])
    assert all(map(torch.equal, again.boxes, expected[1]))
    assert again.checksum == first.checksum
    caplog.clear()
    digits(num_images=20)
    assert not caplog.records
    assert list(tmp_path.iterdir()) == [cache_entry(tmp_path)]


def test_sound_array_of_another_shape_is_built_again(digits, tmp_path):
    expected = digits().images.clone()
    np.save(cache_entry(tmp_path) / "images.npy", expected.numpy().reshape(60, 3, 24, 96))  # as many bytes
    assert torch.equal(digits().images, expected)


def test_header_that_claims_too_much_is_built_again(digits, tmp_path):
    expected = digits().images.clone()
    path = cache_entry(tmp_path) / "images.npy"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes().replace(b"(60, 3, 48, 48)", b"(10**15,3,2,4)")[:size].ljust(size))
    assert torch.equal(digits().images, expected)


def test_copied_cache_is_read_once_and_then_trusted(digits, tmp_path, monkeypatch):
    first, entry = digits(), cache_entry(tmp_path)
    entry.rename(tmp_path / "original")
    shutil.copytree(tmp_path / "original", entry, copy_function=shutil.copyfile)  # new times of change
    read = []
    monkeypatch.setattr(cache, "checksum_of", lambda arrays: read.append(1) or checksum_of(arrays))
    monkeypatch.setattr(photo_digits, "_generate", lambda options: pytest.fail("generated again"))
    assert digits().checksum == digits().checksum == first.checksum
    assert read == [1]


def test_default_set_with_another_checksum_is_built_again(full, tmp_path):
    """A cache whose own record agrees with it is still not the set when the package knows better."""
    load_data("photo-digits", "test", cache_dir=tmp_path)
    entry = cache_entry(tmp_path)
    images = np.load(entry / "images.npy", mmap_mode="r+")
    images[0] = 0
    images.flush()
    names = ("images", "masks", "boxes", "digits", "photos", "glyphs", "windows")
    arrays = {name: np.load(entry / f"{name}.npy") for name in names}
    record = json.loads((entry / "set.json").read_text())
    (entry / "set.json").write_text(json.dumps(record | {"checksum": checksum_of(arrays)}))
    again = load_data("photo-digits", "test", cache_dir=tmp_path)
    assert again.checksum == CHECKSUMS["test"]
    assert torch.equal(again.images, full["test"].images)


def test_concurrent_builds_agree(digits, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        sets = list(pool.map(lambda _: digits(), range(3)))
    assert len({data.checksum for data in sets}) == 1
    assert digits().checksum == sets[0].checksum
    assert list(tmp_path.iterdir()) == [cache_entry(tmp_path)]


def test_interrupted_write_leaves_nothing(digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write_record", lambda folder, record: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            digits()
    assert not list(tmp_path.iterdir())
    killed, running = tmp_path / ".partial-killed", tmp_path / ".partial-running"
    for folder in (killed, running):
        folder.mkdir()
    os.utime(killed, (0, 0))
    digits()
    assert not killed.exists()
    assert running.exists()


def test_copy_for_another_process_carries_no_pixels(digits):
    data = digits("train", target="odd", without_val=True, mean=(0, 0, 0), std=(1, 1, 1))
    text = pickle.dumps(data)
    assert len(text) < 2000
    again = pickle.loads(text)
    assert again.checksum == data.checksum
    assert again.target == "odd"
    assert torch.equal(again[5][0], data[5][0])


def test_unwritable_cache_is_not_fatal(tmp_path, caplog):
    (tmp_path / "file").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        data = load_data("photo-digits", "test", cache_dir=tmp_path / "file" / "cache", **SMALL)
    assert len(data) == 60
    assert "not cached" in caplog.text


def test_default_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_data("photo-digits", "test", num_images=2)
    assert cache_entry(tmp_path / "simpool_lite").is_dir()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "photodigits"}, "name"),
        ({"split": "valid"}, "split"),
        ({"without_val": "yes"}, "without_val"),
        ({"without_val": 1}, "without_val"),
        ({"num_images": 1e12}, "num_images"),
        ({"num_images": 10**12}, "num_images"),
        ({"num_images": True}, "num_images"),
        ({"size": 10**6}, "num_images"),
        ({"clutter": True}, "clutter"),
        ({"clutter": np.float64("nan")}, "clutter"),
        ({"target": "odd", "object_size": (18, 32)}, "object_size"),
        ({"target": "odd", "size": 12}, "object_size"),
        ({"std": (0, 0, 0)}, "std"),
        ({"std": (1, -1, 1)}, "std"),
        ({"std": 0.5}, "std"),
        ({"std": (1, 1, float("nan"))}, "std"),
        ({"mean": ("a", "b", "c")}, "mean"),
        ({"mean": (0, 0, float("inf"))}, "mean"),
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
        ({"correlation": 1.1}, "correlation"),
        ({"correlation": -0.1}, "correlation"),
        ({"correlation": float("nan")}, "correlation"),
        ({"correlation": True}, "correlation"),
        ({"correlation": "digit"}, "correlation"),
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


def test_numpy_numbers_are_numbers(digits):
    plain = digits(num_images=3, seed=2, clutter=0.5, size=40, object_size=(18, 22), distractors=1)
    numpy = digits(
        num_images=np.int64(3), seed=np.uint8(2), clutter=np.float32(0.5), size=np.int32(40),
        object_size=np.array([18, 22]), distractors=np.int64(1), mean=np.zeros(3), std=np.ones(3),
    )  # fmt: skip
    assert numpy.checksum == plain.checksum
    torch.testing.assert_close(numpy[0][0], numpy.images[0] / 255)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "cifar10", "std": (0, 0, 0)}, "std"),
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
@pytest.mark.parametrize("split", SPLITS)
def test_missing_data_says_what_to_do(tmp_path, name, split):
    with pytest.raises(FileNotFoundError, match=r"put .* there") as raised:
        load_data(name, split, data_root=tmp_path)
    offered = name not in ("imagenet", "cub-200", "folder")
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
    part = load_data("oxford-pets", "train", data_root=tmp_path, image_size=96, augment=False, without_val=True)
    assert torch.equal(part.masks, data.masks)


@pytest.mark.parametrize("drawn_upright", [False, True])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_oxford_pets_masks_are_turned_with_their_images(tmp_path, orientation, drawn_upright):
    """A bright corner whose mask is the same corner, in pictures that lie on their side."""
    root = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps"):
        (root / folder).mkdir(parents=True)
    pixels = np.full((60, 90), 20, np.uint8)
    pixels[:30, :45] = 240
    picture, exif = Image.fromarray(pixels).convert("RGB"), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = {1: 0, 3: 180, 6: 270, 8: 90}[orientation]  # counter-clockwise, what a viewer does
    trimap = Image.fromarray(np.where(pixels > 100, 1, 2).astype(np.uint8))
    trimap = trimap.rotate(upright, expand=True) if drawn_upright and upright % 180 else trimap
    for number in range(2):
        picture.save(root / f"images/pet_{number}.jpg", exif=exif, quality=95)
        trimap.save(root / f"annotations/trimaps/pet_{number}.png")
    lines = [f"pet_{number} {number + 1} 1 1" for number in range(2)]
    for name in ("trainval", "test"):
        (root / f"annotations/{name}.txt").write_text("\n".join(lines))
    data = load_data("oxford-pets", "test", data_root=tmp_path, image_size=56)
    bright = data.denormalize(data[0][0]).mean(0) > 0.5
    assert (bright == data.masks[0]).float().mean() > 0.95 and data.masks[0].float().mean() > 0.1


def write_small(root: Path, count=30, classes=("cat", "dog"), side=24, parts=("train", "test")) -> Path:
    """Small images, each of its own shade of grey in the left half, black in the right one."""
    for part in parts:
        for offset, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture = np.zeros((side, side), np.uint8)
                picture[:, : side // 2] = 100 + number + count * offset
                Image.fromarray(picture).save(folder / f"{number:02}.png")
    return root


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A function that loads a folder of small images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_small(tmp_path / "data")

    def load(split="train", **options):
        return load_data("folder", split, data_root=root, **{"image_size": 24, **options})

    load.root = root
    return load


def test_small_images_are_decoded_once(small, monkeypatch):
    first = small(augment=False)
    monkeypatch.setattr(vision, "ThreadPoolExecutor", lambda: pytest.fail("decoded again"))
    again = small(augment=False)
    assert isinstance(again, SmallImages)
    assert is_mapped(next((small.root.parent / "cache" / "simpool_lite").glob("folder-*")) / "images.npy")
    assert again.images.shape == (60, 3, 24, 24)
    assert again.images[:, 0, 5, 5].tolist() == list(range(100, 160))
    assert again.targets.tolist() == [0] * 30 + [1] * 30
    torch.testing.assert_close(again.denormalize(first[7][0]), again.images[7] / 255)


def test_small_images_follow_their_files(small):
    before = small(augment=False).images.clone()
    Image.new("RGB", (24, 24), (1, 2, 3)).save(small.root / "train" / "cat" / "03.png")
    after = small(augment=False).images
    assert after[3, :, 0, 0].tolist() == [1, 2, 3]
    changed = (before != after).flatten(1).any(1).nonzero()[:, 0]
    assert changed.tolist() == [3]


def test_small_batches_are_augmented_each_in_its_own_way(small):
    data, plain = small(), small(augment=False)
    images, labels = next(iter(DataLoader(data, 60, collate_fn=data.collate)))
    assert images.shape == (60, 3, 24, 24)
    assert images.dtype == torch.float32
    assert torch.equal(labels, data.targets)
    shown = (data.denormalize(images) * 255).round().long()[:, 0]
    seen = set()
    for picture, shade in zip(shown, range(100, 160), strict=True):
        lit = picture == shade
        rows, columns = lit.any(1).nonzero()[:, 0], lit.any(0).nonzero()[:, 0]
        assert ((picture == 0) | lit).all()
        assert torch.equal(lit, lit.any(1)[:, None] & lit.any(0))  # still a rectangle
        assert len(rows) >= 24 - 3
        assert 12 - 3 <= len(columns) <= 12
        seen.add((int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])))
    assert len(seen) > 20
    assert {columns[0] < 6 for columns in [key[2:] for key in seen]} == {True, False}  # mirrored and not
    assert torch.equal(plain[3][0], plain[3][0])
    assert not all(torch.equal(data[3][0], data[3][0]) for _ in range(5))


def test_large_images_go_the_usual_way(small):
    assert type(small(image_size=65)) is VisionImages
    assert type(small(augment={"hflip": 0.5})) is VisionImages
    Image.new("RGB", (65, 30)).save(small.root / "train" / "dog" / "29.png")
    assert type(small()) is VisionImages
    assert type(small("test")) is SmallImages
    resized = small("test", image_size=12)
    assert resized.images.shape == (60, 3, 12, 12)
    assert resized.images[4, 0, 6, 2] == 104


def test_small_image_that_cannot_be_read_is_named(small):
    path = small.root / "train" / "dog" / "07.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"dog/07\.png"):
        small()


@pytest.mark.parametrize("image_size", [24, 70])
def test_val_is_a_tenth_of_train(small, image_size):
    def shades(split, **options):
        data = small(split, image_size=image_size, augment=False, **options)
        levels = [int(data.denormalize(data[i][0])[0, 12, 3] * 255 + 0.5) for i in range(len(data))]
        assert [(level - 100) // 30 for level in levels] == data.targets.tolist()
        return levels, data.targets

    everything, val, rest = shades("train"), shades("val"), shades("train", without_val=True)
    assert val[1].bincount().tolist() == [3, 3]
    assert sorted(val[0] + rest[0]) == everything[0] == list(range(100, 160))
    assert shades("val", without_val=True)[0] == val[0]
    assert shades("test")[0] == shades("test", without_val=True)[0] == everything[0]


def test_val_is_not_augmented(small):
    assert small("val").augment is None
    assert small("train", without_val=True).augment is not None


def test_folder_with_val_and_test_has_its_own_val(small):
    write_small(small.root, count=4, parts=("val",))
    assert small("val").targets.tolist() == [0] * 4 + [1] * 4
    assert len(small("train", without_val=True)) == 60
    assert len(small("test")) == 60


def test_tenth_leaves_each_class_an_image():
    targets = torch.tensor([0] * 25 + [1] * 2 + [2])
    held_out = vision._tenth(targets)
    assert targets[held_out].tolist() == [0, 0, 1]
    assert torch.equal(held_out, vision._tenth(targets))


def test_val_of_single_images_is_refused(tmp_path):
    write_small(tmp_path, count=1)
    with pytest.raises(ValueError, match="two or more"):
        load_data("folder", "val", data_root=tmp_path, image_size=24)


def test_cifar_goes_the_way_of_small_images(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)

    class Cifar(vision.datasets.CIFAR10):
        def __init__(self, root, train, download):
            self.data, self.targets, self.classes = pixels, [index % 4 for index in range(40)], list("abcd")

    monkeypatch.setattr(vision.datasets, "CIFAR10", Cifar)
    data = load_data("cifar10", "test", data_root=tmp_path)
    assert isinstance(data, SmallImages)
    assert data.images.shape == (40, 3, 32, 32)
    assert torch.equal(data.images[7], torch.from_numpy(pixels[7]).permute(2, 0, 1))
    assert len(load_data("cifar10", "val", data_root=tmp_path)) == 4
    assert len(load_data("cifar10", "train", data_root=tmp_path, without_val=True)) == 36
