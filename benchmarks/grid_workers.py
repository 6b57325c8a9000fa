"""Two ways to use the cores in a grid of runs: one single-threaded worker per core, or one process with all threads.

The same training runs on both sides, which take turns. `simpool_lite.experiments.grid.run` does the first.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pandas as pd
import torch
from tqdm.auto import tqdm

from simpool_lite.experiments.config import RunConfig
from simpool_lite.experiments.machine import cpu_cores
from simpool_lite.experiments.run import train_and_measure

BACKBONES, IMAGES, EPOCHS = ("convnet_micro", "vit_micro"), 1024, 2


def images_per_second(config: RunConfig, threads: int) -> float:
    """Throughput of the training steps of one run, in this process."""
    torch.set_num_threads(threads)
    _, measured, _ = train_and_measure(config, "cpu", progress=False)
    return measured["images_per_second"]


def measure(turns: int, device: torch.device) -> pd.DataFrame:
    """One row per backbone; CPUs only, whatever the device."""
    cores, spawn, rows = cpu_cores(), get_context("spawn"), []
    with ProcessPoolExecutor(cores, spawn) as workers, ProcessPoolExecutor(1, spawn) as process:
        for backbone in BACKBONES:
            config = RunConfig(backbone, "simpool", epochs=EPOCHS, data_options={"num_images": IMAGES})
            throughput = []
            for _ in tqdm(range(1 + turns), f"grid workers, {backbone}"):  # the first warms up
                runs = [workers.submit(images_per_second, config, threads=1) for _ in range(cores)]
                side_by_side = sum(run.result() for run in runs)
                throughput.append((side_by_side, process.submit(images_per_second, config, threads=cores).result()))
            found = pd.DataFrame(throughput[1:], columns=["workers", "threads"])
            row = {"backbone": backbone, "cores": cores, "cpus of the machine": os.cpu_count()}
            rows.append(
                row | found.median().to_dict() | {"workers, times threads": (found.workers / found.threads).median()}
            )
    table = pd.DataFrame(rows)
    print(f"\nImages per second in training\n{table.round(2).to_string(index=False)}", flush=True)
    return table
