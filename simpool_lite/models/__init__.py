"""Models: any timm backbone with any pooling, and two small ones made for photo-digits.

Importing this registers ``<backbone>_<pool>`` with timm for the paper's backbones and every pooling.
"""

from . import registry as registry
from .checkpoint import load_model, save_model
from .create import create_model
from .official import load_official
from .pooled import patch_features, replace_pooling

__all__ = ["create_model", "load_model", "load_official", "patch_features", "replace_pooling", "save_model"]
