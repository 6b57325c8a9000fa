"""Where a model looks, by every method that a reader would compare, in one shape."""

import copy
import math

import torch
from timm.layers import to_2tuple
from timm.utils import AttentionExtract
from torch import Tensor, nn

from ..checks import check_choice
from ..models.pooled import ClassTokenMixin, PooledMixin
from ..pooling.simple import GeM

OPTIONS = {"pool": (), "cls": ("block", "each_head"), "rollout": (), "cam": ("target",), "gradcam": ("target",)}
KINDS = tuple(OPTIONS)


def attention_maps(
    model: nn.Module,
    images: Tensor,
    kind: str = "pool",
    *,
    block: int | None = None,
    each_head: bool = False,
    target: int | Tensor | None = None,
) -> Tensor:
    """Maps of where a model looks, on the grid of its features.

    ======= ========================================================================= ====== ========
    kind    map                                                                       values  M
    ======= ========================================================================= ====== ========
    pool    the pooling's own attention                                               sum 1  its maps
    cls     attention of the class token to the patches in a block, as DINO draws it  sum 1  1, heads
    rollout the product over the blocks of (A + I) / 2, A the mean over the heads     sum 1  1
    cam     class activation map, sum_d w_d x_d                                       signed 1
    gradcam ReLU(sum_d x_d mean_i(dy/dx_di))                                          >= 0   1
    ======= ========================================================================= ====== ========

    - "cls" leaves out what the token gives to itself and to registers (Caron et al. 2021, Figure 1).
    - "rollout" (Abnar & Zuidema 2020, section 3) is read where the network pools: the class token's row, or the mean of
      the patches' rows, weighted by the pooling's own attention; one map for each of its maps.
    - "cam" (Zhou et al. 2016, equation 2) exists where the logits are a linear layer of the average over positions, or
      of GeM's mean z, whose parts z_d x_id^gamma / mean_i(x_id^gamma) are in the place of x_id. Its mean over the
      positions is the logit without the bias.
    - "gradcam" (Selvaraju et al. 2017, equations 1 and 2) is the package grad-cam's, at the trunk's output, and where
      a class token is pooled at the input of the last block. For a network that averages it is ReLU(CAM) divided by the
      number of positions.

    All but "pool" at the model's own size work on a copy, in evaluation mode: neither the model nor its gradients
    change. A vision transformer takes images of another size than in training: timm resamples its position embeddings.

    Args:
        model: made by :func:`~simpool_lite.create_model`, or any timm model that has the kind.
        images: ``(B, 3, h, w)``, normalised, on the model's device; for a transformer multiples of its patch.
        kind: "pool", "cls", "rollout", "cam" or "gradcam".
        block: of "cls", counted from 0 or, negative, from the end; the last by default.
        each_head: of "cls", one map per head instead of their mean.
        target: of "cam" and "gradcam", a class or ``(B,)`` classes; by default the one the model predicts.

    Returns:
        ``(B, M, H, W)``, detached.

    Raises:
        TypeError: ``model`` or ``images`` has the wrong type.
        ValueError: the model has no map of that kind, and why; the images do not fit; an option of another kind.
        ImportError: "gradcam" without the package grad-cam.

    >>> from simpool_lite import create_model
    >>> model, images = create_model("vit_micro", pool="cls", num_classes=10), torch.randn(2, 3, 48, 48)
    >>> attention_maps(model, images, "cls", block=0, each_head=True).shape
    torch.Size([2, 3, 6, 6])
    >>> attention_maps(model, torch.randn(2, 3, 64, 96), "rollout").shape
    torch.Size([2, 1, 8, 12])
    """
    check_choice("kind", kind, KINDS)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a model of create_model() or timm, got {type(model).__name__}")
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected a floating-point tensor (B, 3, h, w), got {came}")
    given = {"block": block is not None, "each_head": each_head, "target": target is not None}
    if wrong := [name for name, is_given in given.items() if is_given and name not in OPTIONS[kind]]:
        owners = ", ".join(other for other in KINDS if wrong[0] in OPTIONS[other])
        raise ValueError(f"{wrong[0]}: expected only with kind {owners}, got it with {kind!r}; leave it out")
    if kind == "gradcam":
        with torch.inference_mode(False), torch.enable_grad():
            return _gradcam(_copy(model, images), images.clone(), target)
    with torch.no_grad():
        if kind == "pool":
            return _pool(model, images)
        model = _copy(model, images)
        if kind == "cls":
            return _cls(model, images, -1 if block is None else block, each_head)
        return _rollout(model, images) if kind == "rollout" else _cam(model, images, target)


def _pool(model: nn.Module, images: Tensor) -> Tensor:
    if not isinstance(model, PooledMixin | ClassTokenMixin):
        raise _absent("pool", model, "its pooling shows no map; replace_pooling(model, ...) or create_model() give one")
    return (model if _fits(model, images) else _copy(model, images)).attention(images)


def _cls(model: nn.Module, images: Tensor, block: int, each_head: bool) -> Tensor:
    if getattr(model, "cls_token", None) is None:
        raise _absent("cls", model, "it has no class token")
    blocks = _block_attention("cls", model, images)
    if isinstance(block, bool) or not isinstance(block, int) or not -len(blocks) <= block < len(blocks):
        raise ValueError(f"block: expected an int from {-len(blocks)} to {len(blocks) - 1}, got {block!r}")
    weights = blocks[block][:, :, 0]  # the class token comes first
    return _to_patches(model, images, weights if each_head else weights.mean(1, keepdim=True))


def _rollout(model: nn.Module, images: Tensor) -> Tensor:
    blocks = _block_attention("rollout", model, images)
    tokens = blocks[0].shape[-1]
    if _pools_class_token(model):
        rows = torch.zeros(len(images), 1, tokens).to(blocks[0])
        rows[..., 0] = 1
    else:
        average = getattr(model, "global_pool", None) == "avg"
        if not average and not isinstance(model, PooledMixin):
            raise _absent("rollout", model, "it pools neither a class token nor patches by known weights")
        patches = model.attention(images).flatten(2) if isinstance(model, PooledMixin) else None
        height, width = _grid(model, images)
        if patches is None:
            patches = torch.full((len(images), 1, height * width), 1 / (height * width)).to(blocks[0])
        rows = nn.functional.pad(patches, (tokens - height * width, 0))
    for attention in reversed(blocks):  # the last block is read first, so that only vectors are multiplied
        rows = (rows @ attention.mean(1) + rows) / 2
    return _to_patches(model, images, rows)


def _cam(model: nn.Module, images: Tensor, target: int | Tensor | None) -> Tensor:
    output = model.forward_features(images)
    logits, classifier = model.forward_head(output), model.get_classifier()
    parts = _averaged(model, _feature_map(model, output, images))
    if isinstance(classifier, nn.Linear) and classifier.in_features == parts.shape[1]:
        expected, bias = classifier(parts.mean((2, 3))), 0 if classifier.bias is None else classifier.bias
        tolerance = math.sqrt(torch.finfo(logits.dtype).eps) * (expected - bias).abs().max()
        if ((logits - expected).abs() <= tolerance).all():  # whatever the head is made of
            return torch.einsum("bdhw,bd->bhw", parts, classifier.weight[_classes(logits, target)])[:, None]
    reason = "its logits are no linear layer of the average over positions; 'gradcam' does not need them to be"
    raise _absent("cam", model, reason)


def _averaged(model: nn.Module, features: Tensor) -> Tensor:
    """What has the pooled vector as its average over positions: the features, or GeM's parts of them."""
    if not isinstance(gem := getattr(model, "pooling", None), GeM):
        return features
    powers = features.clamp_min(gem.EPS) ** gem.gamma
    mean = powers.mean((2, 3), keepdim=True)
    return powers / mean * mean ** (1 / gem.gamma)


def _gradcam(model: nn.Module, images: Tensor, target: int | Tensor | None) -> Tensor:
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        hint = "pip install 'simpool-lite[notebooks]'"
        raise ImportError(f"kind: 'gradcam' expects the package grad-cam, which is not installed; {hint}") from error
    if isinstance(model.get_classifier(), nn.Identity):
        raise _absent("gradcam", model, "it has no classifier")
    network = _TrunkAndHead(model.float())
    images = images.float().requires_grad_()  # so that there are gradients in a frozen model, too
    layer = network.trunk
    if _pools_class_token(model):  # the patches of the last block's output get no gradient
        layer = getattr(model.blocks[-1], "norm1", None) if hasattr(model, "blocks") else None
    if layer is None:
        raise _absent(
            "gradcam", model, "it pools a class token and has no blocks[-1].norm1, the last attention's input"
        )
    with torch.no_grad():
        classes = _classes(network(images), target)
    targets = [ClassifierOutputTarget(label) for label in classes.tolist()]
    method = GradCAM(network, [layer], reshape_transform=lambda output: _feature_map(model, output, images))
    method(images, targets)
    # What the call returns is resized to the images and scaled to [0, 1], so take the map before that.
    kept = method.activations_and_grads
    maps = method.get_cam_image(images, layer, targets, kept.activations[0].numpy(), kept.gradients[0].numpy())
    return torch.from_numpy(maps).clamp_min(0)[:, None].to(images.device)


class _TrunkAndHead(nn.Module):
    """A timm model in two modules, so that a hook can stand between them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trunk = _Trunk(model)

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk.model.forward_head(self.trunk(images))


class _Trunk(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(images)


def _copy(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy in evaluation mode that takes the images' size."""
    model = copy.deepcopy(model).eval()
    if not _fits(model, images):
        size, patch = tuple(images.shape[-2:]), to_2tuple(model.patch_embed.patch_size)
        if size[0] % patch[0] or size[1] % patch[1]:
            raise ValueError(f"images: expected multiples of the patch {patch}, got {size} pixels")
        model.set_input_size(img_size=size)
    return model


def _fits(model: nn.Module, images: Tensor) -> bool:
    if not hasattr(model, "set_input_size") or getattr(model, "dynamic_img_size", False):
        return True
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return size is None or tuple(size) == tuple(images.shape[-2:])


def _grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """The grid (H, W) of a transformer's patches for images that it takes."""
    embed = getattr(model, "patch_embed", None)
    if getattr(model, "dynamic_img_size", False):
        return tuple(embed.dynamic_feat_size(tuple(images.shape[-2:])))
    if not hasattr(embed, "grid_size"):
        raise ValueError(f"model: expected patch_embed.grid_size, which places the tokens, got {type(model).__name__}")
    return tuple(embed.grid_size)


def _block_attention(kind: str, model: nn.Module, images: Tensor) -> list[Tensor]:
    """The weights of every block, each ``(B, heads, N, N)``; the model is a copy."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # the fused kernel never shows its weights
    try:
        blocks = list(AttentionExtract(model, ["*blocks*.attn_drop"], method="hook")(images).values())
    except RuntimeError as error:
        if "matching" not in str(error):
            raise
        blocks = []
    if blocks and hasattr(model, "num_prefix_tokens"):
        tokens = model.num_prefix_tokens + math.prod(_grid(model, images))
        if all(weights.shape[-2:] == (tokens, tokens) for weights in blocks):
            return blocks
    raise _absent(kind, model, "its blocks do not attend from all tokens to all tokens")


def _to_patches(model: nn.Module, images: Tensor, weights: Tensor) -> Tensor:
    """Weights ``(B, M, N)`` without the prefix tokens, of sum one, on the grid."""
    weights = weights[..., model.num_prefix_tokens :]
    return (weights / weights.sum(-1, keepdim=True)).unflatten(-1, _grid(model, images))


def _feature_map(model: nn.Module, output: Tensor, images: Tensor) -> Tensor:
    """A trunk's output as ``(B, d, H, W)``."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise ValueError(f"model: expected one feature map or one set of tokens, got {type(model).__name__} without")
    if output.ndim == 3:
        height, width = _grid(model, images)
        if output.shape[1] < height * width:
            came = f"{output.shape[1]} from {type(model).__name__}"
            raise ValueError(f"model: expected {height} × {width} tokens of patches, got {came}")
        return output[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
    is_nhwc = output.shape[-1] == model.num_features and output.shape[1] != model.num_features
    return output.permute(0, 3, 1, 2) if is_nhwc else output


def _pools_class_token(model: nn.Module) -> bool:
    """Whether the head reads the class token alone."""
    if isinstance(model, PooledMixin) or getattr(model, "cls_token", None) is None:
        return False
    return getattr(model, "global_pool", "token") == "token"


def _classes(logits: Tensor, target: int | Tensor | None) -> Tensor:
    """The class of each image, ``(B,)``."""
    if target is None:
        return logits.argmax(1)
    classes = torch.as_tensor(target, device=logits.device)
    fits = classes.dtype in (torch.int64, torch.int32) and classes.shape in [(), (len(logits),)]
    if not fits or not ((classes >= 0) & (classes < logits.shape[1])).all():
        expected = f"a class from 0 to {logits.shape[1] - 1} or {len(logits)} of them, one per image"
        raise ValueError(f"target: expected {expected}, got {target!r}")
    return classes.expand(len(logits)).long()


def _absent(kind: str, model: nn.Module, reason: str) -> ValueError:
    config = getattr(model, "create_config", None)
    name = f"{config['backbone']} with pool {config['pool']!r}" if config else type(model).__name__
    return ValueError(f"kind: {kind!r} does not exist for {name}: {reason}")
