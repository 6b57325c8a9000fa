"""Statistics against hand-worked numbers and scipy called directly."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from made_up_runs import make_runs, random_runs, three_seeds
from scipy import stats as scipy_stats

from simpool_lite.measure import stats
from simpool_lite.measure.stats import (
    compare,
    in_words,
    order_agreement,
    paired_difference,
    readable,
    summarise,
    told_apart,
    trend,
)

# With three seeds, differences m - 1, m, m + 1 have the standard deviation 1, so t = m sqrt(3) with two degrees of
# freedom, where the two-sided p value is 1 - t / sqrt(2 + t^2).
P_VALUES = {m: 1 - math.sqrt(3 * m**2 / (2 + 3 * m**2)) for m in (1, 2, 4)}


def test_intervals_and_paired_differences():
    a, b = np.array([70.0, 74.0, 71.0, 77.0]), np.array([68.0, 73.0, 71.0, 73.0])
    runs = make_runs({"A": a, "B": b})
    row = summarise(runs, "top1", ["variant"]).loc["A"]
    low, high = scipy_stats.t.interval(0.95, 3, a.mean(), a.std(ddof=1) / 2)
    assert (row["mean"], row.low, row.high) == pytest.approx((73.0, low, high))
    d = a - b
    low, high = scipy_stats.t.interval(0.95, 3, d.mean(), d.std(ddof=1) / 2)
    difference = paired_difference(runs, "top1", "A", "B")
    assert (difference["difference"], difference["low"], difference["high"]) == pytest.approx((1.75, low, high))
    assert difference["pairs"] == 4
    with pytest.raises(ValueError, match="runs: expected at least two seeds with both 'A' and 'C'"):
        paired_difference(runs, "top1", "A", "C")
    with pytest.raises(ValueError, match="at least two seeds"):
        paired_difference(make_runs({"A": [1, 2, None], "B": [1, None, 3]}), "top1", "A", "B")


@pytest.mark.parametrize(("metric", "whole"), [("top1", 100), ("percent", 100), ("attention_mass", 1), ("loss", None)])
def test_intervals_of_shares_end_at_nothing_and_at_the_whole(metric, whole):
    """Two seeds have a wide interval: near an end it is cut there; a loss has no upper end, a difference no end."""
    top = whole or 100
    runs = make_runs({"high": [0.94 * top, 0.98 * top], "low": [0.02 * top, 0.06 * top]}).rename(
        columns={"top1": metric}
    )
    table = summarise(runs, metric, ["variant"])
    half = scipy_stats.t.ppf(0.975, 1) * 0.02 * top
    expected = [min(0.96 * top + half, whole or np.inf), max(0.04 * top - half, -np.inf if whole is None else 0)]
    assert [table.high["high"], table.low["low"]] == pytest.approx(expected)
    assert [table.low["high"], table.high["low"]] == pytest.approx([0.96 * top - half, 0.04 * top + half])
    shown = compare(runs, "low", metric)
    assert shown.low["low"] == table.low["low"] and shown.high["high"] == table.high["high"]
    wide = make_runs({"high": [0.9 * top, 1.0 * top], "low": [0.1 * top, 0.0]}).rename(columns={"top1": metric})
    assert paired_difference(wide, metric, "high", "low")["high"] > top


def test_comparison_by_hand():
    table = compare(three_seeds(), "base", published={"base": 72.7, "+1": 72.6, "elsewhere": 9.0})
    assert list(table.index) == ["base", "+4", "+1", "+2"]
    assert (
        list(table)
        == (
            "mean low high runs failed difference diff_low diff_high p_value p_holm effect_size "
            "published published_difference"
        ).split()
    )
    row = table.loc["+4"]
    half = 4.302652729911275 / math.sqrt(3)  # t(0.975) with two degrees of freedom
    assert (row["mean"], row.difference, row.diff_low, row.diff_high) == pytest.approx((76, 4, 4 - half, 4 + half))
    # d_z = 4 / 1; Hedges' factor with two degrees of freedom is Gamma(1) / Gamma(1/2) = 1 / sqrt(pi).
    assert row.effect_size == pytest.approx(4 / math.sqrt(math.pi))
    assert table.loc[["+4", "+1", "+2"], "p_value"].tolist() == pytest.approx([P_VALUES[m] for m in (4, 1, 2)])
    # Holm: the smallest times three, the next times two, the largest as it is. The baseline is no test.
    assert table.loc["+4", "p_holm"] == pytest.approx(3 * P_VALUES[4])
    assert table.loc["+2", "p_holm"] == pytest.approx(2 * P_VALUES[2])
    assert table.loc["+1", "p_holm"] == pytest.approx(P_VALUES[1])
    assert table.loc["base", ["diff_low", "diff_high", "p_value", "p_holm", "effect_size"]].isna().all()
    assert table.loc["base", "difference"] == 0
    assert table.published_difference.tolist() == pytest.approx([0, math.nan, -0.1, math.nan], nan_ok=True)
    assert "published" not in compare(three_seeds(), "base")


def test_holm_never_orders_p_values_anew():
    """The second smallest is at least the smallest's corrected value: 2 * 0.074 would be less than 3 * 0.0742."""
    base = np.array([70.0, 75.0, 71.0])
    shifts = {"+1": 1, "+2": 2, "+2.001": 2.001}
    table = compare(make_runs({"base": base, **{name: base + m + [-1, 0, 1] for name, m in shifts.items()}}), "base")
    smallest = table.loc["+2.001", "p_value"]
    assert table.loc[["+2.001", "+2", "+1"], "p_holm"].tolist() == pytest.approx(
        [3 * smallest, 3 * smallest, 0.2254], abs=1e-4
    )
    assert 2 * table.loc["+2", "p_value"] < 3 * smallest


def test_comparison_against_scipy():
    runs = random_runs(variants=6, seeds=5)
    table = compare(runs, "v2")
    values = {name: part.sort_values("seed").top1.to_numpy() for name, part in runs.groupby("variant")}
    for name, row in table.drop("v2").iterrows():
        test = scipy_stats.ttest_rel(values[name], values["v2"])
        interval = scipy_stats.t.interval(0.95, 4, values[name].mean(), scipy_stats.sem(values[name]))
        assert (row.low, row.high) == pytest.approx(interval)
        assert row.p_value == pytest.approx(test.pvalue)
        assert (row.diff_low, row.diff_high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        paired = paired_difference(runs, "top1", name, "v2")
        assert (row.difference, row.p_value, row.effect_size) == (
            paired["difference"], paired["p_value"], paired["effect_size"]
        )  # fmt: skip


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_the_effect_size_is_unbiased(seeds):
    """For normal differences t has a noncentral t distribution; corrected, its mean is the true effect."""
    effect = 0.7
    mean_d_z = scipy_stats.nct.mean(seeds - 1, effect * math.sqrt(seeds)) / math.sqrt(seeds)
    assert mean_d_z * stats._hedges_correction(seeds - 1) == pytest.approx(effect)


def test_the_order_of_rows_does_not_matter():
    runs = random_runs(variants=4, seeds=5)
    shuffled = runs.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(compare(runs, "v0"), compare(shuffled, "v0").loc[["v0", "v1", "v2", "v3"]])
    published = {"v0": 3, "v1": 1, "v2": 2}
    assert order_agreement(runs, published) == pytest.approx(order_agreement(shuffled, published))


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_computed_is_nan():
    base = [40.0, 71.5, 73.0]
    top1 = {"base": base, "failed": [None] * 3, "one pair": [41.0, None, None], "same": base}
    top1 |= {"shifted": [40.1, 71.6, 73.1], "two pairs": [42.0, 75.5, None], "good": [42.0, 74.0, 76.0]}
    assert len({b - a for a, b in zip(base, top1["shifted"], strict=True)}) > 1  # equal but for the last bits
    table = compare(make_runs(top1), "base", published={})
    test = ["diff_low", "diff_high", "p_value", "p_holm", "effect_size"]
    assert table["failed"].tolist() == [0, 3, 2, 0, 0, 1, 0]
    assert table["runs"].tolist() == [3, 0, 1, 3, 3, 2, 3]
    assert table.loc[["base", "failed", "one pair", "same", "shifted"], test].isna().all(axis=None)
    assert table.loc["failed", ["mean", "low", "high", "difference"]].isna().all()
    assert table.loc["one pair", ["mean", "difference"]].tolist() == [41.0, 1.0] and np.isnan(
        table.loc["one pair", "low"]
    )
    assert table.loc[["same", "shifted"], "difference"].tolist() == pytest.approx([0, 0.1])
    assert np.isnan(table.loc["two pairs", "effect_size"]) and table.loc["two pairs", test[:4]].notna().all()
    # Only what was tested counts for Holm: two variants, so at most a factor of two.
    assert table.loc["good", "p_holm"] == pytest.approx(2 * table.loc["good", "p_value"])
    assert table[["published", "published_difference"]].isna().all(axis=None)


@pytest.mark.filterwarnings("error")
def test_a_metric_that_some_variants_lack():
    mass = {"GAP": math.nan, "CLS": 0.5, "SimPool": 0.7}
    runs = make_runs({name: [60.0, 61.0, 63.0] for name in mass})
    runs["attention_mass"] = runs.variant.map(mass) + runs.seed**2 / 100 * (runs.variant == "CLS")
    table = compare(runs, "SimPool", "attention_mass")
    assert table["runs"].tolist() == [0, 3, 3] and table["failed"].tolist() == [0, 0, 0]
    assert table.loc["GAP"].drop(["runs", "failed"]).isna().all()
    assert table.loc["CLS", "difference"] == pytest.approx(-0.2 + 0.05 / 3)
    assert compare(runs, "GAP", "attention_mass")["difference"].isna().all()


def test_a_table_in_words_says_what_it_holds():
    runs = make_runs({"base": [70.0, 75.0, 71.0], "+4": [73.0, 79.0, 76.0], "lost": [None, None, None]})
    runs = pd.concat([runs, make_runs({"same": [71.0, 76.0, 72.0]})])
    table = compare(runs, "base", published={"base": 57.1, "+4": 56.0})
    assert told_apart(table).to_dict() == {"base": False, "+4": True, "lost": False, "same": False}
    lines = in_words(table, "base").splitlines()
    assert [line[:4] for line in lines] == ["+4  ", "lost", "same"]
    assert lines[0] == f"+4    +4.0 points [+1.5, +6.5], p = {P_VALUES[4]:.2g}: told apart from base"
    assert lines[2] == "same  +1.0 points: not told apart from base"  # equal differences have no interval
    shown = readable(table, digits=2)
    assert shown.loc["+4", ["difference", "failed runs", "paper's difference"]].tolist() == [4.0, 0, -1.1]
    assert {"failed runs", "paper"}.isdisjoint(readable(compare(runs[runs.variant != "lost"], "base")))


def test_the_trend_is_a_t_test_of_slopes():
    slopes, level = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.0, 1.0, 3.0])
    off_the_line = np.array([2.0, -3.0, 1.0])  # sums to zero, also times the level: no slope
    tops = {f"g{x:g}": list(70 + slopes * x + e) for x, e in zip(level, off_the_line, strict=True)}
    runs = make_runs(tops | {"other": [1.0, 2.0, 3.0, 9.0]})
    found = trend(runs, {f"g{x:g}": x for x in level})
    test = scipy_stats.ttest_1samp(slopes, 0)
    low, high = test.confidence_interval(0.95)
    assert [*found.values()] == pytest.approx([2.5, low, high, test.pvalue, 4])
    runs.loc[runs.seed == 3, "status"] = "failed"
    assert trend(runs, {f"g{x:g}": x for x in level})["seeds"] == 3
    assert math.isnan(trend(runs, {"g0": 0.0})["slope"])  # one level has no slope


def test_errors_name_what_is_wrong():
    runs = three_seeds()
    for function in (lambda metric: compare(runs, "base", metric), lambda metric: order_agreement(runs, {}, metric)):
        with pytest.raises(ValueError, match="metric: expected a column of the runs, got 'top5'"):
            function("top5")
    with pytest.raises(ValueError, match=r"baseline: expected one of base, \+4, \+1, \+2, got 'GAP'"):
        compare(runs, "GAP")
    with pytest.raises(
        ValueError, match="runs: expected one run for each variant and seed, got several of 'base', seed 0"
    ):
        compare(pd.concat([runs, runs]), "base")


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
