"""Arrays that are made once, kept on disk and mapped into memory by every process that needs them.

A set is one folder: an .npy file per array and `set.json` with its description, its checksum and each file's
size and time of change. The folder is written under another name and renamed when it is complete, so it is
whole or absent. Mapped pages are shared: ten processes that read one set hold it once.

Reading all bytes at each start would cost more than it is worth for a set of gigabytes. So sizes are checked
always, and the checksum only when a file's time of change is not the recorded one (a copied folder, an edited
file). Damage that changes neither a size nor a time is not seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ..files import write_atomically

__all__ = ["cached_arrays", "checksum_of"]

RECORD = "set.json"
LARGEST_RECORD = 1_000_000  # bytes; no set has a record of more than a few thousand
Layout = dict[str, tuple[str, tuple[int, ...]]]
PARTIAL = ".partial-"  # how the names of unfinished folders begin; a day later they are removed

logger = logging.getLogger(__name__)


def cached_arrays(
    folder: Path,
    description: dict[str, Any],
    layout: Layout,
    make: Callable[[], dict[str, np.ndarray]],
    *,
    checksum: str | None = None,
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays in `folder`, memory-mapped, or new ones from `make()`, which are then put there.

    Args:
        folder: Where the set is kept.
        description: What the set depends on, as JSON values. A folder with another description is replaced.
        layout: Type and shape of each array, by its name.
        make: Makes the arrays.
        checksum: The set's SHA-256 where it is known beforehand; a folder with another one is replaced.

    Returns:
        The arrays, which may be changed without a change on disk, and their SHA-256. A damaged set is made
        again with a warning. A folder that cannot be written to is a warning too: the arrays are then in memory.
    """
    description = json.loads(json.dumps(description))  # as it comes back: tuples become lists
    cached = _open(folder, description, layout, checksum)
    if cached is None:
        arrays = make()
        made = checksum_of(arrays)
        cached = _open(folder, description, layout, made, quiet=True)  # another process may have been faster
        if cached is None:
            _write(folder, description, arrays, made)
            cached = _open(folder, description, layout, made, quiet=True) or (arrays, made)
    return cached


def checksum_of(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _open(
    folder: Path, description: dict[str, Any], layout: Layout, checksum: str | None, *, quiet: bool = False
) -> tuple[dict[str, np.ndarray], str] | None:
    """The cached arrays and their checksum, or None where there are none or they are damaged."""
    if not folder.exists():
        return None
    try:
        record = _read_record(folder)
        if record["description"] != description:
            raise ValueError("it holds another set")
        if checksum not in (None, record["checksum"]):
            raise ValueError("its checksum is not the expected one")
        stamps = _stamps(folder, layout)
        arrays = {}
        for name, (dtype, shape) in layout.items():
            if stamps[name][0] != record["files"][name][0]:
                raise ValueError(f"{name}.npy has {stamps[name][0]} bytes, not {record['files'][name][0]}")
            # "c": a write changes this process's copy of a page, never the file
            array = arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name}.npy holds {array.dtype} {array.shape}, not {dtype} {shape}")
        if stamps != record["files"]:
            if checksum_of(arrays) != record["checksum"]:
                raise ValueError("its bytes have changed")
            with suppress(OSError):  # a cache that only others may write to
                _write_record(folder, {**record, "files": stamps})
        return arrays, record["checksum"]
    except Exception as error:  # a damaged file can raise almost anything, and every case has one answer
        if not quiet:
            logger.warning("%s cannot be read (%s); generating the set again", folder, error)
        return None


def _write(folder: Path, description: dict[str, Any], arrays: dict[str, np.ndarray], checksum: str) -> None:
    """Keep the set for the next time; a folder that cannot be written to is no error."""
    partial = folder.with_name(f"{PARTIAL}{uuid4().hex}")
    damaged = folder.with_name(f"{PARTIAL}{uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        record = {"description": description, "checksum": checksum, "files": _stamps(partial, arrays)}
        _write_record(partial, record)
        if folder.exists():
            folder.rename(damaged)
        partial.rename(folder)
    except OSError as error:
        if not folder.exists():
            logger.warning("cannot write %s (%s); the set is not cached", folder, error)
    finally:
        _remove(partial)
        _remove(damaged)
    with suppress(OSError):
        for left in folder.parent.glob(f"{PARTIAL}*"):  # by a process that was killed
            if left.stat().st_mtime < time.time() - 86_400:
                _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size and time of change of each file."""
    stats = {name: (folder / f"{name}.npy").stat() for name in names}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if path.stat().st_size > LARGEST_RECORD:
        raise ValueError(f"{RECORD} has more than {LARGEST_RECORD} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    with write_atomically(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")
