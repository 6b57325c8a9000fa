"""Statistics against hand-worked numbers and scipy called directly."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from made_up_runs import make_runs, random_runs, three_seeds
from scipy import stats as scipy_stats

from simpool_lite.measure import stats
from simpool_lite.measure.stats import order_agreement, summarise


def test_intervals_of_means():
    a = np.array([70.0, 74.0, 71.0, 77.0])
    runs = make_runs({"A": a, "B": [68.0, 73.0, None, None], "one": [1.0, None, None, None]})
    table = summarise(runs, "top1", ["variant"])
    low, high = scipy_stats.t.interval(0.95, 3, a.mean(), a.std(ddof=1) / 2)
    assert table.loc["A"].tolist() == pytest.approx([73.0, low, high, 4])
    assert table.loc["B", ["mean", "runs"]].tolist() == [70.5, 2]
    assert table.loc["one", ["low", "high"]].isna().all()


def test_a_failed_run_does_not_count_whatever_it_measured():
    runs = make_runs({"A": [70.0, 72.0, 20.0]})
    runs.loc[runs.top1 == 20, "status"] = "failed"
    assert summarise(runs, "top1", ["variant"]).loc["A", ["mean", "runs"]].tolist() == [71.0, 2]


@pytest.mark.parametrize(("metric", "whole"), [("top1", 100), ("percent", 100), ("attention_mass", 1), ("loss", None)])
def test_intervals_of_shares_end_at_nothing_and_at_the_whole(metric, whole):
    """Two seeds have a wide interval: near an end it is cut there; a loss has no end."""
    top = whole or 100
    runs = make_runs({"high": [0.94 * top, 0.98 * top], "low": [0.02 * top, 0.06 * top]})
    table = summarise(runs.rename(columns={"top1": metric}), metric, ["variant"])
    half = scipy_stats.t.ppf(0.975, 1) * 0.02 * top
    expected = [min(0.96 * top + half, whole or np.inf), max(0.04 * top - half, -np.inf if whole is None else 0)]
    assert [table.high["high"], table.low["low"]] == pytest.approx(expected)
    assert [table.low["high"], table.high["low"]] == pytest.approx([0.96 * top - half, 0.04 * top + half])


def test_the_order_of_rows_does_not_matter():
    runs = random_runs(variants=4, seeds=5)
    shuffled = runs.sample(frac=1, random_state=0)
    published = {"v0": 3, "v1": 1, "v2": 2}
    assert order_agreement(runs, published) == pytest.approx(order_agreement(shuffled, published))


def test_errors_name_what_is_wrong():
    runs = three_seeds()
    with pytest.raises(ValueError, match="metric: expected a column of the runs, got 'top5'"):
        order_agreement(runs, {}, "top5")
    with pytest.raises(
        ValueError, match="runs: expected one run for each variant and seed, got several of 'base', seed 0"
    ):
        order_agreement(pd.concat([runs, runs]), {})


def brute_force_interval(table: np.ndarray, published: list[float]) -> tuple[float, float]:
    """Every ordered way to draw the rows of a table (seeds, variants), each as probable as any other."""
    taus = []
    for draw in itertools.product(range(len(table)), repeat=len(table)):
        taus.append(scipy_stats.kendalltau(table[list(draw)].mean(0), published).statistic)
    taus = np.sort(taus)  # the smallest value that at least the share q of the draws does not exceed
    return taus[math.ceil(0.025 * len(taus)) - 1], taus[math.ceil(0.975 * len(taus)) - 1]


@pytest.mark.parametrize(("variants", "seeds"), [(3, 4), (6, 3), (5, 4)])
def test_the_bootstrap_interval_is_that_of_all_draws(variants, seeds):
    runs = random_runs(variants, seeds)
    published = dict(zip(runs.variant.unique(), [57.1, 55.0, 56.6, 56.8, 55.9, 56.5], strict=False))
    agreement = order_agreement(runs, published)
    table = runs.pivot(index="seed", columns="variant", values="top1").to_numpy()
    numbers = list(published.values())
    assert agreement["tau"] == pytest.approx(scipy_stats.kendalltau(table.mean(0), numbers).statistic)
    assert (agreement["low"], agreement["high"]) == pytest.approx(brute_force_interval(table, numbers))
    assert (agreement["variants"], agreement["seeds"]) == (variants, seeds)


def test_the_bootstrap_interval_agrees_with_scipys(monkeypatch):
    runs = random_runs(variants=8, seeds=5, spread=2)
    published = {f"v{i}": i for i in range(8)}
    columns = tuple(part.sort_values("seed").top1.to_numpy() for _, part in runs.groupby("variant"))
    sampled = scipy_stats.bootstrap(
        columns, lambda *drawn: scipy_stats.kendalltau(np.mean(drawn, axis=1), range(8)).statistic, paired=True,
        vectorized=False, n_resamples=1000, method="percentile", random_state=0,
    ).confidence_interval  # fmt: skip
    step = 2 / 28  # one pair of the 28 the other way round
    listed = order_agreement(runs, published)
    assert (listed["low"], listed["high"]) == pytest.approx(tuple(sampled), abs=step + 1e-9)
    monkeypatch.setattr(stats, "MOST_RESAMPLES", 100)  # fewer than the 126 ways to draw
    drawn = order_agreement(runs, published)
    assert drawn == order_agreement(runs, published)
    assert (drawn["low"], drawn["high"]) == pytest.approx((listed["low"], listed["high"]), abs=2 * step + 1e-9)


def test_ways_to_draw():
    draws, probabilities = stats._resamples(5)
    assert len(draws) == 126 and probabilities.sum() == pytest.approx(1)
    assert probabilities[(draws == 1).all(1)] == pytest.approx(math.factorial(5) / 5**5)
    draws, probabilities = stats._resamples(12)
    assert len(draws) == stats.MOST_RESAMPLES and (draws.sum(1) == 12).all() and probabilities.sum() == pytest.approx(1)


def test_agreement_with_ties():
    runs = make_runs({name: [value, value + 1] for name, value in {"a": 1, "b": 2, "c": 3, "d": 4}.items()})
    # Six pairs, one of them tied in the paper, the others in order: 5 / sqrt(6 * 5).
    agreement = order_agreement(runs, {"a": 56.4, "b": 56.5, "c": 56.5, "d": 56.6})
    assert [agreement[name] for name in ("tau", "low", "high")] == pytest.approx([5 / math.sqrt(30)] * 3)
    assert order_agreement(runs, {"a": 4, "b": 3, "c": 2, "d": 1})["tau"] == -1
    equal = make_runs({name: [10.0, 10.0] for name in "abc"})  # at chance, all of them
    assert all(np.isnan(order_agreement(equal, {"a": 1, "b": 2, "c": 3})[name]) for name in ("tau", "low", "high"))


@pytest.mark.filterwarnings("error")
def test_agreement_of_too_few():
    published = {"a": 1, "b": 2, "c": 3}
    two = order_agreement(make_runs({"a": [1, 2], "b": [2, 4], "new": [3, 3], "c": [None, None]}), published)
    assert (two["variants"], two["seeds"]) == (2, 2) and np.isnan(two["tau"])
    one_seed = order_agreement(make_runs({"a": [1], "b": [3], "c": [2]}), published)
    assert one_seed["tau"] == pytest.approx(1 / 3) and np.isnan(one_seed["low"]) and np.isnan(one_seed["high"])
    nowhere = order_agreement(make_runs({"a": [1, None], "b": [None, 3], "c": [2, 2]}), published)
    assert (nowhere["variants"], nowhere["seeds"]) == (3, 0) and np.isnan(nowhere["tau"])
    # A seed counts where all of them finished: 0 and 2.
    partly = make_runs({"a": [1, None, 2], "b": [2, 1, 3], "c": [3, 0, 4]})
    assert order_agreement(partly, published) == pytest.approx(
        {"tau": 1, "low": 1, "high": 1, "variants": 3, "seeds": 2}
    )
