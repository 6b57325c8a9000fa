"""The probing poolings against something that shares no code with them: timm, torch, formulas in NumPy's float64."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_pooling import one_thread, pool_of  # noqa: F401
from timm.layers import AttentionPool2d, AttentionPoolLatent, resample_abs_pos_embed
from timm.models.vision_transformer import Block as TimmBlock
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
    assert probing == sorted("ep abmilp aim siglip clip jepa coca cae dolg dinovit esimpool".split())
    assert not set(probing) & set(list_pools())
    with pytest.raises(ValueError, match=r"^family: expected one of landscape, probing, got 'prob'"):
        list_pools(family="prob")
    with pytest.raises(ValueError, match=r"name: expected one of gap, .*did you mean 'siglip'"):
        create_pool("siglib", 8)


def test_published_sizes():
    """Queries and heads as published where they divide the channels, and as many as do elsewhere."""
    maps = {"ep": (32, 32, 4), "esimpool": (12, 4, 4), "aim": (16, 16, 4), "siglip": (8, 8, 4), "coca": (8, 8, 8),
            "cae": (8, 8, 4), "jepa": (16, 16, 4), "clip": (4, 4, 4), "dinovit": (8, 8, 4), "abmilp": (1, 1, 1),
            "dolg": (1, 1, 1)}  # fmt: skip
    assert set(maps) == set(list_pools(family="probing"))
    for name, counts in maps.items():
        for dim, count in zip((96, 64, 20), counts, strict=True):
            assert create_pool(name, dim)(torch.randn(2, 9, dim), return_attention=True)[1].shape == (2, count, 9), name


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


@pytest.mark.parametrize("name", ("aim", "dolg"))
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


@pytest.mark.parametrize("name", ("aim", "dolg"))
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


# JEPA, CAE, CoCa


def torchs(heads: int, layers: list[nn.Linear], out: nn.Linear) -> nn.MultiheadAttention:
    """torch's attention with W_Q, W_K, W_V of these layers, stacked, and this W_O."""
    attention = nn.MultiheadAttention(out.in_features, heads, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        attention.in_proj_bias.zero_()
        if layers[0].bias is not None:
            attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
    attention.out_proj = out
    return attention


def test_jepa_is_torchs_attention_in_a_block():
    pool, x = pool_of("jepa", {"num_heads": 4}, D), tokens()
    attention = torchs(4, [pool.q, pool.kv], pool.proj)
    u, y = pool.query_tokens.expand(len(x), -1, -1), F.layer_norm(x, (D,), pool.norm1.weight, pool.norm1.bias)
    out, maps = attention(u, y, y, average_attn_weights=False)
    mlp = nn.Sequential(pool.norm2, pool.mlp.fc1, nn.GELU(), pool.mlp.fc2)
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(z, (u + out + mlp(u + out))[:, 0])
    torch.testing.assert_close(a, maps[:, :, 0])


def test_jepa_starts_with_small_matrices():
    pool = create_pool("jepa", 256)
    for layer in (pool.q, pool.kv, pool.mlp.fc1):
        assert 0.018 < layer.weight.std() < 0.022 and not layer.bias.any()
    for layer in (pool.proj, pool.mlp.fc2):
        assert 0.018 < layer.weight.std() * math.sqrt(2) < 0.022 and not layer.bias.any()


def test_cae_is_torchs_attention():
    pool, x = pool_of("cae", {"num_heads": 4}, D), tokens()
    attention = torchs(4, [pool.q, pool.k, pool.v], pool.proj)
    query, key, value = (
        F.layer_norm(y, (D,), norm.weight, norm.bias)
        for y, norm in ((pool.query_token, pool.norm1_q), (x, pool.norm1_k), (x, pool.norm1_v))
    )
    expected, maps = attention(query.expand(len(x), -1, -1), key, value, average_attn_weights=False)
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(z, expected[:, 0])
    torch.testing.assert_close(a, maps[:, :, 0])


def test_cae_starts_as_an_average_and_leaves_it():
    """The query is zero at first, but the gradient of its LayerNorm's bias is not."""
    torch.manual_seed(0)
    pool, x = create_pool("cae", D).double(), tokens()
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(a, torch.full_like(a, 1 / N))
    torch.testing.assert_close(z, pool.proj(pool.v(F.layer_norm(x, (D,)).mean(1))))
    z.square().sum().backward()
    assert pool.norm1_q.bias.grad.abs().sum() > 0


def test_coca_is_its_formula():
    pool, x = pool_of("coca", {"num_heads": 3, "head_dim": 5}, D), tokens()
    p, X = numbers(pool), x.numpy()
    query = (layer_norm(p["query"][0], p, "norm", 1e-5) @ p["q.weight"].T).reshape(3, 5)
    keys, values = X @ p["kv.weight"][:5].T, X @ p["kv.weight"][5:].T
    attention = softmax(query @ keys.transpose(0, 2, 1) / np.sqrt(5))  # (B, 3, N)
    z, a = pool(x, return_attention=True)
    close(a, attention)
    close(z, (attention @ values).reshape(len(X), 15) @ p["proj.weight"].T)


# CLIP


def test_clip_is_timms_but_for_its_norm():
    pool, x = pool_of("clip", {"feat_size": (3, 5)}, D), tokens()
    timms = AttentionPool2d(D, feat_size=(3, 5), num_heads=4, qkv_bias=True).double().eval()
    timms.load_state_dict({key: value for key, value in pool.state_dict().items() if not key.startswith("norm.")})
    with torch.no_grad():
        pool.norm.weight.fill_(1.5), pool.norm.bias.fill_(0.5)
    normed = 1.5 * F.layer_norm(x, (D,), eps=1e-6) + 0.5
    torch.testing.assert_close(pool(x), timms(normed.mT.unflatten(2, (3, 5))))

    y = torch.cat([normed.mean(1, keepdim=True), normed], 1) + timms.pos_embed
    maps = torchs(4, [pool.qkv], pool.proj)(y[:, :1], y, y, average_attn_weights=False)[1][:, :, 0, 1:]
    torch.testing.assert_close(pool(x, return_attention=True)[1], maps / maps.sum(-1, keepdim=True))


@pytest.mark.parametrize("grid", ((6, 10), (2, 4), (1, 1)))
def test_clips_position_embedding_on_other_grids(grid):
    """Interpolated as timm does it: the pooling made for that grid, with timm's embedding, gives the same."""
    pool, x = pool_of("clip", {"feat_size": (3, 5)}, D), tokens(positions=math.prod(grid))
    other = create_pool("clip", D, feat_size=grid).double()
    resized = resample_abs_pos_embed(pool.pos_embed[None], grid, (3, 5), num_prefix_tokens=1)[0]
    other.load_state_dict({**pool.state_dict(), "pos_embed": resized})
    torch.testing.assert_close(pool(x, grid), other(x), rtol=1e-5, atol=1e-5)  # timm's is float32
    torch.testing.assert_close(pool(x.mT.unflatten(2, grid)), pool(x, grid))


def test_where_clip_takes_tokens_to_be():
    """On the grid it was made for, if they are as many, and else on a square."""
    pool = pool_of("clip", {"feat_size": (2, 8)}, D)
    for positions, grid in ((16, (2, 8)), (9, (3, 3))):
        x = tokens(positions=positions)
        assert torch.equal(pool(x), pool(x, grid))
    assert not torch.allclose(pool(x), pool(x, (1, 9)))
    with pytest.raises(ValueError, match=r"^grid: expected \(H, W\) of the 15 tokens, as CLIP sees where they are"):
        pool(tokens())
    assert create_pool("clip", D).pos_embed.shape == (197, D)


# DINOv2's block, ABMILP, DOLG


def test_dinovit_is_timms_block_and_the_average():
    pool, x = pool_of("dinovit", {"num_heads": 4}, D), tokens()
    ours, timms = pool.block, TimmBlock(D, 4, norm_layer=nn.LayerNorm).double().eval()
    qkv = torch.cat([layer.weight for layer in (ours.q, ours.k, ours.v)])
    state = {key: value for key, value in ours.state_dict().items() if key[:2] not in ("q.", "k.", "v.")}
    state = {{"p": "attn.", "f": "mlp."}.get(key[0], "") + key: value for key, value in state.items()}
    timms.load_state_dict({**state, "attn.qkv.weight": qkv})
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(z, timms(x).mean(1))

    y = timms.norm1(x)
    maps = torchs(4, [ours.q, ours.k, ours.v], ours.proj)(y, y, y, average_attn_weights=False)[1]
    torch.testing.assert_close(a, maps.mean(2))  # the average over those that attend


def test_abmilp_is_its_formula():
    pool, x = pool_of("abmilp", {}, D), tokens()
    y = torchs(1, [pool.q, pool.k, pool.v], pool.proj)(x, x, x)[0].detach().numpy()
    p = numbers(pool)
    attention = softmax((np.tanh(y @ p["hidden.weight"].T + p["hidden.bias"]) @ p["weight.weight"].T)[..., 0])
    z, a = pool(x, return_attention=True)
    close(a[:, 0], attention)
    close(z, (attention[..., None] * y).sum(1))


@pytest.mark.parametrize("training", (False, True))
def test_dolg_is_torchs_layers(training):
    pool, x = pool_of("dolg", {}, D).train(training), tokens()
    conv1, bn, conv2 = nn.Conv2d(D, D, 1), nn.BatchNorm2d(D), nn.Conv2d(D, 1, 1)
    layers = nn.ModuleDict({"conv1": conv1, "bn": bn, "conv2": conv2}).double().train(training)
    state = {k: v[..., None, None] if v.ndim == 2 else v for k, v in pool.state_dict().items()}
    layers.load_state_dict(state)
    y = bn(conv1(x.mT.unflatten(2, (3, 5))))
    score = F.softplus(conv2(F.relu(y)))
    z, a = pool(x.mT.unflatten(2, (3, 5)), return_attention=True)
    torch.testing.assert_close(z, (score * F.normalize(y, dim=1)).mean((2, 3)))
    torch.testing.assert_close(a, score / score.sum((2, 3), keepdim=True))
    torch.testing.assert_close(pool.bn.state_dict(), bn.state_dict())


def test_dolg_by_hand():
    """Directions (0.6, 0.8) and (-1, 0); scores softplus(3 + 4) and softplus(0)."""
    pool = create_pool("dolg", 2).double().eval()
    with torch.no_grad():
        pool.conv1.weight.copy_(torch.eye(2)), pool.conv1.bias.zero_()
        pool.conv2.weight.fill_(1.0), pool.conv2.bias.zero_()
    pool.bn.running_var.fill_(1 - pool.bn.eps)
    z, a = pool(torch.tensor([[[3.0, 4.0], [-2.0, 0.0]]], dtype=torch.float64), return_attention=True)
    first, second = math.log(1 + math.exp(7)), math.log(2)
    close(a, [[[first / (first + second), second / (first + second)]]])
    close(z, [[(0.6 * first - second) / 2, 0.8 * first / 2]])
