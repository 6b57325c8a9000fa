"""11, from a map to a box."""

import numpy as np

from .exercise import Exercise, near

# Two parts above 0.3: a large one, and a small one with the peak; a corner joins the last pixel to it.
_SCORES = np.array(
    [
        [0.5, 0.5, 0.5, 0.0, 0.0, 0.0],
        [0.5, 0.6, 0.5, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.5, 0.0, 0.2, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0, 0.2],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.4],
    ]
)


def _finds_the_peak(function) -> bool:
    flat = np.zeros((4, 4))
    flat[1, 2] = 1.0
    cases = {0.3: (4, 3, 6, 5), 0.1: (4, 2, 6, 5), 0.7: (4, 3, 5, 4)}
    return all(near(function(_SCORES, t), box, 0) for t, box in cases.items()) and near(
        function(flat, 0.5), (2, 1, 3, 2), 0
    )


def _around(chosen: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(chosen)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


EXERCISES = {
    1: Exercise(
        form="both IoUs, a pair of numbers",
        right=lambda pair: near(pair, (16 / 32, 25 / 45), 1e-3),
        hint="Here the intersection is the found box, and the union is the true one. How wide and how high are both by "
        "each convention?",
        wrong=[(0.5, 0.5), (25 / 45, 0.5), (0.5, 25 / 40)],
    ),
    2: Exercise(
        form="a function of scores (H, W) from 0 to 1 and a threshold that returns x0, y0, x1, y1",
        right=_finds_the_peak,
        hint="Which part has the brightest pixel? Pixels that touch at a corner belong together, and the right and "
        "lower edges are exclusive.",
        wrong=[
            lambda scores, t: _around(scores > t),
            lambda scores, t: _around(scores == scores.max()),
            lambda scores, t: (0, 0, 3, 3),
        ],
    ),
}
