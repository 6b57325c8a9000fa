"""Means with intervals, differences paired by seed, and agreement with a published order.

"Paired by seed": runs with the same seed start alike and see the same images in the same order, so the difference
of two variants is taken seed by seed, and what a seed does to both of them cancels. Failed runs never count.
"""

import math
from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

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


def paired_difference(runs: pd.DataFrame, metric: str, variant: str, baseline: str) -> dict[str, float]:
    """How much better a variant is than a baseline, seed by seed: a paired t test.

    Returns:
        ``difference`` (mean of variant minus baseline), ``low`` and ``high`` (its t interval), ``p_value``,
        ``effect_size`` (see :func:`compare`) and ``pairs`` (seeds both have).

    Raises:
        ValueError: fewer than two seeds are finished for both, or one of them has a seed twice.
    """
    table = by_seed(runs, metric)
    if not {variant, baseline} <= set(table) or table[[variant, baseline]].notna().all(axis=1).sum() < 2:
        raise ValueError(f"runs: expected at least two seeds with both {variant!r} and {baseline!r}")
    return _paired(table[variant], table[baseline])


def compare(
    runs: pd.DataFrame, baseline: str, metric: str = "top1", published: dict[str, float] | None = None
) -> pd.DataFrame:
    """Every variant of an experiment beside its baseline, and beside the paper: one table per experiment.

    Args:
        runs: one row per run with the columns ``variant``, ``seed``, ``status`` and the metric.
        baseline: the variant that the others are compared with.
        metric: the column to compare.
        published: the paper's numbers by variant; names without runs are ignored.

    Returns:
        One row per variant, in the order of the runs, the baseline included:

        - ``mean``, ``low``, ``high``: mean over seeds with its 95 % t interval; ``runs``, ``failed``: over how many
          runs, and how many failed;
        - ``difference``, ``diff_low``, ``diff_high``: variant minus baseline, paired by seed, with the 95 % interval
          of the paired t test, whose ``p_value`` follows;
        - ``p_holm``: the p value after Holm's correction over the variants of this table. The intervals are not
          corrected;
        - ``effect_size``: Cohen's d_z, the mean difference over the standard deviation of the differences, times
          Hedges' correction, without which five seeds overstate it by a quarter (Hedges, 1981; Lakens, 2013). It
          says how much the seeds agree on the difference, not whether the difference matters;
        - ``published``, ``published_difference``: the paper's number, and that minus the paper's number for the
          baseline; only if ``published`` is given.

        What cannot be computed is NaN: an interval from one run; a test with fewer than two seeds in common, or whose
        differences are all equal, as those of the baseline with itself; an effect size from two seeds; a variant
        whose runs all failed, or whose metric is NaN (maps of a pooling that has none).

    Raises:
        ValueError: there is no such metric, the baseline has no runs, or a variant has a seed twice.

    >>> runs = pd.DataFrame({"variant": ["CLS"] * 3 + ["GAP"] * 3, "seed": [0, 1, 2] * 2, "status": "ok"})
    >>> runs["top1"] = [70.0, 71.0, 73.0, 72.0, 74.0, 77.0]
    >>> table = compare(runs, "CLS", published={"CLS": 72.7, "GAP": 73.3})
    >>> table[["mean", "difference", "diff_low", "diff_high", "p_holm", "published_difference"]].round(2)
              mean  difference  diff_low  diff_high  p_holm  published_difference
    variant
    CLS      71.33         0.0       NaN        NaN     NaN                   0.0
    GAP      74.33         3.0      0.52       5.48    0.04                   0.6
    """
    seeds = by_seed(runs, metric)
    if baseline not in seeds:
        raise ValueError(f"baseline: expected one of {', '.join(seeds)}, got {baseline!r}")
    table = summarise(runs, metric, ["variant"]).reindex(seeds.columns)
    table["runs"] = table["runs"].fillna(0).astype(int)
    table["failed"] = (runs.status == "failed").groupby(runs.variant).sum()
    paired = pd.DataFrame([_paired(seeds[name], seeds[baseline]) for name in seeds], index=seeds.columns)
    paired = paired.rename(columns={"low": "diff_low", "high": "diff_high"})
    table = table.join(paired[["difference", "diff_low", "diff_high", "p_value"]])
    table["p_holm"] = _holm(table["p_value"])
    table["effect_size"] = paired["effect_size"]
    if published is not None:
        table["published"] = table.index.map(published).astype(float)
        table["published_difference"] = table["published"] - table.at[baseline, "published"]
    return table


def told_apart(table: pd.DataFrame) -> pd.Series:
    """Which variants of a table of :func:`compare` the seeds tell apart from the baseline: p < 0.05 after Holm."""
    return table["p_holm"] < 1 - CONFIDENCE


# How a page names the columns of `compare`, in the order in which it shows them.
_HEADINGS = {"mean": "mean", "low": "95 % low", "high": "95 % high", "failed": "failed runs"}
_HEADINGS |= {"difference": "difference", "diff_low": "diff. low", "diff_high": "diff. high", "p_holm": "p (Holm)"}
_HEADINGS |= {"effect_size": "effect size", "published": "paper", "published_difference": "paper's difference"}


def readable(table: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """A table of :func:`compare` as a page shows it: named in words and rounded; of failures only if there are any.

    Args:
        table: one of :func:`compare`.
        digits: after the point, of the metric and its differences.

    >>> runs = pd.DataFrame({"variant": ["CLS"] * 3 + ["GAP"] * 3, "seed": [0, 1, 2] * 2, "status": "ok"})
    >>> runs["top1"] = [70.0, 71.0, 73.0, 72.0, 74.0, 77.0]
    >>> readable(compare(runs, "CLS")).iloc[:, :4]
             mean  95 % low  95 % high  difference
    variant
    CLS      71.3      67.5       75.1         0.0
    GAP      74.3      68.1       80.6         3.0
    """
    table = table if table["failed"].any() else table.drop(columns="failed")
    shown = [name for name in _HEADINGS if name in table]
    decimals = dict.fromkeys(shown, digits) | {"p_holm": 3, "effect_size": 1, "failed": 0}
    return table[shown].round(decimals).rename(columns=_HEADINGS)


def in_words(table: pd.DataFrame, baseline: str, unit: str = "points", number: str = ".1f") -> str:
    """A table of :func:`compare` as sentences, one line per variant.

    Args:
        table: one of :func:`compare`.
        baseline: the variant that the others were compared with.
        unit: of the metric.
        number: how to print it.

    >>> runs = pd.DataFrame({"variant": ["CLS"] * 3 + ["GAP"] * 3, "seed": [0, 1, 2] * 2, "status": "ok"})
    >>> runs["top1"] = [70.0, 71.0, 73.0, 72.0, 74.0, 77.0]
    >>> print(in_words(compare(runs, "CLS"), "CLS"))
    GAP  +3.0 points [+0.5, +5.5], p = 0.035: told apart from CLS
    """
    others = table.drop(index=baseline)
    width = max((len(str(name)) for name in others.index), default=0)
    lines = []
    for (name, row), apart in zip(others.iterrows(), told_apart(others), strict=True):
        line = f"{name:{width}s}  {row['difference']:+{number}} {unit}".rstrip()
        if not math.isnan(row["p_holm"]):
            line += f" [{row['diff_low']:+{number}}, {row['diff_high']:+{number}}], p = {row['p_holm']:.2g}"
        lines.append(f"{line}: {'' if apart else 'not '}told apart from {baseline}")
    return "\n".join(lines)


def trend(runs: pd.DataFrame, levels: dict[str, float], metric: str = "top1") -> dict[str, float]:
    """Does a metric rise with a factor that has an order? One test for all of its levels, where `compare` has many.

    A line is fitted to the runs of each seed by least squares, and the slopes are what the paired t test is for
    differences: one number per seed (the method of summary measures, Matthews et al., BMJ 1990).

    Args:
        runs: one row per run with the columns ``variant``, ``seed``, ``status`` and the metric.
        levels: the factor's value by variant, such as an exponent or its logarithm; other variants are left out.
        metric: the column that may rise.

    Returns:
        ``slope`` (mean over seeds, of the metric by a step of one in the levels), ``low`` and ``high`` (its 95 % t
        interval), ``p_value`` and ``seeds``, how many have finished at two levels or more. With fewer than two the
        interval is NaN, and without any the slope is.

    Raises:
        ValueError: there is no such metric, or a variant has a seed twice.

    >>> runs = pd.DataFrame({"variant": ["k = 1", "k = 2", "k = 4"] * 3, "seed": [0] * 3 + [1] * 3 + [2] * 3})
    >>> runs["top1"] = [60.0, 61.0, 62.0, 60.0, 62.0, 64.0, 50.0, 53.0, 56.0]
    >>> found = trend(runs.assign(status="ok"), {"k = 1": 0, "k = 2": 1, "k = 4": 2})
    >>> {name: round(value, 2) for name, value in found.items()}
    {'slope': 2.0, 'low': -0.48, 'high': 4.48, 'p_value': 0.07, 'seeds': 3}
    """
    table = by_seed(runs, metric)
    slopes = []
    for _, row in table[[name for name in table if name in levels]].iterrows():
        finished = row.dropna()
        if len(finished) > 1:
            slopes.append(stats.linregress([levels[name] for name in finished.index], finished).slope)
    found = _paired(pd.Series(slopes, dtype=float), pd.Series(0.0, range(len(slopes))))
    names = {"difference": "slope", "low": "low", "high": "high", "p_value": "p_value"}
    return {ours: float(found[theirs]) for theirs, ours in names.items()} | {"seeds": found["pairs"]}


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


def _paired(values: pd.Series, reference: pd.Series) -> dict[str, float]:
    """The paired t test of two series with one number per seed: see :func:`paired_difference` and :func:`compare`."""
    both = pd.DataFrame({"values": values, "reference": reference}).dropna()
    differences = both["values"] - both["reference"]
    result = {"difference": differences.mean(), "low": math.nan, "high": math.nan, "p_value": math.nan}
    result |= {"effect_size": math.nan, "pairs": len(both)}
    # Equal differences have no spread to be judged by. They may differ in their last bits.
    if len(both) < 2 or np.ptp(differences) <= 1e-12 * both.abs().to_numpy().max():
        return result
    test = stats.ttest_1samp(differences, 0)
    result["low"], result["high"] = test.confidence_interval(CONFIDENCE)
    result["p_value"] = test.pvalue
    if len(both) > 2:  # with one degree of freedom d_z has no expectation that could be corrected
        result["effect_size"] = test.statistic / math.sqrt(len(both)) * _hedges_correction(test.df)
    return result


def _hedges_correction(df: int) -> float:
    """The factor that makes a standardised mean difference unbiased (Hedges, 1981).

    Gamma(df / 2) / (sqrt(df / 2) Gamma((df - 1) / 2)), about 1 - 3 / (4 df - 1).
    """
    return special.poch((df - 1) / 2, 1 / 2) / math.sqrt(df / 2)


def _holm(p_values: pd.Series) -> pd.Series:
    """Holm's correction of those that are numbers."""
    tested = p_values.dropna()
    if tested.empty:
        return p_values
    return pd.Series(multipletests(tested, method="holm")[1], tested.index).reindex(p_values.index)


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
