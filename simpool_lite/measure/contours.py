"""Bounding boxes of the contours of a map at every level, from one pass over the map.

The map's hills and the passes between them make a small graph, from which the connected components above
each level follow; a library's labelling would look at all pixels again for each of the 255 levels.
"""

import functools
from collections.abc import Iterator

import numpy as np

SHIFT = np.uint32(8)
FINE = 1 << 8  # steps per byte: pixels of one byte are still told apart, which keeps the hills few
NOWHERE = np.iinfo(np.int32).max


def contour_boxes(scores: np.ndarray, contours: str = "all") -> tuple[np.ndarray, np.ndarray]:
    """The bounding boxes of one map's contours where its bytes are above 0, above 1, ..., above 254.

    As OpenCV finds them: pixels of one contour touch at sides or corners, and the contour around a hole counts.

    Args:
        scores: Float64 ``(H, W)`` in 0 ... 1; the bytes are ``255 * scores`` rounded down.
        contours: "all", or "largest" for the contour with the largest area; of equal ones the one that starts last in
            reading order.

    Returns:
        The level of each box, int ``(m,)``; the boxes, int ``(m, 4)``: x0 y0 x1 y1 with x1 and y1 exclusive, but
        not outside the last pixel.

    >>> levels, boxes = contour_boxes(np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> len(levels), boxes[0].tolist()
    (255, [1, 1, 2, 2])
    """
    height, width = scores.shape
    far = np.array([width, height]) - 1
    fine = (scores * 255 * FINE).astype(np.uint32)
    if contours == "largest":
        levels, found, sizes = _components(_fill_holes(fine), diagonal=True, sizes=True)
        order = np.lexsort((found[:, 4], sizes, levels))
        last = order[np.flatnonzero(np.diff(levels[order], append=255))]
        levels, found = levels[last], found[last, :4]
    else:
        levels, found, _ = _components(fine, diagonal=True)
        # What is not above a level are the inverted bytes above 254 - level; a contour runs on the pixels around it.
        inverse, holes, _ = _components(256 * FINE - 1 - fine, diagonal=False)
        inside = (holes[:, :2] > 0).all(1) & (holes[:, 2:4] < far).all(1)
        levels = np.concatenate([levels, 254 - inverse[inside]])
        found = np.concatenate([found[:, :4], holes[inside, :4] + [-1, -1, 1, 1]])
    found[:, 2:] = np.minimum(found[:, 2:] + 1, far)
    return levels, found


def _hills(fine: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pixel's hill, whose top is reached by going up, and the passes between hills.

    Everything connected above a level is made of hills that are joined by passes above it, so the components
    at all levels follow from a small graph.

    Args:
        fine: What is cut, uint32 ``(H, W)`` in 0 ... 256 * FINE - 1, with a frame of zeros.
        diagonal: Pixels touch at corners, too.

    Returns:
        Hills ``(H, W)``, numbered from 0; passes ``(m, 2)``, pairs of hills, the highest pass first; the highest
        level of each pass, ``(m,)``.
    """
    width, index = fine.shape[1], np.arange(fine.size)
    # All different: of equals the later one is higher. In 32 bits, if the places fit, it takes half the time.
    kind, bits = (np.uint32, 16) if fine.size <= 2**16 else (np.uint64, 32)
    ranked = (fine.ravel().astype(kind) << kind(bits)) | index.astype(kind)
    # Along the flat index a row's last pixel touches the next row's first one: both are frame, which nothing climbs.
    across = ranked.copy()
    np.maximum(across[1:], ranked[:-1], out=across[1:])
    np.maximum(across[:-1], ranked[1:], out=across[:-1])
    down, best = across if diagonal else ranked, across.copy()
    np.maximum(best[width:], down[:-width], out=best[width:])
    np.maximum(best[:-width], down[width:], out=best[:-width])
    up = (best & kind(2**bits - 1)).astype(np.int64)
    for _ in range(3):  # hardly a way is shorter than eight steps, and comparing costs as much as going
        up = up.take(up)
    while not np.array_equal(up, further := up.take(up)):
        up = further.take(further)
    tops = np.flatnonzero(up == index)
    number = np.empty(fine.size, dtype=np.int64)
    number[tops] = np.arange(len(tops))
    hills, levels = number.take(up), fine.ravel() >> SHIFT

    keys = []
    for step in (1, width, width + 1, width - 1)[: 4 if diagonal else 2]:
        border = np.flatnonzero(hills[step:] != hills[:-step])
        a, b = hills[border], hills[border + step]
        level = np.minimum(levels[border], levels[border + step])
        keys.append((np.minimum(a, b) * len(tops) + np.maximum(a, b)) << 8 | level)
    keys = np.sort(np.concatenate(keys))
    keys = keys[np.flatnonzero(np.diff(keys >> 8, append=-1))]  # the highest per pair
    keys = keys[np.argsort(-(keys & 255), kind="stable")]
    return hills.reshape(fine.shape), np.stack(np.divmod(keys >> 8, len(tops)), 1), keys & 255


def _joins(count: int, passes: np.ndarray, heights: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Which groups of hills become one, from the highest level down: first hills of two groups, and the level.

    From there on the first one stands for both.
    """
    group = list(range(count))
    for (a, b), level in zip(passes.tolist(), heights.tolist(), strict=True):
        while group[a] != a:
            group[a] = a = group[group[a]]
        while group[b] != b:
            group[b] = b = group[group[b]]
        if a != b:
            group[b] = a
            yield a, b, level


def _components(fine: np.ndarray, diagonal: bool, sizes: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The connected components of ``{fine // FINE > level}`` for all levels 0 to 254.

    Returns:
        The level of each component ``(m,)``; x0 y0 x1 y1 of its pixels, x1 and y1 inclusive, and the place of its first
        pixel in reading order, ``(m, 5)``; with ``sizes`` the area of the polygon through the centres of its outer
        pixels, for components without holes, ``(m,)``, else zeros.
    """
    fine = _framed(fine)
    hills, passes, heights = _hills(fine, diagonal)
    count = hills.max() + 1
    slots = (hills << 8 | fine >> SHIFT).ravel()
    # per hill and level the least of each, then the least at that level and above
    least = np.full((4, count * 256), NOWHERE, dtype=np.int32)
    for row, values in zip(least, _places(fine.shape), strict=True):
        np.minimum.at(row, slots, values)
    least = np.minimum.accumulate(least.reshape(4, count, 256)[..., ::-1], 2)[..., ::-1].transpose(1, 2, 0)
    least = np.ascontiguousarray(least)  # of hill after hill: joining two is then one pass over memory
    area = _areas(fine, hills, count) if sizes else None
    for a, b, level in _joins(count, passes, heights):
        shared = np.s_[: level + 1]
        one, other = least[a, shared], least[b, shared]
        np.minimum(one, other, out=one)
        other[...] = NOWHERE
        if sizes:
            area[a, shared] += area[b, shared]
    which, level = np.nonzero(least[:, 1:, 0] != NOWHERE)
    left, first, right, bottom = least[which, level + 1].T
    box = np.stack([left, first // fine.shape[1], -right, -bottom, first + 1], 1) - 1  # the frame is one pixel wide
    return level, box, area[which, level + 1] if sizes else np.zeros(len(level))


def _framed(fine: np.ndarray) -> np.ndarray:
    framed = np.zeros((fine.shape[0] + 2, fine.shape[1] + 2), dtype=fine.dtype)
    framed[1:-1, 1:-1] = fine
    return framed


@functools.lru_cache(4)
def _places(shape: tuple[int, int]) -> np.ndarray:
    """Of each pixel x, its place in reading order, -x and -y, ``(4, H * W)``; maps of one size share it."""
    y, x = np.indices(shape, dtype=np.int32).reshape(2, -1)
    return np.stack([x, y * shape[1] + x, -x, -y])


def _areas(fine: np.ndarray, hills: np.ndarray, count: int) -> np.ndarray:
    """The area in each hill at each level or above ``(count, 256)``, in squares between the centres of four pixels.

    Of a square's pixels three enclose half of it and four the whole.
    """
    keys = (fine.astype(np.int64) << 32) | hills
    a, b, c, d = keys[:-1, :-1], keys[:-1, 1:], keys[1:, :-1], keys[1:, 1:]
    low, high = np.minimum(a, b), np.maximum(a, b)
    low2, high2 = np.minimum(c, d), np.maximum(c, d)
    first = np.minimum(low, low2)
    second = np.minimum(np.maximum(low, low2), np.minimum(high, high2))
    # Where three are above a level they are in one component, so their area may go to the highest one's hill.
    hill = np.maximum(high, high2) & (2**32 - 1)
    slots = np.stack([hill * 256 + pixel // (FINE << 32) for pixel in (first, second)])
    halves = np.bincount(slots.ravel(), minlength=count * 256).reshape(count, 256)
    return halves[:, ::-1].cumsum(1)[:, ::-1] / 2


def _fill_holes(fine: np.ndarray) -> np.ndarray:
    """``fine`` raised so that no set above a level has a hole: each pixel to the least height that water leaves by.

    Water leaves over the sides of pixels, not their corners, into a frame around the map.
    """
    depth = np.pad(256 * FINE - 1 - fine, 1, constant_values=256 * FINE - 1)
    pools, passes, heights = _hills(np.pad(depth, 1), diagonal=False)
    count, outside = pools.max() + 1, pools[1, 1]
    brim, members = np.zeros(count, dtype=np.int64), [[pool] for pool in range(count)]
    for a, b, level in _joins(count, passes, heights):
        if outside in (a, b):
            brim[members[b if outside == a else a]] = 255 - level
            outside = a
        members[a] += members[b]
    return np.maximum(fine, (brim * FINE).astype(np.uint32)[pools[2:-2, 2:-2]])
