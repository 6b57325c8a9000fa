"""Attention that reads the positions a few images at a time: values, derivatives, digits and memory."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from simpool_lite import SimPool
from simpool_lite.pooling import attend as module
from simpool_lite.pooling.attend import attend, average

NORMS = [{"norm_keys": keys, "norm_values": values} for keys, values in product((False, True), repeat=2)]


def formula(tokens, queries, norm_keys=True, norm_values=True):
    """The paper's, in the dtype of its inputs: logits, softmax, weighted sum."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    logits = torch.einsum("bmd,bnd->bmn", queries, normed if norm_keys else tokens)
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    values = normed if norm_values else tokens
    return torch.einsum("bmn,bnd->bmd", weights, values), weights, logits.exp().sum(-1).log()


@pytest.fixture
def two_images_a_part(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 4 * 7 * 6)


def small(queries=1):
    torch.manual_seed(0)
    return (torch.randn(5, n, 6, dtype=torch.double, requires_grad=True) for n in (7, queries))


@pytest.mark.parametrize("queries", (1, 3))
@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_values_and_derivatives(two_images_a_part, norms, queries):
    """All three outputs, first and second derivatives; the last part of the batch is smaller than the others."""
    inputs = (*small(queries),)
    torch.testing.assert_close(attend(*inputs, **norms), formula(*inputs, **norms))
    assert gradcheck(lambda *x: attend(*x, **norms), inputs)
    assert gradgradcheck(lambda *x: attend(*x, **norms), inputs)


@pytest.mark.parametrize("queries", (1, 3, 6))
@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_what_is_compiled_is_the_same(norms, queries):
    """The steps that the compiler is given, without the compiler's own."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: attend(*x, **norms), backend="aot_eager", fullgraph=True)
    inputs = (*small(queries),)
    torch.testing.assert_close(compiled(*inputs), formula(*inputs, **norms))
    assert gradcheck(compiled, inputs)


def test_only_wanted_gradients_are_computed(two_images_a_part):
    tokens, queries = small()
    sums, _, _ = attend(tokens.detach(), queries, **NORMS[3])
    sums.sum().backward()
    expected = torch.autograd.grad(formula(tokens, queries)[0].sum(), queries)[0]
    torch.testing.assert_close(queries.grad, expected)


def test_the_average_and_its_gradient():
    tokens, _ = small()
    torch.testing.assert_close(average(tokens, torch.double), tokens.mean(1))
    assert gradcheck(lambda x: average(x, torch.double), tokens)
    assert gradgradcheck(lambda x: average(x, torch.double).square(), tokens)


def hard_inputs() -> dict[str, torch.Tensor]:
    """What makes the digits of a LayerNorm, or of a careless rearrangement of it, go."""
    torch.manual_seed(0)
    tokens = torch.randn(8, 64, 96, dtype=torch.double)
    outliers = {name: tokens.clone() for name in ("token", "channel", "number")}
    outliers["token"][:, 0] *= 1e4
    outliers["channel"][:, :, 7] += 1e4
    outliers["number"][:, 0, 7] = 1e4
    return {
        "ordinary": tokens,
        "mean 5": tokens + 5,
        "mean 100": tokens + 100,
        "mean 3000": tokens + 3000,
        "tiny variance": 1 + 1e-3 * tokens,
        "tiny": 1e-4 * tokens,
        **{f"one {name} of 1e4": x for name, x in outliers.items()},
    }


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", hard_inputs())
def test_no_more_digits_are_lost_than_by_the_formula(name, dtype):
    """Errors against float64 within four times the formula's, of z and of both gradients."""
    tokens = hard_inputs()[name].to(dtype)
    queries = torch.randn(8, 1, 96) / 96**0.5 * 2
    pattern = torch.sin(1.7 * torch.arange(96))

    def outcome(function, tokens, queries):
        tokens, queries = (x.clone().requires_grad_() for x in (tokens, queries))
        z = function(tokens, queries)[0]
        z.backward(pattern.to(z.dtype).expand_as(z))
        return [x.double() for x in (z.detach(), tokens.grad, queries.grad)]

    exact = outcome(formula, tokens.double(), queries.double())
    plain = outcome(lambda x, w: formula(x.float(), w), tokens, queries)
    ours = outcome(lambda x, w: attend(x, w, norm_keys=True, norm_values=True), tokens, queries)
    compiled = outcome(lambda x, w: module._Fusible.apply(x, w, True, True, 1e-6), tokens, queries)
    for what, z, by_formula, *by_us in zip(("z", "d tokens", "d queries"), exact, plain, ours, compiled, strict=True):
        of_formula, *of_ours = ((x - z).abs().max() for x in (by_formula, *by_us))
        assert max(of_ours) <= 4 * of_formula + 1e-6 * z.abs().max(), (what, of_ours, of_formula)


@pytest.mark.parametrize("heads", (1, 4))
def test_nothing_as_large_as_the_positions_is_kept(heads):
    """Beyond the positions themselves, which autograd keeps by reference."""
    x = torch.randn(4, 64, 96, requires_grad=True)
    pool, kept = SimPool(96, heads), {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        pool(x)
    kept.pop(x.untyped_storage().data_ptr())
    own = {p.untyped_storage().data_ptr() for p in pool.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in own)
    assert activations < 0.5 * x.untyped_storage().nbytes()
