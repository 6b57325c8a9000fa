"""04, which pooling wins, and where?"""

import torch
from torch import Tensor

from ...pooling import Pool
from .exercise import Exercise, made_up, near


def _has_both(cls: type[Pool]) -> bool:
    X = made_up(3, 9, 5)
    pool = cls(5)
    return pool.out_dim == 10 and near(pool(X), torch.cat([X.mean(1), X.amax(1)], 1), 1e-8)


class _OneOfThem(Pool):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.out_dim = 2 * dim

    def pool_tokens(self, tokens: Tensor, grid):
        return torch.cat([tokens.mean(1), tokens.mean(1)], 1), None


class _Sum(Pool):
    def pool_tokens(self, tokens: Tensor, grid):
        return tokens.mean(1) + tokens.amax(1), None


class _WrongWidth(Pool):
    def pool_tokens(self, tokens: Tensor, grid):
        return torch.cat([tokens.mean(1), tokens.amax(1)], 1), None


EXERCISES = {
    2: Exercise(
        form="how many points the best of the fourteen means is above the truth, on average",
        right=lambda luck: near(luck, 0.76, 0.04),
        hint="A mean over five seeds has a standard deviation of its own. Draw fourteen of them many times and take "
        "the largest each time.",
        wrong=[0, 1 / 5**0.5, 1.70, 0.5],
    ),
    5: Exercise(
        form="your class, with the argument dim",
        right=_has_both,
        hint="Average first, then maximum, along the channels; and `out_dim` has to say how many channels come out.",
        wrong=[_OneOfThem, _Sum, _WrongWidth],
    ),
}
