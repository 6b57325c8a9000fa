"""How a grid should use the cores of a CPU: a single-threaded worker on each, or one process with all of them.

    python benchmarks/grid_workers.py

prints, for each backbone with SimPool, the training throughput of both and their ratio: above 1, workers side by
side are faster, which is what `simpool_lite.experiments.grid.run` does. The two take turns, so that whatever else the
machine does meets both; nothing else should run beside it all the same.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import torch

from simpool_lite.experiments.config import RunConfig
from simpool_lite.experiments.run import train_and_measure


def images_per_second(config: RunConfig, threads: int) -> float:
    """Throughput of the training steps of one run, in this process."""
    torch.set_num_threads(threads)
    _, measured, _ = train_and_measure(config, "cpu", progress=False)
    return measured["images_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["convnet_micro", "vit_micro"], metavar="NAME")
    parser.add_argument("--cores", type=int, default=2, help="workers on one side, threads on the other (%(default)s)")
    parser.add_argument("--images", type=int, default=1024, help="training images of a run (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of a run (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind, after one to warm up (%(default)s)")
    options = parser.parse_args()
    cores = options.cores

    spawn = get_context("spawn")
    print(f"torch {torch.__version__}, {cores} cores, {options.repeats} repeats; images per second in training")
    with ProcessPoolExecutor(cores, spawn) as workers, ProcessPoolExecutor(1, spawn) as process:
        for backbone in options.backbones:
            data = {"num_images": options.images}
            config = RunConfig(backbone, "simpool", epochs=options.epochs, data_options=data)
            side_by_side, alone = [], []
            for _ in range(1 + options.repeats):
                runs = [workers.submit(images_per_second, config, threads=1) for _ in range(cores)]
                side_by_side.append(sum(run.result() for run in runs))
                alone.append(process.submit(images_per_second, config, threads=cores).result())
            ratios = [a / b for a, b in zip(side_by_side[1:], alone[1:], strict=True)]
            print(
                f"{backbone:16} {cores} workers of 1 thread {median(side_by_side[1:]):6.0f}   "
                f"1 process of {cores} threads {median(alone[1:]):6.0f}   "
                f"ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
