"""One safetensors file per model: its weights, and in the header how to make it again.

A file may come from a stranger, so its header decides nothing but the arguments in :data:`ARGUMENTS`. The model is
made on the meta device first, where a tensor is a shape without memory, and compared with the file.
"""

import json
import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..device import resolve_device
from ..files import write_atomically
from .create import BUILT, create_model

HEADER = "simpool_lite"
# A larger width, number of vectors or image is no model but an attack on memory; more blocks one on time.
LARGEST, LARGEST_OF = 4096, {"num_classes": 10**6} | dict.fromkeys(("depth", "iterations", "T"), 256)
ARGUMENTS: dict[str, type | tuple[type, ...]] = {
    "backbone": str,
    "pool": str,
    "num_classes": int,
    "pool_kwargs": dict,
    "norm_first": bool,
    "max_logits": bool,
    "img_size": (int, tuple, type(None)),
    **{name: (int, float) if kind is float else kind for name, kind in BUILT.items()},
}


def save_model(model: nn.Module, path: str | Path) -> Path:
    """Save a model of :func:`~simpool_lite.create_model`, weights and configuration, to one safetensors file.

    The file is written only if :func:`load_model` makes the same model from it. A model may have been changed by
    ``reset_classifier``, ``set_input_size``, another ``replace_pooling``, ``torch.compile`` and ``DataParallel``.

    Raises:
        TypeError: the model was not made by ``create_model``, or with an argument that is not in ``ARGUMENTS``, or
            was changed in a way that its configuration does not hold. The message says which.
    """
    while (inner := _wrapped(model)) is not None:
        model = inner
    config = getattr(model, "create_config", None)
    if config is None:
        raise TypeError(
            f"model: expected a model of create_model(), got {type(model).__name__}. replace_pooling() does not know "
            "how its timm model was made: use create_model(), or save model.state_dict()"
        )
    header = json.dumps(config, default=repr)
    tensors = _tensors(model)
    try:
        twin = _on_meta(_read_config(header))
    except Exception as error:  # whatever timm says of arguments that do not fit together any more
        raise TypeError(f"model: expected one that load_model() can make again, but {error}") from error
    _compare(_layout(_tensors(twin)), _layout(tensors), TypeError, "model: changed after create_model(),")
    if str(twin) != str(model):
        changed = next(
            (name for name, module in model.named_modules() if name and _differs(twin, name, module)), "its class"
        )
        raise TypeError(f"model: changed after create_model(), {changed} is not what its configuration makes")
    made = _settings(twin)
    for name, value in _settings(model).items():
        if made.get(name, value) != value:
            raise TypeError(f"model: changed after create_model(), {name}: expected {made[name]!r}, got {value!r}")
    with write_atomically(Path(path)) as temporary:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, metadata={HEADER: header})
    return Path(path)


def load_model(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Load a model that :func:`save_model` saved, in evaluation mode.

    Safe for files of strangers: no pickle, no code, no download, and no more memory than the file's tensors ask for.

    Args:
        path: a file of :func:`save_model`.
        device: a name of torch's, or "auto": cuda, then mps, then cpu.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by ``save_model``, or was changed; this machine lacks the device.
    """
    path, kind = Path(path), resolve_device(str(device).partition(":")[0])
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file of save_model(), found nothing at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            if header is None:
                raise ValueError("its header has no configuration")
            config = _read_config(header)
            twin = _on_meta(config)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (mapped, not read)
        _compare(_layout(_tensors(twin)), _layout(tensors), ValueError, "its tensors do not fit its header,")
        _check_memory(twin, tensors)
        model = create_model(**config)
    except Exception as error:  # a header can make safetensors, json, timm and torch raise whatever they like
        raise ValueError(f"path: expected a file of save_model(), got {path}: {error}") from error
    model.load_state_dict(tensors, strict=False)  # strict but for names of shared tensors: compared above
    return model.to(kind if ":" not in str(device) else device).eval()


def _read_config(header: str) -> dict:
    """The arguments of ``create_model`` in a header; a ValueError for anything else."""
    config = json.loads(header)
    if not isinstance(config, dict) or not {"backbone", "pool", "num_classes"} <= config.keys():
        raise ValueError("its configuration is not one of create_model()")
    for name, value in config.items():
        if name not in ARGUMENTS:
            raise ValueError(f"{name:.60}: expected one of {', '.join(ARGUMENTS)}")
        value = config[name] = tuple(value) if isinstance(value, list) else value
        kinds = ARGUMENTS[name] if isinstance(ARGUMENTS[name], tuple) else (ARGUMENTS[name],)
        if type(value) not in kinds:
            raise ValueError(f"{name}: expected {' or '.join(kind.__name__ for kind in kinds)}, got {value!r:.60}")
        many = value if isinstance(value, tuple) else (value,)
        for key, one in value.items() if isinstance(value, dict) else ((name, one) for one in many):
            largest = LARGEST_OF.get(key, LARGEST)
            if type(one) not in (bool, int, float, str, type(None)) or (isinstance(one, str) and len(one) > 200):
                raise ValueError(f"{key:.60}: expected a number, a short text or a bool, got {one!r:.60}")
            if isinstance(one, int | float) and not (math.isfinite(one) and abs(one) <= largest):
                raise ValueError(f"{key:.60}: expected a number of at most {largest}, got {one!r:.60}")
    if ":" in config["backbone"]:
        raise ValueError(f"backbone: expected a name without ':' (a hub or a folder), got {config['backbone']!r:.60}")
    return config


def _on_meta(config: dict) -> nn.Module:
    with torch.device("meta"):
        return create_model(**config)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, in which a tensor of several names has the first of them."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    return {name: tensor for name, tensor in state.items() if names.setdefault(id(tensor), name) == name}


def _layout(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in tensors.items()}


def _compare(expected: dict[str, str], got: dict[str, str], error: type[Exception], start: str) -> None:
    for name in [*expected, *got]:
        if expected.get(name) != got.get(name):
            raise error(f"{start} {name:.100}: expected {expected.get(name, 'none')}, got {got.get(name, 'none')}")


def _wrapped(model: nn.Module) -> nn.Module | None:
    """What torch.compile or DataParallel was given."""
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    return model.module if parallel else getattr(model, "_orig_mod", None)


def _settings(model: nn.Module) -> dict[str, object]:
    """The numbers and words in a pooling that its `repr` may not show."""
    return {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        if name.split(".")[0] == "pooling"
        for key, value in vars(module).items()
        if isinstance(value, int | float | str) and key != "training" and key[0] != "_"
    }


def _differs(twin: nn.Module, name: str, module: nn.Module) -> bool:
    try:
        return str(twin.get_submodule(name)) != str(module)
    except AttributeError:
        return True


def _check_memory(twin: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Buffers that are not saved (a window's mask, rotary positions) are bounded by those that are."""
    size, allowed = sum(b.nbytes for b in twin.buffers()), 2**26 + sum(t.nbytes for t in tensors.values())
    if size > allowed:
        raise ValueError(f"img_size: expected buffers of at most {allowed} bytes, got {size}")
