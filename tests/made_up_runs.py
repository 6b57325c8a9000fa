"""Runs with known answers, for the tests of statistics and of figures."""

import numpy as np
import pandas as pd


def make_runs(top1: dict[str, list[float]], **columns) -> pd.DataFrame:
    """Runs from a list of accuracies per variant, seed by seed as a grid has them; None is a failed run."""
    seeds = range(max(map(len, top1.values())))
    rows = [(name, seed, values[seed]) for seed in seeds for name, values in top1.items() if seed < len(values)]
    runs = pd.DataFrame(rows, columns=["variant", "seed", "top1"])
    runs["status"] = np.where(runs.top1.isna(), "failed", "ok")
    return runs.astype({"top1": float}).assign(**columns)


def random_runs(variants: int, seeds: int, spread: float = 1.0) -> pd.DataFrame:
    generator = np.random.default_rng(variants * 100 + seeds)
    common = generator.normal(0, 2, seeds)  # what a seed does to every variant
    return make_runs({f"v{i}": list(60 + i / 2 + common + generator.normal(0, spread, seeds)) for i in range(variants)})


def three_seeds() -> pd.DataFrame:
    """A baseline, and variants that are better by 4, 1 and 2, each with the differences' standard deviation 1."""
    base = np.array([70.0, 75.0, 71.0])
    return make_runs({"base": base, **{f"+{m}": base + m + [-1, 0, 1] for m in (4, 1, 2)}})
