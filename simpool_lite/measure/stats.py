"""Means with intervals, and agreement with a published order. Failed runs never count."""

import math
from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
MOST_RESAMPLES = 10_000
# Where the values of a metric end. Differences have no entry: they are not shares.
RANGES = {"top1": (0, 100), "percent": (0, 100), "attention_mass": (0, 1), "attention_ap": (0, 1)}


def summarise(runs: pd.DataFrame, metric: str, by: list[str]) -> pd.DataFrame:
    """Mean of a metric over seeds with its t interval: columns ``mean low high runs``, one row per group.

    Failed runs are left out; ``low`` and ``high`` are NaN for fewer than two runs. Where a metric is a share
    (:data:`RANGES`) the interval is cut at 0 and at the whole: the true mean cannot lie beyond, so that the coverage
    stays as it is.

    >>> runs = pd.DataFrame({"variant": ["GAP"] * 3, "status": "ok", "top1": [70.0, 72.0, 74.0]})
    >>> summarise(runs, "top1", ["variant"]).round(2)
             mean    low   high  runs
    variant
    GAP      72.0  67.03  76.97     3
    """
    groups = runs[runs.status == "ok"].groupby(by, sort=False)[metric]
    table = groups.agg(mean="mean", sem="sem", runs="count")
    half = table["sem"] * stats.t.ppf((1 + CONFIDENCE) / 2, (table["runs"] - 1).clip(lower=1))
    least, most = RANGES.get(metric, (None, None))
    table["low"], table["high"] = (table["mean"] - half).clip(lower=least), (table["mean"] + half).clip(upper=most)
    return table[["mean", "low", "high", "runs"]]


def order_agreement(runs: pd.DataFrame, published: dict[str, float], metric: str = "top1") -> dict[str, float]:
    """Do our variants stand in the paper's order? Kendall's tau-b between our means and the published numbers.

    1 is the same order, -1 the reverse, and ties count for neither. The interval is the percentile bootstrap over
    seeds, drawn for all variants together since runs are paired by seed. Five seeds can be drawn in only 126 ways,
    so all of them are listed with their probabilities: no random numbers, no error from drawing, and eighty times
    less work than the usual ten thousand draws. From nine seeds on that many are drawn after all, always the same.
    With few seeds such an interval tends to be too narrow; take it as a rough one.

    Args:
        runs: one row per run with the columns ``variant``, ``seed``, ``status`` and the metric.
        published: the paper's numbers by variant.
        metric: the column whose means are ordered.

    Returns:
        ``tau``; ``low`` and ``high``, its 95 % interval; ``variants``, how many have both a finished run and a
        published number; ``seeds``, how many all of those have finished. Other seeds and variants are left
        out. With fewer than three variants, no such seed or nothing but ties ``tau`` is NaN, and with fewer
        than two seeds the interval is.

    Raises:
        ValueError: there is no such metric, or a variant has a seed twice.

    >>> runs = pd.DataFrame({"variant": ["GAP", "k = 2", "SimPool"] * 2, "seed": [0] * 3 + [1] * 3, "status": "ok"})
    >>> runs["top1"] = [54.0, 58.0, 57.0, 55.0, 56.0, 59.0]
    >>> agreement = order_agreement(runs, {"GAP": 55.0, "k = 2": 56.5, "SimPool": 57.1})
    >>> {name: round(value, 2) for name, value in agreement.items()}
    {'tau': 1.0, 'low': 0.33, 'high': 1.0, 'variants': 3, 'seeds': 2}
    """
    table = by_seed(runs, metric).dropna(axis="columns", how="all")
    table = table[[name for name in table if name in published]].dropna()
    counted = {"variants": table.shape[1], "seeds": len(table)}
    if counted["variants"] < 3 or counted["seeds"] == 0:
        return {"tau": math.nan, "low": math.nan, "high": math.nan, **counted}
    theirs = [published[name] for name in table]

    def tau(weights: np.ndarray) -> float:
        means = (weights @ table.to_numpy()).round(9)  # rounded: the last bit must not break a tie
        return float(stats.kendalltau(means, theirs).statistic)

    n = len(table)
    low, high = _percentile_interval(tau, n) if n > 1 else (math.nan, math.nan)
    return {"tau": tau(np.full(n, 1 / n)), "low": low, "high": high, **counted}


def by_seed(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric with one row per seed and one column per variant, in the runs' order; NaN where a run failed."""
    if metric not in runs:
        raise ValueError(f"metric: expected a column of the runs, got {metric!r}")
    if (twice := runs.duplicated(["variant", "seed"])).any():
        variant, seed = runs.loc[twice, ["variant", "seed"]].iloc[0]
        raise ValueError(f"runs: expected one run for each variant and seed, got several of {variant!r}, seed {seed}")
    finished = runs.assign(**{metric: runs[metric].where(runs.status == "ok")})
    return finished.pivot(index="seed", columns="variant", values=metric)[runs.variant.unique()]


def _percentile_interval(statistic: Callable[[np.ndarray], float], n: int) -> tuple[float, float]:
    """The bootstrap's percentile interval of a statistic of n seeds' weights, over the draws in which it exists."""
    draws, probabilities = _resamples(n)
    values = np.array([statistic(draw) for draw in draws / n])
    exists = ~np.isnan(values)
    if not exists.any():
        return math.nan, math.nan
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[exists], [tail, 1 - tail], weights=probabilities[exists], method="inverted_cdf")
    return float(low), float(high)


def _resamples(n: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each of n seeds is drawn when n are drawn with replacement, and how probable that is.

    All ways to draw are listed, or, where they are too many, a fixed sample of them.

    >>> draws, probabilities = _resamples(2)
    >>> draws.tolist(), probabilities.round(2).tolist()
    ([[2, 0], [1, 1], [0, 2]], [0.25, 0.5, 0.25])
    """
    if math.comb(2 * n - 1, n) > MOST_RESAMPLES:
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=MOST_RESAMPLES)
        return draws, np.full(MOST_RESAMPLES, 1 / MOST_RESAMPLES)
    draws = np.array([np.bincount(drawn, minlength=n) for drawn in combinations_with_replacement(range(n), n)])
    return draws, stats.multinomial.pmf(draws, n, np.full(n, 1 / n))
