"""07, what does the exponent do?"""

import torch
from torch import Tensor

from .exercise import Exercise, made_up, near


def _adds_back(function) -> bool:
    a, v = made_up(2, 9).softmax(1), made_up(2, 9, 5, seed=1)
    least = v.amin((1, 2), keepdim=True)
    for gamma in (1.0, 2.0, 5.0):
        mean = torch.einsum("bn,bnd->bd", a, (v - least + 1e-6) ** gamma) ** (1 / gamma)
        if not near(function(a, v, gamma), mean + least[:, 0], 1e-4):
            return False
    return True


def _power_mean(a: Tensor, v: Tensor, gamma: float, least: Tensor) -> Tensor:
    return torch.einsum("bn,bnd->bd", a, (v - least + 1e-6) ** gamma) ** (1 / gamma)


EXERCISES = {
    1: Exercise(
        form="z for gamma -> 0 on (1, 2, 2, 5), a number",
        right=lambda z: near(z, 20**0.25, 0.01),
        hint="Try smaller and smaller exponents: towards which of the means of notebook 01 does z go?",
        wrong=[2.5, 1, 2, 0],
    ),
    2: Exercise(
        form="a function of the map a (B, N), the values v (B, N, d) and gamma that returns z (B, d)",
        right=_adds_back,
        hint="One minimum for each image, subtracted before the power, and added once after the root.",
        wrong=[
            lambda a, v, gamma: _power_mean(a, v, gamma, v.amin((1, 2), keepdim=True)),
            lambda a, v, gamma: _power_mean(a, v, gamma, v.amin(1, keepdim=True)) + v.amin(1),
            lambda a, v, gamma: torch.einsum("bn,bnd->bd", a, v),
        ],
    ),
    3: Exercise(
        form="the first integer gamma, a number",
        right=lambda gamma: near(gamma, 8, 0),
        hint="Which power of 1e-6 rounds to zero in float32, whose smallest number is 2^-149? The root's slope at zero "
        "is infinite.",
        wrong=[7, 26, 149],
    ),
}
