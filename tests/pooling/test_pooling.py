"""What holds for every pooling: one table for all."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpool_lite import create_pool, list_pools
from simpool_lite.pooling import Pool

# name -> arguments worth testing beside the defaults. A pooling that is not named here is tested with its defaults.
ARGUMENTS = {
    "gem": [{"gamma": 1.5, "learn_gamma": False}],
    "lse": [{"r": -2.0, "learn_r": False}],
    "how": [{"power": 1}],
    "kmeans": [{"k": 1}, {"k": 2, "reduce": "concat"}],
    "otk": [{"k": 1}, {"k": 2, "reduce": "concat", "eps": 1.0}],
    "slot": [{"k": 1}, {"k": 2, "reduce": "mean", "iterations": 2}],
    "se": [{"reduction": 2}],
    "cbam": [{"reduction": 2}],
    "ge": [{"parametric": False}],
    "vit": [{"depth": 2, "num_heads": 1}],
    "cait": [{"depth": 2, "num_heads": 2}],
    "simpool": [{"gamma": 2.0, "num_heads": 2, "qkv_bias": True}, {"gamma": 1.25, "shift": "channel"}],
    "ep": [{"num_queries": 2, "d_out": 2}],
    "aim": [{"num_heads": 2, "num_queries": 3}],
    "clip": [{"num_heads": 2, "feat_size": (3, 4)}],
}
NAMES = list_pools() + list_pools(family="probing")
CASES = [
    pytest.param(name, kwargs, id=f"{name}-{i}")
    for name in NAMES
    for i, kwargs in enumerate([{}, *ARGUMENTS.get(name, [])])
]
DIM = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Thousands of operations on a few numbers each: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pool_of(name: str, kwargs: dict, dim: int = DIM) -> Pool:
    """A pool in float64 with no parameter left at a special value (a LayerNorm's 1, a bias of 0, ...).

    In evaluation mode, with running statistics of no special value either; in training mode a BatchNorm's are the
    batch's.
    """
    torch.manual_seed(0)
    pool = create_pool(name, dim, **kwargs).double().eval()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for key, buffer in pool.named_buffers():
            if "running" in key:
                buffer.add_(torch.rand_like(buffer))
    return pool


def test_every_listed_pool_has_the_papers_group():
    """The list is in the table's order; an argument that is tested belongs to a pool that is listed."""
    groups = [create_pool(name, DIM).group for name in list_pools()]
    assert groups == sorted(groups) and set(groups) == {1, 2, 3, 4, 5}
    assert set(ARGUMENTS) <= set(NAMES)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=st.integers(0, 999),
)
def test_layout_order_and_batch(name, kwargs, batch, height, width, dtype, seed):
    """Tokens and maps agree; positions may be permuted; an image does not see its batch mates."""
    pool = pool_of(name, kwargs).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, height * width, DIM, dtype=torch.float64, generator=generator).to(dtype)
    order = torch.randperm(height * width, generator=generator)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    # Only what sees where a position is may be told the grid, so that others show that they do without.
    grid = (height, width) if pool.needs_grid else None
    z, a = pool(tokens, grid, return_attention=True)
    assert z.shape == (batch, pool.out_dim) and z.dtype == dtype and z.isfinite().all()

    z_map, a_map = pool(tokens.mT.unflatten(2, (height, width)), return_attention=True)
    torch.testing.assert_close(z_map, z, **close)
    torch.testing.assert_close(pool(tokens[:1], grid)[0], z[0], **close)
    if a is not None:
        assert a.shape[::2] == (batch, height * width) and (a >= 0).all()
        torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]), **close)
        torch.testing.assert_close(a_map, a.unflatten(-1, (height, width)), **close)
    if not pool.needs_grid:
        z_permuted, a_permuted = pool(tokens[:, order], return_attention=True)
        torch.testing.assert_close(z_permuted, z, **close)
        assert (a is None) == (a_permuted is None)
        if a is not None:
            torch.testing.assert_close(a_permuted, a[..., order], **close)


def test_only_convolutions_and_position_embeddings_see_the_order():
    """The exceptions to the permutation property above are these, and they are real."""
    x = torch.randn(1, DIM, 5, 5, dtype=torch.float64)
    seeing = set()
    for name, kwargs in (case.values for case in CASES):
        pool = pool_of(name, kwargs)
        same = torch.allclose(pool(x.flip(2, 3).transpose(2, 3).roll(1, 2)), pool(x))
        assert same != pool.needs_grid
        seeing |= {name} if pool.needs_grid else set()
    assert seeing == {"how", "cbam", "ge", "clip"}


@pytest.mark.parametrize(("name", "kwargs"), CASES)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_dtypes(name, kwargs, dtype):
    """Half-precision input and parameters are pooled as if in float64: only the result is rounded."""
    pool, x = pool_of(name, kwargs).to(dtype), torch.randn(2, DIM, 3, 5, dtype=torch.float64).to(dtype)
    exact, exact_a = copy.deepcopy(pool).double()(x.double(), return_attention=True)
    z, a = pool(x, return_attention=True)
    assert z.dtype == dtype
    tolerance = {"rtol": 20 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    torch.testing.assert_close(z.double(), exact, **tolerance)
    assert (a is None) == (exact_a is None)
    if a is not None:
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), exact_a, **tolerance)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_autocast_and_memory_layouts(name, kwargs):
    pool, x = pool_of(name, kwargs).float(), torch.randn(2, DIM, 4, 6)
    z = pool(x)
    torch.testing.assert_close(pool(x.contiguous(memory_format=torch.channels_last)), z)
    torch.testing.assert_close(pool(x.mT.contiguous().mT), z)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(pool(x), z)  # a float32 map is pooled in float32
        assert pool(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", (0.0, 3.0))
def test_constant_images_give_finite_maps_and_gradients(name, value):
    pool = pool_of(name, {})
    for shape in ((2, DIM, 3, 3), (1, DIM, 1, 1)):
        x = torch.full(shape, value, dtype=torch.float64, requires_grad=True)
        z, a = pool(x, return_attention=True)
        z.sum().backward()
        assert z.isfinite().all() and x.grad.isfinite().all()
        assert a is None or torch.allclose(a.sum((-2, -1)), torch.ones_like(a[..., 0, 0]))


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_export(name, kwargs):
    pool = pool_of(name, kwargs).float().eval()
    for x in (torch.randn(2, 12, DIM), torch.randn(2, DIM, 3, 4)):
        grid = (3, 4) if pool.needs_grid else None
        free_batch = ({0: torch.export.Dim("batch")}, grid and (None, None))
        exported = torch.export.export(pool, (x, grid), dynamic_shapes=free_batch).module()
        x = torch.cat([x, x[:1] + 1])
        torch.testing.assert_close(exported(x, grid), pool(x, grid))


def compiled(pool: Pool) -> torch.nn.Module:
    # "eager" captures the graph, which is what may fail, without minutes of code generation; and without
    # dynamic shapes, which double the time.
    # All poolings share forward's code, whose recompilations torch limits: each compiled module counts its own.
    return torch.compile(pool, fullgraph=True, backend="eager", dynamic=False, isolate_recompiles=True)


def test_all_poolings_compile_in_one_process():
    """torch.compile limits the recompilations of a code object: one shared by all poolings would fail."""
    torch._dynamo.reset()
    for name in NAMES:
        pool = pool_of(name, {}, dim=16).float()
        tokens, maps = torch.randn(2, 12, 16), torch.randn(2, 16, 3, 4)
        torch.testing.assert_close(compiled(pool)(maps), pool(maps))
        both = {"grid": (3, 4), "return_attention": True}
        torch.testing.assert_close(compiled(pool)(tokens, **both), pool(tokens, **both))


@pytest.mark.parametrize("name", ("gem", "slot", "ge", "cait", "simpool", "aim", "clip"))
def test_half_precision_parameters_compile_and_export(name):
    torch._dynamo.reset()
    pool, x = pool_of(name, {}).bfloat16(), torch.randn(2, DIM, 3, 4).bfloat16()
    torch.testing.assert_close(compiled(pool)(x), pool(x))
    torch.testing.assert_close(torch.export.export(pool, (x,)).module()(x), pool(x))


@pytest.mark.parametrize("name", [name for name in NAMES if list(create_pool(name, DIM).parameters())])
def test_half_precision_parameters_get_their_gradients(name):
    """Through the cast, to the module's own parameters, also of a copy that was pickled."""
    pool, x = pool_of(name, {}).bfloat16(), torch.randn(2, DIM, 3, 4).bfloat16()
    pool = pickle.loads(pickle.dumps(copy.deepcopy(pool)))
    exact = copy.deepcopy(pool).double()
    pool(x).double().sum().backward()
    exact(x.double()).sum().backward()
    for (key, ours), theirs in zip(pool.named_parameters(), exact.parameters(), strict=True):
        assert ours.dtype == ours.grad.dtype == torch.bfloat16, key
        torch.testing.assert_close(
            ours.grad.double(), theirs.grad, rtol=0.05, atol=1e-5 + 0.02 * float(theirs.grad.norm())
        )


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_everything_gets_a_gradient(name, kwargs):
    pool, x = pool_of(name, kwargs), torch.randn(2, DIM, 2, 3, dtype=torch.float64, requires_grad=True)
    pool(x).square().sum().backward()
    for name, tensor in [("x", x), *pool.named_parameters()]:
        assert tensor.grad is not None and tensor.grad.isfinite().all(), name
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_gradients_are_right(name, kwargs):
    """Almost everywhere: a random image is not where a maximum or an assignment changes."""
    pool = pool_of(name, kwargs)
    x = torch.randn(2, DIM, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in pool.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(pool, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *pool.parameters()), fast_mode=True)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_outputs_are_functions_of_input_and_state(name, kwargs):
    """Random numbers are drawn at construction, from torch's generator, and travel in the state dict."""
    x = torch.randn(2, DIM, 3, 3, dtype=torch.float64)
    first, again, other = (create_pool_seeded(name, kwargs, seed) for seed in (1, 1, 2))
    assert torch.equal(first(x), first(x)) and torch.equal(first(x), again(x))
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(x), other(x))


def create_pool_seeded(name: str, kwargs: dict, seed: int) -> Pool:
    torch.manual_seed(seed)
    return create_pool(name, DIM, **kwargs).double().eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "x: expected a floating-point tensor of 16 bits or more, got list"),
        (torch.ones(1, 2, DIM, dtype=torch.int64), TypeError, "x: expected a floating-point tensor.*, got torch.int64"),
        (torch.ones(2, DIM), ValueError, r"x: expected tokens .* got shape \(2, 8\)"),
        (torch.ones(1, 5, DIM + 1), ValueError, r"x: expected 8 channels on axis 2 .* got shape \(1, 5, 9\)"),
        (torch.ones(1, 5, 2, DIM), ValueError, r"x: expected 8 channels on axis 1 .* got shape \(1, 5, 2, 8\)"),
        (torch.ones(1, 0, DIM), ValueError, "x: expected at least one position"),
    ],
)
def test_bad_input_is_named(name, x, error, message):
    with pytest.raises(error, match=message):
        create_pool(name, DIM)(x)


@pytest.mark.parametrize("name", NAMES)
def test_grid_must_fit(name):
    pool = create_pool(name, DIM)
    with pytest.raises(ValueError, match=r"grid: expected H \* W = 6"):
        pool(torch.ones(1, 6, DIM), grid=(2, 2))
    with pytest.raises(ValueError, match=r"grid: expected \(2, 3\)"):
        pool(torch.ones(1, DIM, 2, 3), grid=(3, 2))


@pytest.mark.parametrize(("name", "kwargs"), [("how", {}), ("cbam", {}), ("ge", {"parametric": True}), ("clip", {})])
def test_a_missing_grid_is_named(name, kwargs):
    with pytest.raises(ValueError, match=r"grid: expected \(H, W\) of the 6 tokens, .* got None"):
        create_pool(name, DIM, **kwargs)(torch.ones(1, 6, DIM))


@pytest.mark.parametrize(
    ("name", "kwargs", "named"),
    [
        ("gem", {"gamma": 0}, "gamma"),
        ("gem", {"gamma": float("nan")}, "gamma"),
        ("lse", {"r": 0.0}, "r"),
        ("lse", {"r": "10"}, "r"),
        ("kmeans", {"k": 0}, "k"),
        ("kmeans", {"k": 2.0}, "k"),
        ("kmeans", {"iterations": 0}, "iterations"),
        ("otk", {"reduce": "sum"}, "reduce"),
        ("otk", {"eps": 0.0}, "eps"),
        ("otk", {"eps": -1.0}, "eps"),
        ("slot", {"k": True}, "k"),
        ("se", {"reduction": 0}, "reduction"),
        ("cbam", {"reduction": 0}, "reduction"),
        ("vit", {"num_heads": 3}, "num_heads"),
        ("vit", {"num_heads": True}, "num_heads"),
        ("cait", {"depth": 0}, "depth"),
        ("cait", {"layer_scale": 0.0}, "layer_scale"),
        ("how", {"power": 3}, "power"),
        ("ep", {"num_queries": 3}, "num_queries"),
        ("ep", {"num_queries": 8, "d_out": 2}, "num_queries"),
        ("ep", {"d_out": 3}, "d_out"),
        ("esimpool", {"num_heads": 3}, "num_heads"),
        ("aim", {"num_heads": 16}, "num_heads"),
        ("aim", {"num_queries": 0}, "num_queries"),
        ("siglip", {"num_heads": 3}, "num_heads"),
        ("coca", {"head_dim": 0}, "head_dim"),
        ("cae", {"num_heads": 3}, "num_heads"),
        ("jepa", {"num_heads": 16}, "num_heads"),
        ("clip", {"num_heads": 3}, "num_heads"),
        ("clip", {"feat_size": 0}, "feat_size"),
        ("clip", {"feat_size": (3, 4, 5)}, "feat_size"),
        ("dinovit", {"num_heads": 3}, "num_heads"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, named):
    with pytest.raises(ValueError, match=f"^{named}: expected .* got "):
        create_pool(name, DIM, **kwargs)


def test_create_pool_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"name: expected one of gap, .*got 'nonesuch'"):
        create_pool("nonesuch", DIM)
    with pytest.raises(ValueError, match=r"got 'simpol'; did you mean 'simpool'\?"):
        create_pool("simpol", DIM)
    with pytest.raises(TypeError, match=r"init: pool 'simpool' does not .*'ablated_simpool'"):
        create_pool("simpool", DIM, init="max")
    with pytest.raises(ValueError, match=r"dim: expected .* got 0"):
        create_pool("gap", 0)
    with pytest.raises(TypeError, match=r"gama: pool 'simpool' does not have this argument; expected one of num_heads"):
        create_pool("simpool", DIM, gama=2.0)


def test_numbers_of_numpy_are_numbers():
    pool = create_pool("simpool", np.int64(8), num_heads=np.int32(2), gamma=np.float32(1.5), qk_scale=np.float64(0.5))
    x = torch.randn(2, 5, 8)
    expected = create_pool("simpool", 8, num_heads=2, gamma=1.5, qk_scale=0.5)
    expected.load_state_dict(pool.state_dict())
    assert torch.equal(pool(x), expected(x))
    for value in (np.bool_(True), np.float64("nan"), "1"):
        with pytest.raises(ValueError, match=r"^gamma: expected"):
            create_pool("simpool", 8, gamma=value)
        with pytest.raises(ValueError, match=r"^k: expected"):
            create_pool("otk", 8, k=value)


def test_import_is_lazy():
    """`import simpool_lite` loads nothing heavy; using a pooling loads torch but not timm."""
    code = (
        "import sys, simpool_lite; assert 'torch' not in sys.modules; simpool_lite.create_pool('gap', 4);"
        "assert not {'timm', 'torchvision', 'pandas', 'sklearn', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
