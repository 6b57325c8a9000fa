"""Which device to compute on."""

import torch

from .checks import check_choice


def resolve_device(device: str = "auto") -> torch.device:
    """The device a name stands for; "auto" is cuda, then mps, then cpu.

    Raises:
        ValueError: the device is not one of auto, cuda, mps, cpu, or this machine has none.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if check_choice("device", device, ("auto", *available)) == "auto":
        return torch.device(next(name for name, here in available.items() if here))
    if not available[device]:
        raise ValueError(f"device: {device!r} is not available on this machine; expected auto or cpu")
    return torch.device(device)
