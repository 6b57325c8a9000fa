"""Time and memory, measured so that whatever else the machine does meets all candidates alike."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

LEAST_SECONDS = 2e-3  # what is shorter is repeated within a turn
LONG_SECONDS = 0.1  # to what is longer the caches do not matter


def take_turns(candidates: dict[str, Callable[[], object]], turns: int, what: str) -> pd.DataFrame:
    """Seconds of a call: one row per turn, one column per candidate.

    A short candidate is called once untimed in each turn, so that it does not find the caches as another has left them,
    and then as often as the clock needs.
    """
    for call in candidates.values():
        call()  # what is made once: compiled code, memory
    calls = {name: 1 + int(LEAST_SECONDS / _seconds(call, 1)) for name, call in candidates.items()}
    rows = []
    for _ in tqdm(range(turns), what):
        rows.append({name: _seconds(call, calls[name]) for name, call in candidates.items()})
    return pd.DataFrame(rows)


def _seconds(call: Callable[[], object], calls: int) -> float:
    """Mean seconds of a call."""
    before = perf_counter()
    call()
    _wait()
    if (taken := perf_counter() - before) > LONG_SECONDS:
        return taken
    before = perf_counter()
    for _ in range(calls):
        call()
    _wait()
    return (perf_counter() - before) / calls


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def ratios(seconds: pd.DataFrame, to: str) -> pd.Series:
    """How many times the seconds of one candidate each of them takes: the median over the turns."""
    return seconds.div(seconds[to], axis=0).median()


def peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that a step on a CPU or a CUDA device has allocated at its peak, beyond what was there before."""
    step()  # what is allocated once and kept
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = pd.Series([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(allocated.cumsum().max())


def save(table: pd.DataFrame, device: torch.device, path: Path) -> None:
    """Write a table with the machine that it comes from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.assign(device=name, threads=torch.get_num_threads(), torch=torch.__version__).to_parquet(path, index=False)
