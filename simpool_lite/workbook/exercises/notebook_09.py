"""09, SimPool at the price of average pooling."""

import math
from functools import partial
from mmap import PAGESIZE

import torch
import torch.nn.functional as F
from torch import Tensor

from ...pooling import AblatedSimPool, SimPool
from .exercise import Exercise, made_up, near


class _Watched(Tensor):
    """A tensor that notes how large the results are that it has a part in."""

    largest = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs)
        if isinstance(result, Tensor):
            _Watched.largest = max(_Watched.largest, math.prod(result.as_subclass(Tensor).shape))
        return result


def _moves_the_bracket(function) -> bool:
    X, W_V = made_up(2, 50, 6), made_up(4, 6, seed=1)
    _Watched.largest = 0
    z = function(X, W_V.as_subclass(_Watched)).as_subclass(Tensor)
    projected_all = _Watched.largest >= 50 * 4  # a projection for each position
    return near(z, (X.square().sum(-1, keepdim=True) * (X @ W_V.T)).sum(1), 1e-8) and not projected_all


def _projects_first(X: Tensor, W_V: Tensor) -> Tensor:
    return (X.square().sum(-1, keepdim=True) * (X @ W_V.T)).sum(1)


def _joins_halves(function) -> bool:
    X, w = made_up(2, 11, 6), made_up(2, 6, seed=1)
    s = torch.einsum("bnd,bd->bn", X, w)
    halves = []
    for part in (slice(0, 4), slice(4, 11)):
        z = torch.einsum("bn,bnd->bd", s[:, part].softmax(1), X[:, part])
        halves += [z[:, None], s[:, part].logsumexp(1, keepdim=True)]
    return near(function(*halves), torch.einsum("bn,bnd->bd", s.softmax(1), X)[:, None], 1e-8)


def _is_sigmoid_attention(function) -> bool:
    pool = AblatedSimPool(6, attention="sigmoid").double()
    state = {name: made_up(*value.shape, seed=seed) for seed, (name, value) in enumerate(pool.state_dict().items(), 3)}
    pool.load_state_dict(state)
    X = made_up(2, 9, 6)
    return near(function(pool, X), pool(X), 1e-5)


def _sigmoid_by_softmax_rules(pool: SimPool, X: Tensor, *, drop_c: bool = True) -> Tensor:
    """Section 3's steps with other weights: b moved out of the sum as if they summed to one, c dropped."""
    g, b, d = pool.norm_patches.weight, pool.norm_patches.bias, X.shape[-1]
    w = X.mean(1) @ pool.wq.weight.T @ pool.wk.weight / d**0.5
    normed = F.layer_norm(X, (d,), eps=1e-6)
    c = 0 if drop_c else (w @ b)[:, None]
    a = (torch.einsum("bnd,bd->bn", normed, g * w) + c).sigmoid() / X.shape[1]
    return g * torch.einsum("bn,bnd->bd", a, normed) + b


def _pages(size: int) -> tuple[int, int]:
    return 64 * 196 * 384 * size // PAGESIZE, 64 * 256 * 768 * size // PAGESIZE


EXERCISES = {
    1: Exercise(
        form="a number of positions",
        right=lambda n: near(n, 20, 0),
        hint="Write both counts of sections 2 and 3 with N and d, set the first to ten times the second, and divide by "
        "d.",
        wrong=[10, 19, 384],
    ),
    2: Exercise(
        form="a function of X (B, N, d) and W_V (d', d) that returns z (B, d')",
        right=_moves_the_bracket,
        hint="Is it the sum of the formula? And how often is W_V applied: once for each position, or once for each "
        "image?",
        wrong=[_projects_first, lambda X, W_V: X.sum(1) @ W_V.T, lambda X, W_V: X.square().sum(1) @ W_V.T],
    ),
    3: Exercise(
        form="a function of z1 (B, 1, d), l1 (B, 1), z2 and l2 that returns z (B, 1, d)",
        right=_joins_halves,
        hint="A half counts as much as its share of all e^s, and l is the logarithm of its part. Which function of l1 "
        "- l2 is that share?",
        wrong=[
            lambda z1, l1, z2, l2: (z1 + z2) / 2,
            lambda z1, l1, z2, l2: (l1[..., None] * z1 + l2[..., None] * z2) / (l1 + l2)[..., None],
            lambda z1, l1, z2, l2: z1 + (l1 - l2).sigmoid()[..., None] * (z1 - z2),
        ],
    ),
    4: Exercise(
        form="how many pages X has at each of the two shapes, a pair of numbers",
        right=lambda pages: near(pages, _pages(4), 1),
        hint="A float32 has four bytes; resource.getpagesize() says how many bytes a page has.",
        wrong=[_pages(1), _pages(8), (0, 12_289), 4704],
    ),
    5: Exercise(
        form="a function of a SimPool and X (B, N, d) that returns z (B, d)",
        right=_is_sigmoid_attention,
        hint="Give the LayerNorm a bias b that is not zero. Does the term c still drop out, and how often is b in the "
        "sum if the weights do not sum to one?",
        wrong=[
            _sigmoid_by_softmax_rules,
            partial(_sigmoid_by_softmax_rules, drop_c=False),
            lambda pool, X: X.mean(1),
        ],
    ),
}
