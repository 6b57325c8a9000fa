"""Reading a picture the way a viewer shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["open_image", "to_rgb"]


def open_image(path: str | Path) -> Image.Image:
    """A picture file of any common kind as 8-bit RGB; see `to_rgb`. Of an animation it is the first frame.

    Raises:
        ValueError: The file is no image, or a damaged one; the message has the path.
        FileNotFoundError: There is no such file.
    """
    try:
        with Image.open(path) as file:
            return to_rgb(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file makes a decoder raise almost anything
        raise ValueError(f"{path}: expected an image, it cannot be read ({error}); repair or replace it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB, the way up its EXIF orientation says, transparency laid on white.

    Grey values of 16 bits are scaled by their type's range; so are floats between 0 and 1, and floats beyond
    these from their least to their greatest.

    >>> to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
    (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow would cut these off at 255
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values as uint8."""
    low, high = (0, 2**16 - 1) if values.dtype.kind in "iu" else (0, 1)
    if not np.isfinite(values).all():
        raise ValueError("expected finite grey values, got NaN or infinity")
    if values.min() < low or values.max() > high:
        low, high = values.min(), values.max()
    return np.rint((values.astype(float) - low) / max(high - low, np.finfo(float).tiny) * 255).astype(np.uint8)
