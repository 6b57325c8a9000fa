"""The framework of equations 1-7: every pooling is its spec, and specs can be recombined."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from test_pooling import CASES, DIM, NAMES, one_thread, pool_of  # noqa: F401
from torch import nn

from simpool_lite import Spec, create_pool, generic_pool, list_pools
from simpool_lite.pooling import Part, Pool, f_alpha, framework

EXACT = {"rtol": 1e-9, "atol": 1e-9}
VECTORS = [(name, {"k": k, "reduce": how}) for name in ("kmeans", "otk", "slot") for k in (1, 3)
           for how in ("max", "mean", "concat")]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs"), CASES + VECTORS)
def test_a_pool_is_its_spec(name, kwargs):
    pool = pool_of(name, kwargs)
    for height, width in ((4, 5), (1, 7), (1, 1)):
        maps = torch.randn(3, DIM, height, width, dtype=torch.float64)
        for x in (maps, maps.flatten(2).mT):
            z, a = pool(x, (height, width), return_attention=True)
            generic_z, raw = generic_pool(x, pool.spec(), (height, width), return_attention=True)
            torch.testing.assert_close(generic_z, z, **EXACT)
            torch.testing.assert_close(generic_pool(x, pool.spec(), (height, width)), z, **EXACT)
            if a is not None:
                if name == "dinovit":  # every position is a vector there: the average of their maps
                    raw = raw.unflatten(1, (-1, a.shape[1])).mean(1)
                positions = tuple(range(2, raw.ndim))
                raw = raw + (raw.sum(positions, keepdim=True) == 0)  # an empty cluster's map is uniform
                torch.testing.assert_close(a, raw / raw.sum(positions, keepdim=True), **EXACT)


def test_what_weighs_no_positions_has_no_map():
    x = torch.randn(2, DIM, 3, 4, dtype=torch.float64)
    without = set()
    for name in list_pools():
        pool = pool_of(name, {})
        if pool(x, return_attention=True)[1] is None:
            without.add(name)
            _, raw = generic_pool(x, pool.spec(), return_attention=True)
            assert (raw == raw[0, 0, 0, 0]).all()
    assert without == {"max", "gap_max", "gem", "lse", "se", "ge"}


def test_maps_have_the_vectors_outermost():
    """With k vectors and m heads the M = k m maps are vector 0 with its heads, vector 1 with its heads, ..."""
    start = torch.randn(1, 2, DIM)
    spec = Spec(k=2, heads=4, init=lambda X: start, similarity=framework.dot, attention=framework.softmax())
    x = torch.randn(1, 5, DIM)
    _, maps = generic_pool(x, spec, return_attention=True)
    for vector in range(2):
        for head in range(4):
            part = slice(2 * head, 2 * head + 2)
            expected = (x[0, :, part] @ start[0, vector, part]).softmax(0)
            torch.testing.assert_close(maps[0, 4 * vector + head], expected)


@pytest.mark.parametrize("weights", ("uniform", "random"))
def test_f_alpha_is_the_mean_it_should_be(weights):
    x = np.random.default_rng(0).uniform(0.5, 4.0, (6, 3))
    w = np.full(6, 1 / 6) if weights == "uniform" else np.random.default_rng(1).dirichlet(np.ones(6))
    expected = {
        -math.inf: x.max(0),
        -3: np.sqrt(np.average(x**2, axis=0, weights=w)),
        -1: np.average(x, axis=0, weights=w),
        0: stats.pmean(x, 0.5, weights=w[:, None], axis=0),
        1: stats.gmean(x, weights=w[:, None], axis=0),
        3: stats.hmean(x, weights=w[:, None], axis=0),
        math.inf: x.min(0),
    }
    values = list(expected.values())
    assert all((larger >= smaller).all() for larger, smaller in pairwise(values))
    for alpha, mean in expected.items():
        f, f_inverse = f_alpha(alpha)
        spec = Spec(attention=lambda S: torch.tensor(w).expand_as(S), f=f, f_inverse=f_inverse)
        np.testing.assert_allclose(generic_pool(torch.tensor(x)[None], spec)[0], mean, rtol=1e-12)


def test_limits_ignore_positions_without_weight():
    x = torch.tensor([[[1.0], [2.0], [9.0]]])
    weights = torch.tensor([0.2, 0.8, 0.0])
    for alpha, expected in ((-math.inf, 2.0), (math.inf, 1.0)):
        f, f_inverse = f_alpha(alpha)
        spec = Spec(attention=lambda S: weights.expand_as(S), f=f, f_inverse=f_inverse)
        assert generic_pool(x, spec).item() == expected


def test_similarities_and_attention_functions_by_hand():
    keys = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    call = {name: getattr(framework, name)(keys, queries) for name in ("dot", "negative_distance", "cosine")}
    assert call["dot"].tolist() == [[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]]
    assert call["negative_distance"].tolist() == [[-20.0, -5.0, 0.0], [-18.0, -1.0, -2.0]]
    torch.testing.assert_close(call["cosine"], torch.tensor([[0.6, 0.0, 1.0], [0.8, 1.0, 0.0]]))

    S = call["dot"][None, None]
    torch.testing.assert_close(framework.uniform(S), torch.full((1, 1, 2, 3), 1 / 3))
    assert framework.ones(S).tolist() == [[[[1, 1, 1]] * 2]]
    assert framework.hard_assignment(S).tolist() == [[[[0, 0, 1], [0.5, 0.5, 0]]]]
    torch.testing.assert_close(framework.softmax(0.5)(S)[0, 0, 1], torch.tensor([2.0, 1.0, 0.0]).softmax(0))
    over_vectors = framework.softmax_over_vectors()(S)[0, 0]
    share = 1 / (1 + torch.exp(torch.tensor([1.0, 2.0, -1.0])))  # of the first vector in each position
    torch.testing.assert_close(over_vectors[0], share / share.sum())
    torch.testing.assert_close(framework.sigmoid()(S)[0, 0, 0, 1], torch.tensor(0.5 / 3))
    assert framework.energy(S[..., :1, :], X=keys[None]).tolist() == [[[[25.0, 4.0, 1.0]]]]


def test_a_part_sees_what_its_parameters_name():
    assert Part("", lambda X: X)(1, U=2, t=3) == 1
    assert Part("", lambda anything, t, U: (anything, t, U))(1, U=2, t=3) == (1, 3, 2)
    assert Part("", torch.exp)(torch.zeros(1), U=2).item() == 1.0
    assert Part("", nn.Identity())(1, U=2) == 1


def test_a_spec_of_plain_functions_and_modules():
    linear = nn.Linear(DIM, DIM, bias=False)
    spec = Spec(phi_v=linear, attention=torch.ones_like, f=torch.exp, f_inverse=torch.log)
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(generic_pool(x, spec), linear(x).logsumexp(1))
    assert spec.formulas()["phi_v"] == r"\mathrm{Linear}" and spec.formulas()["f"] == r"\mathrm{exp}"


def test_variants_of_simpool():
    """The paper's ablations are replacements of one part."""
    pool, x = pool_of("simpool", {}), torch.randn(2, 9, DIM, dtype=torch.float64)
    spec = pool.spec()
    normed = nn.functional.layer_norm(x, (DIM,), pool.norm_patches.weight, pool.norm_patches.bias, 1e-6)

    _, a = generic_pool(x, replace(spec, similarity=framework.cosine), return_attention=True)
    keys, query = pool.wk(normed), pool.wq(x.mean(1, keepdim=True))
    torch.testing.assert_close(a[:, 0], (torch.cosine_similarity(keys, query, dim=-1) * pool.scale).softmax(-1))

    shared = replace(spec, phi_k=Part("W_Q X", lambda X: pool.wq(pool.norm_patches(X))))
    _, a = generic_pool(x, shared, return_attention=True)
    torch.testing.assert_close(a[:, 0], ((pool.wq(normed) * query).sum(-1) * pool.scale).softmax(-1))

    twice = generic_pool(x, replace(spec, T=2))
    start_at_z = replace(spec, init=lambda X: generic_pool(X, spec).unsqueeze(1))
    torch.testing.assert_close(generic_pool(x, start_at_z), twice)

    both = replace(spec, k=2, init=lambda X: torch.stack([X.mean(1), X.amax(1)], 1), reduce="concat")
    by_max = pool_of("ablated_simpool", {"init": "max"})
    by_max.load_state_dict(pool.state_dict())
    torch.testing.assert_close(generic_pool(x, both), torch.cat([pool(x), by_max(x)], 1))


def test_a_pooling_may_be_its_spec_only():
    """A method without pool_tokens is pooled by the framework: slow, but it trains."""

    class Energetic(Pool):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            self.fc = nn.Linear(dim, dim)

        def spec(self) -> Spec:
            return Spec(attention=framework.energy, phi_v=self.fc)

    pool, x = Energetic(DIM), torch.randn(2, DIM, 3, 4)
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(a, x.square().sum(1, keepdim=True) / x.square().sum((1, 2, 3), keepdim=True))
    z.sum().backward()
    assert pool.fc.weight.grad.abs().sum() > 0


def test_every_row_of_the_table_has_its_formulas():
    rows = {name: create_pool(name, DIM).spec().formulas() for name in NAMES}
    for name, row in rows.items():
        assert row["attention"] and row["phi_v"], name
    assert len({tuple(row.values()) for row in rows.values()}) == len(rows)


def test_bad_specs_are_named():
    for arguments, named in (
        ({"T": 0}, "T"),
        ({"k": 1.0}, "k"),
        ({"heads": 0}, "heads"),
        ({"reduce": "sum"}, "reduce"),
    ):
        with pytest.raises(ValueError, match=f"^{named}: expected .* got "):
            Spec(**arguments)
    with pytest.raises(TypeError, match=r"^attention: expected a function, got int"):
        Spec(attention=3)
    with pytest.raises(ValueError, match=r"^x: expected tokens .* got shape \(2, 8\)"):
        generic_pool(torch.ones(2, 8), Spec())
