"""Every pooling against something that shares no code with it: another library, or numbers worked by hand."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy import optimize, signal, special
from sklearn.cluster import KMeans
from test_pooling import one_thread, pool_of  # noqa: F401
from timm.layers import SelectAdaptivePool2d, SqueezeExcite
from timm.layers.other_pool import LsePlus1d, LsePlus2d
from timm.models.cait import LayerScaleBlockClassAttn
from torch import nn

from simpool_lite import create_pool


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def numbers(pool: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in pool.state_dict().items()}


# Group 1


def test_gap_and_max_by_hand():
    x = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [2.0, 8.0]]])
    z, a = create_pool("gap", 2)(x, return_attention=True)
    assert z.tolist() == [[2.0, 4.0]]
    torch.testing.assert_close(a, torch.full((1, 1, 3), 1 / 3))
    z, a = create_pool("max", 2)(x, return_attention=True)
    assert z.tolist() == [[3.0, 8.0]] and a is None


def test_gap_max_is_timms():
    x = image(2, 8, 4, 5)
    torch.testing.assert_close(create_pool("gap_max", 8)(x), SelectAdaptivePool2d(pool_type="avgmax", flatten=True)(x))


@pytest.mark.parametrize("gamma", (1.0, 2.0, 3.0))
def test_gem_is_lp_pooling(gamma):
    """torch's LPPool, which the authors' release calls GeM, sums where GeM averages."""
    x = image(2, 8, 4, 5).abs()
    lp = F.lp_pool2d(x, gamma, (4, 5)).flatten(1)
    torch.testing.assert_close(create_pool("gem", 8, gamma=gamma).double()(x), lp / 20 ** (1 / gamma))


def test_gem_raises_values_to_a_millionth_and_no_more():
    x = torch.tensor([-1.0, 0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3], dtype=torch.float64).view(1, 1, -1)
    z = create_pool("gem", 7, gamma=3.0, learn_gamma=False).double()(x)
    torch.testing.assert_close(z[0], x[0, 0].clamp_min(1e-6), rtol=1e-9, atol=0)


def test_gem_goes_from_the_average_to_the_maximum():
    x = image(2, 20, 8).abs()
    means = [create_pool("gem", 8, gamma=gamma, learn_gamma=False)(x) for gamma in (1.0, 2.0, 8.0, 64.0, 4096.0)]
    torch.testing.assert_close(means[0], x.mean(1))
    assert all((larger > smaller).all() for smaller, larger in pairwise(means))
    torch.testing.assert_close(means[-1], x.amax(1), rtol=1e-3, atol=0)


@pytest.mark.parametrize("r", (0.5, 10.0))
def test_lse_is_timms(r):
    x = image(2, 8, 4, 5)
    ours = create_pool("lse", 8, r=r).double()
    torch.testing.assert_close(ours(x), LsePlus2d(r=r).double()(x))
    torch.testing.assert_close(ours(x.flatten(2).mT), LsePlus1d(r=r).double()(x.flatten(2).mT))


def test_lse_lies_between_the_average_and_the_maximum():
    x = image(2, 20, 8)
    means = [create_pool("lse", 8, r=r, learn_r=False)(x) for r in (1e-6, 0.1, 1.0, 10.0, 1e6)]
    torch.testing.assert_close(means[0], x.mean(1), rtol=0, atol=1e-5)
    assert all((larger > smaller).all() for smaller, larger in pairwise(means))
    torch.testing.assert_close(means[-1], x.amax(1), rtol=0, atol=1e-5)


def test_how_by_hand():
    """Three positions in a row, two channels, FC = [[1, 1], [0, 2]] and bias (0, 5)."""
    pool = create_pool("how", 2)
    with torch.no_grad():
        pool.fc.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        pool.fc.bias.copy_(torch.tensor([0.0, 5.0]))
    x = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]])
    # energies 25, 1, 4; averages over the neighbours that exist (2, 2), (4/3, 2), (1/2, 1);
    # FC of them (4, 9), (10/3, 9), (3/2, 7); sum 25 (4, 9) + (10/3, 9) + 4 (3/2, 7) = (328/3, 262)
    z, a = pool(x, grid=(1, 3), return_attention=True)
    length = math.hypot(328 / 3, 262)
    torch.testing.assert_close(z, torch.tensor([[328 / 3 / length, 262 / length]]))
    torch.testing.assert_close(a, torch.tensor([[[25 / 30, 1 / 30, 4 / 30]]]))

    # With the norms 5, 1, 2 as weights: 5 (4, 9) + (10/3, 9) + 2 (3/2, 7) = (79/3, 68)
    pool.power = 1
    z, a = pool(x, grid=(1, 3), return_attention=True)
    torch.testing.assert_close(z, torch.tensor([[79 / 3, 68]]) / math.hypot(79 / 3, 68))
    torch.testing.assert_close(a, torch.tensor([[[5 / 8, 1 / 8, 2 / 8]]]))


# Group 2


def test_kmeans_is_scikit_learns():
    for seed in range(5):
        x = image(1, 40, 6, seed=seed)
        pool = pool_of("kmeans", {"reduce": "concat", "iterations": 4}, dim=6)
        start = pool.start(x)[0]
        theirs = KMeans(3, init=start.numpy(), n_init=1, max_iter=4, tol=0, algorithm="lloyd").fit(x[0].numpy())
        assert len(set(theirs.labels_)) == 3
        torch.testing.assert_close(pool(x).reshape(3, 6), torch.tensor(theirs.cluster_centers_))
        _, a = create_converged(pool)(x, return_attention=True)
        members = KMeans(3, init=start.numpy(), n_init=1, max_iter=300, tol=0).fit(x[0].numpy()).labels_
        assert (a[0].argmax(0).numpy() == members).all()


def create_converged(pool: nn.Module) -> nn.Module:
    pool.iterations = 300
    return pool


def test_kmeans_by_hand_with_an_empty_cluster():
    pool = create_pool("kmeans", 1, k=3, reduce="concat", iterations=2)
    pool.start = lambda tokens: torch.tensor([[[0.0], [4.0], [100.0]]])
    z, a = pool(torch.tensor([[[-1.0], [1.0], [5.0], [7.0]]]), return_attention=True)
    assert z.tolist() == [[0.0, 6.0, 100.0]]  # nobody is near 100: it stays
    assert a.tolist() == [[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.25] * 4]]


def test_otk_solves_entropic_transport():
    """The plan has the marginals and the form u_i e^(S_ij / eps) v_j, which by Sinkhorn's theorem only one has."""
    x, eps = image(1, 12, 4), 0.7
    pool = pool_of("otk", {"eps": eps, "iterations": 500}, dim=4)
    _, a = pool(x, return_attention=True)
    plan = a[0].detach().numpy().T / 3  # (12, 3), mass one
    np.testing.assert_allclose(plan.sum(0), 1 / 3, rtol=1e-9)
    np.testing.assert_allclose(plan.sum(1), 1 / 12, rtol=1e-9)
    cost = ((x[0].numpy()[:, None] - numbers(pool)["references"]) ** 2).sum(-1)
    scaling = np.log(plan) + cost / eps
    scaling -= scaling[:, :1] + scaling[:1] - scaling[0, 0]
    np.testing.assert_allclose(scaling, 0, atol=1e-8)


def test_otk_with_little_entropy_is_optimal_transport():
    """Twelve positions to three references is an assignment of four places each."""
    x = image(1, 12, 4)
    pool = pool_of("otk", {"eps": 0.003, "iterations": 3000}, dim=4)
    _, a = pool(x, return_attention=True)
    cost = ((x[0].numpy()[:, None] - numbers(pool)["references"]) ** 2).sum(-1)
    _, place = optimize.linear_sum_assignment(np.repeat(cost, 4, axis=1))
    np.testing.assert_allclose(a[0].detach().numpy().T * 4, np.eye(3)[place // 4], atol=1e-3)


def test_otk_does_not_tell_distances_from_dot_products():
    """The squared norms are scalings of rows and columns, which are Sinkhorn's to choose."""
    x = image(2, 9, 4)
    pool = pool_of("otk", {"eps": 3.0, "iterations": 200}, dim=4)
    _, a = pool(x, return_attention=True)
    plan = (x @ pool.references.T / 1.5).exp()
    for _ in range(200):
        plan = plan / plan.sum(2, keepdim=True)
        plan = plan / plan.sum(1, keepdim=True)
    torch.testing.assert_close(a, plan.mT)


def test_slot_is_algorithm_1():
    """Locatello et al.'s algorithm line by line in numpy, with the equations of a GRU."""
    pool, x = pool_of("slot", {"reduce": "concat"}, dim=4), image(1, 7, 4)
    state = numbers(pool)

    def linear(name, rows):
        return rows @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layer_norm(name, rows):
        centred = rows - rows.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * state[f"{name}.weight"]
            + (state[f"{name}.bias"])
        )

    def gru(updates, slots):
        from_updates = np.split(updates @ state["gru.weight_ih"].T + state["gru.bias_ih"], 3, axis=1)
        from_slots = np.split(slots @ state["gru.weight_hh"].T + state["gru.bias_hh"], 3, axis=1)
        reset, keep = (special.expit(a + b) for a, b in zip(from_updates[:2], from_slots[:2], strict=True))
        return (1 - keep) * np.tanh(from_updates[2] + reset * from_slots[2]) + keep * slots

    inputs = layer_norm("norm_input", x[0].numpy())
    slots = state["slots_mu"][0] + np.exp(state["slots_logsigma"][0]) * state["noise"]
    for _ in range(3):
        attention = special.softmax(
            linear("to_k", inputs) @ linear("to_q", layer_norm("norm_slots", slots)).T / np.sqrt(4), axis=1
        )
        weights = (attention + 1e-8) / (attention + 1e-8).sum(0)
        slots = gru(weights.T @ linear("to_v", inputs), slots)
        hidden = np.maximum(linear("mlp.0", layer_norm("norm_pre_ff", slots)), 0)
        slots = slots + linear("mlp.2", hidden)
    z, a = pool(x, return_attention=True)
    np.testing.assert_allclose(z[0].detach(), slots.ravel(), rtol=1e-9)
    np.testing.assert_allclose(a[0].detach(), weights.T, rtol=1e-9)


def test_slots_mlp_is_as_wide_as_the_releases():
    assert [create_pool("slot", dim).mlp[0].out_features for dim in (8, 128, 384)] == [128, 128, 384]


@pytest.mark.parametrize("name", ("kmeans", "otk", "slot"))
def test_reductions_of_k_vectors(name):
    x = image(2, 9, 8)
    vectors = pool_of(name, {"reduce": "concat"})(x).unflatten(1, (3, 8))
    torch.testing.assert_close(pool_of(name, {"reduce": "max"})(x), vectors.amax(1))
    torch.testing.assert_close(pool_of(name, {"reduce": "mean"})(x), vectors.mean(1))


@pytest.mark.parametrize("name", ("kmeans", "otk", "slot"))
def test_one_vector_competes_with_nobody(name):
    _, a = pool_of(name, {"k": 1})(image(2, 9, 8), return_attention=True)
    torch.testing.assert_close(a, torch.full((2, 1, 9), 1 / 9, dtype=torch.float64))


# Group 3


def test_se_is_timms_then_the_average():
    ours, x = pool_of("se", {}, dim=32), image(2, 32, 4, 5)
    theirs = SqueezeExcite(32, rd_channels=2).double()
    theirs.load_state_dict({
        key.replace("mlp.0", "fc1").replace("mlp.2", "fc2"): value[..., None, None] if value.ndim == 2 else value
        for key, value in ours.state_dict().items()
    })  # fmt: skip
    torch.testing.assert_close(ours(x), theirs(x).mean((2, 3)))


def test_cbam_is_the_papers_row():
    """q = sigma(MLP(GAP(X))), s = X^T q / d, A = sigma(conv7(s)) / p, z = diag(q) X A, in numpy and SciPy."""
    pool, x = pool_of("cbam", {}, dim=32), image(2, 32, 4, 5)
    state = numbers(pool)
    z, a = pool(x, return_attention=True)
    for b in range(2):
        X = x[b].flatten(1).numpy()  # d x p, as the paper has it
        q = special.expit(state["mlp.2.weight"] @ np.maximum(state["mlp.0.weight"] @ X.mean(1), 0))
        s = (X.T @ q / 32).reshape(4, 5)
        A = special.expit(signal.correlate2d(s, state["conv.weight"][0, 0], "same") + state["conv.bias"]) / 20
        np.testing.assert_allclose(z[b].detach(), np.diag(q) @ X @ A.ravel(), rtol=1e-9)
        np.testing.assert_allclose(a[b, 0].detach(), A / A.sum(), rtol=1e-9)


def test_cbam_by_hand():
    """One channel, gate 1/2, a convolution that is 2 in its centre and 0 elsewhere."""
    pool = create_pool("cbam", 1)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.zero_()
        pool.conv.weight[0, 0, 3, 3] = 2.0
    x = torch.tensor([[[0.0], [math.log(3)]]])
    # s = x / 2, so sigma(2 s) = 1/2, 3/4; A = 1/4, 3/8; z = (1/2) (3/8) ln 3
    z, a = pool(x, grid=(1, 2), return_attention=True)
    torch.testing.assert_close(z, torch.tensor([[3 / 16 * math.log(3)]]))
    torch.testing.assert_close(a, torch.tensor([[[0.4, 0.6]]]))


def test_gather_excite_by_hand():
    pool = create_pool("ge", 1)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.zero_()
        pool.mlp[0].weight.fill_(1.0)
        pool.mlp[2].weight.fill_(1.0)
        # On 2 x 2 a window of ones around the first position gathers all: 1 + 2 + 3 + 4 = 10, minus 10.
        pool.conv.weight.fill_(1.0)
        pool.mlp[2].bias.fill_(-10.0)
    assert pool(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])).item() == 2.5 / 2
    with torch.no_grad():
        # The window's centre alone on 3 x 3 gathers the corners 0, 2, 6, 8; each gates its own share.
        pool.conv.weight.zero_()
        pool.conv.weight[0, 0, 1, 1] = 1.0
        pool.mlp[2].bias.zero_()
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    corners = [0, 0, 2, 0, 0, 2, 6, 6, 8]  # nearest: two rows and columns of the first, one of the second
    expected = sum(i / (1 + math.exp(-corner)) for i, corner in enumerate(corners)) / 9
    torch.testing.assert_close(pool(x).item(), expected)

    free = create_pool("ge", 1, parametric=False)
    torch.testing.assert_close(free(torch.tensor([[[0.0], [2.0]]])).item(), 1 / (1 + math.exp(-1)))


def test_gather_excite_is_its_layers():
    """The parametric gate, by SciPy: strided convolution of each channel, MLP, nearest neighbour."""
    pool, x = pool_of("ge", {}, dim=16), image(1, 16, 6, 4)
    state, X = numbers(pool), x[0].numpy()
    kernels, bias = state["conv.weight"][:, 0], state["conv.bias"]
    gathered = np.stack([signal.correlate2d(X[c], kernels[c], "same")[::2, ::2] + bias[c] for c in range(16)])
    hidden = np.maximum(
        np.einsum("hc,cij->hij", state["mlp.0.weight"], gathered) + state["mlp.0.bias"][:, None, None], 0
    )
    excited = np.einsum("ch,hij->cij", state["mlp.2.weight"], hidden) + state["mlp.2.bias"][:, None, None]
    gate = special.expit(excited.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(pool(x)[0].detach(), (gate * X).mean((1, 2)), rtol=1e-9)


# Group 4


@pytest.mark.parametrize("depth", (1, 3))
def test_vit_is_torchs_encoder(depth):
    pool, x = pool_of("vit", {"depth": depth, "num_heads": 2}), image(2, 9, 8)
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).double()
    for ours, theirs in zip(pool.blocks, encoder.layers, strict=True):
        state = ours.state_dict()
        attention = {"in_proj_weight": "weight", "in_proj_bias": "bias"}
        theirs.load_state_dict(
            {f"self_attn.{key}": torch.cat([state[f"{p}.{kind}"] for p in "qkv"]) for key, kind in attention.items()}
            | {f"self_attn.out_proj.{kind}": state[f"proj.{kind}"] for kind in ("weight", "bias")}
            | {f"linear{i}.{kind}": state[f"fc{i}.{kind}"] for i in (1, 2) for kind in ("weight", "bias")}
            | {key: state[key] for key in state if key.startswith("norm")}
        )
    sequence = torch.cat([pool.cls_token.expand(2, -1, -1), x], 1)
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(z, pool.norm(encoder(sequence)[:, 0]))

    for earlier in encoder.layers[:-1]:
        sequence = earlier(sequence)
    normed = encoder.layers[-1].norm1(sequence)
    _, weights = encoder.layers[-1].self_attn(normed, normed, normed, average_attn_weights=False)
    patches = weights[:, :, 0, 1:]  # of the class token, without itself
    torch.testing.assert_close(a, patches / patches.sum(-1, keepdim=True))


@pytest.mark.parametrize("depth", (1, 2))
def test_cait_is_timms(depth):
    pool, x = pool_of("cait", {"depth": depth, "num_heads": 2}), image(2, 9, 8)
    token, seen = pool.cls_token.expand(2, -1, -1), []
    for ours in pool.blocks:
        theirs = LayerScaleBlockClassAttn(8, 2, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        place = {"q": "attn", "k": "attn", "v": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}
        renamed = {
            f"{place[key.split('.')[0]]}.{key}" if key.split(".")[0] in place else key: value
            for key, value in ours.state_dict().items()
        }
        theirs.double().load_state_dict(renamed)
        theirs.attn.fused_attn = False  # the fused kernel never shows its weights
        theirs.attn.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        token = theirs(x, token)
    z, a = pool(x, return_attention=True)
    torch.testing.assert_close(z, pool.norm(token[:, 0]))
    patches = seen[-1][:, :, 0, 1:]  # of the class token, without itself
    torch.testing.assert_close(a, patches / patches.sum(-1, keepdim=True))


def test_cait_tells_images_apart_at_the_start():
    x = image(8, 9, 64).float()
    spread = [create_pool("cait", 64, layer_scale=scale)(x).std(0).mean().item() for scale in (0.1, 1e-5)]
    assert spread[0] > 1000 * spread[1] > 0


# Group 5 is in test_simpool.py


def test_simpool_without_a_query_is_layer_norm_then_gap():
    pool, x = pool_of("simpool", {}), image(2, 9, 8)
    with torch.no_grad():
        pool.wq.weight.zero_()
    normed = F.layer_norm(x, (8,), pool.norm_patches.weight, pool.norm_patches.bias, 1e-6)
    torch.testing.assert_close(pool(x), normed.mean(1))


# The paper's Table 8, parameters in millions with 1000 classes


@pytest.mark.parametrize(
    ("backbone", "default", "printed"),
    [
        ("resnet18", 11.7, {"cait": 18.0, "slot": 14.6, "ge": 11.7, "simpool": 12.2}),
        ("resnet50", 25.6, {"cait": 75.9, "slot": 71.7, "ge": 26.1, "simpool": 33.9}),
        ("convnext_small", 50.2, {"cait": 57.3, "slot": 56.7, "ge": 50.3, "simpool": 51.4}),
        ("vit_small_patch16_224", 22.1, {"cait": 23.8, "slot": 23.7, "ge": 22.1, "simpool": 22.3}),
    ],
)
def test_parameters_are_those_of_table_8(backbone, default, printed):
    with torch.device("meta"):
        model = timm.create_model(backbone)
        pools = {name: create_pool(name, model.num_features) for name in printed}
        if backbone == "resnet18":  # the one network where the printed number is that of two blocks
            pools["cait"] = create_pool("cait", model.num_features, depth=2)
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in [("", model), *pools.items()]}
    assert round(count[""] / 1e6, 1) == default
    assert {name: round((count[""] + count[name]) / 1e6, 1) for name in printed} == printed
