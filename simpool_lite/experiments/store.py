"""The results store: one record per run, as tidy tables in a folder.

::

    store/<hash>.parquet            one row: the record
    store/<other name>.parquet      many rows: recorded results, or records put together by compact()
    store/curves/<hash>.parquet     the training curve, one row per epoch
    store/models/<hash>.safetensors the trained model, where it was asked for
    store/measures/<hash>-*.parquet what was measured of the network besides (:mod:`.measures`)

Every file is written whole or not at all, so a killed grid loses at most the run that was cut, and
several processes may fill one store.
"""

import functools
import json
import math
import shutil
import subprocess
import warnings
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from .. import __version__
from ..checks import check_path
from ..files import check_writable, remove_stale, repository_root, write_atomically
from .config import PROTOCOL, RunConfig
from .tables import merged, one_per_run, read_tables

if TYPE_CHECKING:
    import torch

COLUMNS = (
    "experiment variant seed regime trunk dataset target backbone pool pool_kwargs profile top1 loss attention_mass "
    "attention_ap attention_entropy parameters images_per_second peak_memory_mb seconds status reason correct config "
    "config_hash protocol package_version git_revision torch_version device started"
).split()
MEASURED = (
    "top1 loss attention_mass attention_ap attention_entropy parameters images_per_second peak_memory_mb seconds"
).split()
MEASURE_COLUMNS = "config_hash what step method measure value each".split()
CURVE_COLUMNS = "config_hash epoch step train_loss top1 loss attention_entropy logit_spread".split()


SMALLEST_DISK = 100  # MB that must be free before a grid starts
FILES_PUT_TOGETHER = 1000  # as many files of one run take seconds to read
FILE_OF_ONE_RUN = "[0-9a-f]" * 12 + ".parquet"


class Store:
    """Records in a folder, and read-only ones in further folders.

    Args:
        folder: where new records go; made when the first is written.
        also_read: further stores whose records count as done.

    Raises:
        TypeError: the folder is no path.
        ValueError: the folder is a file.
    """

    def __init__(self, folder: str | Path, also_read: tuple[Path, ...] = ()) -> None:
        self.folder = Path(check_path("store", folder))
        if self.folder.is_file():
            raise ValueError(f"store: expected a folder, got the file {self.folder}; pass another path")
        self.folders = (self.folder, *also_read)

    def records(self, experiment: str | None = None) -> pd.DataFrame:
        """All records, or those of one experiment, one row per run, with the columns of :data:`COLUMNS`.

        Files that cannot be read, records of a newer protocol and runs with two results are named in warnings; of
        several records of one configuration a finished one comes first, then the newest.
        """
        records = read_tables(self.folders, "*.parquet", COLUMNS, ["config_hash", "status", "protocol"])
        return one_per_run(records if experiment is None else records[records.experiment == experiment])

    def curves(self) -> pd.DataFrame:
        """All training curves, one row per epoch, with the columns of :data:`CURVE_COLUMNS`.

        The last two, of the attention, are NaN for pools without a map and for runs recorded before they were.
        """
        table = read_tables(self.folders, "curves/*.parquet", CURVE_COLUMNS, ["config_hash", "epoch"])
        return table.drop_duplicates(["config_hash", "epoch"], ignore_index=True)

    def add(self, record: dict, curve: pd.DataFrame | None = None) -> None:
        """Write one record (see :func:`make_record`) and its training curve.

        A failed run does not replace the record of one that finished.
        """
        name = f"{record['config_hash']}.parquet"
        for folder in (self.folder, self.folder / "curves", self.folder / "models"):
            remove_stale(folder)
        if record["status"] != "ok" and self._has_finished(self.folder / name):
            return
        if curve is not None:
            with write_atomically(self.folder / "curves" / name) as temporary:
                curve.assign(config_hash=record["config_hash"]).to_parquet(temporary, index=False)
        # The record last: whoever sees it also finds the curve.
        with write_atomically(self.folder / name) as temporary:
            pd.DataFrame([record], columns=COLUMNS).to_parquet(temporary, index=False)

    def compact(self) -> None:
        """Put the records and curves of many runs together, each in one file, which is read a hundred times sooner.

        Fewer than :data:`FILES_PUT_TOGETHER` files stay as they are, and so do damaged ones. The new file is whole
        before the others go, and a record that is in both counts once: it may be stopped, and others may write.
        """
        for folder in (self.folder, self.folder / "curves"):
            stamps = {file: file.stat().st_mtime_ns for file in sorted(folder.glob(FILE_OF_ONE_RUN)) if file.is_file()}
            if len(stamps) < FILES_PUT_TOGETHER:
                continue
            tables, read = merged(list(stamps), ["config_hash"])
            if tables is None:
                continue
            with write_atomically(folder / f"together-{uuid4().hex[:12]}.parquet") as temporary:
                pq.write_table(tables, temporary)
            for file in read:
                with suppress(FileNotFoundError):  # another process puts together, too
                    if file.stat().st_mtime_ns == stamps[file]:
                        file.unlink()

    def measures(self) -> pd.DataFrame:
        """What was measured of networks besides their records: one row per network, method and measure.

        The columns are those of :data:`MEASURE_COLUMNS`, see :mod:`simpool_lite.experiments.measures`.
        """
        keys = MEASURE_COLUMNS[:-2]
        table = read_tables(self.folders, "measures/*.parquet", MEASURE_COLUMNS, keys)
        return table.drop_duplicates(keys, ignore_index=True)

    def add_measures(self, table: pd.DataFrame) -> None:
        """Write what was measured of one network, ``what`` being the same in all rows."""
        first = table.iloc[0]
        remove_stale(self.folder / "measures")
        with write_atomically(self.folder / "measures" / f"{first.config_hash}-{first.what}.parquet") as temporary:
            table[MEASURE_COLUMNS].to_parquet(temporary, index=False)

    def check_writable(self) -> None:
        """See that records can be written, before hours are spent on them.

        Raises:
            ValueError: the folder cannot be made or written to, or its disk is full.
        """
        check_writable("store", self.folder)
        free = shutil.disk_usage(self.folder).free // 10**6
        if free < SMALLEST_DISK:
            raise ValueError(
                f"store: expected {SMALLEST_DISK} MB or more free for {self.folder}, got {free}; "
                "make room or pass another folder"
            )

    def _has_finished(self, file: Path) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = read_tables((file.parent,), file.name, ["status"], ["status"])
        return "ok" in set(table.status)

    def new_model_path(self, config: RunConfig) -> Path:
        """Where to save the model of a run."""
        return self.folder / "models" / f"{config.hash()}.safetensors"

    def has_model(self, config: RunConfig) -> bool:
        """Whether the model of a run was kept."""
        return any((folder / "models" / f"{config.hash()}.safetensors").is_file() for folder in self.folders)

    def model_path(self, config: RunConfig) -> Path:
        """Where the model of a run is.

        Raises:
            FileNotFoundError: the run is not in the store, or was run without keeping its model.
        """
        for folder in self.folders:
            path = folder / "models" / f"{config.hash()}.safetensors"
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"config: no model of run {config.hash()} ({config.backbone}, {config.pool}, seed {config.seed}) in "
            f"{', '.join(map(str, self.folders))}; run it with keep_models"
        )


def open_store(folder: str | Path | None = None) -> Store:
    """The store of a notebook: a folder of the reader's, or by default the recorded results.

    With the default, what the recorded results in ``data/results`` lack is computed into ``runs/``.
    """
    if folder:
        return Store(folder)
    return Store(repository_root() / "runs", also_read=(recorded_results(),))


def recorded_results() -> Path:
    """The folder of the results that ship with the repository."""
    return repository_root() / "data" / "results"


def record(experiment: str, store: Store) -> list[Path]:
    """Copy an experiment's finished runs into the recorded results: the only thing that ever writes there.

    Runs of the profile "smoke" stay where they are.

    Args:
        experiment: its name, as in the column ``experiment``.
        store: where the runs are.

    Returns:
        The Parquet files with the records, one per regime: ``<experiment>-<regime>.parquet``.

    Raises:
        ValueError: the store has no finished run of that experiment.
    """
    records = store.records(experiment)  # the same run may be in there for another one, too
    wanted = (records.status == "ok") & (records.profile != "smoke")
    records = records[wanted].sort_values(["backbone", "trunk", "variant", "seed"])
    if records.empty:
        raise ValueError(f"experiment: expected one with finished runs in {store.folder}, got {experiment!r}")
    curves, measures, target, written = store.curves(), store.measures(), recorded_results(), []
    for regime, of_regime in records.groupby("regime"):
        name = f"{experiment.removesuffix(f'-{regime}')}-{regime}.parquet"
        of_runs = curves[curves.config_hash.isin(of_regime.config_hash)].sort_values(["config_hash", "epoch"])
        measured = measures[measures.config_hash.isin(of_regime.config_hash)].sort_values(MEASURE_COLUMNS[:-2])
        parts = {target / "curves" / name: of_runs, target / "measures" / name: measured, target / name: of_regime}
        for place, table in parts.items():
            if len(table):
                with write_atomically(place) as temporary:
                    table.to_parquet(temporary, index=False, compression="zstd")  # a third smaller than snappy
        written.append(target / name)
    for folder in store.folders:
        for model in (folder / "models").glob("*.safetensors"):
            if model.stem in set(records.config_hash) and folder != target:
                with write_atomically(target / "models" / model.name) as temporary:
                    shutil.copyfile(model, temporary)
    return written


def make_record(
    config: RunConfig,
    measured: dict[str, float],
    *,
    experiment: str,
    variant: str,
    profile: str,
    device: str,
    status: str = "ok",
    reason: str = "",
) -> dict:
    """One row of the store: what was run, what came out, and with which versions."""
    import torch

    return {
        **dict.fromkeys(MEASURED, math.nan),
        **measured,
        "correct": pack(measured["correct"]) if "correct" in measured else None,
        "regime": config.regime,
        "trunk": "{pool} {seed}".format(**config.trunk) if config.trunk else None,
        **{name: getattr(config, name) for name in ("seed", "dataset", "target", "backbone", "pool")},
        "pool_kwargs": json.dumps(config.pool_kwargs, sort_keys=True),
        "config": json.dumps(asdict(config), sort_keys=True),
        "config_hash": config.hash(),
        "experiment": experiment,
        "variant": variant,
        "profile": profile,
        "status": status,
        "reason": reason,
        "protocol": PROTOCOL,
        "package_version": __version__,
        "git_revision": _git_revision(),
        "torch_version": torch.__version__,
        "device": device,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def pack(correct: "torch.Tensor") -> bytes:
    """Of each test image whether it was classified correctly, bool ``(n,)``, eight to a byte."""
    return np.packbits(correct.numpy()).tobytes()


def unpack(packed: pd.Series, images: int) -> np.ndarray:
    """The column ``correct`` of some records as bool (runs, images)."""
    return np.stack([np.unpackbits(np.frombuffer(row, np.uint8), count=images) for row in packed]).astype(bool)


@functools.cache
def _git_revision() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=repository_root(), capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
