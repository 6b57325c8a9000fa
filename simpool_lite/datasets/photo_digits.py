"""Photo-digits: handwritten digits on photographs, with exact masks and boxes.

One digit lies somewhere on a random crop of a photograph, among fragments of other digits: a small object in
clutter, which is where the choice of pooling matters. The same images carry two tasks, the digit (small
object) and the photograph (whole scene). A third task, "odd", shows three digits, two of them alike, and asks
for the other one: what to look for depends on the image.

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
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_choice, check_int, check_path, did_you_mean
from . import SPLITS, PixelImages, cache_folder, check_normalisation
from .cache import Layout, cached_arrays
from .rendering import CANDIDATES, draw_background, draw_glyphs, ink_boxes, paste

__all__ = ["CHECKSUMS", "PHOTOS", "PhotoDigits", "photograph_folder"]

GENERATOR_VERSION = 1  # raise it whenever the pixels change: it is part of the cache's key
TARGETS = ("digit", "photo", "odd")
PHOTOS = ("astronaut", "chelsea", "china", "coffee", "flower", "rocket")
DEFAULT_NUM_IMAGES = {"train": 4096, "test": 1024, "val": 1024}  # a split's place is part of its seed
LARGEST_SET = 2**34  # bytes of pixels and random numbers while a set is made
CHECKSUMS = {  # SHA-256 of the default sets, seed 0; the tests compare them
    "train": "d854699c5ce3038c6397ec455cc05c53d5ccfe0c26354bcba4c632953dfe470e",
    "test": "5c9ff3786846c64b57700350e9c8b576ad08d7a77e2e567e2a8c81b93dabecbf",
    "val": "816b6c168e36aa3ff49c690f90b7ce8eb2e14a8445151cb3289213a16378ff95",
}
MEAN = (0.472, 0.389, 0.332)  # of the default training set
STD = (0.294, 0.243, 0.234)

WINDOW = (40, 100)  # side of a crop in pixels of the photograph
ROTATION = 15  # degrees, either way, of the digit; fragments lie at any angle
FRAGMENT = (0.25, 0.5)  # share of a glyph's width and of its height that a fragment keeps
TINT = (0.75, 1.25)  # gain of each colour channel

CHUNK = 32  # images rendered at once: their arrays stay in the processor's cache


class PhotoDigits(PixelImages):
    """Handwritten digits on 48 x 48 crops of photographs, among fragments of other digits.

    No glyph and no pixel of a photograph occurs in both "train" and "test": one in five glyphs of every class is
    for "test" whatever the seed, and so are the right halves of the photographs. "val" takes its share from the
    side of "train": one in ten glyphs and the lowest two fifths of the left halves. Ask for "train" with
    `without_val=True` and all three share nothing. Its lower regions hold crops of up to 68 pixels of the
    photograph, the others hold 100. Labels are balanced.

    Args:
        split: "train", "val" or "test".
        target: "digit" (10 classes), "photo" (6 classes, the photograph's name) or "odd" (10 classes): three
            digits, two of one class; the answer is the class of the third. "digit" and "photo" have the same
            images.
        without_val: Whether "train" leaves out what is for "val". The other two splits do not depend on it.
        num_images: How many; by default 4,096 ("train") or 1,024.
        seed: A non-negative int. The splits of one seed are drawn independently.
        object_size: Least and greatest longer side of the upright digit, in pixels of the image. (18, 32) by
            default; for "odd" the largest that fits a quarter of the image and four fifths of it.
        distractors: Fragments per image; by default 4, for "odd" none.
        clutter: Contrast of the photograph about its mean colour: 1 as it is, 0 a flat colour; at most 4.
        correlation: How far the photograph gives the digit away, 0 to 1: with this probability an image has its
            digit's own photograph, the one of the number digit modulo 6; else, as by default, any. Above 0 the
            photographs are not balanced: the first four are the own one of two digits each.
        size: Side of the images in pixels.
        cache_dir: Where the generated set is kept; default `simpool_lite` in the user's cache folder.
        mean, std: Normalisation; the training set's by default.

    Attributes:
        images: Raw pixels, uint8 `(n, 3, size, size)`. They and the arrays below are mapped from the cache's
            files: processes that read the same set share the memory.
        digits, photos: Both targets, int64 `(n,)`; `targets` is one of them.
        masks: The digit's pixels, bool `(n, size, size)`; for "odd" those of the odd digit alone, as for boxes.
        boxes: Per image a float `(1, 4)`, the mask's tight box x0 y0 x1 y1 (x1, y1 exclusive).
        glyphs: Which of the 1,797 digits were used, int64 `(n, 1 + distractors)`, the object's own first; for
            "odd" `(n, 3 + distractors)`, the odd one, the two alike, the fragments.
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

    def __init__(self, split: str = "train", *, cache_dir: str | Path | None = None, **options: Any) -> None:
        self.cache_dir = cache_dir
        self._read(split, **options)
        folder = cache_folder() if cache_dir is None else Path(check_path("cache_dir", cache_dir)).expanduser()
        description = {"generator": GENERATOR_VERSION, **dataclasses.asdict(self.options)}
        if not self.options.correlation:
            del description["correlation"]  # younger than the first caches, which stay good
        key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
        arrays, self.checksum = cached_arrays(
            folder / f"photo-digits-{split}-{key}",
            description,
            self.options.layout(),
            lambda: _generate(self.options),
            checksum=CHECKSUMS[split] if self.options == _default_options(split) else None,
        )
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        self.images, self.masks, self._edges = tensors["images"], tensors["masks"], tensors["boxes"]
        self.digits, self.photos = tensors["digits"], tensors["photos"]
        self.glyphs, self.windows = tensors["glyphs"], tensors["windows"]
        self.classes = list(PHOTOS) if self.target == "photo" else [str(digit) for digit in range(10)]
        self.targets = self.photos if self.target == "photo" else self.digits

    def _read(
        self,
        split: str,
        target: str = "digit",
        without_val: bool = False,
        num_images: int | None = None,
        seed: int = 0,
        object_size: tuple[float, float] | None = None,
        distractors: int | None = None,
        clutter: float = 1.0,
        correlation: float = 0.0,
        size: int = 48,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        **unknown: object,
    ) -> None:
        """Check the arguments and keep them."""
        if unknown:
            raise ValueError(
                "options: expected without_val, num_images, seed, object_size, distractors, clutter, correlation, "
                f"size, cache_dir; got {', '.join(unknown)}"
                f"{did_you_mean(next(iter(unknown)), _Options.__annotations__) or '; check the spelling'}"
            )
        check_choice("split", split, SPLITS)
        check_choice("target", target, TARGETS)
        self.split, self.target = split, target
        self.mean, self.std = check_normalisation(MEAN if mean is None else mean, STD if std is None else std)
        without_val = split == "train" and without_val
        num_images = DEFAULT_NUM_IMAGES[split] if num_images is None else num_images
        odd = target == "odd"
        if distractors is None:
            distractors = 0 if odd else 4
        self.options = _Options(
            split, odd, without_val, num_images, seed, object_size, distractors, clutter, size, correlation
        )

    @cached_property
    def boxes(self) -> list[Tensor]:  # type: ignore[override]
        return list(self._edges.float()[:, None].unbind(0))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process maps the cache's files; no pixel travels."""
        own = {"target": self.target, "cache_dir": self.cache_dir, "mean": self.mean, "std": self.std}
        arguments = {**dataclasses.asdict(self.options), **own}
        del arguments["odd"]
        return partial(PhotoDigits, **arguments), ()


def check_photo_digits(
    split: str = "train", *, target: str | None = None, cache_dir: str | Path | None = None, **options: Any
) -> None:
    """Raise what :class:`PhotoDigits` raises for these arguments, without making an image."""
    options = {"size": options.pop("image_size"), **options} if "image_size" in options else options
    PhotoDigits.__new__(PhotoDigits)._read(split, target="digit" if target is None else target, **options)


@dataclasses.dataclass(frozen=True)
class _Options:
    """What the bytes depend on."""

    split: str
    odd: bool
    without_val: bool
    num_images: int
    seed: int
    object_size: tuple[float, float] | None
    distractors: int
    clutter: float
    size: int
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.without_val, bool):
            raise ValueError(f"without_val: expected True or False, got {self.without_val!r}; pass one of them")
        for name, least in (("num_images", 1), ("seed", 0), ("distractors", 0), ("size", 8)):
            object.__setattr__(self, name, check_int(name, getattr(self, name), least))
        per_image = 4 * self.size**2 + 400 * (self.objects + self.distractors)
        if self.num_images * per_image > LARGEST_SET:
            raise ValueError(
                f"num_images: expected at most {LARGEST_SET // per_image:,} images of size {self.size} with "
                f"{self.distractors} distractors, got {self.num_images:,}, which take "
                f"{self.num_images * per_image / 2**30:,.0f} GiB; choose fewer and another seed for more"
            )
        if isinstance(self.clutter, bool) or not isinstance(self.clutter, Real) or not 0 <= self.clutter <= 4:
            raise ValueError(f"clutter: expected a number from 0 to 4, got {self.clutter!r}; 1 is the photo as it is")
        own = self.correlation
        if isinstance(own, bool) or not isinstance(own, Real) or not 0 <= own <= 1:
            raise ValueError(f"correlation: expected a number from 0 to 1, got {own!r}; 0 is any photograph")
        # A square of this side still fits with two pixels to spare when it is turned.
        turn = np.radians(ROTATION)
        greatest = int((self.cell - 2) / (np.cos(turn) + np.sin(turn)))
        wanted = self.object_size
        if wanted is None:
            wanted = (round(0.8 * greatest), greatest) if self.odd else (18, 32)
        try:
            smaller, larger = (float(side) for side in wanted)
        except (TypeError, ValueError):
            smaller, larger = 0.0, 0.0
        if not 4 <= smaller <= larger <= greatest:
            raise ValueError(
                f"object_size: expected (least, greatest) pixels with 4 <= least <= greatest <= {greatest} "
                f"in images of {self.size}, got {wanted!r}; choose smaller objects or a larger size"
            )
        # One spelling, so that (18, 32) and [18.0, 32.0] share a cache file.
        object.__setattr__(self, "object_size", (smaller, larger))
        object.__setattr__(self, "clutter", float(self.clutter))
        object.__setattr__(self, "correlation", float(own))

    @property
    def objects(self) -> int:
        """Whole digits per image."""
        return 3 if self.odd else 1

    @property
    def cell(self) -> float:
        """Side of the square in which a digit lies: three digits have a quarter of the image each."""
        return self.size / 2 if self.odd else self.size

    def layout(self) -> Layout:
        """Types and shapes of the set's arrays."""
        n, size = self.num_images, self.size
        return {
            "images": ("uint8", (n, 3, size, size)), "masks": ("bool", (n, size, size)), "boxes": ("int64", (n, 4)),
            "digits": ("int64", (n,)), "photos": ("int64", (n,)),
            "glyphs": ("int64", (n, self.objects + self.distractors)), "windows": ("int64", (n, 4)),
        }  # fmt: skip


def _default_options(split: str) -> _Options:
    return _Options(split, False, False, DEFAULT_NUM_IMAGES[split], 0, None, 4, 1.0, 48)


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


def _photo_region(name: str, split: str, without_val: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """A split's part of a photograph, uint8 (3, h, w), and its first column and row.

    "test" has the right half, "val" the lowest two fifths of the left one; of "train" is the left half, or what
    "val" leaves of it.
    """
    from PIL import Image

    pixels = np.asarray(Image.open(photograph_folder() / f"{name}.png").convert("RGB")).transpose(2, 0, 1)
    middle, low = pixels.shape[2] // 2, pixels.shape[1] - pixels.shape[1] * 2 // 5
    if split == "test":
        return pixels[:, :, middle:], (middle, 0)
    if split == "val":
        return pixels[:, low:, :middle], (0, low)
    return pixels[:, : low if without_val else None, :middle], (0, 0)


def _split_glyphs(labels: np.ndarray, split: str, without_val: bool) -> list[np.ndarray]:
    """Per class the glyphs of one split: shuffled once and for all, one in five for "test", one in ten for "val"."""
    order = np.argsort(np.random.Generator(np.random.PCG64(2023)).random(len(labels)), kind="stable")
    by_class = []
    for label in range(10):
        members = order[labels[order] == label]
        test, val = len(members) // 5, len(members) // 10
        train = members[test + val :] if without_val else members[test:]
        by_class.append({"test": members[:test], "val": members[test : test + val], "train": train}[split])
    return by_class


def _draw(rng: np.random.Generator, options: _Options) -> dict[str, np.ndarray]:
    """Every random number of the set, in [0, 1). Only `random` is used, numpy's most stable stream."""
    n, layers = options.num_images, options.objects + options.distractors
    shapes = {
        "digit": (n,), "photo": (n,), "window": (n, 3), "flip": (n,), "tint": (n, 3),
        "digit_glyph": (n,), "glyph": (n, layers), "size": (n, layers), "angle": (n, layers),
        "place": (n, layers, 2), "cut": (n, layers, 4), "colour": (n, layers, CANDIDATES, 3),
    }  # fmt: skip
    if options.odd:
        shapes |= {"pair": (n,), "pair_glyph": (n, 2), "cell": (n, 4)}
    if options.correlation:
        shapes |= {"own": (n,)}
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
    regions, corners = zip(*(_photo_region(name, options.split, options.without_val) for name in PHOTOS), strict=True)
    seed = np.random.SeedSequence([options.seed, tuple(DEFAULT_NUM_IMAGES).index(options.split)])
    draws = _draw(np.random.Generator(np.random.PCG64(seed)), options)

    digits = _balanced(draws["digit"], 10)
    photos = _balanced(draws["photo"], len(PHOTOS))
    if options.correlation:
        photos = np.where(draws["own"] < options.correlation, digits % len(PHOTOS), photos)
    glyphs = _choose_glyphs(draws, digits, _split_glyphs(source.target, options.split, options.without_val))
    used, drawn = np.unique(glyphs, return_inverse=True)
    drawn = drawn.reshape(glyphs.shape)  # positions in `used`
    alpha = draw_glyphs(source.images[used])
    boxes = ink_boxes(alpha)[drawn]

    windows = _windows(draws["window"], np.array([region.shape[1:] for region in regions])[photos])
    layers = glyphs.shape[1]
    strokes = [_place(layer, draws, boxes[:, layer], options) for layer in range(layers)]

    n, size = options.num_images, options.size
    images, masks = np.empty((n, 3, size, size), np.uint8), np.empty((n, size, size), bool)
    pixels = np.concatenate([region.reshape(3, -1) for region in regions], axis=1).astype(np.int32)
    starts = np.cumsum([0] + [region[0].size for region in regions])[:-1]
    widths = np.array([region.shape[2] for region in regions])

    def render(first: int) -> None:
        part = slice(first, first + CHUNK)
        canvas = draw_background(
            pixels, starts[photos[part]], widths[photos[part]], windows[part], draws["flip"][part] < 0.5,
            _between(draws["tint"][part], *TINT), size, options.clutter,
        )  # fmt: skip
        for layer in [*range(options.objects, layers), *reversed(range(options.objects))]:  # the labelled digit last
            stroke = {name: values[part] for name, values in strokes[layer].items()}
            masks[part] = paste(canvas, alpha, drawn[part, layer], stroke)
        images[part] = canvas.transpose(1, 0, 2, 3)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy frees the interpreter; no chunk sees another
        list(pool.map(render, range(0, n, CHUNK)))

    windows += np.tile(corners, 2)[photos]  # from the region's pixels to the whole photograph's
    return {
        "images": images, "masks": masks, "boxes": ink_boxes(masks), "digits": digits, "photos": photos,
        "glyphs": glyphs, "windows": windows,
    }  # fmt: skip


def _choose_glyphs(draws: dict[str, np.ndarray], digits: np.ndarray, by_class: list[np.ndarray]) -> np.ndarray:
    """A glyph of the right class for every image, the two alike where there are, then any of the split; (n, layers)."""
    everyone = np.concatenate(by_class)
    glyphs = everyone[_pick(draws["glyph"], len(everyone))]
    counts = np.array([len(members) for members in by_class])
    starts = np.cumsum(counts) - counts
    glyphs[:, 0] = everyone[starts[digits] + _pick(draws["digit_glyph"], counts[digits])]
    if "pair" in draws:
        pair = (digits + 1 + _pick(draws["pair"], 9)) % 10  # any class but the odd one's
        first = _pick(draws["pair_glyph"][:, 0], counts[pair])
        second = (first + 1 + _pick(draws["pair_glyph"][:, 1], counts[pair] - 1)) % counts[pair]  # another glyph
        glyphs[:, 1], glyphs[:, 2] = everyone[starts[pair] + first], everyone[starts[pair] + second]
    return glyphs


def _windows(draws: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Square crops inside (height, width) of each image's part of a photograph, x0 y0 x1 y1, int64 (n, 4)."""
    greatest = np.minimum(WINDOW[1], shapes.min(axis=1))
    side = WINDOW[0] + _pick(draws[:, 0], greatest - WINDOW[0] + 1)
    x0 = _pick(draws[:, 1], shapes[:, 1] - side + 1)
    y0 = _pick(draws[:, 2], shapes[:, 0] - side + 1)
    return np.stack([x0, y0, x0 + side, y0 + side], axis=1)


def _place(layer: int, draws: dict[str, np.ndarray], boxes: np.ndarray, options: _Options) -> dict[str, np.ndarray]:
    """How one stroke of every image lies.

    `cut` (n, 4), the part of the glyph shown, in its points; `centre` (n, 2) of that part in the image;
    `points` (n,) of the glyph to a pixel; `turn` (n, 2), cosine and sine; `colour` (n, CANDIDATES, 3).
    """
    fragment = layer >= options.objects
    box = boxes.astype(np.float64)
    extent = box[:, 2:] - box[:, :2]
    size = _between(draws["size"][:, layer], *options.object_size)
    points = extent.max(axis=1) / size  # points of the glyph in one pixel of the image
    degrees = _between(draws["angle"][:, layer], -1, 1) * (180 if fragment else ROTATION)
    # Rounded, since the last bit of a sine is not the same on every machine.
    cos, sin = (np.round(function(np.radians(degrees)), 9) for function in (np.cos, np.sin))
    corner, room = 0, options.size
    if fragment:  # keep part of the glyph's height and width
        share = _between(draws["cut"][:, layer, :2], *FRAGMENT)
        box[:, :2] += draws["cut"][:, layer, 2:] * (1 - share) * extent
        box[:, 2:] = box[:, :2] + share * extent
        reach = np.zeros_like(extent)  # its centre lies in the image, the rest may not
    else:  # all of a digit lies in the image, or in its quarter of it, with a pixel to spare
        half = extent / 2 / points[:, None]
        turned = [
            half[:, 0] * abs(cos) + half[:, 1] * abs(sin),
            half[:, 0] * abs(sin) + half[:, 1] * abs(cos),
        ]
        reach = np.stack(turned, axis=1) + 1
        if options.odd:
            quarter = np.argsort(draws["cell"], axis=1)[:, layer]  # three of four, in random order
            room = options.cell
            corner = room * np.stack([quarter % 2, quarter // 2], axis=1)
    return {
        "cut": box,
        "centre": corner + _between(draws["place"][:, layer], reach, room - reach),
        "points": points,
        "turn": np.stack([cos, sin], axis=1),
        "colour": _pick(draws["colour"][:, layer], 256).astype(np.int32),
    }
