"""What rounding does to a run: repeated, with two threads, and with its initial weights changed by a millionth."""

from contextlib import contextmanager
from unittest import mock

import pandas as pd
import torch
from torch import nn

from simpool_lite.experiments import run
from simpool_lite.experiments.config import RunConfig
from simpool_lite.experiments.suite import Setting

CHANGE = 1e-6  # of each weight, times a normal number


def measure(turns: int, device: torch.device) -> pd.DataFrame:
    """SimPool as published in the regime "once": one row per run.

    Seed 0 twice as it is, three seeds with one thread and with two, and seed 0 with ``turns`` changes of its weights.

    Returns:
        Columns ``seed``, ``cores`` (threads of the run), ``change`` (relative) and ``top1`` (percent).
    """
    (grid,) = Setting().grids("exponent", "once")
    as_it_is = [(0, 1), *((seed, cores) for seed in range(3) for cores in (1, 2))]
    runs = [(seed, cores, 0.0) for seed, cores in as_it_is] + [(0, 1, CHANGE)] * turns
    threads, rows = torch.get_num_threads(), []
    for number, (seed, cores, change) in enumerate(runs):
        torch.set_num_threads(cores)
        with _changed_weights(change, number):
            _, measured, _ = run.train_and_measure(grid.config("SimPool", seed), device.type)
        rows.append({"seed": seed, "cores": cores, "change": change, "top1": measured["top1"]})
    torch.set_num_threads(threads)
    return pd.DataFrame(rows)


@contextmanager
def _changed_weights(change: float, seed: int):
    make = run.make_model

    def changed(config: RunConfig, data: run.LabelledImages) -> nn.Module:
        model, generator = make(config, data), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 1 + change * torch.randn(weight.shape, generator=generator)
        return model

    with mock.patch.object(run, "make_model", changed):
        yield
