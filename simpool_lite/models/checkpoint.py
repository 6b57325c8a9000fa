"""One safetensors file a model: its weights, and in the header how to make it again."""

import json
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import nn

from ..files import write_atomically
from .create import create_model

HEADER = "simpool_lite"


def save_model(model: nn.Module, path: str | Path) -> Path:
    """Save a model of :func:`~simpool_lite.create_model`, weights and configuration, to one safetensors file.

    Raises:
        TypeError: the model was not made by ``create_model``, or with arguments that JSON cannot hold.
    """
    config = getattr(model, "create_config", None)
    if config is None:
        raise TypeError(f"model: expected a model of create_model(), got {type(model).__name__}")
    metadata = {HEADER: json.dumps(config)}
    with write_atomically(Path(path)) as temporary:
        safetensors.torch.save_model(model, str(temporary), metadata=metadata)
    return Path(path)


def load_model(path: str | Path, device: str = "cpu") -> nn.Module:
    """Load a model that :func:`save_model` saved, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by ``save_model``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file of save_model(), found nothing at {path}")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if HEADER not in metadata:
        raise ValueError(f"path: expected a file of save_model(), got {path}, whose header has no configuration")
    model = create_model(**json.loads(metadata[HEADER]))
    safetensors.torch.load_model(model, str(path))
    return model.to(device).eval()
