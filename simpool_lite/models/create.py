"""Make a model: a timm backbone by name, with a pooling by name."""

import timm
from torch import nn

from . import micro  # noqa: F401  (registers convnet_micro and vit_micro with timm)
from .pooled import keep_class_token, replace_pooling


def create_model(
    backbone: str,
    pool: str = "gap",
    num_classes: int = 1000,
    *,
    pool_kwargs: dict | None = None,
    pretrained: bool = False,
    norm_first: bool = True,
    max_logits: bool = False,
    img_size: int | tuple[int, int] | None = None,
    **timm_kwargs,
) -> nn.Module:
    """Make a classifier from a backbone and a pooling.

    The pooling stands where timm's own stands and everything after it stays.

    Args:
        backbone: ``convnet_micro``, ``vit_micro`` (both for 48 x 48 photo-digits), or any timm model.
        pool: one of :func:`~simpool_lite.list_pools`, or "cls": a transformer's own class token.
        num_classes: size of the logits; 0 gives the pooled features.
        pool_kwargs: arguments of the pooling.
        pretrained: load timm's weights of that name (downloads them).
        norm_first: see :func:`~simpool_lite.replace_pooling`.
        max_logits: likewise.
        img_size: pixels, for backbones with a fixed input size (ViT, Swin, MaxViT); others take any size.
        **timm_kwargs: passed to ``timm.create_model``.

    Returns:
        A module: ``model(images)`` gives logits ``(B, num_classes)``, ``model.attention(images)`` maps
        ``(B, M, H, W)``; a ValueError there for a pooling without a map.

    Raises:
        ValueError: the backbone or pooling is unknown, or "cls" is asked of a backbone without a class token.
        FileNotFoundError: the pretrained weights are neither cached nor to be downloaded.

    >>> import torch
    >>> model = create_model("convnet_micro", pool="simpool", num_classes=10, pool_kwargs={"gamma": 2.0})
    >>> model(torch.randn(2, 3, 48, 48)).shape, model.attention(torch.randn(2, 3, 48, 48)).shape
    (torch.Size([2, 10]), torch.Size([2, 1, 12, 12]))
    """
    config = {
        "backbone": backbone,
        "pool": pool,
        "num_classes": num_classes,
        "pool_kwargs": pool_kwargs or {},
        "norm_first": norm_first,
        "max_logits": max_logits,
        "img_size": img_size,
        **timm_kwargs,
    }
    if pool == "cls" and pool_kwargs:
        raise ValueError(f"pool_kwargs: pool 'cls' has no arguments, got {pool_kwargs!r}")
    class_token = pool == "cls" or (pool_kwargs or {}).get("init") == "cls"
    make = _class_token_backbone if class_token else _timm_backbone
    model = make(backbone, num_classes, pretrained, img_size, timm_kwargs)
    if pool == "cls":
        model = keep_class_token(model, backbone)
    else:
        model = replace_pooling(model, pool, norm_first=norm_first, max_logits=max_logits, **pool_kwargs or {})
    model.create_config = config
    return model


def _timm_backbone(name: str, num_classes: int, pretrained: bool, img_size: object, kwargs: dict) -> nn.Module:
    if not isinstance(name, str):
        raise TypeError(f"backbone: expected the name of a timm model, got {type(name).__name__}")
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"backbone: expected convnet_micro, vit_micro or a timm model, got {name!r}; timm.list_models() names them"
        )
    if img_size is not None and _has_fixed_input(name):
        kwargs = kwargs | {"img_size": img_size}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except Exception as error:
        if pretrained and _is_network_error(error):
            raise FileNotFoundError(
                f"pretrained: the weights of {name!r} are not on this machine and could not be downloaded. "
                "Run once with a connection, copy the Hugging Face cache over, or pass "
                'pretrained_cfg_overlay={"file": "weights.safetensors"}'
            ) from error
        raise


def _class_token_backbone(name: str, num_classes: int, pretrained: bool, img_size: object, kwargs: dict) -> nn.Module:
    try:
        kwargs = {"global_pool": "token", **kwargs}
        return _timm_backbone(name, num_classes, pretrained, img_size, kwargs)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and str(error).startswith("backbone"):
            raise
        raise ValueError(f"pool: 'cls' expects a backbone that pools by a class token, got {name!r}") from error


def _has_fixed_input(name: str) -> bool:
    config = timm.get_pretrained_cfg(name) if ":" not in name else None
    return bool(config and config.fixed_input_size)


def _is_network_error(error: BaseException | None) -> bool:
    """Whether a hub client's error, or what caused it, is about the connection."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in {
            "httpx",
            "httpcore",
            "requests",
        }:
            return True
        error = error.__cause__ or error.__context__
    return False
