"""The paper's backbones with every pooling, under timm's names: ``timm.create_model("resnet50_simpool")``.

Importing ``simpool_lite.models`` registers them, so timm's own tools make these models by name. Arguments of the
pooling go through ``pool_kwargs``.
"""

from collections.abc import Callable

import timm
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..pooling import list_pools
from .create import create_model

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
__all__ = ["BACKBONES"]


def _entrypoint(backbone: str, pool: str) -> Callable[..., nn.Module]:
    def make(pretrained: bool = False, num_classes: int = 1000, pool_kwargs: dict | None = None, **kwargs) -> nn.Module:
        # timm adds the configuration of the registered name; the backbone finds its own.
        kwargs = {k: v for k, v in kwargs.items() if not k.startswith("pretrained_cfg")}
        return create_model(backbone, pool, num_classes, pool_kwargs=pool_kwargs, pretrained=pretrained, **kwargs)

    make.__name__ = make.__qualname__ = f"{backbone}_{pool}"
    make.__doc__ = f"{backbone} with the pooling {pool!r}; see simpool_lite.create_model."
    return make


for _backbone in BACKBONES:
    _config = timm.get_pretrained_cfg(_backbone).to_dict()
    for _pool in list_pools():
        default_cfgs.update(generate_default_cfgs({f"{_backbone}_{_pool}": _config}))
        register_model(_entrypoint(_backbone, _pool))
