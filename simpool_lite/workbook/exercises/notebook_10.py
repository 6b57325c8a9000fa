"""10, where networks look."""

import torch
from torch import Tensor

from .exercise import Exercise, made_up, near


def _rolled_out(blocks: list[Tensor]) -> Tensor:
    tokens = blocks[0].shape[0]
    product = torch.eye(tokens, dtype=torch.double)
    for attention in blocks:  # the last block stands at the left
        product = (attention + torch.eye(tokens, dtype=torch.double)) / 2 @ product
    return product[0, 1:] / product[0, 1:].sum()


def _is_rollout(function) -> bool:
    cases = [[made_up(5, 5, seed=10 * depth + k).softmax(1) for k in range(depth)] for depth in (1, 3)]
    return all(near(function(blocks), _rolled_out(blocks), 1e-6) for blocks in cases)


def _is_gradcam_of_max(function) -> bool:
    X, w = made_up(9, 6), made_up(6, seed=1)
    leaf = X.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(leaf.amax(0) @ w, leaf)
    return near(function(X, w), (X @ gradient.mean(0)).clamp_min(0), 1e-6)


EXERCISES = {
    1: Exercise(
        form="mass and AP, a pair of numbers",
        right=lambda pair: near(pair, (0.45, 7 / 12), 1e-3),
        hint="Mass is the sum of the weights on the object. For AP go down the positions by weight: at each object "
        "position, which share of those so far is object? AP is the mean of these shares.",
        wrong=[(0.45, 2 / 3), (0.5, 7 / 12), (0.45, 0.5)],
    ),
    2: Exercise(
        form="a function of a list of attentions (T, T), first block first, that returns the map (T - 1,)",
        right=_is_rollout,
        hint="CLS at the end looks at the last block's input first: which block stands at the left of the product? And "
        "are half of each block and half of the identity in it?",
        wrong=[
            lambda blocks: _rolled_out(blocks[::-1]),
            lambda blocks: blocks[-1][0, 1:] / blocks[-1][0, 1:].sum(),
            lambda blocks: torch.linalg.multi_dot([*blocks[::-1], torch.eye(5, dtype=torch.double)])[0, 1:],
        ],
    ),
    3: Exercise(
        form="a function of features X (N, d) and w (d,) that returns Grad-CAM (N,)",
        right=_is_gradcam_of_max,
        hint="The gradient of a channel is w_d at the position that won, and zero at the others. What is its mean over "
        "the positions?",
        wrong=[
            lambda X, w: (X * (X.amax(0) == X) @ w).clamp_min(0),
            lambda X, w: X @ w / len(X),
            lambda X, w: (X @ w).clamp_min(0),
        ],
    ),
}
