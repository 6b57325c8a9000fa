"""Which device to compute on."""

import os
from collections.abc import Sequence
from itertools import cycle, islice

import torch


def resolve_device(device: str = "auto") -> torch.device:
    """The device a name stands for; "auto" is cuda, then mps, then cpu.

    Raises:
        ValueError: the device is not one of auto, cuda, mps, cpu, or this machine has none.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, here in available.items() if here))
    if device not in available:
        raise ValueError(f"device: expected auto, cuda, mps or cpu, got {device!r}")
    if not available[device]:
        raise ValueError(f"device: {device!r} is not available on this machine; expected auto or cpu")
    return torch.device(device)


def cuda_devices() -> list[str]:
    """The CUDA devices that this process sees, each as ``CUDA_VISIBLE_DEVICES`` names it for a child process.

    That is "0", "1", ... or, where the variable is set already, its own words: indices or UUIDs.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return [name.strip() for name in named[:count]] if any(named) else [str(index) for index in range(count)]


def share_devices(devices: Sequence[str], workers: int) -> list[str | None]:
    """Which device each of so many workers takes: in turn, None where there are none.

    >>> share_devices(["0", "1"], 3), share_devices([], 2)
    (['0', '1', '0'], [None, None])
    """
    return list(islice(cycle(devices or [None]), workers))
