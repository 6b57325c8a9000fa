"""00, start here."""

import torch

from .exercise import Exercise, near


def _fools_the_maximum(pair) -> bool:
    first, second = (torch.as_tensor(image).float() for image in pair)
    differ = first.shape == second.shape and not near(first.mean(0), second.mean(0))
    return differ and near(first.amax(0), second.amax(0))


EXERCISES = {
    1: Exercise(
        form="a pair of images, (4, 1) each: positions, channels",
        right=_fools_the_maximum,
        hint="Their largest values have to be the same and their averages not. What can the maximum not count?",
        wrong=[
            ([[8.0], [0], [0], [0]], [[2.0], [2], [2], [2]]),
            ([[8.0], [0], [0], [0]], [[8.0], [0], [0], [0]]),
            ([[8.0], [0], [0], [0]], [[0.0], [0], [0], [8]]),
            "yes",
        ],
    ),
    2: Exercise(
        form="the weight of each of the 144 positions, a number",
        right=lambda weight: near(weight, 1 / 144, 1e-4),
        hint="With W_Q = 0 the query is zero. What are the similarities then, and what does softmax make of them?",
        wrong=[0, 1, 1 / 96],
    ),
}
