"""The search for learning rates: every variant at the same rates with the same budget, on a seed never reported."""

import json
from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from .budgets import BUDGETS, SEARCH_SEED
from .grid import Grid
from .suite import Setting


def rate_search(setting: Setting, names: Iterable[str], regime: str) -> list[Grid]:
    """Every variant of some experiments at the regime's rates, measured on "val".

    In the regime "once" on half of the images.

    Args:
        setting: of the experiments.
        names: of the experiments.
        regime: "once" or "head".

    Returns:
        One grid per backbone and kind of trunk, with variants named "GAP 0.004".
    """
    found: dict[str, Grid] = {}
    for grid in (grid for name in names for grid in setting.grids(name, regime)):
        backbone = grid.base["backbone"]
        base = grid.base | {"measured_on": "val"}
        if regime == "once" and "data_options" in base:
            options = base["data_options"]
            base["data_options"] = options | {"num_images": options["num_images"] // 2}
        variants = {
            f"{name} {rate:g}": changes | {"learning_rate": rate}
            for name, changes in grid.variants.items()
            for rate in BUDGETS[regime][backbone].searched_rates
        }
        key = json.dumps([base, grid.trunk], sort_keys=True)
        earlier = found.get(key)
        found[key] = replace(
            grid,
            experiment=f"rates-{regime}",
            base=base,
            variants=(earlier.variants if earlier else {}) | variants,
            seeds=(SEARCH_SEED,),
            keep_models=0,
        )
    return list(found.values())


def at_the_edge(grid: Grid, runs: pd.DataFrame) -> Grid | None:
    """A further round of :func:`rate_search`: half or double the rate where one at an end of those tried is the best.

    Args:
        grid: of the search.
        runs: its records so far.

    Returns:
        The grid with the further rates, or None where every best rate lies inside.
    """
    further = {}
    for name, of_variant in _by_rate(runs).dropna(subset="top1").groupby("name", sort=False):
        tried = of_variant.set_index("rate").top1
        best = tried.idxmax()
        if best in (tried.index.min(), tried.index.max()) and (tried == tried[best]).sum() == 1:
            rate = best / 2 if best == tried.index.min() else best * 2
            further[f"{name} {rate:g}"] = grid.variants[f"{name} {best:g}"] | {"learning_rate": rate}
    variants = further | grid.variants  # a further rate may have been tried, and have failed
    return replace(grid, variants=grid.variants | further) if len(variants) > len(grid.variants) else None


def _by_rate(runs: pd.DataFrame) -> pd.DataFrame:
    names = runs.variant.str.rsplit(" ", n=1, expand=True)
    return runs.assign(name=names[0], rate=names[1].astype(float))


def best_rates(runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """For each backbone the rate with the highest accuracy per variant, the mean over kinds of trunk."""
    mean = _by_rate(runs).groupby(["backbone", "name", "rate"]).top1.mean()
    best = mean.groupby(["backbone", "name"]).idxmax().dropna()
    rates: dict[str, dict[str, float]] = {}
    for (backbone, name), (*_, rate) in best.items():
        rates.setdefault(backbone, {})[name] = rate
    return rates
