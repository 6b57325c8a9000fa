"""Photo-digits: handwritten digits on photographs, with exact masks and boxes.

One digit lies somewhere on a random crop of a photograph, among fragments of other digits: a small object in
clutter, which is where the choice of pooling matters. The same images carry two tasks, the digit (small
object) and the photograph (whole scene).

An image is made in three steps, all on arrays of many images at once:

1. `_draw` draws every random number of the set, in one fixed order, from one generator;
2. `draw_background` crops, scales, flips and tints the photographs;
3. `paste` puts one stroke layer on top: the fragments first, then the digit, so nothing covers the digit.

Sources: the digits are `sklearn.datasets.load_digits` (E. Alpaydin and C. Kaynak, UCI 1998, 8 x 8 pixels);
the photographs and their licences are listed in `data/photographs/CREDITS.md`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import write_atomically
from . import LabelledImages, cache_folder, check_choice
from .rendering import CANDIDATES, draw_background, draw_glyphs, ink_boxes, paste

__all__ = ["CHECKSUMS", "PHOTOS", "PhotoDigits", "photograph_folder"]

GENERATOR_VERSION = 1  # raise it whenever the pixels change: it is part of the cache's key
PHOTOS = ("astronaut", "chelsea", "china", "coffee", "flower", "rocket")
DEFAULT_NUM_IMAGES = {"train": 4096, "test": 1024}
CHECKSUMS = {  # SHA-256 of the default sets, seed 0; the tests compare them
    "train": "d854699c5ce3038c6397ec455cc05c53d5ccfe0c26354bcba4c632953dfe470e",
    "test": "5c9ff3786846c64b57700350e9c8b576ad08d7a77e2e567e2a8c81b93dabecbf",
}
MEAN = (0.472, 0.389, 0.332)  # of the default training set
STD = (0.294, 0.243, 0.234)

WINDOW = (40, 100)  # side of a crop in pixels of the photograph
ROTATION = 15  # degrees, either way, of the digit; fragments lie at any angle
FRAGMENT = (0.25, 0.5)  # share of a glyph's width and of its height that a fragment keeps
TINT = (0.75, 1.25)  # gain of each colour channel

CHUNK = 32  # images rendered at once: their arrays stay in the processor's cache

logger = logging.getLogger(__name__)


class PhotoDigits(LabelledImages):
    """Handwritten digits of 18 to 32 pixels on 48 x 48 crops of photographs, among fragments of other digits.

    No glyph and no pixel of a photograph occurs in both splits: one in five glyphs of every class is for
    "test" whatever the seed, and so are the right halves of the photographs. Labels are balanced.

    Args:
        split: "train" or "test".
        target: "digit" (10 classes) or "photo" (6 classes, the photograph's name).
        num_images: How many; 4,096 ("train") and 1,024 ("test") by default.
        seed: A non-negative int. The splits of one seed are drawn independently.
        object_size: Least and greatest longer side of the upright digit, in pixels of the image.
        distractors: Fragments an image.
        clutter: Contrast of the photograph about its mean colour: 1 as it is, 0 a flat colour; at most 4.
        size: Side of the images in pixels.
        cache_dir: Where the generated set is kept; default `simpool_lite` in the user's cache folder.
        mean, std: Normalisation; the training set's by default.

    Attributes:
        images: Raw pixels, uint8 `(n, 3, size, size)`.
        digits, photos: Both targets, int64 `(n,)`; `targets` is one of them.
        masks: The digit's pixels, bool `(n, size, size)`.
        boxes: Per image a float `(1, 4)`, the mask's tight box x0 y0 x1 y1 (x1, y1 exclusive).
        glyphs: Which of the 1,797 digits were used, int64 `(n, 1 + distractors)`, the object's own first.
        windows: Crop in the photograph's pixels, int64 `(n, 4)`, x0 y0 x1 y1 (x1, y1 exclusive).
        checksum: SHA-256 of all of these.

    Raises:
        ValueError: A bad option; the message names it.
        FileNotFoundError: The package's photographs are missing.

    >>> data = PhotoDigits("test", num_images=20)
    >>> data.images.shape, data.masks.shape, data.boxes[0].shape
    (torch.Size([20, 3, 48, 48]), torch.Size([20, 48, 48]), torch.Size([1, 4]))
    """

    name = "photo-digits"

    def __init__(
        self,
        split: str = "train",
        *,
        target: str = "digit",
        num_images: int | None = None,
        seed: int = 0,
        object_size: tuple[int, int] = (18, 32),
        distractors: int = 4,
        clutter: float = 1.0,
        size: int = 48,
        cache_dir: str | Path | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        **unknown: object,
    ) -> None:
        if unknown:
            raise ValueError(
                f"options: expected num_images, seed, object_size, distractors, clutter, size or cache_dir; "
                f"got {', '.join(unknown)}; check the spelling"
            )
        check_choice("split", split, tuple(DEFAULT_NUM_IMAGES))
        check_choice("target", target, ("digit", "photo"))
        if num_images is None:
            num_images = DEFAULT_NUM_IMAGES[split]
        self.options = _Options(split, num_images, seed, object_size, distractors, clutter, size)
        self.split, self.target = split, target
        arrays = _load_or_generate(self.options, Path(cache_dir).expanduser() if cache_dir else cache_folder())
        self.checksum = str(arrays.pop("checksum"))
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        self.images, self.masks = tensors["images"], tensors["masks"]
        self.digits, self.photos = tensors["digits"], tensors["photos"]
        self.glyphs, self.windows = tensors["glyphs"], tensors["windows"]
        self.boxes = list(tensors["boxes"].float()[:, None].unbind(0))
        self.classes = [str(digit) for digit in range(10)] if target == "digit" else list(PHOTOS)
        self.targets = self.digits if target == "digit" else self.photos
        self.mean, self.std = tuple(mean or MEAN), tuple(std or STD)
        self._offset = 255 * torch.tensor(self.mean, dtype=torch.float32)[:, None, None]
        self._scale = 255 * torch.tensor(self.std, dtype=torch.float32)[:, None, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._normalize(self.images[index]), int(self.targets[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once, `(B, 3, H, W)` and `(B,)`; torch's DataLoader calls it, see `collate`."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self._normalize(self.images[index]), self.targets[index]

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Pass a batch of `__getitems__` through: `DataLoader(data, collate_fn=data.collate)`."""
        return batch

    def _normalize(self, images: Tensor) -> Tensor:
        return (images.float() - self._offset) / self._scale


@dataclasses.dataclass(frozen=True)
class _Options:
    """What the bytes depend on."""

    split: str
    num_images: int
    seed: int
    object_size: tuple[float, float]
    distractors: int
    clutter: float
    size: int

    def __post_init__(self) -> None:
        for name, least in (("num_images", 1), ("seed", 0), ("distractors", 0), ("size", 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an int of {least} or more, got {value!r}; pass such a number")
        if not isinstance(self.clutter, int | float) or not 0 <= self.clutter <= 4:
            raise ValueError(f"clutter: expected a number from 0 to 4, got {self.clutter!r}; 1 is the photo as it is")
        # A square of this side still fits with two pixels to spare when it is turned.
        turn = np.radians(ROTATION)
        greatest = int((self.size - 2) / (np.cos(turn) + np.sin(turn)))
        try:
            smaller, larger = (float(side) for side in self.object_size)
        except (TypeError, ValueError):
            smaller, larger = 0.0, 0.0
        if not 4 <= smaller <= larger <= greatest:
            raise ValueError(
                f"object_size: expected (least, greatest) pixels with 4 <= least <= greatest <= {greatest} "
                f"in images of {self.size}, got {self.object_size!r}; choose smaller objects or a larger size"
            )
        # One spelling, so that (18, 32) and [18.0, 32.0] share a cache file.
        object.__setattr__(self, "object_size", (smaller, larger))
        object.__setattr__(self, "clutter", float(self.clutter))

    def key(self) -> str:
        text = json.dumps({"version": GENERATOR_VERSION, **dataclasses.asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def photograph_folder() -> Path:
    """Where the six PNG files are: inside an installed package, or in `data/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "photographs", package.parent / "data" / "photographs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"photo-digits: no photographs in {package / 'photographs'}; reinstall simpool_lite, "
        "or copy the repository's data/photographs there"
    )


def _photo_half(name: str, split: str) -> tuple[np.ndarray, int]:
    """The left ("train") or right ("test") half of a photograph, uint8 (3, H, W), and its first column."""
    from PIL import Image

    pixels = np.asarray(Image.open(photograph_folder() / f"{name}.png").convert("RGB")).transpose(2, 0, 1)
    middle = pixels.shape[2] // 2
    return (pixels[:, :, :middle], 0) if split == "train" else (pixels[:, :, middle:], middle)


def _split_glyphs(labels: np.ndarray, split: str) -> list[np.ndarray]:
    """Per class the glyphs of one split: shuffled once and for all, one in five for "test"."""
    order = np.argsort(np.random.Generator(np.random.PCG64(2023)).random(len(labels)), kind="stable")
    by_class = [order[labels[order] == label] for label in range(10)]
    test_size = [len(members) // 5 for members in by_class]
    if split == "test":
        return [members[:size] for members, size in zip(by_class, test_size, strict=True)]
    return [members[size:] for members, size in zip(by_class, test_size, strict=True)]


def _draw(rng: np.random.Generator, options: _Options) -> dict[str, np.ndarray]:
    """Every random number of the set, in [0, 1). Only `random` is used, numpy's most stable stream."""
    n, layers = options.num_images, 1 + options.distractors
    shapes = {
        "digit": (n,), "photo": (n,), "window": (n, 3), "flip": (n,), "tint": (n, 3),
        "digit_glyph": (n,), "glyph": (n, layers), "size": (n, layers), "angle": (n, layers),
        "place": (n, layers, 2), "cut": (n, layers, 4), "colour": (n, layers, CANDIDATES, 3),
    }  # fmt: skip
    return {name: rng.random(shape) for name, shape in shapes.items()}


def _between(draw: np.ndarray, least: float, greatest: float) -> np.ndarray:
    return least + (greatest - least) * draw


def _pick(draw: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Uniform integers 0 .. count - 1 from uniform floats."""
    return (draw * count).astype(np.int64)


def _balanced(draw: np.ndarray, classes: int) -> np.ndarray:
    """Labels in random order, each class as often as any other (give or take one)."""
    return np.argsort(draw, kind="stable") % classes


def _generate(options: _Options) -> dict[str, np.ndarray]:
    """The whole set as arrays; see `PhotoDigits` for their names and shapes."""
    from sklearn.datasets import load_digits

    source = load_digits()
    halves = [_photo_half(name, options.split) for name in PHOTOS]
    seed = np.random.SeedSequence([options.seed, tuple(DEFAULT_NUM_IMAGES).index(options.split)])
    draws = _draw(np.random.Generator(np.random.PCG64(seed)), options)

    digits = _balanced(draws["digit"], 10)
    photos = _balanced(draws["photo"], len(PHOTOS))
    glyphs = _choose_glyphs(draws, digits, _split_glyphs(source.target, options.split))
    used, drawn = np.unique(glyphs, return_inverse=True)
    drawn = drawn.reshape(glyphs.shape)  # positions in `used`
    alpha = draw_glyphs(source.images[used])
    boxes = ink_boxes(alpha)[drawn]

    windows = _windows(draws["window"], np.array([half.shape[1:] for half, _ in halves])[photos])
    strokes = [_place(layer, draws, boxes[:, layer], options) for layer in range(1 + options.distractors)]

    n, size = options.num_images, options.size
    images, masks = np.empty((n, 3, size, size), np.uint8), np.empty((n, size, size), bool)
    pixels = np.concatenate([half.reshape(3, -1) for half, _ in halves], axis=1).astype(np.int32)
    starts = np.cumsum([0] + [half[0].size for half, _ in halves])[:-1]
    widths = np.array([half.shape[2] for half, _ in halves])

    def render(first: int) -> None:
        part = slice(first, first + CHUNK)
        canvas = draw_background(
            pixels, starts[photos[part]], widths[photos[part]], windows[part], draws["flip"][part] < 0.5,
            _between(draws["tint"][part], *TINT), size, options.clutter,
        )  # fmt: skip
        for layer in [*range(1, 1 + options.distractors), 0]:  # the digit last
            stroke = {name: values[part] for name, values in strokes[layer].items()}
            masks[part] = paste(canvas, alpha, drawn[part, layer], stroke)
        images[part] = canvas.transpose(1, 0, 2, 3)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy frees the interpreter; no chunk sees another
        list(pool.map(render, range(0, n, CHUNK)))

    first_columns = np.array([column for _, column in halves])[photos]
    windows[:, 0::2] += first_columns[:, None]  # from the half's pixels to the whole photograph's
    return {
        "images": images, "masks": masks, "boxes": ink_boxes(masks), "digits": digits, "photos": photos,
        "glyphs": glyphs, "windows": windows,
    }  # fmt: skip


def _choose_glyphs(draws: dict[str, np.ndarray], digits: np.ndarray, by_class: list[np.ndarray]) -> np.ndarray:
    """A glyph of the right class for every image, then any of the split for its fragments, (n, layers)."""
    everyone = np.concatenate(by_class)
    glyphs = everyone[_pick(draws["glyph"], len(everyone))]
    counts = np.array([len(members) for members in by_class])
    starts = np.cumsum(counts) - counts
    glyphs[:, 0] = everyone[starts[digits] + _pick(draws["digit_glyph"], counts[digits])]
    return glyphs


def _windows(draws: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Square crops inside (height, width) of each image's half photograph, x0 y0 x1 y1, int64 (n, 4)."""
    side = WINDOW[0] + _pick(draws[:, 0], WINDOW[1] - WINDOW[0] + 1)
    x0 = _pick(draws[:, 1], shapes[:, 1] - side + 1)
    y0 = _pick(draws[:, 2], shapes[:, 0] - side + 1)
    return np.stack([x0, y0, x0 + side, y0 + side], axis=1)


def _place(layer: int, draws: dict[str, np.ndarray], boxes: np.ndarray, options: _Options) -> dict[str, np.ndarray]:
    """How one stroke of every image lies.

    `cut` (n, 4), the part of the glyph shown, in its points; `centre` (n, 2) of that part in the image;
    `points` (n,) of the glyph to a pixel; `turn` (n, 2), cosine and sine; `colour` (n, CANDIDATES, 3).
    """
    box = boxes.astype(np.float64)
    extent = box[:, 2:] - box[:, :2]
    size = _between(draws["size"][:, layer], *options.object_size)
    points = extent.max(axis=1) / size  # points of the glyph in one pixel of the image
    degrees = _between(draws["angle"][:, layer], -1, 1) * (ROTATION if layer == 0 else 180)
    # Rounded, since the last bit of a sine is not the same on every machine.
    cos, sin = (np.round(function(np.radians(degrees)), 9) for function in (np.cos, np.sin))
    if layer > 0:  # a fragment: keep part of the glyph's height and width
        share = _between(draws["cut"][:, layer, :2], *FRAGMENT)
        box[:, :2] += draws["cut"][:, layer, 2:] * (1 - share) * extent
        box[:, 2:] = box[:, :2] + share * extent
        reach = np.zeros_like(extent)  # its centre lies in the image, the rest may not
    else:  # the digit: all of it lies in the image, with a pixel to spare
        half = extent / 2 / points[:, None]
        turned = [
            half[:, 0] * abs(cos) + half[:, 1] * abs(sin),
            half[:, 0] * abs(sin) + half[:, 1] * abs(cos),
        ]
        reach = np.stack(turned, axis=1) + 1
    return {
        "cut": box,
        "centre": _between(draws["place"][:, layer], reach, options.size - reach),
        "points": points,
        "turn": np.stack([cos, sin], axis=1),
        "colour": _pick(draws["colour"][:, layer], 256).astype(np.int32),
    }


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _load_or_generate(options: _Options, folder: Path) -> dict[str, np.ndarray]:
    path = folder / f"photo-digits-{options.split}-{options.key()}.npz"
    arrays = _read(path)
    if arrays is None:
        arrays = _generate(options)
        arrays["checksum"] = np.array(_checksum(arrays))
        _write(path, arrays)
    return arrays


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The cached arrays, or None where there are none or they are damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        expected = arrays.pop("checksum")
        if _checksum(arrays) != str(expected):
            raise ValueError("checksum differs")
        return {**arrays, "checksum": expected}
    except Exception as error:  # a damaged archive can raise almost anything, and every case has one answer
        logger.warning("photo-digits: %s cannot be read (%s); generating the set again", path, error)
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keep the set for the next time; a folder that cannot be written to is no error."""
    try:
        with write_atomically(path) as temporary:
            np.savez(temporary, **arrays)
    except OSError as error:
        logger.warning("photo-digits: cannot write %s (%s); the set is not cached", path, error)
