"""15, what is learned without labels."""

import math

import torch
from torch import Tensor

from .exercise import Exercise, made_up, near

COLOUR = 56.5  # percent of the test pictures, by the nearest mean colours


def _between(q: Tensor, p: Tensor) -> Tensor:
    return (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(1).mean()


def _is_divergence(function) -> bool:
    q, p = made_up(5, 4).softmax(1), made_up(5, 4, seed=1).softmax(1)
    return near(function(q, p), _between(q, p), 1e-6)


EXERCISES = {
    1: Exercise(
        form="a number of nats",
        right=lambda nats: near(nats, math.log(64), 0.01),
        hint="The entropy of a mean of B answers: how large is it if each answer is another output, and if all "
        "outputs are in use? The smaller of the two counts. Nats are natural logarithms.",
        wrong=[math.log(256), math.log2(64), math.log(256 * 64), math.log(256) - math.log(64)],
    ),
    2: Exercise(
        form="a function of q and p (B, K) that returns a number",
        right=_is_divergence,
        hint="Take the entropy of q from the cross-entropy, sum over k for one crop, and take the mean over the crops.",
        wrong=[
            lambda q, p: _between(p, q),
            lambda q, p: -(q * p.log()).sum(1).mean(),
            lambda q, p: _between(q, p) * len(q),
        ],
    ),
    3: Exercise(
        form="a number of percent",
        right=lambda percent: near(percent, COLOUR, 0.6),
        hint="Three numbers per picture, means over its height and width; the neighbours vote with their photographs, "
        "not with their digits.",
        wrong=[COLOUR / 100, 100 / 6, 10.0],
    ),
}
