"""08, why one head, a dot product, a softmax and one vector?"""

import math

import torch

from ...pooling import Pool, SimPool, create_pool
from .exercise import Exercise, made_up, near


def _is_distance(pool: SimPool) -> bool:
    X = made_up(2, 9, 96).float()
    far = create_pool("ablated_simpool", 96, similarity="distance")
    far.load_state_dict(pool.state_dict())
    return near(far(X), pool(X), 1e-3)


def _shares_out(pool: Pool) -> bool:
    _, a = pool(made_up(2, 9, 96).float(), return_attention=True)
    return a.shape == (2, 3, 9) and near(a.sum(2), torch.ones(2, 3), 1e-4) and float((a - 1 / 9).abs().max()) > 1e-5


def _seeded(**options) -> SimPool:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SimPool(96, **options)


_TURNED = _seeded()
_TURNED.wk.weight.data = torch.linalg.qr(_TURNED.wk.weight.data).Q

EXERCISES = {
    1: Exercise(
        form="a number",
        right=lambda scale: near(scale, math.log(99) / 2, 0.02),
        hint="The best case for a sharp map: one cosine is 1, all others are -1. How many times the weight of each "
        "other one must the best have?",
        wrong=[math.log(99), 96**-0.5, 99, math.log(100)],
    ),
    2: Exercise(
        form="the distance for sparsemax, a number",
        right=lambda distance: near(distance, 1, 0.005),
        hint="Try (t, 0, 0) with t below and above a guess.",
        wrong=[0, 0.5, 20],
    ),
    3: Exercise(
        form="a SimPool(96, ...)",
        right=_is_distance,
        hint="Expand |k - q|^2. Which term must be the same for all positions, what keeps lengths, and what is the "
        "factor of the dot product?",
        wrong=[_seeded(), _seeded(qk_scale=2 / 96**0.5), _TURNED],
    ),
    4: Exercise(
        form="a pool for 96 channels",
        right=_shares_out,
        hint='It needs three vectors that differ (`init="kmeans"`), and the attention function of Slot Attention.',
        wrong=[
            SimPool(96),
            create_pool("ablated_simpool", 96, attention="softmax_over_vectors"),
            create_pool("gap", 96),
        ],
    ),
}
