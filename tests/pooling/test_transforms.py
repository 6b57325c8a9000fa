"""torch.func over the poolings, against ordinary differentiation and loops; batches without images."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from simpool_lite import create_pool, list_pools

SIMPOOLS = {
    "plain": {},
    "heads": {"num_heads": 2, "qkv_bias": True},
    "gamma": {"gamma": 1.25, "use_beta": True},
    "large gamma": {"gamma": 20.0},
    "channel": {"gamma": 2.0, "shift": "channel"},
}
NO_VMAP_OF_GRAD = ("slot",)  # torch has no rule for its GRU cell
OTHERS = [name for name in [*list_pools(), *list_pools(family="probing")] if name != "simpool"]


@pytest.fixture(params=[*SIMPOOLS, *OTHERS])
def pool(request):
    torch.manual_seed(0)
    name, options = ("simpool", SIMPOOLS[request.param]) if request.param in SIMPOOLS else (request.param, {})
    return create_pool(name, 4, **options).double().eval()  # a BatchNorm that counts batches has no transform


@pytest.fixture
def x():
    return torch.rand(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def has_vmap_of_grad(pool) -> bool:
    return type(pool).__name__.lower() not in NO_VMAP_OF_GRAD


def image(pool):
    """The pooling of one image, (N, d) to (out_dim,)."""
    return lambda tokens: pool(tokens[None], grid=(2, 3))[0]


def jacobian(function, tokens):
    return torch.autograd.functional.jacobian(function, tokens)


def test_vmap_is_a_batch(pool, x):
    torch.testing.assert_close(vmap(image(pool))(x), pool(x, grid=(2, 3)))


def test_gradients_of_each_image(pool, x):
    """vmap of grad, with respect to the parameters: what an image alone would give."""
    parameters = dict(pool.named_parameters())
    if not parameters or not has_vmap_of_grad(pool):
        pytest.skip("no parameters, or no rule")

    def loss(parameters, tokens):
        return functional_call(pool, parameters, (tokens[None], (2, 3))).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(3):
        total = pool(x[index : index + 1], grid=(2, 3)).square().sum()
        expected = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
        for (name, values), one in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(values[index], one, msg=name)


def test_jacobians(pool, x):
    expected = jacobian(image(pool), x[0])
    torch.testing.assert_close(jacrev(image(pool))(x[0]), expected)
    torch.testing.assert_close(jacfwd(image(pool))(x[0]), expected)
    if has_vmap_of_grad(pool):
        torch.testing.assert_close(vmap(jacrev(image(pool)))(x)[0], expected)


def test_forward_mode(pool, x):
    direction = torch.randn_like(x[0])
    expected = torch.einsum("znd,nd->z", jacobian(image(pool), x[0]), direction)
    value, found = jvp(image(pool), (x[0],), (direction,))
    torch.testing.assert_close(value, image(pool)(x[0]))
    torch.testing.assert_close(found, expected)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(image(pool)(forward_ad.make_dual(x[0], direction)))
    torch.testing.assert_close(dual.tangent, expected)


@pytest.mark.parametrize("name", SIMPOOLS)
def test_hessians(name, x):
    torch.manual_seed(0)
    pool = create_pool("simpool", 4, **SIMPOOLS[name]).double()

    def loss(tokens):
        return image(pool)(tokens).square().sum()

    torch.testing.assert_close(hessian(loss)(x[0]), torch.autograd.functional.hessian(loss, x[0]))


@pytest.mark.parametrize("name", ["gap", "max", "gem", *SIMPOOLS, "batch"])
def test_a_batch_without_images(name):
    options = SIMPOOLS.get(name, {"gamma": 2.0, "shift": "batch"} if name == "batch" else None)
    pool = create_pool(name, 4) if options is None else create_pool("simpool", 4, **options)
    x = torch.empty(0, 6, 4, requires_grad=True)
    z = pool(x)
    assert z.shape == (0, 4)
    z.sum().backward()
    assert x.grad.shape == x.shape
    assert pool(torch.empty(0, 4, 2, 3), return_attention=True)[0].shape == (0, 4)
