"""Grids of runs: plain data in, a tidy table out, resumable at any moment."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from ..device import resolve_device
from .config import RunConfig
from .machine import cpu_cores, cuda_devices, share_devices
from .store import Store, make_record
from .workers import in_processes, on_cluster

if TYPE_CHECKING:
    from distributed import Client

REASONS_SHOWN = 5


@dataclass(frozen=True)
class Grid:
    """An experiment: a base configuration, named variants of it, seeds.

    Args:
        experiment: its name.
        base: fields of :class:`~simpool_lite.experiments.config.RunConfig` that all runs share.
        variants: name to the fields in which a variant differs.
        seeds: how many (0, 1, 2, ...), or which.
        profile: recorded with each run.
        keep_models: runs of seeds below this keep their trained model; one that is done without is done again.

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
    grid: Grid,
    store: Store,
    *,
    workers: int | None = None,
    client: "Client | None" = None,
    device: str = "auto",
    retry_failed: bool = False,
    compile: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compute what the store lacks of a grid; return the grid's records.

    Each run is a record of its own, written when it ends: kill this at any moment and call it again, and only
    the runs that were cut are repeated. A run that fails (diverged, out of memory, its process killed) is
    recorded with ``status`` "failed" and its ``reason``, and does not stop the others; :func:`summary` counts.

    Args:
        grid: what to run.
        store: where records are looked up and written.
        workers: processes side by side, alive from run to run; default one per CPU core, each with one thread,
            or one per GPU. More than there are GPUs share them.
        client: of a dask cluster, which then computes the runs: one at a time on every worker, whose threads
            must be one. The store's folder must be the same for all its machines, and for this one.
        device: "auto" is cuda, then mps, then cpu, for each worker.
        retry_failed: runs recorded as failed are computed again; otherwise they are done like others.
        compile: see :func:`simpool_lite.training.supervised.train`; None compiles under the profile "gpu" if the
            device is CUDA (a cluster's is not known here unless ``device`` names it).
        progress: show a bar over the runs.

    Returns:
        One row per run of the grid with the columns of :data:`simpool_lite.experiments.store.COLUMNS`; ``experiment``,
        ``variant`` and ``profile`` are the grid's, whoever computed the run first.

    Raises:
        ValueError: ``workers`` is less than one, or given with a ``client``; the client's workers have more
            than one thread; the store cannot be written to, or its disk is nearly full.
        FileNotFoundError: the cluster's records are not in the store's folder here.
        RuntimeError: no worker process could be started.

    >>> from dask.distributed import Client, LocalCluster  # doctest: +SKIP
    >>> client = Client(LocalCluster(n_workers=8, threads_per_worker=1))  # doctest: +SKIP
    >>> run(grid, Store("/shared/runs"), client=client)  # doctest: +SKIP
    """
    if workers is not None and (client is not None or workers < 1):
        wanted = "None with a client, which has its own" if client is not None else "at least 1, or None"
        raise ValueError(f"workers: expected {wanted}, got {workers}")
    if client is None:
        device = resolve_device(device).type
    if compile is None:
        compile = grid.profile == "gpu" and device == "cuda"
    runs = list(grid.runs())
    hashes = [config.hash() for _, config in runs]
    records = store.records()
    failed = set(records.config_hash[records.status == "failed"])
    done = set(records.config_hash) - (failed if retry_failed else set())
    done -= {
        config.hash()
        for _, config in runs
        if config.seed < grid.keep_models and config.hash() not in failed and not store.has_model(config)
    }
    jobs = [
        {
            "config": config,
            "store_folder": store.folder.resolve(),
            "experiment": grid.experiment,
            "variant": variant,
            "profile": grid.profile,
            "device": device,
            "keep_model": config.seed < grid.keep_models,
            "compile": compile,
        }
        for key, (variant, config) in dict(zip(hashes, runs, strict=True)).items()  # variants may coincide
        if key not in done
    ]
    if jobs:
        store.check_writable()
        if client is None:
            ended = in_processes(jobs, _workers(workers, device)[: len(jobs)])
        else:
            ended = on_cluster(jobs, client)
        for job, death in tqdm(ended, grid.experiment, len(jobs), unit="run", disable=not progress):
            if death:
                label = {name: job[name] for name in ("experiment", "variant", "profile", "device")}
                store.add(make_record(job["config"], {}, **label, status="failed", reason=death))
    records = store.records().set_index("config_hash", drop=False)
    if absent := set(hashes) - set(records.index):
        raise FileNotFoundError(
            f"store: expected a record of every run in {store.folder.resolve()}, found none of {len(absent)} that have "
            "ended; a cluster's machines and this one need a folder that they share"
        )
    table = records.loc[hashes].reset_index(drop=True)
    return table.assign(experiment=grid.experiment, variant=[variant for variant, _ in runs], profile=grid.profile)


def _workers(number: int | None, device: str) -> list[str | None]:
    """The CUDA device of each worker process; None for one that computes elsewhere."""
    devices = cuda_devices() if device == "cuda" else []
    if number is None:
        number = cpu_cores() if device == "cpu" else max(1, len(devices))
    return share_devices(devices, number)


def summary(runs: pd.DataFrame) -> str:
    """Say how many of some runs failed, and why.

    Args:
        runs: records, as :func:`run` returns them.

    >>> runs = pd.DataFrame({"backbone": "vit_micro", "variant": ["GAP", "SimPool"], "seed": 3})
    >>> print(summary(runs.assign(status=["ok", "failed"], reason=["", "FloatingPointError: the loss is nan"])))
    2 runs, 1 failed:
      SimPool seed 3: FloatingPointError: the loss is nan
    """
    failed = runs[runs.status == "failed"]
    number = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    if failed.empty:
        return f"{number}, none failed"
    on = "" if runs.backbone.nunique() == 1 else " on {0.backbone}"
    line = f"  {{0.variant}}{on} seed {{0.seed}}: {{0.reason}}"
    lines = [line.format(row) for row in failed.head(REASONS_SHOWN).itertuples()]
    if len(failed) > REASONS_SHOWN:
        lines.append(f"  and {len(failed) - REASONS_SHOWN} more, see the column reason")
    return "\n".join([f"{number}, {len(failed)} failed:", *lines])
