"""Time and memory, measured so that whatever else the machine does meets all candidates alike."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from tqdm.auto import tqdm

LEAST_SECONDS = 2e-3  # what is shorter is repeated within a turn


def take_turns(candidates: dict[str, Callable[[], object]], turns: int, what: str) -> pd.DataFrame:
    """Seconds of a call: a row a turn, a column a candidate.

    In each turn every candidate is called once untimed, so that none finds the caches as another has left them, and
    then as often as the clock needs.
    """
    timers = {
        name: Timer("f()", globals={"f": f}, num_threads=torch.get_num_threads()) for name, f in candidates.items()
    }
    calls = {name: 1 + int(LEAST_SECONDS / timer.timeit(1).mean) for name, timer in timers.items()}
    rows = []
    for _ in tqdm(range(turns), what):
        row = {}
        for name, timer in timers.items():
            candidates[name]()
            row[name] = timer.timeit(calls[name]).mean
        rows.append(row)
    return pd.DataFrame(rows)


def ratios(seconds: pd.DataFrame, to: str) -> pd.Series:
    """How many times the seconds of one candidate each of them takes: the median over the turns."""
    return seconds.div(seconds[to], axis=0).median()


def peak_memory(step: Callable[[], object]) -> int:
    """Bytes that a step has allocated at its peak, beyond what was there before."""
    step()  # what is allocated once and kept
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = pd.Series([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(allocated.cumsum().max())


def save(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write a table with the machine that it comes from."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    folder.mkdir(parents=True, exist_ok=True)
    table = table.assign(device=device, threads=torch.get_num_threads(), torch=torch.__version__)
    table.to_parquet(folder / f"{name}.parquet", index=False)
