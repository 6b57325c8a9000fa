"""What holds for every pooling: one table, one line a method."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpool_lite import create_pool, list_pools

# name -> arguments worth testing beside the defaults
ARGUMENTS = {
    "gap": [{}],
    "simpool": [{}, {"gamma": 2.0, "num_heads": 2, "qkv_bias": True}, {"init": "learned", "gamma": 1.25}],
}
CASES = [
    pytest.param(name, kw, id=f"{name}-{i}") for name in ARGUMENTS for i, kw in enumerate(ARGUMENTS[name])
]
DIM = 8


def pool_of(name: str, kwargs: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_pool(name, DIM, **kwargs).double()


def test_the_table_is_complete():
    assert list(ARGUMENTS) == list_pools()


@pytest.mark.parametrize(("name", "kwargs"), CASES)
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5), seed=st.integers(0, 999))
def test_layout_order_and_batch(name, kwargs, batch, height, width, seed):
    """Tokens and maps agree; positions may be permuted; an image does not see its batch mates."""
    pool = pool_of(name, kwargs)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, height * width, DIM, dtype=torch.float64, generator=generator)
    order = torch.randperm(height * width, generator=generator)
    z, a = pool(tokens, return_attention=True)
    assert z.shape == (batch, pool.out_dim)

    z_map, a_map = pool(tokens.mT.unflatten(2, (height, width)), return_attention=True)
    torch.testing.assert_close(z_map, z)
    z_permuted, a_permuted = pool(tokens[:, order], return_attention=True)
    torch.testing.assert_close(z_permuted, z)
    torch.testing.assert_close(pool(tokens[:1])[0], z[0])
    if a is not None:
        assert a.shape[::2] == (batch, height * width) and (a >= 0).all()
        torch.testing.assert_close(a.sum(-1), torch.ones(a.shape[:2], dtype=a.dtype))
        torch.testing.assert_close(a_map, a.unflatten(-1, (height, width)))
        torch.testing.assert_close(a_permuted, a[..., order])


@pytest.mark.parametrize(("name", "kwargs"), CASES)
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32, torch.float64))
def test_dtypes(name, kwargs, dtype):
    pool, x = pool_of(name, kwargs), torch.randn(2, DIM, 3, 5, dtype=torch.float64)
    exact = pool(x)
    z, a = pool.to(dtype)(x.to(dtype), return_attention=True)
    assert z.dtype == dtype and (a is None or a.dtype == dtype)
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(z.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_autocast_and_memory_layouts(name, kwargs):
    pool, x = pool_of(name, kwargs).float(), torch.randn(2, DIM, 4, 6)
    z = pool(x)
    torch.testing.assert_close(pool(x.contiguous(memory_format=torch.channels_last)), z)
    torch.testing.assert_close(pool(x.mT.contiguous().mT), z)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(pool(x), z)  # a float32 map is pooled in float32
        assert pool(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_compile_and_export(name, kwargs):
    pool = pool_of(name, kwargs).float().eval()
    for x in (torch.randn(2, 12, DIM), torch.randn(2, DIM, 3, 4)):
        torch._dynamo.reset()
        # "eager" captures the graph, which is what may fail, without minutes of code generation.
        compiled = torch.compile(pool, fullgraph=True, backend="eager")
        exported = torch.export.export(pool, (x,)).module()
        torch.testing.assert_close(compiled(x), pool(x))
        torch.testing.assert_close(exported(x), pool(x))
        for ours, theirs in zip(
            compiled(x, return_attention=True), pool(x, return_attention=True), strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_no_parameter_is_left_without_a_gradient(name, kwargs):
    pool = pool_of(name, kwargs)
    pool(torch.randn(2, 5, DIM, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in pool.parameters())


@pytest.mark.parametrize("name", list_pools())
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "x: expected a floating-point tensor, got list"),
        (
            torch.ones(1, 2, DIM, dtype=torch.int64),
            TypeError,
            "x: expected a floating-point tensor, got torch.int64",
        ),
        (torch.ones(2, DIM), ValueError, r"x: expected tokens .* got shape \(2, 8\)"),
        (torch.ones(1, 5, DIM + 1), ValueError, r"x: expected 8 channels on axis 2 .* got shape \(1, 5, 9\)"),
        (
            torch.ones(1, 5, 2, DIM),
            ValueError,
            r"x: expected 8 channels on axis 1 .* got shape \(1, 5, 2, 8\)",
        ),
        (torch.ones(1, 0, DIM), ValueError, "x: expected at least one position"),
    ],
)
def test_bad_input_is_named(name, x, error, message):
    with pytest.raises(error, match=message):
        create_pool(name, DIM)(x)


@pytest.mark.parametrize("name", list_pools())
def test_grid_must_fit(name):
    pool = create_pool(name, DIM)
    with pytest.raises(ValueError, match=r"grid: expected H \* W = 6"):
        pool(torch.ones(1, 6, DIM), grid=(2, 2))
    with pytest.raises(ValueError, match=r"grid: expected \(2, 3\)"):
        pool(torch.ones(1, DIM, 2, 3), grid=(3, 2))


def test_create_pool_names_what_is_wrong():
    with pytest.raises(ValueError, match="name: expected one of gap, .*got 'nonesuch'"):
        create_pool("nonesuch", DIM)
    with pytest.raises(ValueError, match="dim: expected .* got 0"):
        create_pool("gap", 0)
    with pytest.raises(
        TypeError, match="gama: pool 'simpool' does not have this argument; expected one of num_heads"
    ):
        create_pool("simpool", DIM, gama=2.0)


def test_gap_is_the_mean():
    x = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [2.0, 8.0]]])
    z, a = create_pool("gap", 2)(x, return_attention=True)
    assert z.tolist() == [[2.0, 4.0]]
    torch.testing.assert_close(a, torch.full((1, 1, 3), 1 / 3))


def test_import_is_lazy():
    """`import simpool_lite` loads nothing heavy; using a pooling loads torch but not timm."""
    code = (
        "import sys, simpool_lite; assert 'torch' not in sys.modules; simpool_lite.create_pool('gap', 4);"
        "assert not {'timm', 'torchvision', 'pandas', 'sklearn', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
