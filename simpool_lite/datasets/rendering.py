"""How an image of photo-digits is drawn: strokes from glyphs, backgrounds from photographs, one on the other.

All functions work on arrays of many images at once. Pixels are interpolated and blended in integers, so the
bytes do not depend on the machine or on threads.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CANDIDATES", "SIDE", "draw_background", "draw_glyphs", "ink_boxes", "paste"]

CONTRAST = 64  # least difference in luminance (0..255) between a stroke and what surrounds it
CANDIDATES = 12  # colours tried before falling back to black or white
CELL = 8  # a glyph's pixel is drawn as CELL x CELL points
SIDE = 10 * CELL  # side of a drawn glyph: 8 pixels and one empty pixel around them


def draw_glyphs(glyphs: np.ndarray) -> np.ndarray:
    """Enlarge 8 x 8 glyphs with values 0..16 to sharp strokes, alpha 0..256, int32 (n, SIDE, SIDE).

    Cubic interpolation (Catmull-Rom), then a steep ramp about 0.47 of full ink. The weights are dyadic
    fractions and the values small integers, so the products are exact in float64 in any order of summation.
    """
    t = (2 * np.arange(CELL) + 1) / (2 * CELL)
    t2, t3 = t * t, t * t * t  # a power may be off by a bit on some machines
    weights = np.stack([-t + 2 * t2 - t3, 2 - 5 * t2 + 3 * t3, t + 4 * t2 - 3 * t3, t3 - t2], axis=1)
    matrix = np.zeros((SIDE, 8))
    for point in range(SIDE):
        # Pixel centres of the glyph lie at 1.5, 2.5, ... cells; `left` is the one at or before the point.
        left, phase = divmod(point - CELL // 2, CELL)
        for tap in range(4):
            if 0 <= left - 2 + tap < 8:
                matrix[point, left - 2 + tap] = weights[phase, tap] / 2
    ink = matrix @ (glyphs / 16.0) @ matrix.T
    return (256 * np.clip((ink - 0.32) / 0.3, 0, 1)).astype(np.int32)


def ink_boxes(alpha: np.ndarray) -> np.ndarray:
    """Tight boxes of the strokes, x0 y0 x1 y1 (exclusive), int64 (n, 4): alpha (n, H, W) or masks."""
    ink = alpha >= 128 if alpha.dtype != bool else alpha
    bounds = []
    for axis in (1, 2):  # which columns, then which rows, hold ink
        line = ink.any(axis=axis)
        bounds.append((line.argmax(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1)))
    (x0, x1), (y0, y1) = bounds
    return np.stack([x0, y0, x1, y1], axis=1)


def draw_background(
    pixels: np.ndarray,
    starts: np.ndarray,
    widths: np.ndarray,
    windows: np.ndarray,
    flip: np.ndarray,
    tint: np.ndarray,
    size: int,
    clutter: float,
) -> np.ndarray:
    """Crops scaled to the image (bilinear), flipped, tinted, with less or more contrast; int32 (3, b, S, S).

    `pixels` are all half photographs one after the other, (3, total); everything is in 1/256 of a unit.
    """
    side = (windows[:, 2] - windows[:, 0])[:, None]
    position = (2 * np.arange(size) + 1) * side * 256 // (2 * size) - 128
    position = np.clip(position, 0, (side - 1) * 256)
    across = np.where(flip[:, None], position[:, ::-1], position)
    (x, fx), (y, fy) = ((p >> 8, (p & 255).astype(np.int32)) for p in (across, position))
    x_next, y_next = (np.minimum(p + 1, side - 1) + windows[:, k, None] for k, p in ((0, x), (1, y)))
    x, y = x + windows[:, 0, None], y + windows[:, 1, None]
    rows, rows_next = (starts[:, None] + row * widths[:, None] for row in (y, y_next))

    def mix_columns(row: np.ndarray) -> np.ndarray:
        near = pixels[:, row[:, :, None] + x[:, None, :]]
        far = pixels[:, row[:, :, None] + x_next[:, None, :]]
        return (near << 8) + (far - near) * fx[:, None, :]

    upper, lower = mix_columns(rows), mix_columns(rows_next)
    crop = upper + (((lower - upper) * fy[:, :, None]) >> 8)
    crop = (crop * np.round(tint * 256).astype(np.int32).T[:, :, None, None]) >> 8
    average = crop.sum(axis=(2, 3), keepdims=True) // size**2
    crop = average + (((crop - average) * round(clutter * 256)) >> 8)
    return np.clip((crop + 128) >> 8, 0, 255).astype(np.int32)


def paste(canvas: np.ndarray, alpha: np.ndarray, glyphs: np.ndarray, stroke: dict[str, np.ndarray]) -> np.ndarray:
    """Draw one stroke on every image of `canvas` (3, b, S, S), in place; its mask, bool (b, S, S)."""
    colours = stroke["colour"]
    stroke = {name: values.astype(np.float32) for name, values in stroke.items()}
    x0, y0, x1, y1 = stroke["cut"].T[:, :, None, None]
    grid = np.arange(canvas.shape[-1], dtype=np.float32) + np.float32(0.5)
    dx, dy = ((grid - stroke["centre"][:, k, None]) * stroke["points"][:, None] for k in (0, 1))
    cos, sin = stroke["turn"].T[:, :, None]
    u = (cos * dx)[:, None, :] + (sin * dy)[:, :, None]  # the glyph's own coordinates, from the cut's middle
    v = (cos * dy)[:, :, None] - (sin * dx)[:, None, :]
    within = np.minimum((x1 - x0) / 2 - abs(u), (y1 - y0) / 2 - abs(v))  # points inside the cut; < 0 outside
    u += (x0 + x1) / 2
    v += (y0 + y1) / 2

    where = np.clip(v, 0, SIDE - 1).astype(np.int32) * SIDE + np.clip(u, 0, SIDE - 1).astype(np.int32)
    opacity = alpha.reshape(-1)[where + (glyphs * SIDE**2).astype(np.int32)[:, None, None]]
    # Beyond the cut the stroke fades within a pixel: its edge is as soft there as elsewhere.
    edge = np.clip((within + CELL // 4) * (256 / stroke["points"][:, None, None]), 0, 256)
    opacity = (opacity * edge.astype(np.int32)) >> 8
    colour = _contrasting(canvas, (within > -CELL) & (opacity == 0), colours)
    canvas += ((colour[:, :, None, None] - canvas) * opacity) >> 8
    return opacity >= 128


def _contrasting(canvas: np.ndarray, around: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The first candidate that differs from the mean luminance `around`, else black or white; (3, b)."""
    luminance = _luminance(canvas)
    local = (luminance * around).sum(axis=(1, 2)) // np.maximum(around.sum(axis=(1, 2)), 1)
    differs = abs(_luminance(np.moveaxis(candidates, -1, 0)) - local[:, None]) >= CONTRAST
    chosen = candidates[np.arange(len(local)), differs.argmax(axis=1)]
    extreme = np.where(local < 128, 255, 0)[:, None]
    return np.where(differs.any(axis=1)[:, None], chosen, extreme).astype(np.int32).T


def _luminance(rgb: np.ndarray) -> np.ndarray:
    return (77 * rgb[0] + 150 * rgb[1] + 29 * rgb[2]) >> 8
