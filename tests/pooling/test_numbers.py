"""What nobody passes on purpose: booleans and strings for numbers, numpy's numbers, extreme exponents, NaN."""

import math

import numpy as np
import pytest
import torch

from simpool_lite import create_pool, generic_pool, list_pools
from simpool_lite.pooling import Spec, f_alpha
from simpool_lite.pooling.framework import power_mean

NAN, INF = float("nan"), float("inf")

NOT_NUMBERS = [True, np.True_, "2", NAN, INF, np.float32("nan"), [2], 1j]
NOT_POSITIVE_INTS = [True, np.True_, 0, -1, 2.0, np.float64(2), "2", NAN, None]
INT_ARGUMENTS = [
    *(("dim", name) for name in [*list_pools(), "ablated_simpool"]),
    ("num_heads", "simpool"), ("num_heads", "ablated_simpool"), ("num_heads", "vit"), ("num_heads", "cait"),
    ("depth", "vit"), ("depth", "cait"), ("k", "kmeans"), ("k", "otk"), ("k", "slot"), ("k", "ablated_simpool"),
    ("iterations", "kmeans"), ("T", "ablated_simpool"), ("reduction", "se"), ("reduction", "cbam"),
]  # fmt: skip
NUMBER_ARGUMENTS = [
    ("eps", "simpool"), ("eps", "ablated_simpool"), ("gamma", "gem"), ("r", "lse"), ("layer_scale", "cait"),
    ("power", "how"),
]  # fmt: skip
OPTIONAL_NUMBERS = [
    ("gamma", "simpool"), ("gamma", "ablated_simpool"), ("qk_scale", "simpool"), ("qk_scale", "ablated_simpool"),
    ("eps", "otk"),
]  # fmt: skip


@pytest.mark.parametrize(("argument", "name"), INT_ARGUMENTS)
@pytest.mark.parametrize("value", NOT_POSITIVE_INTS, ids=repr)
def test_ints_are_checked_at_construction(argument, name, value):
    with pytest.raises(ValueError, match=argument):
        create_pool(name, **{"dim": 8, argument: value})


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [(*pair, value) for pair in NUMBER_ARGUMENTS for value in [*NOT_NUMBERS, None]]
    + [(*pair, value) for pair in OPTIONAL_NUMBERS for value in NOT_NUMBERS],
)
def test_numbers_are_checked_at_construction(argument, name, value):
    with pytest.raises(ValueError, match=argument):
        create_pool(name, 8, **{argument: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simpool", {"num_heads": 2, "gamma": 2.0, "qk_scale": 0.5}),
        ("ablated_simpool", {"num_heads": 2, "gamma": 2.0, "qk_scale": 0.5, "T": 2}),
        ("gem", {"gamma": 2.0}),
        ("lse", {"r": 3.0}),
        ("how", {"power": 1}),
        ("kmeans", {"k": 2, "iterations": 3}),
        ("otk", {"k": 2, "eps": 4.0, "iterations": 3}),
        ("slot", {"k": 2, "iterations": 2}),
        ("se", {"reduction": 2}),
        ("cbam", {"reduction": 2}),
        ("vit", {"num_heads": 2, "depth": 2}),
        ("cait", {"num_heads": 2, "depth": 2, "layer_scale": 0.5}),
    ],
)
def test_numbers_of_numpy_are_numbers(name, options):
    numpy = {key: np.int64(value) if isinstance(value, int) else np.float32(value) for key, value in options.items()}
    x = torch.randn(2, 12, 8)
    pools = []
    for dim, arguments in ((8, options), (np.int32(8), numpy)):
        torch.manual_seed(0)
        pools.append(create_pool(name, dim, **arguments))
    torch.testing.assert_close(*(pool(x, grid=(np.int64(3), 4)) for pool in pools))


@pytest.mark.parametrize("name", ["gap", "simpool", "cbam"])
@pytest.mark.parametrize(
    "grid",
    [(3.0, 4.0), ("3", "4"), "34", (3,), (3, 4, 1), 12, (-3, -4), (0, 4), (True, 12), (NAN, 4), [3, None]],
    ids=repr,
)
def test_grids_that_are_none_are_refused(name, grid):
    pool = create_pool(name, 8)
    for x in (torch.randn(1, 12, 8), torch.randn(1, 8, 3, 4)):
        with pytest.raises(ValueError, match="grid"):
            pool(x, grid=grid)


@pytest.mark.parametrize(("field", "value"), [("k", True), ("T", 2.0), ("heads", "2"), ("reduce", "sum")])
def test_specs_check_their_numbers(field, value):
    with pytest.raises(ValueError, match=field):
        Spec(**{field: value})


def test_specs_take_numbers_of_numpy():
    assert type(Spec(T=np.int64(2)).T) is int


# The generalised mean


def exact(pool, x: torch.Tensor) -> torch.Tensor:
    """SimPool's z by the published formula, in float64 and in logarithms."""
    pool = pool.double()
    normed = pool.norm_patches(x.double())
    query = pool.wq(x.double().mean(1)).unflatten(-1, (pool.num_heads, -1))
    keys = pool.wk(normed).unflatten(-1, (pool.num_heads, -1))
    weights = (torch.einsum("bhc,bnhc->bhn", query, keys) * pool.scale).softmax(-1)
    values = (normed - normed.amin((1, 2), keepdim=True) + 1e-6).unflatten(-1, (pool.num_heads, -1))
    logs = weights.mT.unsqueeze(-1).log() + pool.gamma * values.log()
    return (logs.logsumexp(1) / pool.gamma).exp().flatten(1)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1, 1.25, 2, 3, 5, 5.5, 8, 20, 100, 1000])
@pytest.mark.parametrize("heads", [1, 4])
def test_generalised_mean_at_any_exponent(gamma, heads):
    torch.manual_seed(0)
    pool = create_pool("simpool", 64, gamma=gamma, num_heads=heads)
    x = 3 * torch.randn(4, 49, 64)
    fast, generic = pool(x), generic_pool(x, pool.spec())
    expected = exact(pool, x).float()
    tolerance = {"rtol": max(2e-6, 1e-6 / gamma), "atol": 1e-6}
    torch.testing.assert_close(fast, expected, **tolerance)
    torch.testing.assert_close(generic, expected, **tolerance)


@pytest.mark.parametrize("gamma", [5.5, 100])
def test_generalised_mean_has_the_right_gradient(gamma):
    torch.manual_seed(0)
    pool = create_pool("simpool", 8, gamma=gamma, num_heads=2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pool, x)
    (found,) = torch.autograd.grad(pool(x).square().sum(), x)
    (expected,) = torch.autograd.grad(exact(pool, x).square().sum(), x)
    torch.testing.assert_close(found, expected)
    single = create_pool("simpool", 8, gamma=gamma)
    y = (100 * torch.randn(2, 50, 8)).requires_grad_()
    single(y).sum().backward()
    assert y.grad.isfinite().all()


def test_large_exponents_tend_to_the_maximum():
    pool = create_pool("simpool", 16, gamma=1e5)
    x = torch.randn(2, 30, 16)
    normed = torch.nn.functional.layer_norm(x, (16,), eps=1e-6)
    torch.testing.assert_close(pool(x), normed.amax(1) - normed.amin((1, 2))[:, None], rtol=1e-3, atol=0)


@pytest.mark.parametrize("exponent", [-300.0, -7.0, 7.0, 300.0, torch.tensor([40.0]), torch.tensor([-40.0])])
def test_power_mean_where_weights_are_zero(exponent):
    """A value without weight does not count, however large or small it is."""
    V = torch.tensor([1e-6, 2.0, 3.0, 1e6]).view(1, 1, 4, 1)
    A = torch.tensor([[0.0, 0.25, 0.75, 0.0], [1.0, 0.0, 0.0, 0.0]]).view(1, 1, 2, 4).requires_grad_()
    z = power_mean(V, A, exponent)
    e = float(exponent)
    expected = 3 * (0.25 * (2 / 3) ** e + 0.75) ** (1 / e) if e > 0 else 2 * (0.25 + 0.75 * (3 / 2) ** e) ** (1 / e)
    assert z.flatten().tolist() == pytest.approx([expected, 1e-6], rel=1e-5)
    z.sum().backward()
    assert A.grad.isfinite().all()


def test_inverse_alone_is_still_the_inverse():
    f, f_inverse = f_alpha(1 - 2 * 7)
    assert f_inverse(f(torch.tensor([2.0]))).item() == pytest.approx(2)


@pytest.mark.parametrize(
    ("name", "options"), [("gem", {"gamma": 60.0}), ("gem", {"gamma": -60.0}), ("lse", {"r": 50.0})]
)
@pytest.mark.parametrize("learned", [True, False])
def test_other_means_do_not_overflow_either(name, options, learned):
    (key,) = options
    pool = create_pool(name, 8, **options, **{f"learn_{key}": learned})
    x = 5 + 10 * torch.rand(3, 20, 8)
    z = pool(x)
    assert ((x.amin(1) <= z) & (z <= x.amax(1) * (1 + 1e-5))).all()
    torch.testing.assert_close(generic_pool(x, pool.spec()), z)


# NaN

PER_CHANNEL = {"gap", "max", "gap_max", "gem", "lse"}
POOLS = [
    *((name, {}) for name in list_pools()),
    *(("simpool", {"gamma": gamma, "num_heads": 2}) for gamma in (0.5, 1.25, 2, 100)),
    ("simpool", {"gamma": 2, "shift": "channel"}), ("simpool", {"qk_scale": 0}),
    ("gem", {"gamma": -2, "learn_gamma": False}),
    ("kmeans", {"reduce": "concat"}), ("kmeans", {"reduce": "mean"}), ("kmeans", {"k": 1}), ("otk", {"k": 1}),
    ("slot", {"k": 1}), ("vit", {"depth": 2}), ("cait", {"depth": 2}), ("how", {"power": 1}),
    *(("ablated_simpool", {"attention": h, "init": u}) for h in ("softmax", "sparsemax", "sigmoid")
      for u in ("gap", "max", "energy", "learned", "kmeans", "cls")),
    ("ablated_simpool", {"init": "learned", "attention": "sparsemax", "norm": "", "gamma": 2, "learn_gamma": True}),
    ("ablated_simpool", {"similarity": "cosine", "T": 3}), ("ablated_simpool", {"similarity": "distance", "T": 2}),
]  # fmt: skip


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize(("name", "options"), POOLS)
def test_nan_stays_nan_and_stays_with_its_image(name, options, generic):
    torch.manual_seed(0)
    pool = create_pool(name, 8, **options)
    x = torch.rand(3, 12, 8)
    broken = x.clone()
    broken[1, 5, 3] = NAN
    with torch.no_grad():
        before, after = (generic_pool(t, pool.spec(), (3, 4)) if generic else pool(t, (3, 4)) for t in (x, broken))
    assert before.isfinite().all()
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=0)
    if name in PER_CHANNEL:
        assert after[1].isnan().tolist() == [channel == 3 for channel in range(8)]
        torch.testing.assert_close(after[1, :3], before[1, :3])
    else:
        assert after[1].isnan().all()


def test_only_the_minimum_of_the_batch_couples_images():
    pool = create_pool("simpool", 8, gamma=2, shift="batch")
    x = torch.rand(3, 12, 8)
    x[1, 5, 3] = NAN
    assert pool(x).isnan().all()


@pytest.mark.parametrize(("value", "expected"), [(INF, INF), (-INF, 1.0)])
def test_infinite_values_follow_arithmetic(value, expected):
    x = torch.tensor([[[1.0], [value]]])
    assert create_pool("max", 1)(x).item() == expected
    assert create_pool("gap", 1)(x).item() == value
    assert math.isnan(create_pool("simpool", 1)(x).item())
