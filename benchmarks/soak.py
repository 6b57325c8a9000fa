"""Repeat the faults and sizes that the workbook promises to bear, and print what was seen: python -m benchmarks.soak.

Signals go to a notebook's run while a grid in its kernel trains, to its kernel, its worker and to the generation of
photo-digits; the store is filled to 4,000 files and to 100,000 records, its disk to the brim; 50,000 pictures are
checked. The table is data/benchmarks/soak.csv; its column ``load`` says how many processes of others wanted each
core when a part began.
"""

import argparse
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from nbformat.v4 import new_code_cell, new_notebook

from simpool_lite.datasets.images import unreadable
from simpool_lite.experiments.config import RunConfig
from simpool_lite.experiments.grid import Grid, run
from simpool_lite.experiments.machine import cpu_cores
from simpool_lite.experiments.store import Store, make_record
from simpool_lite.files import repository_root, write_atomically

TABLE = repository_root() / "data" / "benchmarks" / "soak.csv"
FILES, RECORDS, PICTURES = 4_000, 100_000, 50_000
ORPHANS_AFTER = 10  # seconds
PATIENCE = 900  # seconds until something that should happen counts as not happened
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)

Seen = Iterator[tuple[str, float, float]]  # what, the figure, the most that is promised

GRID = Grid(
    "soak",
    {"backbone": "convnet_micro", "epochs": 2, "batch_size": 8, "data_options": {"num_images": 64}},
    {"GAP": {"pool": "gap"}},
    seeds=24,  # a signal waits for the first record, and more have to be left
)
CELL = """\
from simpool_lite.lab import Grid, Store, run
table = run({grid!r}, Store({folder!r}), workers=1, device="cpu", progress=False)
assert set(table.status) == {{"ok"}}"""


def small_files(folder: Path) -> Seen:
    """Many files of one record, read, put together and read again."""
    table = _table(FILES)
    for row in range(FILES):
        pq.write_table(table.slice(row, 1), folder / f"{row:012x}.parquet")
    store = Store(folder)
    yield f"{FILES} files of one record, read (s)", _seconds(lambda: _expect(FILES, store.records())), 38
    yield "they are put together (s)", _seconds(store.compact), 60
    yield "and read again (s)", _seconds(lambda: _expect(FILES, store.records())), 5


def many_records(folder: Path) -> Seen:
    """A hundred thousand records in a process of its own, and its memory: getrusage would add its parent's."""
    pq.write_table(_table(RECORDS), folder / "all.parquet")
    code = (
        "import re, sys, time; from simpool_lite.experiments.store import Store; before = time.perf_counter();"
        "rows = len(Store(sys.argv[1]).records()); seconds = time.perf_counter() - before;"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]; "
        "print(rows, seconds, int(peak) / 1e6)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    rows, seconds, gigabytes = map(float, done.stdout.split())
    if rows != RECORDS:
        raise AssertionError(f"expected {RECORDS} records, got {rows:.0f}")
    yield f"{RECORDS} records, read (s)", seconds, 5
    yield "memory of that process (GB)", gigabytes, 1
    store = Store(folder)
    grid = Grid("done", {"backbone": "vit_micro"}, {"GAP": {"pool": "gap"}}, seeds=20)
    for _, config in grid.runs():
        store.add(_record(config))
    again = _seconds(lambda: _expect(20, run(grid, store, device="cpu", progress=False)))
    yield "a grid that is done returns at that size (s)", again, 2


def full_disk(folder: Path) -> Seen:
    """A store that may write no file of more than some bytes: nothing half is left, and it goes on afterwards."""
    code = (
        "import resource, sys; from benchmarks.soak import GRID, Store, _record\n"
        "[configs, limit] = [[config for _, config in GRID.runs()], int(sys.argv[2])]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "for config in configs: Store(sys.argv[1]).add(_record(config))"
    )
    Store(folder).add(_record(next(GRID.runs())[1]))
    failures = 0
    for limit in (0, 2_000):
        failures += (
            subprocess.run([sys.executable, "-c", code, folder, str(limit)], capture_output=True).returncode != 0
        )
    left = [file for file in folder.rglob("*") if file.is_file()]
    yield "records that could not be written and were reported as written", 2 - failures, 0
    yield "files left by them beside the one good record", len(left) - 1, 0
    _expect(1, Store(folder).records())


def pictures(folder: Path) -> Seen:
    """As many small pictures, each a file of its own, checked as before a training; then once more."""
    from PIL import Image

    Image.effect_noise((48, 48), 60).convert("RGB").save(folder / "picture.jpg")
    content, paths = (folder / "picture.jpg").read_bytes(), [folder / f"{n}.jpg" for n in range(PICTURES)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda path: path.write_bytes(content), paths))
    paths[7].write_bytes(content[: len(content) // 2])
    os.environ["XDG_CACHE_HOME"] = str(folder)
    for name, most in ((f"{PICTURES} pictures, checked (s)", 60), ("and again (s)", 10)):
        yield name, _seconds(lambda: _expect(1, unreadable(folder, paths))), most


def signals(folder: Path) -> Seen:
    """A signal to a run while its grid trains, to its kernel and to its worker: who is left, what the store holds."""
    orphans, damaged, lost, missing = 0, 0, 0, 0
    for whom, number in [*(("run", number) for number in SIGNALS), ("kernel", signal.SIGKILL)]:
        place = folder / f"{whom}-{number}"  # of each signal's own: a store that is full would leave nothing to do
        store, notebooks, report = Store(place / "store"), place / "notebooks", place / "report"
        notebooks.mkdir(parents=True)
        cell = new_code_cell(CELL.format(grid=GRID, folder=str(store.folder)))
        nbformat.write(new_notebook(cells=[cell]), notebooks / "0-grid.ipynb")
        command = [sys.executable, "-m", "simpool_lite", "run", "--no-progress"]
        with (place / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, "--notebooks", notebooks, "--output", report],
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        family = _wait(lambda: _family(process, 2, store, place / "log"))  # noqa: B023
        target = process.pid if whom == "run" else family[0].pid
        os.kill(target, number)
        try:
            process.wait(PATIENCE if whom == "kernel" else ORPHANS_AFTER)
        except subprocess.TimeoutExpired:
            lost += 1
        left = psutil.wait_procs([*family, *_children(process)], timeout=ORPHANS_AFTER)[1]
        orphans += len(left)
        for one in left:
            one.kill()
        damaged += len(list(store.folder.glob("[!.]*.parquet"))) - len(store.records())
        table = run(GRID, store, workers=1, device="cpu", progress=False)
        missing += GRID.seeds - int((table.status == "ok").sum())
    yield "runs that did not end by a signal", lost, 0
    yield f"processes left {ORPHANS_AFTER} s after a signal", orphans, 0
    yield "records that a signal damaged", damaged, 0
    yield "runs missing after the restarts", missing, 0


def generation(folder: Path) -> Seen:
    """A signal while photo-digits are made: the cache is whole or absent."""
    code = "import sys; from simpool_lite import load_data; print('made', flush=True); "
    code += "print(load_data('photo-digits', num_images=20_000, cache_dir=sys.argv[1]).checksum)"
    half = 0
    for moment, number in enumerate(SIGNALS):
        process = subprocess.Popen(
            [sys.executable, "-c", code, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
        half += sum(path.is_dir() and not any(path.iterdir()) for path in folder.iterdir())
    sums = {
        subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=True).stdout
        for place in (folder, folder / "undisturbed")
    }
    yield "caches that a signal left half made", half + len(sums) - 1, 0


PARTS = {part.__name__: part for part in (small_files, many_records, full_disk, pictures, signals, generation)}


def _family(process: subprocess.Popen, least: int, store: Store, log: Path) -> list[psutil.Process] | None:
    """The processes under a run once there are so many and a record of theirs, with the kernel first."""
    if process.poll() is not None:
        raise AssertionError(f"the run ended before its signal:\n{log.read_text()}")
    found = _children(process)
    return found if len(found) >= least and any(store.folder.glob("[!.]*.parquet")) else None


def _children(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _wait(condition: Callable[[], list | None]) -> list:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("what the soak waits for did not happen")


def _record(config: RunConfig) -> dict:
    labels = {"experiment": "soak", "variant": "GAP", "profile": "smoke", "device": "cpu"}
    return make_record(config, {"top1": 50.0, "loss": 1.0}, **labels)


def _table(rows: int) -> pa.Table:
    one = pd.DataFrame([_record(RunConfig("vit_micro", "gap"))]).assign(correct=[bytes(1024)])
    table = pa.Table.from_pandas(one.loc[[0] * rows], preserve_index=False)
    place = table.schema.get_field_index("config_hash")
    return table.set_column(place, "config_hash", pa.array([f"{number:012x}" for number in range(rows)]))


def _seconds(call: Callable[[], object]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _expect(number: int, found: object) -> None:
    if len(found) != number:
        raise AssertionError(f"expected {number}, got {len(found)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--record", action="store_true", help=f"for maintainers: write {TABLE.name}, part by part")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    machine = f"{cpu_cores()} cores, {platform.system()} {platform.machine()}"
    rows = []
    for name in options.parts or PARTS:
        load = os.getloadavg()[0] / cpu_cores()
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        try:
            for what, figure, most in PARTS[name](folder):
                rows.append(
                    {"part": name, "what": what, "figure": round(figure, 3), "most": most, "load": round(load, 1)}
                )
                print(
                    f"{name:<13} {what:<62} {figure:10.3f}  {'' if figure <= most else f'more than {most}'}", flush=True
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    table = pd.DataFrame(rows).assign(date=datetime.now(UTC).date().isoformat(), machine=machine)
    if options.record:
        if TABLE.exists():
            old = pd.read_csv(TABLE)
            table = pd.concat([old[~old.part.isin(table.part)], table])
        with write_atomically(TABLE) as temporary:
            table.to_csv(temporary, index=False)
    return int((table.figure > table.most).any())


if __name__ == "__main__":
    sys.exit(main())
