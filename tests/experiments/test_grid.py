"""Grids: what is left when processes are killed, runs fail, a cluster or several processes compute."""

import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from threading import Thread

import accelerate.state
import pandas as pd
import pytest
import torch

from simpool_lite import load_model
from simpool_lite.__main__ import main
from simpool_lite.experiments import grid as grid_module
from simpool_lite.experiments.config import RunConfig
from simpool_lite.experiments.grid import Grid, run, summary
from simpool_lite.experiments.machine import cuda_devices
from simpool_lite.experiments.run import train_and_measure
from simpool_lite.experiments.store import COLUMNS, Store, make_record
from simpool_lite.experiments.workers import compute
from simpool_lite.training.supervised import _batch_size

TINY = {"backbone": "vit_micro", "epochs": 1, "batch_size": 16, "data_options": {"num_images": 32}}
GRID = Grid(
    "test",
    TINY,
    {"GAP": {"pool": "gap"}, "SimPool": {"pool": "simpool"}, "diverges": {"pool": "gap", "learning_rate": 1e30}},
    seeds=4,
    profile="smoke",
    keep_models=1,
)
OF_THE_MACHINE = ["seconds", "images_per_second", "peak_memory_mb", "started"]
DEADLINE = 900  # seconds until a test gives up on something that should have happened; long, for busy machines


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Store, pd.DataFrame]:
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    return store, run(GRID, store, workers=2, device="cpu", progress=False)


def assert_same_results(store: Store, table: pd.DataFrame, undisturbed: tuple[Store, pd.DataFrame]) -> None:
    """Records and curves equal those of the undisturbed grid, as far as ``table`` goes, but for time and memory."""
    whole_store, whole = undisturbed
    expected = whole[whole.config_hash.isin(table.config_hash)].reset_index(drop=True)
    pd.testing.assert_frame_equal(table.drop(columns=OF_THE_MACHINE), expected.drop(columns=OF_THE_MACHINE))
    curves, expected = (s.curves().sort_values(["config_hash", "epoch"]) for s in (store, whole_store))
    expected = expected[expected.config_hash.isin(table.config_hash)]
    pd.testing.assert_frame_equal(curves.reset_index(drop=True), expected.reset_index(drop=True))


def record_files(folder: Path) -> dict[Path, int]:
    """The records in a folder, with the time at which each was written."""
    return {file: file.stat().st_mtime_ns for file in folder.glob("[!.]*.parquet")}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.02)


def test_a_grid_gives_one_tidy_row_a_run(undisturbed):
    store, table = undisturbed
    assert list(table) == COLUMNS
    runs = [[variant, seed] for seed in range(4) for variant in GRID.variants]
    assert table[["variant", "seed"]].values.tolist() == runs
    configs = [config for _, config in GRID.runs()]
    assert table.config_hash.tolist() == [config.hash() for config in configs]
    assert [RunConfig(**json.loads(text)) for text in table.config] == configs
    assert set(store.curves().config_hash) == set(table[table.status == "ok"].config_hash)


def test_workers_do_not_change_a_result(undisturbed):
    """A run in a worker process equals the same run in this one."""
    _, table = undisturbed
    row = table[(table.variant == "SimPool") & (table.seed == 0)].iloc[0]
    _, measured, _ = train_and_measure(RunConfig(**TINY, pool="simpool"), "cpu", progress=False)
    # A worker has one thread, this process perhaps more, which sum in another order.
    assert row.loss == pytest.approx(measured["loss"], rel=1e-4)
    assert row.attention_mass == pytest.approx(measured["attention_mass"], rel=1e-4)


def test_a_failed_run_is_recorded_and_stops_nothing(undisturbed):
    _, table = undisturbed
    failed = table[table.variant == "diverges"]
    assert set(failed.status) == {"failed"} and failed.top1.isna().all()
    assert failed.reason.str.startswith("FloatingPointError: the training loss is").all()
    assert set(table[table.variant != "diverges"].status) == {"ok"}


def test_summary(undisturbed):
    _, table = undisturbed
    table = pd.concat([table, table.assign(seed=table.seed + 4)])
    lines = summary(table).splitlines()
    assert lines[0] == "24 runs, 8 failed:"
    assert lines[1].startswith("  diverges seed 0: FloatingPointError: the training loss is nan in epoch 1")
    assert len(lines) == 7 and lines[-1] == "  and 3 more, see the column reason"
    assert summary(table[table.status == "ok"]) == "16 runs, none failed"
    two = pd.concat([table.head(3), table.tail(1).assign(backbone="resnet18")])
    assert "  diverges on resnet18 seed 7: Float" in summary(two)


def test_models_are_kept_for_the_first_seed(undisturbed):
    store, _ = undisturbed
    configs = {(variant, config.seed): config for variant, config in GRID.runs()}
    model = load_model(store.model_path(configs["SimPool", 0]))
    assert model.attention(torch.randn(1, 3, 48, 48)).shape == (1, 1, 6, 6)
    with pytest.raises(FileNotFoundError, match="config: no model of run"):
        store.model_path(configs["SimPool", 1])


def test_a_missing_model_is_made_by_doing_its_run_again(tmp_path):
    store = Store(tmp_path)
    one = replace(GRID, variants={"SimPool": GRID.variants["SimPool"]}, seeds=2, keep_models=0)
    without = run(one, store, workers=2, device="cpu", progress=False)
    assert not any(store.has_model(config) for _, config in one.runs())
    untouched = record_files(tmp_path)
    with_model = run(replace(one, keep_models=1), store, workers=1, device="cpu", progress=False)
    assert [store.has_model(config) for _, config in one.runs()] == [True, False]
    pd.testing.assert_frame_equal(with_model.drop(columns=OF_THE_MACHINE), without.drop(columns=OF_THE_MACHINE))
    changed = [file.stem for file, written in record_files(tmp_path).items() if written != untouched[file]]
    assert changed == [without.config_hash[0]]


def test_what_is_done_is_not_done_again(undisturbed):
    """Neither what succeeded nor what failed."""
    store, table = undisturbed
    before = {file: file.stat().st_mtime_ns for file in store.folder.rglob("*.*")}
    same_twice = replace(GRID, experiment="other", variants=GRID.variants | {"again": {"pool": "gap"}})
    relabelled = run(same_twice, store, device="cpu", progress=False)
    assert {file: file.stat().st_mtime_ns for file in store.folder.rglob("*.*")} == before
    assert set(relabelled.experiment) == {"other"}
    assert relabelled[relabelled.variant != "again"].loss.tolist() == pytest.approx(table.loss.tolist(), nan_ok=True)
    again, gap = (relabelled[relabelled.variant == name].loss.tolist() for name in ("again", "GAP"))
    assert again == gap


def grid_script(grid: Grid, folder: Path, workers: int) -> str:
    return (
        "from simpool_lite.experiments.grid import Grid, run; from simpool_lite.experiments.store import Store\n"
        f"run({grid!r}, Store({str(folder)!r}), workers={workers}, device='cpu', progress=False)"
    )


# When and whom: every process of the grid, or the parent alone, whose workers must then end themselves.
KILLS = [
    ("as it starts", os.killpg, 1),
    ("between two records", os.kill, 1),
    ("between two records", os.killpg, 2),
    ("between two records", os.kill, 2),
]


@pytest.mark.slow
def test_a_grid_killed_again_and_again_and_restarted(undisturbed, tmp_path):
    """It ends with the records of one that nobody disturbed, and never repeats a run that had its record."""
    moments = random.Random(0)
    half_a_run = undisturbed[1].seconds.median() / 2
    for when, kill, workers in KILLS:
        before = record_files(tmp_path)
        command = [sys.executable, "-c", grid_script(GRID, tmp_path, workers)]
        # The workers inherit the pipe, so that its end is the end of all of them.
        grid = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
        if when == "as it starts":
            time.sleep(moments.uniform(0, 6))
        else:
            wait_until(lambda: grid.poll() is not None or len(record_files(tmp_path)) > len(before))  # noqa: B023
            time.sleep(moments.uniform(0, half_a_run))
        assert grid.poll() is None, f"the grid ended before it was killed: {grid.stderr.read()}"
        kill(grid.pid, signal.SIGKILL)
        grid.communicate(timeout=DEADLINE)
        assert before.items() <= record_files(tmp_path).items()
    store = Store(tmp_path)
    finished = record_files(tmp_path)
    assert 3 <= len(finished) < 12 and len(store.records()) == len(finished)  # no temporary file among them
    table = run(GRID, store, workers=1, device="cpu", progress=False)
    assert finished.items() <= record_files(tmp_path).items()
    assert_same_results(store, table, undisturbed)


class Deadly(dict):
    """Options that kill the process which unpickles them: always, or only while ``marker`` does not exist."""

    def __init__(self, options: dict, marker: Path | None = None) -> None:
        super().__init__(options)
        self.marker = marker

    def __reduce__(self) -> tuple:
        if self.marker is None:
            return signal.raise_signal, (signal.SIGKILL,)
        return die_once, (self.marker, dict(self))


def die_once(marker: Path, options: dict) -> dict:
    if not marker.exists():
        marker.touch()
        signal.raise_signal(signal.SIGKILL)
    return options


def test_a_worker_that_dies(tmp_path):
    """Its run is repeated alone; if that kills again, it is recorded as failed, and the others are done."""
    options = TINY["data_options"]
    variants = {
        "once": {"data_options": Deadly(options, tmp_path / "died"), "pool": "simpool"},
        "always": {"data_options": Deadly(options), "pool": "max"},
        "good": {"pool": "gap"},
    }
    grid = Grid("test", TINY, variants, seeds=1)
    table = run(grid, Store(tmp_path), workers=1, device="cpu", progress=False)
    assert table.status.tolist() == ["ok", "failed", "ok"]
    assert table.reason[1].startswith("its process died, probably out of memory; it died again when")


def test_a_script_without_a_guard_is_told_so(tmp_path):
    """Its workers die as they start, which says nothing about the runs: none is recorded as failed."""
    script = tmp_path / "script.py"
    script.write_text(grid_script(GRID, tmp_path / "store", workers=1))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1 and 'does so under `if __name__ == "__main__":`' in done.stderr
    assert Store(tmp_path / "store").records().empty


def test_failed_runs_are_retried_on_demand(tmp_path):
    store = Store(tmp_path)
    grid = replace(GRID, variants={"GAP": {"pool": "gap"}}, seeds=1)
    [(variant, config)] = grid.runs()
    label = {"experiment": "test", "variant": variant, "profile": "smoke", "device": "cpu"}
    store.add(make_record(config, {}, **label, status="failed", reason="the lights went out"))
    assert run(grid, store, device="cpu", progress=False).reason.tolist() == ["the lights went out"]
    table = run(grid, store, device="cpu", retry_failed=True, progress=False)
    assert table.status.tolist() == ["ok"] and len(store.records()) == 1


def test_workers_are_counted(undisturbed):
    store, _ = undisturbed
    with pytest.raises(ValueError, match="workers: expected an int of at least 1, got 0"):
        run(GRID, store, workers=0)
    with pytest.raises(ValueError, match="workers: expected None with a client, which has its own, got 2"):
        run(GRID, store, workers=2, client=object())


@pytest.mark.parametrize(
    ("profile", "device", "wish", "compiled"),
    [
        ("gpu", "cuda", None, True),
        ("laptop", "cuda", None, False),
        ("gpu", "cpu", None, False),
        ("gpu", "cuda", False, False),
    ],
)
def test_the_gpu_profile_compiles_on_cuda(monkeypatch, tmp_path, profile, device, wish, compiled):
    jobs = []

    def instead_of_processes(runs, devices):
        jobs.extend(runs)
        return [(run, "not run") for run in runs]

    monkeypatch.setattr(grid_module, "resolve_device", torch.device)
    monkeypatch.setattr(grid_module, "cuda_devices", lambda: ["0"])
    monkeypatch.setattr(grid_module, "in_processes", instead_of_processes)
    run(replace(GRID, profile=profile, seeds=1), Store(tmp_path), device=device, compile=wish, progress=False)
    assert [job["compile"] for job in jobs] == [compiled] * len(GRID.variants)


def test_cuda_devices_are_named_as_the_environment_names_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8f3a")
    assert cuda_devices() == ["5", "GPU-8f3a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cuda_devices() == []


@contextmanager
def killing_a_worker(client, folder: Path):
    """Kill one of the cluster's worker processes while it computes, once there is a new record."""
    pids, before = client.run(os.getpid), len(record_files(folder))

    def kill() -> None:
        wait_until(lambda: len(record_files(folder)) > before and any(client.processing().values()))
        busy = next(address for address, keys in client.processing().items() if keys)
        os.kill(pids[busy], signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    yield
    killer.join()


@pytest.mark.slow
def test_a_dask_cluster_loses_nothing_when_a_worker_is_killed(undisturbed, tmp_path):
    distributed = pytest.importorskip("distributed")
    store = Store(tmp_path)
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        with killing_a_worker(client, tmp_path):
            table = run(replace(GRID, seeds=2), store, client=client, device="cpu", progress=False)
        assert_same_results(store, table, undisturbed)

        client.wait_for_workers(2)
        others = replace(GRID, seeds=(2, 3))
        cluster.scheduler.allowed_failures = 0  # dask gives a task up when the first worker dies of it
        with killing_a_worker(client, tmp_path):
            table = run(others, store, client=client, device="cpu", progress=False)
        assert table.reason.str.startswith("its process died on 1 dask workers, probably out of memory").any()

        cluster.scheduler.allowed_failures = 3
        run(others, store, client=client, device="cpu", retry_failed=True, progress=False)
        table = run(replace(GRID, seeds=4), store, client=client, device="cpu", progress=False)
        assert_same_results(store, table, undisturbed)


def test_dask_workers_with_threads_are_refused(tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address=None)
    refused = pytest.raises(ValueError, match=r"client: expected dask workers with one thread, .* got one with 2;")
    with cluster, distributed.Client(cluster) as client, refused:
        run(GRID, Store(tmp_path), client=client, device="cpu", progress=False)
    assert Store(tmp_path).records().empty


# Four seconds of training to 60 % (chance: 17 %), by a backbone without a batch norm, which would see half batches.
LEARNABLE = [
    *("--backbone=vit_tiny_patch16_224", '--model-options={"depth": 2}', "--pool=simpool", "--target=photo"),
    *("--epochs=3", '--data-options={"num_images": 512}', "--learning-rate=1e-3", "--device=cpu", "--progress=false"),
]


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path, capsys):
    """Launched by accelerate, over gloo: one record, and the figures of one process."""
    # `accelerate launch --cpu` starts one process whatever --num_processes says, so --multi_gpu it is.
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    precision = "--mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1"
    command = [sys.executable, "-m", *launch.split(), *precision.split(), "-m", "simpool_lite", "train"]
    command += [*LEARNABLE, "--store", str(tmp_path / "two")]
    together = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("top-1") == 1 and ", 2 processes, see" in together.stdout
    assert len(record_files(tmp_path / "two")) == 1

    assert (
        main(["train", *LEARNABLE, "--store", str(tmp_path / "one")]) == 0
        and ", 1 process, see" in capsys.readouterr().out
    )
    one, two = (Store(tmp_path / name) for name in ("one", "two"))
    [one_record], [two_record] = (store.records().to_dict("records") for store in (one, two))
    assert one_record["config_hash"] == two_record["config_hash"] and one_record["top1"] > 40
    # Seeds 0 to 4 of one process give 61.9 to 65.4 %. Two processes, which split each batch, average the gradients and
    # share out the test images, compute the same as one: seven digits agreed when this was written.
    assert two_record["top1"] == pytest.approx(one_record["top1"], abs=1)
    for name in ("loss", "attention_mass", "attention_ap", "attention_entropy"):
        assert two_record[name] == pytest.approx(one_record[name], rel=0.01)
    pd.testing.assert_frame_equal(two.curves(), one.curves(), rtol=0.02)


def test_a_batch_is_split_evenly():
    assert [_batch_size(32, 4096, processes) for processes in (1, 2, 4)] == [32, 32, 32]
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 3, as it is the total over the 3 "):
        _batch_size(32, 4096, 3)
    with pytest.raises(ValueError, match=r"got 7 \(all training images\)"):
        _batch_size(32, 7, 2)


def test_command_line_trains(tmp_path, capsys):
    arguments = ["--backbone=vit_micro", "--pool=simpool", '--pool-kwargs={"gamma": 2.0}', "--norm-first=false"]
    arguments += ["--epochs=1", '--data-options={"num_images": 64}', "--device=cpu", "--progress=false", "--seed=3"]
    arguments += ["--learning-rate=1e-3", "--experiment=mine", "--keep-model=true", f"--store={tmp_path}"]
    assert main(["train", *arguments]) == 0
    config = RunConfig("vit_micro", "simpool", {"gamma": 2.0}, norm_first=False, seed=3, epochs=1)
    config = replace(config, data_options={"num_images": 64}, learning_rate=1e-3)
    [record] = Store(tmp_path).records().to_dict("records")
    assert record["config_hash"] == config.hash()
    assert (record["experiment"], record["variant"], record["status"]) == ("mine", "simpool", "ok")
    assert Store(tmp_path).model_path(config).is_file()
    before = record_files(tmp_path)
    assert main(["train", *arguments]) == 0 and "is done already" in capsys.readouterr().out
    assert record_files(tmp_path) == before
    assert main(["train", *arguments, "--learning-rate=1e30"]) == 1
    assert "error: FloatingPointError: the training loss" in capsys.readouterr().err


def test_command_line_explains_itself(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{field.name} " in text for field in fields(RunConfig))
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--backbone=vit_micro", "--pool=simpool", "--store=x", "--pool-kwargs=gamma"])
    assert re.search(r'"pool_kwargs":\s+Expected a .*dict.* Got value: gamma', capsys.readouterr().err)


@pytest.mark.parametrize("rate", [1e-3, 1e30], ids=["ok", "failed"])
def test_a_run_leaves_nothing_behind(tmp_path, monkeypatch, rate):
    """Not its model, for which the next run may need the memory; not accelerate's state, which has a device."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # compute() is made for a process of its own

    def parameters() -> int:
        gc.collect()
        return sum(type(thing) is torch.nn.Parameter for thing in gc.get_objects())

    before = parameters()
    config = RunConfig(**TINY, pool="gap", learning_rate=rate)
    labels = {"experiment": "e", "variant": "GAP", "profile": "smoke", "device": "cpu"}
    job = {"configs": [config], "labels": [labels], "store_folder": tmp_path, "device": "cpu"}
    compute(job | {"keep_model": False, "compile": False})
    assert parameters() == before and not accelerate.state.is_initialized()
    assert Store(tmp_path).records().status.tolist() == ["ok" if rate < 1 else "failed"]
