"""Pooling methods, one file a family, in the order of the paper's Table 1."""

from .base import Pool, create_pool, list_pools, register_pool
from .simple import GAP
from .simpool import SimPool

__all__ = ["GAP", "Pool", "SimPool", "create_pool", "list_pools", "register_pool"]
