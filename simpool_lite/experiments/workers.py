"""Who computes the runs of a grid: processes of this machine, those of accelerate's launcher, or a dask cluster.

A job is plain data here: the runs that share a pass over their data, see :func:`compute`. Each function yields a job
when it is over, with None if it ended by itself and has written its records, successful or failed, and otherwise with
the reason why nobody could write them.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState
    from distributed import Client

# Imported once, by the server that workers are forked from. Not this package: the server may find another copy of it.
PRELOADED = ["accelerate", "pandas", "scipy.stats", "timm", "torch", "torchvision"]
DIED_TWICE = (
    "its process died, probably out of memory; it died again when the run was repeated with no other beside it; "
    "take smaller batches or a machine with more memory"
)


def in_processes(runs: Sequence[dict], devices: Sequence[str | None]) -> Iterator[tuple[dict, str | None]]:
    """Compute runs in processes of this machine, which stay alive from run to run and end when this one does.

    When a process dies (killed for its memory, say) the others go on; after them the run that it was at is
    repeated alone, and given up if that process dies, too.

    Args:
        runs: what to compute.
        devices: one per process: the only CUDA device it may use, as ``CUDA_VISIBLE_DEVICES`` names it, or None.

    Raises:
        RuntimeError: a process died before it could begin its first run.
    """
    cut = yield from _side_by_side(runs, devices)
    for run in cut:
        if (yield from _side_by_side([run], devices[:1])):
            yield run, DIED_TWICE


def _side_by_side(
    runs: Sequence[dict], devices: Sequence[str | None]
) -> Generator[tuple[dict, str | None], None, list[dict]]:
    """Compute runs once; return those whose process died."""
    team = [_Worker(device) for device in devices]
    idle, waiting, cut = deque(team), deque(runs), []
    running: dict[Future, tuple[_Worker, dict]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                worker, run = idle.popleft(), waiting.popleft()
                running[worker.submit(run)] = worker, run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, run = running.pop(future)
                idle.append(worker)
                try:
                    future.result()
                except BrokenProcessPool:
                    worker.check_started()
                    cut.append(run)
                else:
                    yield run, None
    finally:
        for worker in team:
            worker.shutdown()
    return cut


class _Worker:
    """A process that computes one run after the other, replaced when it died.

    It is a pool of one process: when a process of a larger pool dies, the pool ends the others.
    """

    def __init__(self, device: str | None) -> None:
        self.device = device
        self.pool: ProcessPoolExecutor | None = None

    def submit(self, run: dict) -> Future:
        try:
            if self.pool is not None:
                return self.pool.submit(compute, run)
        except BrokenProcessPool:  # it died at the last run, or since
            pass
        settings = self.device, dict(os.environ)
        self.pool = ProcessPoolExecutor(1, _context(), initializer=_set_up, initargs=settings)
        self.started = self.pool.submit(_nothing)
        return self.pool.submit(compute, run)

    def check_started(self) -> None:
        """Raise a RuntimeError if the process died before it could compute anything."""
        if error := self.started.exception():
            raise RuntimeError(
                "a worker process died before its first run; its own message is above. A script that runs a grid "
                'does so under `if __name__ == "__main__":`, since each worker imports the script'
            ) from error

    def shutdown(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """How processes start: never as a fork of this one, whose threads and CUDA context do not work in a child."""
    if sys.platform != "linux":  # libraries of macOS do not survive a fork, and Windows has none
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _set_up(device: str | None, environment: dict[str, str]) -> None:
    os.environ.clear()  # the server's, which may be older
    os.environ.update(environment)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # read when CUDA starts, which is later
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers to end; without this they would wait for ever."""
    parent_process().join()
    os._exit(1)


def _nothing() -> None:
    """What a process computes to show that it has started."""


def compute(job: dict) -> None:
    """Compute a job in this process, which does nothing else, and write its records.

    Args:
        job: ``configs`` of the runs, ``labels`` of their records (experiment, variant, profile, device), the absolute
            ``store_folder``, ``device`` and ``compile``; ``keep_model`` for a single run; for heads ``progress`` and
            ``trunk``, the file of the trunk's model, unless that is a published network.
    """
    import torch

    from ..device import resolve_device
    from .heads import record_heads
    from .machine import free_memory
    from .run import train_and_record

    if resolve_device(job["device"]).type == "cpu":
        torch.set_num_threads(1)  # two runs side by side beat one run with two threads
    configs, labels = job["configs"], job["labels"]
    if configs[0].regime == "head":
        record_heads(configs, labels, job.get("trunk"), job["store_folder"], job["device"], job["progress"])
    else:
        label = {name: labels[0][name] for name in ("experiment", "variant", "profile")}
        how = {name: job[name] for name in ("device", "keep_model", "compile")}
        train_and_record(configs[0], job["store_folder"], **label, **how, progress=False)
    free_memory()


def launched(device: str) -> "PartialState | None":
    """The processes that ``accelerate launch`` started, this one among them; None without it, or if this is all."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=timedelta(days=7))  # jobs take different times


def in_launched(runs: Sequence[dict], state: "PartialState") -> Iterator[tuple[dict, None]]:
    """Compute this process's share of runs; all processes are given the same."""
    state.wait_for_everyone()  # who begins earlier would leave less to the others' lists
    for run in runs[state.process_index :: state.num_processes]:
        compute(run)
        yield run, None
    state.wait_for_everyone()


def on_cluster(runs: Sequence[dict], client: "Client") -> Iterator[tuple[dict, str | None]]:
    """Compute runs on a dask cluster, which repeats what a lost worker was at on another one.

    Args:
        runs: what to compute.
        client: of the cluster.

    Raises:
        ValueError: a worker has more than one thread.
    """
    from distributed import KilledWorker, as_completed

    futures = {client.submit(_compute_on_cluster, run, pure=False): run for run in runs}
    try:
        for future in as_completed(futures):
            try:
                future.result()
            except KilledWorker as error:
                yield (
                    futures[future],
                    (
                        f"its process died on {error.allowed_failures + 1} dask workers, probably out of memory; "
                        "take smaller batches or larger workers"
                    ),
                )
            else:
                yield futures[future], None
    finally:
        client.cancel(list(futures))


def _compute_on_cluster(run: dict) -> None:
    from distributed import get_worker

    threads = get_worker().state.nthreads
    if threads != 1:
        raise ValueError(
            f"client: expected dask workers with one thread, as seeds and thread settings are a process's, "
            f"got one with {threads}; start it with LocalCluster(..., threads_per_worker=1) or dask worker --nthreads 1"
        )
    compute(run)
