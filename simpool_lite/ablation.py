"""Grids of runs: plain data in, a tidy table out, resumable at any moment."""

import os
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

import pandas as pd
import torch
from tqdm.auto import tqdm

from .config import RunConfig
from .device import resolve_device
from .store import Store, make_record


@dataclass(frozen=True)
class Grid:
    """An experiment: a base configuration, named variants of it, seeds.

    Args:
        experiment: its name.
        base: fields of :class:`~simpool_lite.config.RunConfig` that all runs share.
        variants: name to the fields in which a variant differs.
        seeds: how many (0, 1, 2, ...), or which.
        profile: recorded with each run.
        keep_models: runs of seeds below this keep their trained model.

    >>> variants = {"GAP": {"pool": "gap"}, "SimPool": {"pool": "simpool"}}
    >>> grid = Grid("demo", {"backbone": "vit_micro"}, variants, seeds=2)
    >>> [(variant, config.pool, config.seed) for variant, config in grid.runs()]
    [('GAP', 'gap', 0), ('SimPool', 'simpool', 0), ('GAP', 'gap', 1), ('SimPool', 'simpool', 1)]
    """

    experiment: str
    base: dict
    variants: dict[str, dict] = field(default_factory=dict)
    seeds: int | tuple[int, ...] = 5
    profile: str = "laptop"
    keep_models: int = 0

    def runs(self) -> Iterator[tuple[str, RunConfig]]:
        """All runs as (variant, configuration), seed by seed: a grid that is cut has complete pairs."""
        for seed in range(self.seeds) if isinstance(self.seeds, int) else self.seeds:
            for variant, changes in self.variants.items():
                yield variant, RunConfig(**self.base | changes | {"seed": seed})


def run(
    grid: Grid, store: Store, *, workers: int | None = None, device: str = "auto", progress: bool = True
) -> pd.DataFrame:
    """Compute what the store lacks of a grid; return the grid's records.

    Each run is a record of its own, written when it ends: kill this at any moment and call it again. A run
    that fails is recorded with ``status`` "failed" and its ``reason``, and does not stop the others.

    Args:
        grid: what to run.
        store: where records are looked up and written.
        workers: processes side by side, alive from run to run; default one a CPU core, each with one thread,
            or one for a GPU. On a GPU more share it.
        device: "auto" is cuda, then mps, then cpu.
        progress: show a bar over the runs.

    Returns:
        One row a run of the grid with the columns of :data:`simpool_lite.store.COLUMNS`; ``experiment``,
        ``variant`` and ``profile`` are the grid's, whoever computed the run first.
    """
    labels = {config.hash(): (variant, config) for variant, config in grid.runs()}
    done = set(store.records().config_hash)
    missing = [(variant, config) for key, (variant, config) in labels.items() if key not in done]
    if missing:
        _compute(missing, grid, store, workers, resolve_device(device).type, progress)
    table = store.records().set_index("config_hash", drop=False).loc[list(labels)].reset_index(drop=True)
    variants = [variant for variant, _ in labels.values()]
    return table.assign(experiment=grid.experiment, variant=variants, profile=grid.profile)


def _compute(
    missing: list[tuple[str, RunConfig]],
    grid: Grid,
    store: Store,
    workers: int | None,
    device: str,
    progress: bool,
) -> None:
    if workers is None:
        workers = (os.cpu_count() or 1) if device == "cpu" else 1
    # "spawn": a forked child inherits threads and a CUDA context that do not work there.
    with ProcessPoolExecutor(
        min(workers, len(missing)), get_context("spawn"), initializer=_set_up_worker, initargs=(device,)
    ) as pool:
        futures = [pool.submit(_run_one, variant, config, grid, store, device) for variant, config in missing]
        try:
            for future in tqdm(as_completed(futures), grid.experiment, len(futures), unit="run", disable=not progress):
                future.result()
        except BaseException:  # interrupted: do not start what has not started
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _set_up_worker(device: str) -> None:
    if device == "cpu":
        torch.set_num_threads(1)  # two runs side by side beat one run with two threads


def _run_one(variant: str, config: RunConfig, grid: Grid, store: Store, device: str) -> None:
    from .models import save_model
    from .train import train

    label = {"experiment": grid.experiment, "variant": variant, "profile": grid.profile, "device": device}
    try:
        model, measured, curve = train(config, device, progress=False)
    except Exception as error:  # one bad run must not end a grid of hundreds
        reason = traceback.format_exception_only(error)[-1].strip()
        store.add(make_record(config, {}, **label, status="failed", reason=reason))
        return
    if config.seed < grid.keep_models:
        save_model(model, store.new_model_path(config))
    store.add(make_record(config, measured, **label), curve)
