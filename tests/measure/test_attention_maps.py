"""Maps of every kind against their formulas, written anew in float64."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from simpool_lite import create_model
from simpool_lite.measure.maps import attention_maps

TINY_VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
TINY_SWIN = {"depths": (1, 1), "embed_dim": 12, "num_heads": (1, 2), "window_size": 3, "num_classes": 5}


def images(size: int | tuple[int, int] = 48, batch: int = 2) -> Tensor:
    size = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def lively(model: nn.Module) -> nn.Module:
    """In float64, with weights so large that no attention is nearly uniform and no norm nearly the identity."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model.eval()


def tiny_vit(size: int = 32, **options) -> nn.Module:
    torch.manual_seed(0)
    return lively(timm.create_model("vit_tiny_patch16_224", img_size=size, **TINY_VIT | options))


def micro(backbone: str, pool: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return lively(create_model(backbone, pool=pool, num_classes=5, **options))


def block_attention(model: nn.Module, x: Tensor) -> list[Tensor]:
    """softmax(q k^T / sqrt(d')) of every block, from its own q and k: each (B, heads, N, N)."""
    inputs = []
    hooks = [b.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for b in model.blocks]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    result = []
    for block, tokens in zip(model.blocks, inputs, strict=True):
        q_and_k = tokens @ block.attn.qkv.weight.T + block.attn.qkv.bias
        width = tokens.shape[2]
        q, k = (part.unflatten(2, (3, -1)).transpose(1, 2) for part in q_and_k.split(width, 2)[:2])
        scores = q @ k.transpose(2, 3) / (width // 3) ** 0.5
        result.append((scores.exp() / scores.exp().sum(-1, keepdim=True)).detach())
    return result


def to_one(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    return (weights / weights.sum(-1, keepdim=True)).unflatten(-1, grid)


def test_pool_is_the_poolings_own_map():
    for backbone in ("vit_micro", "convnet_micro"):
        model = micro(backbone, "simpool")
        torch.testing.assert_close(attention_maps(model, images()), model.attention(images()))


@pytest.mark.parametrize("registers", [0, 2])
def test_cls_is_the_class_tokens_attention_without_itself_and_registers(registers):
    model = tiny_vit(reg_tokens=registers)
    for block in (0, 1, -1):
        heads = block_attention(model, images(32))[block][:, :, 0, 1 + registers :]
        each = attention_maps(model, images(32), "cls", block=block, each_head=True)
        torch.testing.assert_close(each, to_one(heads, (4, 4)))
        torch.testing.assert_close(
            attention_maps(model, images(32), "cls", block=block), to_one(heads.mean(1, keepdim=True), (4, 4))
        )
    torch.testing.assert_close(attention_maps(model, images(32), "cls", each_head=True), each)
    assert each.std() > 0.01  # not uniform, or all blocks would look alike


def test_cls_of_a_cls_pooled_model_is_its_pooling():
    model = micro("vit_micro", "cls")
    each = attention_maps(model, images(), "cls", each_head=True)
    torch.testing.assert_close(each, attention_maps(model, images(), "pool"))
    assert each.shape == (2, 3, 6, 6)


def rolled_out(model: nn.Module, x: Tensor) -> Tensor:
    """Abnar & Zuidema: A~_1 = A_1, A~_l = A_l A~_(l-1), where A is half attention, half residual; (B, N, N)."""
    product = None
    for weights in block_attention(model, x):
        layer = 0.5 * weights.mean(1) + 0.5 * torch.eye(weights.shape[-1], dtype=weights.dtype)
        product = layer if product is None else layer @ product
    return product


def test_rollout_multiplies_the_blocks():
    model = micro("vit_micro", "cls")
    expected = to_one(rolled_out(model, images())[:, :1, 1:], (6, 6))
    torch.testing.assert_close(attention_maps(model, images(), "rollout"), expected)


@pytest.mark.parametrize("pool", ["gap", "simpool"])
def test_rollout_without_a_class_token_starts_where_the_pooling_looks(pool):
    model = micro("vit_micro", pool)
    start = model.attention(images()).flatten(2)
    expected = to_one(start @ rolled_out(model, images()), (6, 6))
    torch.testing.assert_close(attention_maps(model, images(), "rollout"), expected)


def test_rollout_of_timms_average_pooling_is_the_mean_of_the_rows():
    model = tiny_vit(global_pool="avg")  # it has a class token, which is not pooled
    expected = to_one(rolled_out(model, images(32))[:, 1:, 1:].mean(1, keepdim=True), (4, 4))
    torch.testing.assert_close(attention_maps(model, images(32), "rollout"), expected)


GAP_MODELS = {
    "resnet18": lambda: lively(timm.create_model("resnet18", num_classes=5)),
    "convnet_micro": lambda: micro("convnet_micro", "gap"),
    "vit_micro": lambda: micro("vit_micro", "gap"),
    "swin": lambda: lively(timm.create_model("swin_tiny_patch4_window7_224", img_size=48, **TINY_SWIN)),  # (B, H, W, d)
}


@pytest.mark.parametrize("name", GAP_MODELS)
def test_the_mean_of_a_cam_is_the_logit_without_the_bias(name):
    model, x = GAP_MODELS[name](), images()
    classifier = model.get_classifier()
    with torch.no_grad():
        logits = model(x)
    best, given = logits.argmax(1), torch.tensor([3, 1])
    for target, classes in ((None, best), (given, given), (2, torch.tensor([2, 2]))):
        maps = attention_maps(model, x, "cam", target=target)
        expected = logits[[0, 1], classes] - classifier.bias[classes]
        torch.testing.assert_close(maps.mean((1, 2, 3)), expected.detach())
        assert maps.shape == (2, 1, *maps.shape[2:]) and not maps.requires_grad


def test_cam_weighs_the_features_position_by_position():
    model = micro("convnet_micro", "gap")
    with torch.no_grad():
        features = model.forward_features(images())
        by_position = features.permute(0, 2, 3, 1) @ model.get_classifier().weight[4]
    torch.testing.assert_close(attention_maps(model, images(), "cam", target=4)[:, 0], by_position)


@pytest.mark.parametrize("backbone", ["convnet_micro", "vit_micro"])
def test_cam_of_gem_shares_its_mean_out(backbone):
    """To each position its part of the power mean, channel by channel; all parts together are the logit."""
    model, x = micro(backbone, "gem"), images()
    maps = attention_maps(model, x, "cam", target=3)[:, 0]
    with torch.no_grad():
        features, logits, gamma = model.forward_features(x), model(x), model.pooling.gamma
    if features.ndim == 3:
        features = features[:, -maps[0].numel() :].mT.unflatten(2, maps.shape[1:])
    torch.testing.assert_close(maps.mean((1, 2)), (logits[:, 3] - model.get_classifier().bias[3]).detach())
    for n, i, j in ((0, 0, 0), (1, 2, 1)):
        value = 0.0
        for d, weight in enumerate(model.get_classifier().weight[3].tolist()):
            powers = features[n, d].clamp_min(1e-6).double() ** gamma.item()
            value += weight * (powers.mean() ** (1 / gamma.item()) * powers[i, j] / powers.mean()).item()
        assert maps[n, i, j].item() == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", GAP_MODELS)
def test_gradcam_of_an_average_and_a_linear_layer_is_the_rectified_cam(name):
    model, x = GAP_MODELS[name](), images()
    model, x = model.float(), x.float()
    for target in (None, torch.tensor([0, 4])):
        cam = attention_maps(model, x, "cam", target=target)
        expected = cam.relu() / cam[0].numel()
        maps = attention_maps(model, x, "gradcam", target=target)
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5 * expected.max().item())


@pytest.mark.parametrize("pool", ["simpool", "cls"])
def test_gradcam_from_gradients(pool):
    """At the trunk's output; where a class token is pooled, at the input of the last block."""
    model, x = micro("vit_micro", pool).float(), images().float()
    kept = []
    layer = model.blocks[-1].norm1 if pool == "cls" else model.norm
    hook = layer.register_forward_hook(lambda _, args, output: kept.append(output))
    logits = model(x)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept)
    patches, gradient = (t[:, -36:].detach() for t in (kept[0], gradient))
    expected = (patches * gradient.mean(1, keepdim=True)).sum(2).relu().view(2, 1, 6, 6)
    assert expected.amax() > 0
    model.requires_grad_(False)
    with torch.inference_mode():
        maps = attention_maps(model, x, "gradcam", target=1)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["cls", "rollout", "gradcam"])
def test_larger_images_resample_the_position_embeddings_as_timm_does(kind):
    """timm's own model for any size, with the same weights."""
    fixed, any_size = tiny_vit(), tiny_vit(dynamic_img_size=True)
    any_size.load_state_dict(fixed.state_dict())
    x = images((48, 80))
    maps = attention_maps(fixed, x, kind)
    assert maps.shape == (2, 1, 6, 10)
    torch.testing.assert_close(maps, attention_maps(any_size, x, kind))
    torch.testing.assert_close(fixed.pos_embed.shape, (1, 17, 24))


def test_larger_images_for_the_poolings_own_map():
    model = micro("vit_micro", "simpool")
    resized = copy.deepcopy(model)
    resized.set_input_size((64, 96))
    torch.testing.assert_close(attention_maps(model, images((64, 96))), resized.attention(images((64, 96))))
    assert attention_maps(micro("convnet_micro", "simpool"), images((64, 96))).shape == (2, 1, 16, 24)


@pytest.mark.parametrize("kind", ["pool", "cls", "rollout", "gradcam"])
def test_the_model_stays_as_it_was(kind):
    model = micro("vit_micro", "cls").train()
    model(images()).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    attention_maps(model, images(64), kind)
    assert all(module.training for module in model.modules())
    assert all(block.attn.fused_attn for block in model.blocks)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert model(images()).shape == (2, 5)


def convnext() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=5).double()


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (lambda: micro("convnet_micro", "max"), "pool", "MaxPool|Max, which weighs no positions"),
        (tiny_vit, "pool", r"'pool' does not exist for VisionTransformer: .* replace_pooling"),
        (lambda: micro("vit_micro", "gap"), "cls", "'cls' .* vit_micro with pool 'gap': it has no class token"),
        (convnext, "cls", "'cls' does not exist for ConvNeXt: it has no class token"),
        (convnext, "rollout", "'rollout' does not exist for ConvNeXt: its blocks do not attend"),
        (GAP_MODELS["swin"], "rollout", "SwinTransformer: its blocks do not attend from all tokens"),
        (lambda: tiny_vit(global_pool="map"), "rollout", "'rollout' does not exist for VisionTransformer: it pools"),
        (lambda: tiny_vit(global_pool="avg", fc_norm=True), "cam", "its logits are no linear layer"),
        (convnext, "cam", "'cam' does not exist for ConvNeXt: its logits are no linear layer"),  # a norm in between
        (lambda: micro("convnet_micro", "simpool"), "cam", "convnet_micro with pool 'simpool': its logits are no"),
        (lambda: micro("vit_micro", "cls"), "cam", "vit_micro with pool 'cls': its logits are no linear"),
        (lambda: create_model("convnet_micro", num_classes=0).double(), "gradcam", "it has no classifier"),
    ],
)  # fmt: skip
def test_a_kind_that_does_not_exist_is_named_with_the_reason(model, kind, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(model(), images(), kind)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("clss", {}, "kind: expected one of pool, cls, .*did you mean 'cls'"),
        ("pool", {"block": 0}, "block: expected only with kind cls, got it with 'pool'"),
        ("cls", {"target": 1}, "target: expected only with kind cam, gradcam, got it with 'cls'"),
        ("cls", {"block": 3}, "block: expected an int from -3 to 2, got 3"),
        ("gradcam", {"target": 5}, "target: expected a class from 0 to 4 or 2 of them, one per image, got 5"),
        ("gradcam", {"target": torch.tensor([1, 2, 3])}, "target: expected a class"),
    ],
)
def test_options_that_do_not_fit(kind, options, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(micro("vit_micro", "cls"), images(), kind, **options)


def test_images_that_do_not_fit():
    model = micro("vit_micro", "cls")
    with pytest.raises(ValueError, match=r"images: expected multiples of the patch \(8, 8\), got \(50, 48\) pixels"):
        attention_maps(model, images((50, 48)), "cls")
    with pytest.raises(TypeError, match=r"images: expected a floating-point tensor \(B, 3, h, w\), got \(3, 48, 48\)"):
        attention_maps(model, images()[0], "cls")
    with pytest.raises(TypeError, match="model: expected a model of create_model"):
        attention_maps("vit_micro", images(), "cls")
