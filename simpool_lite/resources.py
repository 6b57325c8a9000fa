"""Processor cores and memory of a run."""

import gc
import math
import os
from pathlib import Path

import torch


def cpu_cores() -> int:
    """Cores that this process may use: on a shared machine often fewer than it has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
