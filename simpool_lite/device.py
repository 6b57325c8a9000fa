"""Which device to compute on."""

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
