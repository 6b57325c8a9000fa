"""What this machine has: processor cores, CUDA devices, memory."""

import gc
import math
import os
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch


def cpu_cores() -> int:
    """Cores that this process may use: on a shared machine often fewer than it has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def free_memory() -> None:
    """Give back what the last run held, also to other processes on the same GPU."""
    gc.collect()  # a model and its optimiser refer to each other
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of :func:`peak_memory_mb`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")  # Linux: resets the process's peak resident size, VmHWM


def peak_memory_mb(device: torch.device) -> float:
    """Most memory since the reset, in MiB: allocated on a GPU, else resident in the process.

    NaN where the operating system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if not (status := Path("/proc/self/status")).exists():
        return math.nan
    lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) / 2**10  # printed in kB
