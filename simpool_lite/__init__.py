"""SimPool and its relatives: pooling for vision networks, proven equal to what was published.

The public names below are imported when they are first used, so that ``import simpool_lite`` itself
costs next to nothing.

>>> import torch
>>> from simpool_lite import create_pool
>>> pool = create_pool("simpool", dim=384, gamma=1.25)
>>> z, a = pool(torch.randn(2, 196, 384), return_attention=True)
>>> z.shape, a.shape
(torch.Size([2, 384]), torch.Size([2, 1, 196]))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets import load_data as load_data
    from .models import create_model as create_model
    from .models import load_model as load_model
    from .models import replace_pooling as replace_pooling
    from .models import save_model as save_model
    from .pooling import SimPool as SimPool
    from .pooling import Spec as Spec
    from .pooling import create_pool as create_pool
    from .pooling import generic_pool as generic_pool
    from .pooling import list_pools as list_pools

__version__ = "0.1.0"

_HOME = {
    "SimPool": "pooling",
    "Spec": "pooling",
    "create_pool": "pooling",
    "generic_pool": "pooling",
    "list_pools": "pooling",
    "create_model": "models",
    "replace_pooling": "models",
    "save_model": "models",
    "load_model": "models",
    "load_data": "datasets",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
