"""The switches of SimPool's ablations against formulas written out, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from simpool_lite import SimPool, create_model, create_pool, list_pools
from simpool_lite.pooling.framework import sparsemax

DIM = 6


def variant_and_simpool(**kwargs):
    """A variant in float64 with no parameter at a special value, and SimPool with its first parameters."""
    torch.manual_seed(0)
    variant = create_pool("ablated_simpool", DIM, **kwargs).double()
    with torch.no_grad():
        for parameter in variant.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    simpool = SimPool(DIM).double()
    first = {name: value for name, value in variant.state_dict().items() if name in simpool.state_dict()}
    simpool.load_state_dict(first, strict=not kwargs.get("tied"))
    return variant, simpool


def tokens(batch=3, positions=7):
    return torch.randn(batch, positions, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_variants_are_no_methods_of_their_own():
    assert "ablated_simpool" not in list_pools()


@pytest.mark.parametrize("kwargs", [{}, {"init": "kmeans"}, {"separate": True}])
def test_what_leaves_simpool_as_it_is(kwargs):
    """The defaults; one centre of k-means, which is the average; one iteration of its own."""
    variant, simpool = variant_and_simpool(**kwargs)
    z, a = variant(tokens(), return_attention=True)
    z_simpool, a_simpool = simpool(tokens(), return_attention=True)
    torch.testing.assert_close(z, z_simpool)
    torch.testing.assert_close(a, a_simpool)


def attend(step, u, x):
    """One step of SimPool from a query u (B, d): q, k and v written out."""
    v = step.norm_patches(x)
    logits = torch.einsum("bnd,bd->bn", v @ step.wk.weight.T, u @ step.wq.weight.T) / DIM**0.5
    return torch.einsum("bn,bnd->bd", logits.softmax(-1), v)


@pytest.mark.parametrize("separate", [False, True])
def test_iterations(separate):
    variant, _ = variant_and_simpool(T=3, separate=separate)
    steps = [variant, *variant.later]
    assert len(steps) == (3 if separate else 1)
    x = tokens()
    u = x.mean(1)
    for t in range(3):
        u = attend(steps[t if separate else 0], u, x)
    torch.testing.assert_close(variant(x), u)


def test_tied_maps():
    variant, simpool = variant_and_simpool(tied=True)
    x, v = tokens(), simpool.norm_patches(tokens())
    q, k = simpool.wq(x.mean(1)), simpool.wq(v)
    a = ((k @ q[:, :, None])[..., 0] / DIM**0.5).softmax(-1)
    torch.testing.assert_close(variant(x), (a[..., None] * v).sum(1))
    assert sum(p.numel() for p in variant.parameters()) == DIM**2 + 2 * DIM


def logits_of(simpool, x, similarity):
    v = simpool.norm_patches(x)
    q, k = simpool.wq(x.mean(1))[:, None], simpool.wk(v)
    if similarity == "cosine":
        return F.cosine_similarity(q, k, dim=-1) / DIM**0.5
    return -(torch.cdist(q, k)[:, 0] ** 2) / DIM**0.5


@pytest.mark.parametrize("similarity", ["cosine", "distance"])
def test_similarities(similarity):
    variant, simpool = variant_and_simpool(similarity=similarity)
    a = logits_of(simpool, tokens(), similarity).softmax(-1)
    z = torch.einsum("bn,bnd->bd", a, simpool.norm_patches(tokens()))
    torch.testing.assert_close(variant(tokens()), z)


def test_softmax_over_the_other_axis_is_the_average_for_one_vector():
    variant, simpool = variant_and_simpool(attention="softmax_over_vectors")
    torch.testing.assert_close(variant(tokens()), simpool.norm_patches(tokens()).mean(1))


def test_sigmoid_weighs_each_position_alone():
    variant, _ = variant_and_simpool(attention="sigmoid")
    x = tokens()
    step = variant
    v = step.norm_patches(x)
    gates = torch.sigmoid(torch.einsum("bnd,bd->bn", step.wk(v), step.wq(x.mean(1))) / DIM**0.5)
    z, a = variant(x, return_attention=True)
    torch.testing.assert_close(z, (gates[..., None] * v).mean(1))
    torch.testing.assert_close(a[:, 0], gates / gates.sum(-1, keepdim=True))


def nearest_in_the_simplex(s):
    """Brute force: of all supports, the projection with the least distance that is a distribution."""
    best, least = None, float("inf")
    for size in range(1, len(s) + 1):
        for support in map(list, itertools.combinations(range(len(s)), size)):
            p = torch.zeros_like(s)
            p[support] = s[support] - (s[support].sum() - 1) / size
            if (p >= 0).all() and (distance := (p - s).square().sum()) < least:
                best, least = p, distance
    return best


@pytest.mark.parametrize("seed", range(5))
def test_sparsemax_is_the_projection_on_the_simplex(seed):
    s = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sparsemax(0.5)(s), nearest_in_the_simplex(0.5 * s))
    assert torch.autograd.gradcheck(sparsemax(), s.requires_grad_())


def test_vectors_of_k_means():
    variant, simpool = variant_and_simpool(init="kmeans", k=3, reduce="concat")
    x = tokens()
    centres = variant.kmeans(x).unflatten(-1, (3, DIM))
    each = torch.stack([attend(simpool, centres[:, j], x) for j in range(3)], 1)
    z, a = variant(x, return_attention=True)
    torch.testing.assert_close(z, each.flatten(1))
    assert a.shape == (3, 3, 7)


def test_a_class_token_asks_and_is_not_pooled():
    variant, simpool = variant_and_simpool(init="cls")
    x = tokens()
    z, a = variant(x, return_attention=True)
    torch.testing.assert_close(z, attend(simpool, x[:, 0], x[:, 1:]))
    assert a.shape == (3, 1, 6)


def test_a_transformers_class_token_starts_the_pooling():
    model = create_model("vit_micro", "ablated_simpool", 5, pool_kwargs={"init": "cls"}).eval()
    images = torch.randn(2, 3, 48, 48)
    assert model(images).shape == (2, 5) and model.attention(images).shape == (2, 1, 6, 6)
    features = model.forward_features(images)
    assert features.shape[1] == 1 + 36
    z = attend_in_model(model.pooling, features)
    torch.testing.assert_close(model(images), model.head(z), rtol=1e-4, atol=1e-5)


def attend_in_model(step, features):
    v = step.norm_patches(features[:, 1:])
    logits = torch.einsum("bnd,bd->bn", step.wk(v), step.wq(features[:, 0])) * features.shape[-1] ** -0.5
    return torch.einsum("bn,bnd->bd", logits.softmax(-1), v)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_pool("ablated_simpool", 8, k=3), "k: expected 1 with init='gap'"),
        (lambda: create_pool("ablated_simpool", 8, similarity="l1"), "similarity: expected one of dot"),
        (lambda: create_pool("ablated_simpool", 8, attention="relu"), "attention: expected one of softmax"),
        (lambda: create_pool("ablated_simpool", 8, init="mox"), "init: expected one of gap.*did you mean 'max'"),
        (lambda: create_pool("ablated_simpool", 8, T=0), "T: expected an int"),
        (
            lambda: create_model("resnet18", "ablated_simpool", 5, pool_kwargs={"init": "cls"}),
            "pool.*class token",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
