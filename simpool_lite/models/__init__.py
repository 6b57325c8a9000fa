"""Models: any timm backbone with any pooling, and two small ones made for photo-digits."""

from .checkpoint import load_model, save_model
from .create import create_model
from .pooled import replace_pooling

__all__ = ["create_model", "load_model", "replace_pooling", "save_model"]
