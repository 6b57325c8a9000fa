"""Grids of runs: plain data in, a tidy table out, resumable at any moment."""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from tqdm.auto import tqdm

from ..checks import check_bool, check_choice, check_int, check_number, check_text, did_you_mean, plain
from ..datasets import DATASETS
from ..datasets.photo_digits import check_photo_digits
from ..device import resolve_device
from ..measure.decide import runs_needed
from ..models import create_model
from ..models.create import check_backbone
from ..models.weights import check_pretrained
from ..pooling import create_pool
from ..pooling.base import check_pool
from .config import RunConfig
from .heads import share_a_pass
from .machine import cpu_cores, cuda_devices, share_devices
from .store import Store, make_record
from .workers import in_launched, in_processes, launched, on_cluster

if TYPE_CHECKING:
    from distributed import Client

REASONS_SHOWN = 5
TRUNK_SEEDS = 3
HEADS_AT_ONCE = 32  # as many are lost at most when a grid is cut; together they cost little more than one


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
        baseline: the variant that the others are compared with.
        trunk: for the regime "head": fields of the trunk's configuration. Its seeds are the first
            :data:`TRUNK_SEEDS`, in turn; with no epochs it is a published network as it comes. On photo-digits each
            seed of the heads has training images of its own.

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
    baseline: str = "SimPool"
    trunk: dict | None = None

    def __post_init__(self) -> None:
        for name in ("experiment", "profile", "baseline"):
            check_text(name, getattr(self, name))
        _check_fields("base", self.base)
        if not isinstance(self.variants, dict) or not self.variants:
            raise TypeError(f'variants: expected a dict such as {{"GAP": {{"pool": "gap"}}}}, got {self.variants!r}')
        for variant, fields in self.variants.items():
            check_text("variants", variant)
            _check_fields(f"variants[{variant!r}]", fields, self.base)
        if self.trunk is not None:
            _check_fields("trunk", self.trunk, {})
        seeds = plain(self.seeds)
        if isinstance(seeds, list | tuple | range):
            seeds = tuple(check_int("seeds", seed, 0) for seed in seeds) or 0
        object.__setattr__(self, "seeds", seeds if isinstance(seeds, tuple) else check_int("seeds", seeds))
        object.__setattr__(self, "keep_models", check_int("keep_models", self.keep_models, 0))

    def runs(self) -> Iterator[tuple[str, RunConfig]]:
        """All runs as (variant, configuration), seed by seed: a grid that is cut has complete pairs."""
        for seed in range(self.seeds) if isinstance(self.seeds, int) else self.seeds:
            for variant in self.variants:
                yield variant, self.config(variant, seed)

    def config(self, variant: str, seed: int) -> RunConfig:
        """The configuration of one run."""
        values = self.base | self.variants[variant] | {"seed": seed}
        if self.trunk is not None:
            values["trunk"] = self.trunk | {"seed": seed % TRUNK_SEEDS if self.trains_trunks else 0}
            if values.get("dataset", "photo-digits") == "photo-digits":  # the trunk has seen the images of seed 0
                values["data_options"] = values.get("data_options", {}) | {"seed": 1 + seed}
        return RunConfig(**values)

    @property
    def trains_trunks(self) -> bool:
        return self.trunk is not None and self.trunk.get("epochs") != 0

    def trunks(self) -> "Grid":
        """The networks that give the features, as a grid of their own."""
        name = str(self.trunk["pool"])
        return Grid("trunks", self.trunk, {name: {}}, TRUNK_SEEDS, self.profile, keep_models=TRUNK_SEEDS)


def _check_fields(argument: str, values: dict, base: dict | None = None) -> None:
    """Refuse what are no fields of a configuration or, together with those of ``base``, too few for one."""
    known = [field.name for field in dataclasses.fields(RunConfig)]
    if not isinstance(values, dict):
        raise TypeError(f"{argument}: expected a dict of fields of RunConfig, got {values!r}")
    for name in values:
        if name not in known:
            raise TypeError(
                f"{argument}: expected fields of RunConfig ({', '.join(known)}), got {name!r}"
                f"{did_you_mean(name, known)}"
            )
    if base is not None and not {"backbone", "pool"} <= {*base, *values}:
        raise TypeError(f"{argument}: expected a backbone and a pool here or in the base, got {values!r}")


def run(
    grid: Grid,
    store: Store,
    *,
    precision: float | None = None,
    budget: str | None = None,
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
        precision: add runs until each difference to the grid's baseline is known to within ± this many points of top1
            (:func:`simpool_lite.measure.decide.runs_needed`); None runs the grid's seeds and no more.
        budget: "60 runs" or "40 minutes", after which no more are added; a round that has begun is finished.
        workers: processes side by side, alive from run to run; default one per CPU core, each with one thread,
            or one per GPU. More than there are GPUs share them. Heads are shared out among the processes of
            ``accelerate launch`` where it started several, on one machine or on more that share the store's folder.
        client: of a dask cluster, which then computes the runs: one at a time on every worker, whose threads
            must be one. The store's folder must be the same for all its machines, and for this one.
        device: "auto" is cuda, then mps, then cpu, for each worker.
        retry_failed: runs recorded as failed are computed again; otherwise they are done like others.
        compile: see :func:`simpool_lite.training.supervised.train`; None compiles under the profile "gpu" if the
            device is CUDA (a cluster's is not known here unless ``device`` names it).
        progress: show a bar over the runs.

    Returns:
        One row per run of the grid with the columns of :data:`simpool_lite.experiments.store.COLUMNS`; ``experiment``,
        ``variant`` and ``profile`` are the grid's, whoever computed the run first. Where the store has runs of further
        seeds, these are there, too.

    Raises:
        ValueError: ``workers`` is less than one, or given with a ``client``; the client's workers have more
            than one thread; the store cannot be written to, or its disk is nearly full; a backbone, pooling or data
            set is unknown, or cannot have the arguments that a variant gives it.
        FileNotFoundError: the folder of the images is missing, or the records of a cluster in the store's folder here.
        RuntimeError: no worker process could be started.

    >>> from dask.distributed import Client, LocalCluster  # doctest: +SKIP
    >>> client = Client(LocalCluster(n_workers=8, threads_per_worker=1))  # doctest: +SKIP
    >>> run(grid, Store("/shared/runs"), client=client)  # doctest: +SKIP
    """
    if workers is not None and client is not None:
        raise ValueError(f"workers: expected None with a client, which has its own, got {workers}")
    if workers is not None:
        workers = check_int("workers", workers)
    if precision is not None:
        check_number("precision", precision, above_zero=True)
    check_bool("retry_failed", retry_failed)
    check_bool("progress", progress)
    if compile is not None:
        check_bool("compile", compile)
    if client is None:
        device = resolve_device(device).type
    if compile is None:
        compile = grid.profile == "gpu" and device == "cuda"
    how = {"workers": workers, "client": client, "device": device, "retry_failed": retry_failed, "compile": compile}
    spent = Spending(budget)
    wanted = list(grid.runs())
    with suppress(OSError):  # where nothing can be written, reading takes longer
        store.compact()
    while True:
        records = _compute(grid, wanted, store, **how, progress=progress)
        table = _table(grid, wanted, store, store.records() if records is None else records)
        if precision is None or grid.baseline not in grid.variants or len(grid.variants) < 2:
            return table
        plan = runs_needed(table, grid.baseline, precision, blocks=grid.trunk and "trunk")
        if spent.all(table) or not (more := _further(grid, table, plan)):
            return table
        if progress:
            print(
                f"{grid.experiment}: widest interval ± {plan.half.max():.2f} points, wanted ± {precision:g}; "
                f"{len(more)} runs now, about {plan.expected.sum():.0f} in all"
            )
        wanted += more


class Spending:
    """What a budget leaves."""

    def __init__(self, budget: str | None) -> None:
        self.limit, self.unit = math.inf, "runs"
        if budget is not None:
            number, _, self.unit = str(budget).partition(" ")
            if self.unit not in ("runs", "minutes") or not number.isdigit():
                raise ValueError(f'budget: expected "60 runs" or "40 minutes", got {budget!r}')
            self.limit = int(number)
        self.started = time.monotonic()

    def all(self, table: pd.DataFrame) -> bool:
        used = len(table) if self.unit == "runs" else (time.monotonic() - self.started) / 60
        return used >= self.limit


def _further(grid: Grid, table: pd.DataFrame, plan: pd.DataFrame) -> list[tuple[str, RunConfig]]:
    """The next runs of each variant, seed by seed."""
    seeds = {variant: of_variant.seed.max() + 1 for variant, of_variant in table.groupby("variant")}
    more = [(seeds[name] + i, name) for name, number in plan["more"].items() for i in range(number)]
    order = list(grid.variants)
    more.sort(key=lambda run: (run[0], order.index(run[1])))
    return [(name, grid.config(name, int(seed))) for seed, name in more]


def _compute(
    grid: Grid,
    runs: list[tuple[str, RunConfig]],
    store: Store,
    *,
    workers: int | None,
    client: "Client | None",
    device: str,
    retry_failed: bool,
    compile: bool,
    progress: bool,
) -> pd.DataFrame | None:
    """Compute those of the runs that the store lacks; return its records if it lacks none."""
    records = store.records()
    ours = records[records.config_hash.isin([config.hash() for _, config in runs])]  # of a store of 100,000 few are
    failed = set(ours.config_hash[ours.status == "failed"])
    done = set(ours.config_hash) - (failed if retry_failed else set())
    done -= {
        config.hash()
        for _, config in runs
        if config.seed < grid.keep_models and config.hash() not in failed and not store.has_model(config)
    }
    todo = {config.hash(): (variant, config) for variant, config in runs}  # variants may coincide
    jobs = [
        {
            "configs": [config for _, config in together],
            "labels": [
                {"experiment": grid.experiment, "variant": variant, "profile": grid.profile, "device": device}
                for variant, _ in together
            ],
            "store_folder": store.folder.resolve(),
            "device": device,
            "keep_model": together[0][1].seed < grid.keep_models,
            "compile": compile,
            "progress": progress,
        }
        for together in _together([run for key, run in todo.items() if key not in done])
    ]
    if not jobs:
        return records
    check_runs([config for job in jobs for config in job["configs"]], client is None)
    store.check_writable()
    if grid.trains_trunks:
        how = {"workers": workers, "client": client, "device": device, "compile": compile}
        run(grid.trunks(), store, **how, progress=progress)
        for job in jobs:
            job["trunk"] = store.model_path(job["configs"][0].trunk_config())
    processes = launched(device) if all(job["configs"][0].regime == "head" for job in jobs) else None
    if client is not None:
        ended = on_cluster(jobs, client)
    elif processes is not None:
        ended = in_launched(jobs, processes)
    else:
        ended = in_processes(jobs, _workers(workers, device)[: len(jobs)])
    total = sum(len(job["configs"]) for job in jobs)
    with tqdm(desc=grid.experiment, total=total, unit="run", disable=not progress) as bar:
        for job, death in ended:
            bar.update(len(job["configs"]))
            for config, label in zip(job["configs"], job["labels"], strict=True) if death else ():
                store.add(make_record(config, {}, **label, status="failed", reason=death))


def _together(runs: list[tuple[str, RunConfig]]) -> list[list[tuple[str, RunConfig]]]:
    """Runs in jobs: one by one, but heads that share a pass over their features a few at once."""
    jobs: dict[str, list] = {}
    for number, (variant, config) in enumerate(runs):
        key = share_a_pass(config) if config.regime == "head" else str(number)
        jobs.setdefault(key, []).append((variant, config))
    return [job[i : i + HEADS_AT_ONCE] for job in jobs.values() for i in range(0, len(job), HEADS_AT_ONCE)]


def check_runs(configs: list[RunConfig], here: bool = True) -> None:
    """Refuse what would fail in every run of a variant: unknown names, a folder that is not on this machine."""
    for config in configs:
        check_backbone(config.backbone)
        check_pool("pool", config.pool, "cls")
        check_choice("dataset", config.dataset, DATASETS)
        if config.dataset == "photo-digits":
            check_photo_digits(target=config.target, **config.data_options)
        for network in [config] if config.trunk is None else [config, config.trunk_config()]:
            check_pretrained(network.pretrained, network.backbone, network.model_options)
        if config.start is not None and here and not Path(config.start).is_file():
            raise FileNotFoundError(f"start: expected a file of save_model(), found none at {config.start}")
    for config in {repr(_model(config)): config for config in configs}.values():
        _check_model(*_model(config))
    for folder in {config.data_root for config in configs} - {None} if here else ():
        if not Path(folder).expanduser().is_dir():
            raise FileNotFoundError(f"data_root: expected a folder, found none at {folder}; pass another path")


def _model(config: RunConfig) -> tuple[dict, dict | None]:
    """The arguments of the network of a run and, for a head, those of its pooling."""
    network = config if config.trunk is None else config.trunk_config()
    images = config.data_options
    size = images.get("size", images.get("image_size", 48)) if config.dataset == "photo-digits" else None
    head = None if config.trunk is None else {"name": config.pool, **config.pool_kwargs}
    return network.model() | {"img_size": size, "pretrained": False}, head


def _check_model(network: dict, head: dict | None) -> None:
    """Refuse arguments that no network or pooling can be made of."""
    with torch.device("meta"):
        model = create_model(**network)
        if head is not None:
            create_pool(dim=model.num_features, **head)


def _table(grid: Grid, runs: list[tuple[str, RunConfig]], store: Store, records: pd.DataFrame) -> pd.DataFrame:
    """The records of the runs, and those of further seeds that the store has."""
    known = pd.Index(records.config_hash)
    hashes = [config.hash() for _, config in runs]
    if absent := [name for name in hashes if name not in known]:
        raise FileNotFoundError(
            f"store: expected a record of every run in {store.folder.resolve()}, found none of {len(absent)} that have "
            "ended; a cluster's machines and this one need a folder that they share"
        )
    variants = [variant for variant, _ in runs]
    for variant in grid.variants:
        seed = 1 + max(config.seed for name, config in runs if name == variant)
        while (key := grid.config(variant, seed).hash()) in known:
            hashes.append(key)
            variants.append(variant)
            seed += 1
    table = records.iloc[known.get_indexer(hashes)].reset_index(drop=True)
    return table.assign(experiment=grid.experiment, variant=variants, profile=grid.profile)


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
