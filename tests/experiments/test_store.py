"""The store among damaged, foreign, contradicting and left-over files, and on disks that cannot be written to."""

import os
import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpool_lite.__main__ import main
from simpool_lite.experiments import grid as grid_module
from simpool_lite.experiments import store as store_module
from simpool_lite.experiments import tables
from simpool_lite.experiments.config import PROTOCOL, RunConfig
from simpool_lite.experiments.grid import Grid, run
from simpool_lite.experiments.store import COLUMNS, CURVE_COLUMNS, MEASURE_COLUMNS, Store, make_record

LABELS = {"experiment": "test", "variant": "GAP", "profile": "smoke", "device": "cpu"}


def config(seed: int = 0) -> RunConfig:
    return RunConfig(backbone="vit_micro", pool="gap", seed=seed)


def record(seed: int = 0, *, top1: float = 50.0, started: str = "2026-01-01T00:00:00+00:00", **changes) -> dict:
    measured = {"top1": top1, "loss": 1.0} if changes.get("status", "ok") == "ok" else {}
    return make_record(config(seed), measured, **LABELS) | {"started": started} | changes


def curve(seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"epoch": [1, 2], "step": [10, 20], "train_loss": [2.0, 1.0], "top1": 10.0, "loss": 2.0})


def failed(seed: int = 0, **changes) -> dict:
    return record(seed, status="failed", reason="out of memory", **changes)


def quietly(store: Store) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return store.records()


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def rewritten(file: Path, **columns) -> None:
    table = pd.read_parquet(file)
    for name, value in columns.items():
        table[name] = pd.Series([value] * len(table), dtype=object)
    table.to_parquet(file)


DAMAGE = {
    "cut off": half,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("config_hash,top1\nabc,50\n"),
    "foreign": lambda file: pd.DataFrame({"name": ["Ada"], "age": [36]}).to_parquet(file),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "other bytes at the end": lambda file: file.write_bytes(file.read_bytes()[:-8] + b"12345678"),
    "words for numbers": lambda file: rewritten(file, loss="low"),
    "lists for numbers": lambda file: rewritten(file, loss=[1.0]),
    "numbers for words": lambda file: rewritten(file, config_hash=17),
    "no name": lambda file: rewritten(file, config_hash=None),
    "a column twice": lambda file: pq.write_table(
        pq.read_table(file).append_column("loss", pa.array([1.0] * pq.read_metadata(file).num_rows)), file
    ),
    "no rows but ours": lambda file: pd.DataFrame(columns=["config_hash"]).to_parquet(file),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_set_aside_and_named(tmp_path, damage):
    store = Store(tmp_path)
    for seed in range(3):
        store.add(record(seed), curve())
    name = f"{config(1).hash()}.parquet"
    for file in (tmp_path / name, tmp_path / "curves" / name):
        DAMAGE[damage](file)
    for read, rows in ((store.records, 2), (store.curves, 4)):
        with pytest.warns(UserWarning, match=rf"1 of 3 files are not read.*{name}"):
            table = read()
        assert len(table) == rows
        assert set(table.config_hash) == {config(0).hash(), config(2).hash()}
    assert (tmp_path / name).exists()  # nothing is deleted
    assert (tmp_path / "curves" / name).exists()


def test_a_damaged_record_is_computed_again(tmp_path, monkeypatch):
    store = Store(tmp_path)
    for seed in range(2):
        store.add(record(seed))
    half(tmp_path / f"{config(1).hash()}.parquet")
    computed = []

    def pretend(jobs, workers):
        for job in jobs:
            computed.append(job)
            store.add(record(1, top1=60.0))
            yield job, None

    monkeypatch.setattr(grid_module, "in_processes", pretend)
    grid = Grid("test", {"backbone": "vit_micro"}, {"GAP": {"pool": "gap"}}, seeds=2)
    with pytest.warns(UserWarning, match="not read"):
        table = run(grid, store, device="cpu", progress=False)
    assert len(computed) == 1
    assert table.top1.tolist() == [50, 60]
    assert len(quietly(store)) == 2


# Files in the order in which they are read, and which record counts
RANKS = {
    "failed before good": ([failed(), record()], 1, None),
    "good before failed": ([record(), failed(started="2026-02-02T00:00:00+00:00")], 0, None),
    "two failures, the newer": ([failed(), failed(started="2026-02-02T00:00:00+00:00")], 1, None),
    "the same twice": ([record(), record()], 0, None),
    "times may differ": ([record(seconds=1.0), record(seconds=2.0)], 0, None),
    "two results, the newer": ([record(), record(top1=51.0, started="2026-02-02T00:00:00+00:00")], 1, "different"),
    "two results, the newer first": ([record(started="2026-02-02T00:00:00+00:00"), record(top1=51.0)], 0, "different"),
    "another loss": ([record(), record(loss=1.5)], 0, "1 configurations have finished.*different"),
    "another zone": (
        [record(started="2026-02-01T23:00:00+05:00"), record(top1=51.0, started="2026-02-01T20:00:00+00:00")],
        1, "different",
    ),
    "no time": ([record(started=None), record(top1=51.0)], 1, "different"),
    "newer protocol": ([record(protocol=PROTOCOL + 1), record()], 1, f"protocol {PROTOCOL + 1} are left out"),
    "older protocol": ([record(protocol=0)], 0, None),
}  # fmt: skip


@pytest.mark.parametrize("case", RANKS)
def test_which_record_of_a_run_counts(tmp_path, case):
    records, chosen, warning = RANKS[case]
    folders = [tmp_path / str(number) for number in range(len(records))]
    for folder, content in zip(folders, records, strict=True):
        Store(folder).add(content)
    store = Store(folders[0], also_read=tuple(folders[1:]))
    if warning:
        with pytest.warns(UserWarning, match=warning) as caught:
            table = store.records()
        assert len(caught) == 1
    else:
        table = quietly(store)
    expected = pd.DataFrame([records[chosen]], columns=COLUMNS)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


def test_recording_keeps_a_run_that_another_experiment_has_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "recorded_results", lambda: tmp_path / "recorded")
    Store(tmp_path / "a").add(record(top1=50.0, profile="laptop"), curve())
    Store(tmp_path / "b").add(
        record(top1=51.0, experiment="trunks", started="2026-01-02T00:00:00+00:00", profile="laptop")
    )
    store_module.record("test", Store(tmp_path / "a", also_read=(tmp_path / "b",)))
    recorded = Store(tmp_path / "recorded").records()
    assert recorded[["experiment", "top1"]].values.tolist() == [["test", 50.0]]


def test_curves_and_measures_that_two_stores_have_count_once(tmp_path):
    rows = [[config().hash(), "maps", "", "simpool", name, 1.0, None] for name in ("top1", "mass")]
    measured = pd.DataFrame(rows, columns=MEASURE_COLUMNS)
    for name in ("a", "b"):
        Store(tmp_path / name).add(record(), curve())
        Store(tmp_path / name).add_measures(measured)
    store = Store(tmp_path / "a", also_read=(tmp_path / "b",))
    assert store.curves().epoch.tolist() == [1, 2]
    assert store.measures().measure.tolist() == ["top1", "mass"]


def test_a_record_says_under_which_protocol_it_was_made(monkeypatch):
    monkeypatch.setattr(store_module, "PROTOCOL", PROTOCOL + 1)
    assert record()["protocol"] == PROTOCOL + 1


def test_only_newer_protocols_leave_an_empty_table(tmp_path):
    store = Store(tmp_path)
    store.add(record(protocol=PROTOCOL + 1))
    with pytest.warns(UserWarning, match="left out"):
        table = store.records()
    assert table.empty
    assert list(table.columns) == COLUMNS


def test_whoever_sees_a_record_finds_its_curve(tmp_path, monkeypatch):
    """The record is written last: a writer that dies in between leaves a curve without a record, not the reverse."""
    write = store_module.write_atomically

    def dies_at_the_record(path):
        if path.parent == tmp_path:
            raise OSError("no space left")
        return write(path)

    monkeypatch.setattr(store_module, "write_atomically", dies_at_the_record)
    with pytest.raises(OSError, match="no space"):
        Store(tmp_path).add(record(), curve())
    assert len(Store(tmp_path).curves()) == 2 and Store(tmp_path).records().empty


def test_a_failure_does_not_replace_a_finished_record(tmp_path):
    store = Store(tmp_path)
    store.add(record(), curve())
    store.add(failed())
    assert quietly(store).status.tolist() == ["ok"]
    store.add(failed(1))
    store.add(record(1))
    assert quietly(store).status.tolist() == ["ok", "ok"]


def test_tables_are_those_of_pandas(tmp_path):
    """Files with other columns, in another order, with whole numbers, or with nothing but missing values."""
    rows = [
        record(0, parameters=7), record(1, target="digit", peak_memory_mb=1.5), failed(2), record(3, top1=50),
    ]  # fmt: skip
    for number, content in enumerate(rows):
        columns = COLUMNS[::-1] if number == 1 else COLUMNS[number:]
        pd.DataFrame([content], columns=columns).to_parquet(tmp_path / f"{number}.parquet", index=False)
    found = tables.read_tables((tmp_path,), "*.parquet", COLUMNS, ["config_hash"])
    expected = pd.concat([pd.read_parquet(tmp_path / f"{number}.parquet") for number in range(4)], ignore_index=True)
    expected = expected.reindex(columns=COLUMNS)
    missing = expected.isna()
    pd.testing.assert_frame_equal(found.isna(), missing)
    pd.testing.assert_frame_equal(found.mask(missing, 0), expected.mask(missing, 0), check_dtype=False)


def test_files_whose_types_do_not_go_together_are_read(tmp_path):
    for number, seed in enumerate((0, "zero")):
        pd.DataFrame([record() | {"seed": seed, "config_hash": f"{number}"}]).to_parquet(tmp_path / f"{number}.parquet")
    assert Store(tmp_path).records().seed.tolist() == [0, "zero"]


def test_a_file_without_rows_changes_nothing(tmp_path):
    store = Store(tmp_path)
    store.add(record(), curve())
    before = quietly(store)
    before.iloc[:0].to_parquet(tmp_path / "none.parquet")
    pd.DataFrame({name: pd.Series(dtype=float) for name in COLUMNS}).to_parquet(tmp_path / "untyped.parquet")
    pd.testing.assert_frame_equal(quietly(store), before)


def test_an_empty_store_has_empty_tables(tmp_path):
    store = Store(tmp_path / "none")
    assert quietly(store).empty
    assert list(store.records().columns) == COLUMNS
    assert list(store.curves().columns) == CURVE_COLUMNS
    assert not (tmp_path / "none").exists()


def test_left_over_temporary_files_are_removed_after_a_day(tmp_path):
    (tmp_path / "curves").mkdir()
    old, young, others = f".{'0' * 32}.parquet", f".{'1' * 32}.parquet", [".nfs0001", ".notes.parquet", ".git"]
    for folder in (tmp_path, tmp_path / "curves"):
        for name in (old, young, *others):
            (folder / name).write_text("x")
            if name != young:
                os.utime(folder / name, (0, 0))
    Store(tmp_path).add(record(), curve())
    for folder in (tmp_path, tmp_path / "curves"):
        assert {path.name for path in folder.glob(".*")} == {young, *others}


def never(*arguments):
    pytest.fail("a training started")


GRID = Grid("test", {"backbone": "vit_micro"}, {"GAP": {"pool": "gap"}}, seeds=1)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"store: expected a folder, got the file .*file"):
        Store(tmp_path / "file")


def test_training_refuses_a_store_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    words = ["train", "--backbone=vit_micro", "--pool=gap"]
    assert main([*words, f"--store={tmp_path / 'file'}"]) == 2
    assert "expected a folder, got the file" in capsys.readouterr().err
    assert main([*words, f"--store={tmp_path / 'file' / 'below'}"]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_a_store_that_cannot_be_written_stops_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(grid_module, "in_processes", never)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="store: cannot write to"):
        run(GRID, Store(tmp_path / "file" / "store"), device="cpu", progress=False)


def test_a_read_only_store_stops_before_the_training(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(grid_module, "in_processes", never)
    monkeypatch.setattr(Path, "write_bytes", refuse)  # who runs the tests may be allowed everything
    with pytest.raises(ValueError, match=r"store: cannot write to .*Permission denied"):
        run(GRID, Store(tmp_path), device="cpu", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stops_before_the_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(grid_module, "in_processes", never)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**6))
    with pytest.raises(ValueError, match=r"100 MB or more free .* got 1;"):
        run(GRID, Store(tmp_path), device="cpu", progress=False)


def test_a_complete_grid_needs_no_disk(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add(record())
    monkeypatch.setattr(grid_module, "in_processes", never)
    monkeypatch.setattr(Store, "check_writable", never)
    assert run(GRID, store, device="cpu", progress=False).top1.tolist() == [50]


def test_a_writable_store_is_left_as_it_was(tmp_path):
    Store(tmp_path / "new" / "store").check_writable()
    assert not list((tmp_path / "new" / "store").iterdir())


def test_the_revision_is_asked_for_once(monkeypatch):
    calls = []
    ask = store_module.subprocess.run
    monkeypatch.setattr(store_module.subprocess, "run", lambda *a, **k: calls.append(a) or ask(*a, **k))
    store_module._git_revision.cache_clear()
    assert len({record(seed)["git_revision"] for seed in range(3)}) == 1
    assert len(calls) == 1


def test_many_files_are_put_together_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FILES_PUT_TOGETHER", 3)
    store = Store(tmp_path)
    for seed in range(4):
        store.add(record(seed, top1=float(seed)), curve())
    half(tmp_path / f"{config(3).hash()}.parquet")
    with pytest.warns(UserWarning, match="files are not read"):
        before, curves = store.records(), store.curves()
        store.compact()
        after = store.records()
    pd.testing.assert_frame_equal(after, before)
    order = ["config_hash", "epoch"]
    pd.testing.assert_frame_equal(
        store.curves().sort_values(order, ignore_index=True), curves.sort_values(order, ignore_index=True)
    )
    names = sorted(file.name for file in tmp_path.glob("*.parquet"))
    assert len(names) == 2 and names[0] == f"{config(3).hash()}.parquet"  # what is damaged stays
    store.add(record(3))
    assert len(quietly(store)) == 4


def test_few_files_stay(tmp_path):
    store = Store(tmp_path)
    store.add(record(), curve())
    store.compact()
    assert [file.name for file in tmp_path.glob("*.parquet")] == [f"{config().hash()}.parquet"]


def test_a_reader_does_not_miss_what_is_put_together_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FILES_PUT_TOGETHER", 2)
    store, read = Store(tmp_path), tables._read_all
    for seed in range(3):
        store.add(record(seed))

    def slowly(files, needed):
        monkeypatch.setattr(tables, "_read_all", read)
        store.compact()
        return read(files, needed)

    monkeypatch.setattr(tables, "_read_all", slowly)
    assert len(quietly(store)) == 3


def test_a_record_written_while_others_are_put_together_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FILES_PUT_TOGETHER", 2)
    store, merged = Store(tmp_path), store_module.merged
    for seed in range(2):
        store.add(failed(seed))

    def meanwhile(*arguments):
        found = merged(*arguments)
        store.add(record(1, started="2026-02-02T00:00:00+00:00"))
        return found

    monkeypatch.setattr(store_module, "merged", meanwhile)
    store.compact()
    assert sorted(quietly(store).status) == ["failed", "ok"]


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"backbone": "vit_mirco"}, ValueError, "^backbone: .*'vit_mirco'; did you mean 'vit_micro'"),
        ({"pool": "simpol"}, ValueError, "^pool: .*'simpol'; did you mean 'simpool'"),
        ({"dataset": "cifar1O"}, ValueError, "^dataset: .*'cifar1O'; did you mean 'cifar10'"),
        ({"dataset": "folder", "data_root": "no/such/folder"}, FileNotFoundError, "^data_root: .*no/such/folder"),
        ({"pol": "gap"}, TypeError, r"^variants\['GAP'\]: .*'pol'; did you mean 'pool'"),
        ({"pool_kwargs": {"k": 3}}, TypeError, "^k: pool 'gap' does not have this argument"),
        ({"data_options": {"num_images": 0}}, ValueError, "^num_images: expected an int of at least 1, got 0"),
        ({"start": "no/such/file"}, FileNotFoundError, "^start: .*no/such/file"),
    ],
)
def test_what_would_fail_in_every_run_is_refused_at_once(tmp_path, fields, error, said):
    with pytest.raises(error, match=said):
        grid = Grid("test", {"backbone": "vit_micro"}, {"GAP": {"pool": "gap"} | fields}, seeds=3)
        run(grid, Store(tmp_path), device="cpu", progress=False)
    assert not list(tmp_path.iterdir())
