"""The paper's backbones with every pooling, under timm's names: ``timm.create_model("resnet50_simpool")``."""

import timm
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..pooling import list_pools
from . import micro  # noqa: F401  (registers convnet_micro and vit_micro)

BACKBONES = (
    "resnet18",
    "resnet50",
    "convnext_small",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "convnet_micro",
    "vit_micro",
)

default_cfgs: dict = {}  # where timm looks for the models of this module
__all__ = ["BACKBONES", "register_models"]


def register_models() -> None:
    """Register ``<backbone>_<pool>`` with timm for every backbone of the paper and every pooling.

    timm's own tools, its training script among them, then make these models by name. Arguments of the
    pooling go through ``pool_kwargs``.
    """
    for backbone in BACKBONES:
        config = timm.get_pretrained_cfg(backbone).to_dict()
        for pool in list_pools():
            default_cfgs.update(generate_default_cfgs({f"{backbone}_{pool}": config}))
            register_model(_entrypoint(backbone, pool))


def _entrypoint(backbone: str, pool: str):
    def make(pretrained: bool = False, num_classes: int = 1000, pool_kwargs: dict | None = None, **kwargs) -> nn.Module:
        from .create import create_model  # not at the top: importing it may be what imported timm

        # timm adds the configuration of the registered name; the backbone finds its own.
        kwargs = {k: v for k, v in kwargs.items() if not k.startswith("pretrained_cfg")}
        return create_model(backbone, pool, num_classes, pool_kwargs=pool_kwargs, pretrained=pretrained, **kwargs)

    make.__name__ = make.__qualname__ = f"{backbone}_{pool}"
    make.__doc__ = f"{backbone} with the pooling {pool!r}; see simpool_lite.create_model."
    return make
