"""Reading the store's tables: many small Parquet files, written by several processes, some of them damaged."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .config import PROTOCOL

SHOWN = 5  # files or runs a warning names
KEYS = ["config_hash", "status"]
COMPARED = ["top1", "loss"]  # what two runs of one configuration must agree in; times may differ


def read_tables(folders: tuple[Path, ...], pattern: str, columns: list[str] | None, needed: list[str]) -> pd.DataFrame:
    """The rows of all Parquet files in some folders, in the order of folders and names.

    A file that is damaged or is none of ours is left where it is and named in a warning.

    Args:
        folders: where to look.
        pattern: of the names in each folder.
        columns: of the table; a file may have fewer. None takes those of the files.
        needed: columns that a file of ours has.
    """
    # Dot files are records that another process is still writing.
    for _ in range(10):
        files = [f for folder in folders for f in sorted(folder.glob(pattern)) if not f.name.startswith(".")]
        found = _read_all(files, needed)
        if all(isinstance(table, pa.Table) or os.path.lexists(file) for file, table in zip(files, found, strict=True)):
            break  # else another process has put files together meanwhile
    tables = [table for table in found if isinstance(table, pa.Table) and len(table)]
    refused = [f"{file} ({table})" for file, table in zip(files, found, strict=True) if isinstance(table, str)]
    if refused:
        _warn(f"{len(refused)} of {len(files)} files are not read; repair or remove them: {_some(refused)}")
    if not tables:
        return pd.DataFrame(columns=columns)
    try:
        table = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    except pa.ArrowException:  # files whose columns have types that do not go together
        table = pd.concat([table.to_pandas() for table in tables], ignore_index=True)
    return table if columns is None else table.reindex(columns=columns)


def merged(files: list[Path], needed: list[str]) -> tuple[pa.Table | None, list[Path]]:
    """The rows of those files that can be read as one table, and which these are; None where there is no such table."""
    found = {
        file: table for file, table in zip(files, _read_all(files, needed), strict=True) if isinstance(table, pa.Table)
    }
    try:
        return pa.concat_tables(found.values(), promote_options="permissive"), list(found)
    except pa.ArrowException:
        return None, []


def _read_all(files: list[Path], needed: list[str]) -> list[pa.Table | str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda file: _read(file, needed), files))


def _read(file: Path, needed: list[str]) -> pa.Table | str:
    """A file's table, or why there is none."""
    if file.exists() and not file.is_file():  # reading a pipe would wait for its writer
        return "no file"
    try:
        # A fifth of the time of pandas for a file of one row; threads inside such a table would only cost.
        table = pq.ParquetFile(pa.BufferReader(file.read_bytes()), pre_buffer=False).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        empty = file.is_file() and not file.stat().st_size
        return "empty" if empty else str(error).partition("\n")[0]
    return _foreign(table, needed) or table


def _foreign(table: pa.Table, needed: list[str]) -> str | None:
    """Why a table is none of ours, if it is none: one such column would take the numbers out of all the others."""
    names = table.column_names
    if lacking := [name for name in needed if name not in names]:
        return f"without the column {lacking[0]}"
    if len(set(names)) < len(names):
        return "with two columns of one name"
    for name in {*KEYS, *COMPARED} & {*names}:
        kind, column = table.schema.field(name).type, table[name]
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
        if len(table) and not (text if name in KEYS else number) and not (pa.types.is_null(kind) and name not in KEYS):
            return f"with {kind} in the column {name}"
        if name in KEYS and column.null_count:
            return f"with nothing in the column {name}"
    return None


def one_per_run(records: pd.DataFrame) -> pd.DataFrame:
    """One record for each configuration: a finished one before a failed one, then the newest.

    Two finished records of one configuration with different results are a warning: their seeds, versions or machines
    did not make them the same. Records of a newer protocol are left out with a warning, as this version does not know
    what they mean.
    """
    newer = pd.to_numeric(records.protocol, errors="coerce") > PROTOCOL
    if newer.any():
        _warn(
            f"{newer.sum()} records of protocol {records.protocol[newer].max()} are left out, this version knows "
            f"{PROTOCOL}; use a newer version of simpool_lite to read them"
        )
        records = records[~newer]
    twice = records.config_hash.duplicated(keep=False)  # few are, and the rest need no sorting
    again = records[twice].assign(ok=lambda table: table.status == "ok")
    again["started"] = pd.to_datetime(again.started.astype("string"), utc=True, errors="coerce", format="ISO8601")
    again = again.sort_values(["ok", "started"], ascending=False, kind="stable")
    values = again[again.ok].groupby("config_hash")[COMPARED].nunique()
    if different := list(values.index[(values > 1).any(axis=1)]):
        _warn(
            f"{len(different)} configurations have finished records with different results, the newest counts: "
            f"{_some(different)}"
        )
    superseded = again.index[again.config_hash.duplicated()]
    return records.drop(superseded).reset_index(drop=True) if len(superseded) else records.reset_index(drop=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _warn(text: str) -> None:
    warnings.warn(f"store: {text}", stacklevel=4)
