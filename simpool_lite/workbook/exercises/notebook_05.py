"""05, does it matter where the query starts?"""

import torch
from torch import Tensor

from .exercise import Exercise, made_up, near


def _is_slope(function) -> bool:
    x, w, u = made_up(5), -0.5, torch.tensor(1.0, dtype=torch.float64)
    attend = lambda u: (w * u * x).softmax(0) @ x  # noqa: E731
    return near(function(w, (w * u * x).softmax(0), x), torch.autograd.functional.jacobian(attend, u), 1e-6)


def _has_two_ends(answer) -> bool:
    positions, w = torch.as_tensor(answer[0]).double(), float(answer[1])
    u = torch.linspace(positions.min().item(), positions.max().item(), 51, dtype=torch.float64)
    for _ in range(500):
        u = (w * u[:, None] * positions).softmax(1) @ positions
    return bool(u.max() - u.min() > 0.01)


def _equally_long(X: Tensor) -> bool:
    lengths = torch.as_tensor(X).double().norm(dim=-1)
    return X.ndim == 3 and float(X.std(1).max()) > 1e-3 and near(lengths, lengths[:, :1].expand_as(lengths), 1e-4)


EXERCISES = {
    1: Exercise(
        form="features (B, N, d) on which both starts are the same and the positions are not",
        right=_equally_long,
        hint="The energy start is an average, too. What are its weights, and when are they all equal?",
        wrong=[made_up(2, 9, 6), made_up(2, 1, 6).expand(2, 9, 6), made_up(9, 6), made_up(2, 9, 6).softmax(2)],
    ),
    2: Exercise(
        form="how many numbers the map depends on for d = 96",
        right=lambda number: near(number, 96, 0),
        hint="The start is the same for all images, so everything on the query's side can be multiplied out "
        "beforehand.",
        wrong=[96 + 2 * 96**2, 2 * 96**2, 96**2],
    ),
    3: Exercise(
        form="a function of w, the map a (p,) and the positions x (p,) that returns the slope",
        right=_is_slope,
        hint="First the derivative of one weight by u, then the sum over the positions; the weights sum to one.",
        wrong=[
            lambda w, a, x: w * (a * x**2).sum(),
            lambda w, a, x: (a * (x - (a * x).sum()) ** 2).sum(),
            lambda w, a, x: w * x.var(),
        ],
    ),
    4: Exercise(
        form="a pair: the positions, one number each, and w",
        right=_has_two_ends,
        hint="All starts still end in one place. How steep must the step be at the fixed point in the middle, so that "
        "it pushes a start away?",
        wrong=[([-1.0, 1.0], 0.5), ([0.0, 1.0, 2.0], -0.5), ([1.0, 1.0], 5.0)],
    ),
}
