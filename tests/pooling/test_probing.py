"""The probing poolings against something that shares no code with them: timm, torch, formulas in NumPy's float64."""

import copy
import math

import numpy as np
import pytest
import torch
from test_pooling import one_thread, pool_of  # noqa: F401
from timm.layers import AttentionPoolLatent
from torch import nn

from simpool_lite import create_pool, list_pools

D, N = 24, 15


def tokens(seed: int = 0, batch: int = 3, positions: int = N, dim: int = D) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.rand(2, dim, generator=generator, dtype=torch.float64) + 0.5
    return torch.randn(batch, positions, dim, generator=generator, dtype=torch.float64) * scale + shift


def numbers(pool: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in pool.state_dict().items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def layer_norm(x: np.ndarray, p: dict, name: str, eps: float) -> np.ndarray:
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return normed * p[f"{name}.weight"] + p.get(f"{name}.bias", 0)


def close(ours: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_family():
    probing = list_pools(family="probing")
    assert set(probing) == set("ep esimpool aim siglip".split())
    assert not set(probing) & set(list_pools())
    with pytest.raises(ValueError, match=r"^family: expected one of landscape, probing, got 'prob'"):
        list_pools(family="prob")
    with pytest.raises(ValueError, match=r"name: expected one of gap, .*did you mean 'siglip'"):
        create_pool("siglib", 8)


def test_published_sizes():
    """Queries and heads as published where they divide the channels, and as many as do elsewhere."""
    maps = {"ep": (32, 32, 4), "esimpool": (12, 4, 4), "aim": (16, 16, 4), "siglip": (8, 8, 4)}
    for name, counts in maps.items():
        for dim, count in zip((96, 64, 20), counts, strict=True):
            assert create_pool(name, dim)(torch.randn(1, 6, dim), return_attention=True)[1].shape == (1, count, 6), name


# Efficient probing


def test_ep_by_hand():
    """Two queries, two channels: query 0 sees both positions alike, query 1 position 1 three times as much."""
    pool = create_pool("ep", 2, num_queries=2).double()
    with torch.no_grad():
        pool.cls_token.copy_(torch.tensor([[[0.0, 0.0], [math.sqrt(2) * math.log(3), 0.0]]], dtype=torch.float64))
        pool.v.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    z, a = pool(torch.tensor([[[0.0, 4.0], [1.0, 7.0]]], dtype=torch.float64), return_attention=True)
    close(a, [[[0.5, 0.5], [0.25, 0.75]]])
    close(z, [[0.5, 0.25 * 4 + 0.75 * 8]])  # channel 0 of the values from query 0, channel 1 from query 1


@pytest.mark.parametrize("d_out", (1, 2))
def test_ep_is_its_formula(d_out):
    pool, x = pool_of("ep", {"num_queries": 4, "d_out": d_out}, D), tokens()
    p, X, width = numbers(pool), x.numpy(), D // d_out // 4
    attention = softmax(p["cls_token"][0] @ X.transpose(0, 2, 1) / np.sqrt(D))
    values = X @ p["v.weight"].T
    parts = [attention[:, m, None] @ values[..., m * width : (m + 1) * width] for m in range(4)]
    z, a = pool(x, return_attention=True)
    close(a, attention)
    close(z, np.concatenate(parts, -1)[:, 0])
    assert pool.out_dim == D // d_out


def test_a_query_moves_only_its_own_slice():
    pool, x = pool_of("ep", {"num_queries": 4}, D), tokens()
    before = pool(x)
    with torch.no_grad():
        pool.cls_token[:, 2] += 1
    moved = (pool(x) != before).all(0)
    assert moved.tolist() == [12 <= channel < 18 for channel in range(D)]


def test_ep_starts_near_the_average():
    """Queries begin at 0.02 times noise: attention is almost uniform, and z is almost W_V GAP(X)."""
    torch.manual_seed(0)
    pool, x = create_pool("ep", 256), torch.randn(4, 49, 256)
    assert 0.018 < pool.cls_token.std() < 0.022
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(a, torch.full_like(a, 1 / 49), rtol=0.15, atol=0)
    torch.testing.assert_close(z, pool.v(x.mean(1)), rtol=0, atol=0.02)


# SimPool without linear maps


@pytest.mark.parametrize("heads", (1, 3))
def test_esimpool_is_its_formula(heads):
    pool, x = pool_of("esimpool", {"num_heads": heads}, D), tokens()
    X, width = x.numpy(), D // heads
    keys, query = (layer_norm(y, numbers(pool), "norm_patches", 1e-6) for y in (X, X.mean(1)))
    expected, maps = [], []
    for part in (slice(h * width, (h + 1) * width) for h in range(heads)):
        maps.append(softmax((keys[..., part] @ query[:, part, None])[..., 0] / np.sqrt(width)))
        expected.append((maps[-1][..., None] * X[..., part]).sum(1))
    z, a = pool(x, return_attention=True)
    close(a, np.stack(maps, 1))
    close(z, np.concatenate(expected, 1))


def test_esimpool_is_simpool_with_what_it_leaves_out_switched_off():
    """With the norm on q and k and no linear map: the values are the positions as they are."""
    pool, x = pool_of("esimpool", {"num_heads": 2}, D), tokens()
    other = create_pool("ablated_simpool", D, num_heads=2, norm="qk", linear="").double()
    other.load_state_dict(pool.state_dict())
    torch.testing.assert_close(pool(x), other(x))


# AIM


@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize(("heads", "queries"), ((1, 1), (4, 3)))
def test_aim_is_torchs_attention(heads, queries, training):
    """nn.MultiheadAttention of BatchNorm1d's output, with W_Q and W_O the identity."""
    pool, x = pool_of("aim", {"num_heads": heads, "num_queries": queries}, D).train(training), tokens()
    bn = nn.BatchNorm1d(D, eps=1e-6, affine=False).double().train(training)
    bn.load_state_dict(pool.bn.state_dict())
    attention = nn.MultiheadAttention(D, heads, bias=False, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([torch.eye(D), pool.k.weight, pool.v.weight]))
        attention.out_proj.weight.copy_(torch.eye(D))
    y = bn(x.mT).mT
    expected, maps = attention(pool.cls_token.expand(len(x), -1, -1), y, y, average_attn_weights=False)
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(z, expected.mean(1))
    torch.testing.assert_close(a, maps.transpose(1, 2).flatten(1, 2))
    torch.testing.assert_close(pool.bn.state_dict(), bn.state_dict())  # running statistics


@pytest.mark.parametrize("name", ("aim",))
@pytest.mark.parametrize(("own", "came"), ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float64)))
def test_running_statistics_of_other_dtypes(name, own, came):
    """They are the module's own, not those of the copy with which other dtypes are computed."""
    pool, x = create_pool(name, D).to(own), tokens().to(came)
    exact = copy.deepcopy(pool).double()
    for _ in range(3):
        pool(x), exact(x.double())
    assert pool.bn.num_batches_tracked == 3 and not pool.bn.running_mean.eq(0).any()
    torch.testing.assert_close(pool.bn.running_mean.double(), exact.bn.running_mean, rtol=0.05, atol=0.02)
    torch.testing.assert_close(pool.bn.running_var.double(), exact.bn.running_var, rtol=0.05, atol=0.02)
    state = copy.deepcopy(pool.state_dict())
    pool.eval()(x)
    torch.testing.assert_close(pool.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", ("aim",))
def test_one_position_has_no_variance(name):
    pool, x = create_pool(name, D), torch.randn(1, 1, D)
    with pytest.raises(ValueError, match=r"^x: expected more than one position in all while training"):
        pool(x)
    assert pool.eval()(x).shape == (1, D)


# SigLIP


def test_siglip_is_timms():
    pool = pool_of("siglip", {}, D)
    timms = AttentionPoolLatent(D, num_heads=8).double().eval()
    timms.load_state_dict(pool.state_dict())
    x = tokens()
    torch.testing.assert_close(pool(x), timms(x))
    q, k, v = timms.q(timms.latent), *timms.kv(x).chunk(2, -1)
    attention = nn.MultiheadAttention(D, 8, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.eye(D).repeat(3, 1))
        attention.in_proj_bias.zero_()
    maps = attention(q.expand(len(x), -1, -1), k, v, average_attn_weights=False)[1]
    torch.testing.assert_close(pool(x, return_attention=True)[1], maps[:, :, 0])
