"""03, what is the simplest pooling that keeps what worked?"""

import torch
from torch import Tensor

from .exercise import Exercise, made_up, near, near_by_name


def _is_difference(function) -> bool:
    v = made_up(4, 9, 6)
    difference = torch.as_tensor(function(v)).squeeze()
    return near(difference, 1e-6 - v.amin((1, 2)), 1e-9)


def _puts_heads_side_by_side(function) -> bool:
    z = made_up(3, 4, 6)
    return near(function(z), torch.cat([z[:, head] for head in range(4)], 1))


def _first_letters(z: Tensor) -> Tensor:
    return z[:, 0]


EXERCISES = {
    1: Exercise(
        form='a dictionary: how many of 8 images get a NaN, for "release", "paper" and "timm"',
        right=lambda lost: near_by_name(lost, {"release": 8, "paper": 1, "timm": 1}, 0),
        hint="A minimum over values with a NaN among them is NaN. Over which images does each of the three take it?",
        wrong=[
            {"release": 1, "paper": 1, "timm": 1},
            {"release": 8, "paper": 8, "timm": 8},
            {"release": 8, "paper": 8, "timm": 1},
            8,
        ],
    ),
    2: Exercise(
        form="a function of v = LN(x), (B, N, d), that returns z(gamma=1) - z(gamma=None), one number per image",
        right=_is_difference,
        hint="Write both formulas with gamma = 1 below each other. What is subtracted from the values in one of them, "
        "and is it added back? Mind the 1e-6.",
        wrong=[lambda v: torch.zeros(len(v)), lambda v: v.amin((1, 2)), lambda v: -v.amin((1, 2))],
    ),
    3: Exercise(
        form="a function that makes the package's (B, d) of the release's (B, m, d/m)",
        right=_puts_heads_side_by_side,
        hint="The numbers are right. The heads have to stand side by side, each with its own slice of the channels.",
        wrong=[lambda z: z.mT.flatten(1), lambda z: z.mean(1), _first_letters],
    ),
    4: Exercise(
        form="the largest shifts for d = 96 and d = 2048, a pair of numbers",
        right=lambda shifts: near(shifts, (95**0.5, 2047**0.5), 0.05),
        hint="One channel far below all others, which are equal: what does LayerNorm make of that token?",
        wrong=[(96**0.5, 2048**0.5), (95, 2047), (3, 3), 9.7],
    ),
    5: Exercise(
        form="the shares of the attention on the digit after 1, 2 and 3 steps, three numbers from 0 to 1",
        right=lambda on: near(on, (0.22, 0.10, 0.23), 0.02),
        hint="The query of the second step is z of the first. What is z made of, and what is unlike that?",
        wrong=[(0.22, 0.3, 0.4), (0.22, 0.22, 0.22), (0.10, 0.22, 0.10), 0.22],
    ),
    6: Exercise(
        form='a dictionary: how many predictions an odd mate changes, for "release", "paper" and "timm"',
        right=lambda odd: dict(odd)["release"] > 0 == dict(odd)["paper"] == dict(odd)["timm"],
        hint="A version in which no image sees another one's values cannot change a prediction, and one does.",
        wrong=[dict.fromkeys(("release", "paper", "timm"), count) for count in (0, 10)]
        + [{"release": 0, "paper": 10, "timm": 0}, 220],
    ),
}
