"""14, which probe gets most out of frozen features?"""

import pandas as pd
import torch

from .exercise import Exercise, made_up, near


def _is_overlap(function) -> bool:
    a = made_up(3, 4, 9).softmax(-1)
    pairs = [[torch.minimum(a[:, m], a[:, other]).sum(-1) for other in range(4)] for m in range(4)]
    return near(function(a), torch.stack([torch.stack(row, -1) for row in pairs], -2), 1e-8)


MEANS = pd.DataFrame(
    {"top1": [80.0, 81.5, 82.0, 82.4, 70.0], "parameters": [10, 500, 200, 900, 5]}, index=["a", "b", "c", "d", "e"]
)


def _follows_the_rule(function) -> bool:
    chosen = {margin: function(MEANS, margin) for margin in (0.1, 0.5, 1, 3, 20)}
    return chosen == {0.1: "d", 0.5: "c", 1: "c", 3: "a", 20: "e"}


EXERCISES = {
    1: Exercise(
        form="a number of parameters",
        right=lambda n: near(n, 98_304, 0),
        hint="There are the queries, each as wide as a position, and a matrix from all channels to the narrow output.",
        wrong=[32 * 768 + 768 * 768, 32 * 96 + 768 * 96, 768 * 96],
    ),
    2: Exercise(
        form="a function of maps (B, M, N) that returns (B, M, M)",
        right=_is_overlap,
        hint="Each map against each: give two copies a new axis each, so that they broadcast, and sum over positions.",
        wrong=[lambda a: a @ a.mT, lambda a: torch.minimum(a, a).sum(-1), lambda a: a.sum(-1)],
    ),
    3: Exercise(
        form="a number of multiply-adds",
        right=lambda n: near(n, 195 * 384 * 384, 0),
        hint="A matrix of d rows costs d d for each vector. Of a query's sum only d / 32 rows are needed.",
        wrong=[196 * 384 * 384, 164 * 384 * 384, 384 * 384],
    ),
    4: Exercise(
        form="a function of a table of means and a margin that returns a name",
        right=_follows_the_rule,
        hint="First keep the rows that are within the margin of the highest top1, then take the fewest parameters.",
        wrong=[
            lambda means, margin: means.top1.idxmax(),
            lambda means, margin: means.parameters.idxmin(),
            lambda means, margin: means[means.top1 > means.top1.mean() - margin].parameters.idxmin(),
        ],
    ),
}
