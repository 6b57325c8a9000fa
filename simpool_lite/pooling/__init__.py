"""Pooling methods, one file per family, in the order of the paper's Table 1; then heads for frozen features."""

from .base import Pool, create_pool, list_pools, register_pool
from .framework import Part, Spec, f_alpha, generic_pool

# A method is registered when it is imported, so this is the order of list_pools().
# isort: off
from .simple import GAP, HOW, LSE, GAPMax, GeM, Max
from .iterative import OTK, KMeans, Slot
from .gating import CBAM, SE, GatherExcite
from .transformer import CaiT, ViT
from .simpool import SimPool
from .ablated import AblatedSimPool
from .probing import AIM, CAE, EP, CoCa, ESimPool
from .probing_blocks import ABMILP, CLIP, DOLG, JEPA, DinoViT, SigLIP
# isort: on

__all__ = [
    "ABMILP",
    "AIM",
    "CAE",
    "CBAM",
    "CLIP",
    "DOLG",
    "EP",
    "GAP",
    "HOW",
    "JEPA",
    "LSE",
    "OTK",
    "SE",
    "AblatedSimPool",
    "CaiT",
    "CoCa",
    "DinoViT",
    "ESimPool",
    "GAPMax",
    "GatherExcite",
    "GeM",
    "KMeans",
    "Max",
    "Part",
    "Pool",
    "SigLIP",
    "SimPool",
    "Slot",
    "Spec",
    "ViT",
    "create_pool",
    "f_alpha",
    "generic_pool",
    "list_pools",
    "register_pool",
]
