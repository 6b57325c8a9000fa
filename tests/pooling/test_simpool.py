"""SimPool against its formula in float64, against timm, and against its own promises."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from test_pooling import one_thread  # noqa: F401
from timm.layers.other_pool import SimPool1d, SimPool2d
from torch import nn

from simpool_lite import SimPool, create_pool
from simpool_lite.pooling import AblatedSimPool

LETTERS = ("", "q", "k", "v", "qk", "qv", "kv", "qkv")


def formula(pool: torch.nn.Module, x: torch.Tensor, *, heads, gamma, init, norm, linear, shift, beta=0.0, scale=None):
    """Section 3.3 of the paper for one batch (B, N, d), one head at a time, in float64 numpy."""
    state = {name: value.detach().double().numpy() for name, value in pool.state_dict().items()}
    x = x.double().numpy()
    width = x.shape[2] // heads

    def layer_norm(rows):
        centred = rows - rows.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / spread * state["norm_patches.weight"] + state["norm_patches.bias"]

    def prepare(letter, rows):
        rows = layer_norm(rows) if letter in norm else rows
        if letter not in linear:
            return rows
        return rows @ state[f"w{letter}.weight"].T + state.get(f"w{letter}.bias", 0)

    starts = {
        "gap": lambda image: image.mean(0),
        "max": lambda image: image.max(0),
        "energy": lambda image: np.average(image, axis=0, weights=np.diag(image @ image.T)),
        "learned": lambda image: state["query"][0],
        "random": lambda image: state["query"][0],
    }
    all_values = prepare("v", x)
    axes = {"image": (1, 2), "batch": None, "channel": 1}[shift]
    shifted = all_values - all_values.min(axes, keepdims=True) + 1e-6

    query = prepare("q", np.stack([starts[init](image) for image in x]))
    keys = prepare("k", x)
    outputs, maps = [], []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = np.einsum("bnd,bd->bn", keys[..., part], query[:, part]) * (width**-0.5 if scale is None else scale)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        maps.append(weights)
        if gamma is None:
            outputs.append(np.einsum("bn,bnd->bd", weights, all_values[..., part]))
        else:
            powers = np.einsum("bn,bnd->bd", weights, shifted[..., part] ** gamma)
            outputs.append(powers ** (1 / gamma) + beta)
    return np.concatenate(outputs, 1), np.stack(maps, 1)


def randomised(pool: torch.nn.Module) -> torch.nn.Module:
    """The pool with no parameter left at a special value (a LayerNorm's 1 and 0, a bias of 0)."""
    with torch.no_grad():
        for name, parameter in pool.named_parameters():
            if name != "gamma":
                parameter.add_(0.3 * torch.randn_like(parameter))
    return pool


@pytest.mark.parametrize("shift", ("image", "batch", "channel"))
@pytest.mark.parametrize("init", ("gap", "max", "energy", "learned", "random"))
@pytest.mark.parametrize("gamma", (None, 1.25, 2.0))
@torch.no_grad()
def test_every_combination_equals_the_formula(gamma, init, shift):
    torch.manual_seed(0)
    x = torch.randn(3, 7, 8)
    combinations = list(product(LETTERS, LETTERS, (1, 2), (False, True), (False, True)))
    ours, expected = [], []
    for norm, linear, heads, bias, use_beta in combinations:
        arguments = {"init": init, "norm": norm, "linear": linear, "shift": shift}
        pool = randomised(AblatedSimPool(8, heads, bias, gamma=gamma, use_beta=use_beta, **arguments))
        beta = pool.beta.item() if gamma is not None and use_beta else 0.0
        ours += [output.numpy().ravel() for output in pool(x, return_attention=True)]
        expected += [o.ravel() for o in formula(pool, x, heads=heads, gamma=gamma, beta=beta, **arguments)]
    # Compared all at once: a comparison takes as long as a pooling this small.
    if not np.allclose(np.concatenate(ours), np.concatenate(expected), rtol=1e-5, atol=1e-5):
        for number, (z, expected_z) in enumerate(zip(ours, expected, strict=True)):
            message = f"norm, linear, heads, bias, beta = {combinations[number // 2]}"
            np.testing.assert_allclose(z, expected_z, rtol=1e-5, atol=1e-5, err_msg=message)


@pytest.mark.parametrize("shift", ("image", "batch", "channel"))
@pytest.mark.parametrize("gamma", (None, 1.25, 2.0))
def test_the_published_method_equals_the_formula_and_what_is_ablated(gamma, shift):
    """For heads, biases and beta; and AblatedSimPool, with the parameters of SimPool, has its output and gradients."""
    for heads, bias, use_beta in product((1, 2), (False, True), (False, True)):
        torch.manual_seed(0)
        x = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
        arguments = {"gamma": gamma, "use_beta": use_beta, "shift": shift, "eps": 1e-3}
        pool = randomised(SimPool(8, heads, bias, **arguments)).double()
        ablated = create_pool("ablated_simpool", 8, num_heads=heads, qkv_bias=bias, **arguments).double()
        ablated.load_state_dict(pool.state_dict())
        torch.testing.assert_close(pool(x, return_attention=True), ablated(x, return_attention=True))
        gradients = [
            torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()]) for module in (pool, ablated)
        ]
        torch.testing.assert_close(*gradients)
        pool.norm_patches.eps = 1e-6  # the eps of the formula above, set on the module
        expected, _ = formula(
            pool, x.detach(), heads=heads, gamma=gamma, init="gap", norm="kv", linear="qk", shift=shift,
            beta=pool.beta.item() if pool.beta is not None else 0.0,
        )  # fmt: skip
        np.testing.assert_allclose(pool(x).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("gamma", (None, 1.25, 2.0))
def test_published_size_equals_the_formula(gamma):
    torch.manual_seed(0)
    pool, x = SimPool(384, gamma=gamma), torch.randn(2, 196, 384)
    expected, _ = formula(pool, x, heads=1, gamma=gamma, init="gap", norm="kv", linear="qk", shift="image")
    np.testing.assert_allclose(pool(x).detach().numpy(), expected, atol=1e-5)


def test_scale_and_learned_gamma():
    torch.manual_seed(0)
    pool, x = AblatedSimPool(8, qk_scale=0.7, gamma=1.5, learn_gamma=True), torch.randn(2, 5, 8)
    with torch.no_grad():
        pool.gamma.fill_(2.5)
    common = {"heads": 1, "init": "gap", "norm": "kv", "linear": "qk", "shift": "image"}
    expected, _ = formula(pool, x, gamma=2.5, scale=0.7, **common)
    np.testing.assert_allclose(pool(x).detach().numpy(), expected, atol=1e-5)
    pool(x).sum().backward()
    assert pool.gamma.grad.abs().item() > 0


@pytest.mark.parametrize("heads", (1, 6))
@pytest.mark.parametrize("gamma", (None, 1.25, 2.0))
@pytest.mark.parametrize("layout", ("tokens", "map"))
def test_equals_timm(layout, gamma, heads):
    torch.manual_seed(0)
    timm_class = SimPool1d if layout == "tokens" else SimPool2d
    theirs = timm_class(384, heads, gamma=gamma, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    ours = SimPool(384, heads, gamma=gamma, shift="channel")
    renamed = {"norm": "norm_patches", "q": "wq", "k": "wk"}
    ours.load_state_dict({f"{renamed[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in theirs.state_dict().items()})
    x = torch.randn(2, 196, 384) if layout == "tokens" else torch.randn(2, 384, 14, 14)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gamma", (None, 2.0))
@pytest.mark.parametrize("given", (True, False))
def test_there_is_one_eps(gamma, given):
    """timm's own is 1e-5; features with little spread show which one is used."""
    torch.manual_seed(0)
    theirs = SimPool1d(64, gamma=gamma).double()
    ours = SimPool(64, gamma=gamma, shift="channel", **({"eps": 1e-5} if given else {})).double()
    ours.norm_patches.eps = 1e-5
    renamed = {"norm": "norm_patches", "q": "wq", "k": "wk"}
    ours.load_state_dict({f"{renamed[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in theirs.state_dict().items()})
    x = 3e-3 * torch.randn(2, 49, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("gamma", (None, 1.0))
def test_eps_of_the_layer_norm_by_hand(gamma):
    """A variance of 1e-6 is that of eps, so a thousandth becomes 1 / sqrt 2; twice that above the minimum."""
    x = torch.tensor([1e-3, -1e-3], dtype=torch.float64).expand(1, 3, 2)
    z = create_pool("simpool", 2, gamma=gamma).double()(x)[0]
    expected = torch.tensor([0.5**0.5, -(0.5**0.5)] if gamma is None else [2**0.5 + 1e-6, 1e-6])
    torch.testing.assert_close(z, expected.double(), rtol=1e-6, atol=1e-9)


def test_state_dict_has_the_published_keys():
    assert list(SimPool(8, gamma=2.0).state_dict()) == [
        "norm_patches.weight", "norm_patches.bias", "wq.weight", "wk.weight",
    ]  # fmt: skip
    full = AblatedSimPool(8, qkv_bias=True, gamma=2.0, use_beta=True, linear="qkv", init="learned", learn_gamma=True)
    shapes = {name: tuple(value.shape) for name, value in full.state_dict().items()}
    assert shapes == {
        "norm_patches.weight": (8,), "norm_patches.bias": (8,), "query": (1, 8), "beta": (1,), "gamma": (1,),
        "wq.weight": (8, 8), "wq.bias": (8,), "wk.weight": (8, 8), "wk.bias": (8,), "wv.weight": (8, 8),
        "wv.bias": (8,),
    }  # fmt: skip
    assert list(AblatedSimPool(8, norm="", linear="").state_dict()) == []


def test_random_query_is_drawn_once_from_torch_generator():
    torch.manual_seed(3)
    first = AblatedSimPool(8, init="random")
    torch.manual_seed(3)
    second = AblatedSimPool(8, init="random")
    assert "query" in first.state_dict() and "query" not in dict(first.named_parameters())
    assert torch.equal(first.query, second.query)
    assert not torch.equal(first.query, AblatedSimPool(8, init="random").query)


@pytest.mark.parametrize("shift", ("image", "channel", "batch"))
def test_only_the_batch_shift_couples_images(shift):
    torch.manual_seed(0)
    pool, x = (
        AblatedSimPool(16, gamma=2.0, shift=shift, norm="k").double(),
        torch.randn(2, 9, 16, dtype=torch.float64),
    )
    outlier = torch.cat([x[:1], 100 * x[1:]])
    same = torch.allclose(pool(x)[0], pool(outlier)[0], rtol=1e-12)
    assert same == (shift != "batch")


@pytest.mark.parametrize("gamma", (None, 2.0))
def test_constant_image_is_a_fixed_point(gamma):
    """Every weighted mean of one value is that value: LayerNorm of it, plus nothing but the shift."""
    pool, x = AblatedSimPool(6, gamma=gamma, norm=""), torch.full((1, 4, 6), 3.0)
    expected = torch.full((1, 6), 3.0 if gamma is None else 1e-6)
    torch.testing.assert_close(pool(x), expected)


@pytest.mark.parametrize("gamma", (None, 1.25))
@pytest.mark.parametrize("heads", (1, 2))
def test_gradients(gamma, heads):
    torch.manual_seed(0)
    pool = randomised(AblatedSimPool(4, heads, True, gamma=gamma, learn_gamma=gamma is not None)).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*pool.named_parameters(), strict=True)

    def call(x, *parameters):
        return torch.func.functional_call(pool, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_survives_what_overflows_it(dtype):
    """(v - min V)^5 is about 3e6 here, above float16's largest number."""
    torch.manual_seed(0)
    pool, x = AblatedSimPool(32, gamma=5.0, norm="k"), 10 * torch.randn(2, 50, 32)
    expected = pool(x)
    z = pool.to(dtype)(x.to(dtype))
    assert z.dtype == dtype
    torch.testing.assert_close(z.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_heads": 3}, "num_heads"),
        ({"num_heads": 0}, "num_heads"),
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": float("inf")}, "gamma"),
        ({"gamma": "2"}, "gamma"),
        ({"gamma": True}, "gamma"),
        ({"qk_scale": float("nan")}, "qk_scale"),
        ({"qk_scale": "1"}, "qk_scale"),
        ({"eps": 0}, "eps"),
        ({"shift": "pixel"}, "shift"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    for pool in (SimPool, AblatedSimPool):
        with pytest.raises(ValueError, match=f"^{named}: expected .* got "):
            pool(8, **arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"learn_gamma": True}, "learn_gamma"),
        ({"init": "mean"}, "init"),
        ({"tied": True, "linear": "k"}, "tied"),
        ({"norm": "x"}, "norm"),
        ({"norm": None}, "norm"),
        ({"linear": "qkz"}, "linear"),
    ],
)
def test_bad_switches_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: expected .* got "):
        AblatedSimPool(8, **arguments)


def test_simpool_has_no_switches():
    with pytest.raises(TypeError, match=r"^init: pool 'simpool' does not have .*; 'ablated_simpool' has it"):
        create_pool("simpool", 64, init="max")


def test_numbers_of_numpy_are_numbers():
    pool = SimPool(np.int64(8), np.int32(2), gamma=np.float32(2.0))
    assert type(pool.dim) is int and pool(torch.randn(2, 3, 8)).shape == (2, 8)
