"""Measure what poolings cost, print the tables and write them as Parquet. Nothing else should run meanwhile.

python -m benchmarks
"""

import argparse
from pathlib import Path

import torch

from simpool_lite.device import resolve_device

from . import grid_workers, heads, networks, poolings, roofline, rounding, stacked_heads
from .measure import save

PARTS = {
    "roofline": roofline,
    "poolings": poolings,
    "heads": heads,
    "stacked_heads": stacked_heads,
    "networks": networks,
    "grid_workers": grid_workers,
    "rounding": rounding,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="how often each is measured (%(default)s)")
    parser.add_argument("--only", choices=list(PARTS), help="one of the parts")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder (%(default)s)")
    options = parser.parse_args()
    device = resolve_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {options.turns} turns")
    for name, part in PARTS.items():
        if options.only in (None, name):
            save(part.measure(options.turns, device), device, options.out / f"{name}.parquet")


if __name__ == "__main__":
    main()
