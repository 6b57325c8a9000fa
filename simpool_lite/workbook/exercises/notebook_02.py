"""02, fifteen poolings, or one?"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...pooling import Pool, Spec, create_pool, generic_pool
from ...pooling.framework import cosine, dot, softmax
from .exercise import Exercise, made_up, near

_KMEANS = create_pool("kmeans", 12).spec()


def _compares_directions(spec: Spec) -> bool:
    X = made_up(6, 144, 12).float()
    start = made_up(6, 3, 12, seed=1).float()
    longer = X * (0.1 + 3 * made_up(6, 144, 1, seed=2).float().sigmoid())
    once = replace(spec, T=1, init=lambda X: start)
    other_starts = replace(once, init=lambda X: start * torch.tensor([0.1, 1.0, 5.0])[:, None])
    owners = [
        generic_pool(x, s, return_attention=True)[1] > 0 for x, s in ((X, once), (longer, once), (X, other_starts))
    ]
    shared_out = bool((owners[0].sum(1) == 1).all()) and bool(owners[0].any(2).all())
    return shared_out and torch.equal(owners[0], owners[1]) and torch.equal(owners[0], owners[2])


def _fools_the_average(pair: tuple[Tensor, Tensor]) -> bool:
    first, second = (torch.as_tensor(x).float() for x in pair)
    for seed in range(3):
        for name in ("gap", "se", "how", "cait", "simpool"):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                pool = create_pool(name, 12)
            if torch.allclose(pool(first), pool(second), atol=1e-5) != (name in ("gap", "se")):
                return False
    return True


def _is_gmp(cls: type[Pool]) -> bool:
    X, ridge = made_up(3, 7, 5), 0.7
    pool = cls(5, ridge=ridge)
    z, a = pool(X, return_attention=True)
    system = X.mT @ X + ridge * torch.eye(5, dtype=X.dtype)
    solved = near(z, torch.linalg.solve(system, X.sum(1)), 1e-8)
    return solved and a is None and near(generic_pool(X, pool.spec()), z, 1e-8)


class _Average(Pool):
    def __init__(self, dim: int, ridge: float = 1.0):
        super().__init__(dim)
        self.ridge = ridge

    def pool_tokens(self, tokens, grid):
        return tokens.mean(1), None

    def spec(self):
        return Spec()


class _WithMap(_Average):
    def pool_tokens(self, tokens, grid):
        system = tokens.mT @ tokens + self.ridge * torch.eye(self.dim).to(tokens)
        return torch.linalg.solve(system, tokens.sum(1)), torch.ones_like(tokens[..., 0])[:, None]


class _WithoutRidge(_Average):
    def pool_tokens(self, tokens, grid):
        return torch.linalg.solve(tokens.mT @ tokens, tokens.sum(1)), None


def _images(*places: tuple[int, int, int]) -> Tensor:
    image = torch.zeros(1, 12, 3, 3)
    for channel, row, column in places:
        image[0, channel, row, column] = 1
    return image


EXERCISES = {
    1: Exercise(
        form="a number of parameters",
        right=lambda number: near(number, 2 * 768**2 + 2 * 768, 0.03 * 2 * 768**2),
        hint="Section 7 says which matrices SimPool has, and section 9 what it has beside them.",
        wrong=[768**2, 2 * 384**2, 12 * 768**2],
    ),
    2: Exercise(
        form="a set of two names out of list_pools()",
        right=lambda names: set(names) == {"kmeans", "otk"},
        hint="Ask of each method: if there is one vector, what share of every position does it get, and is anything "
        "done to the positions or to the average besides?",
        wrong=[{"kmeans", "slot"}, {"otk", "slot"}, {"slot"}, "kmeans"],
    ),
    3: Exercise(
        form="a Spec for 12 channels",
        right=_compares_directions,
        hint="Each position must still belong to one vector, and neither its length nor the vector's may matter. Which "
        "letter of the loop compares the two?",
        wrong=[_KMEANS, replace(_KMEANS, similarity=dot), replace(_KMEANS, similarity=cosine, attention=softmax())],
    ),
    4: Exercise(
        form="a pair of maps, (1, 12, H, W) each",
        right=_fools_the_average,
        hint="Every channel needs the same average in both, so that GAP and SE are fooled; but what stands together in "
        "one position has to differ.",
        wrong=[
            (_images((0, 1, 1), (1, 1, 1)), _images((0, 1, 1), (1, 1, 1))),  # the same
            (_images((0, 1, 1), (1, 1, 1)), _images((0, 1, 1))),  # other averages
            (_images((0, 1, 1), (1, 1, 1)), _images((0, 0, 2), (1, 0, 2))),  # the same positions elsewhere
        ],
    ),
    5: Exercise(
        form="your class, with the arguments dim and ridge (lambda)",
        right=_is_gmp,
        hint="Compare with X (X^T X + lambda I)^-1 1 on a few numbers: is the spec the same vector, is there a ridge, "
        "and is no map returned?",
        wrong=[_Average, _WithMap, _WithoutRidge, F.normalize],
    ),
}
