"""04, which pooling wins, and where?"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...pooling import Pool, create_pool
from .exercise import Exercise, made_up, near


def _grow_with_evidence(crossings) -> bool:
    places = [float(dict(crossings)[evidence]) for evidence in (20, 30, 40)]
    return places[0] < places[1] < places[2] and near(places, (10, 12, 13), 1)


def _sum_to_z(function: Callable[[Pool, Tensor], Tensor]) -> bool:
    X = made_up(2, 6, 5, 5).abs().float()
    with torch.enable_grad():
        shares = {name: function(create_pool(name, 6), X).detach() for name in ("gap", "max", "gem")}
    whole = all(near(share.sum((2, 3)), create_pool(name, 6)(X), 1e-4) for name, share in shares.items())
    return whole and near(shares["gap"], X / 25, 1e-5) and int((shares["max"] != 0).sum()) == 2 * 6


def _slope(pool: Pool, X: Tensor) -> Tensor:
    X = X.detach().requires_grad_()
    return torch.autograd.grad(pool(X).sum(), X)[0]


EXERCISES = {
    1: Exercise(
        form="a dictionary: where the curves cross for an evidence of 20, 30 and 40",
        right=_grow_with_evidence,
        hint="With more evidence in all, a spread that was too wide for the maximum may still be one that it sees. "
        "`max_is_right(s, evidence / s)` and `gap_is_right` of section 2 say where.",
        wrong=[{20: 13, 30: 12, 40: 10}, {20: 12, 30: 12, 40: 12}, {20: 5, 30: 12, 40: 40}, 12],
    ),
    2: Exercise(
        form="how many points the best of the fifteen means is above the truth, on average",
        right=lambda luck: near(luck, 0.709, 0.04),
        hint="A mean over six seeds has a standard deviation of its own. Draw fifteen of them many times and take "
        "the largest each time.",
        wrong=[0, 1 / 6**0.5, 1.74, 0.5],
    ),
    3: Exercise(
        form="a function of a pool and X (B, d, H, W) that returns what each position gives to z, (B, d, H, W)",
        right=_sum_to_z,
        hint="Euler's sum has two factors, the value itself and the slope of z there. For GAP it has to be X / p.",
        wrong=[_slope, lambda pool, X: X / X[0, 0].numel(), lambda pool, X: X, lambda pool, X: pool(X)],
    ),
}
