"""Means with intervals, and differences paired by seed."""

import pandas as pd
from scipy import stats

CONFIDENCE = 0.95


def summarise(runs: pd.DataFrame, metric: str, by: list[str]) -> pd.DataFrame:
    """Mean of a metric over seeds with its t interval: columns ``mean low high runs``, one row a group.

    Failed runs are left out; ``low`` and ``high`` are NaN for fewer than two runs.

    >>> runs = pd.DataFrame({"variant": ["GAP"] * 3, "status": "ok", "top1": [70.0, 72.0, 74.0]})
    >>> summarise(runs, "top1", ["variant"]).round(2)
             mean    low   high  runs
    variant
    GAP      72.0  67.03  76.97     3
    """
    groups = runs[runs.status == "ok"].groupby(by, sort=False)[metric]
    table = groups.agg(mean="mean", sem="sem", runs="count")
    half = table["sem"] * stats.t.ppf((1 + CONFIDENCE) / 2, (table["runs"] - 1).clip(lower=1))
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)[["mean", "low", "high", "runs"]]


def paired_difference(runs: pd.DataFrame, metric: str, variant: str, baseline: str) -> dict[str, float]:
    """How much better a variant is than a baseline, seed by seed: a paired t test.

    Returns:
        ``difference`` (mean of variant minus baseline), ``low`` and ``high`` (its t interval), ``p_value``
        and ``pairs`` (seeds both have).

    Raises:
        ValueError: fewer than two seeds are finished for both.
    """
    table = runs[runs.status == "ok"].pivot_table(index="seed", columns="variant", values=metric)
    if not {variant, baseline} <= set(table) or len(table := table[[variant, baseline]].dropna()) < 2:
        raise ValueError(f"runs: expected at least two seeds with both {variant!r} and {baseline!r}")
    test = stats.ttest_rel(table[variant], table[baseline])
    low, high = test.confidence_interval(CONFIDENCE)
    difference = (table[variant] - table[baseline]).mean()
    return {"difference": difference, "low": low, "high": high, "p_value": test.pvalue, "pairs": len(table)}
