"""What rounding does to a run's accuracy: one run, its initial weights changed by a millionth, several times."""

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
    """SimPool as published in the regime "once", seed 0: one row per change of the weights, the first without.

    Returns:
        Columns ``change`` (relative) and ``top1`` (percent).
    """
    (grid,) = Setting().grids("exponent", "once")
    config = grid.config("SimPool", seed=0)
    rows = []
    for turn in range(turns):
        change = CHANGE if turn else 0.0
        with _changed_weights(change, turn):
            _, measured, _ = run.train_and_measure(config, device.type)
        rows.append({"change": change, "top1": measured["top1"]})
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
