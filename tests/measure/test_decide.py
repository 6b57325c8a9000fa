"""Verdicts, intervals and stopping: against scipy and statsmodels called directly, and on simulated runs whose truth is
known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.weightstats import ttost_ind

from simpool_lite.measure import decide as module
from simpool_lite.measure.decide import (
    ALLOWANCE,
    FIRST_RUNS,
    decide,
    detectable_difference,
    errors_by_source,
    half_width,
    in_sentences,
    runs_needed,
    verdict,
)


def make_runs(values: dict[str, np.ndarray]) -> pd.DataFrame:
    rows = [(name, seed, value) for name, column in values.items() for seed, value in enumerate(column)]
    return pd.DataFrame(rows, columns=["variant", "seed", "top1"]).assign(status="ok")


def stop_when_narrow(draws: np.ndarray, precision: float) -> tuple[np.ndarray, np.ndarray]:
    """The stopping rule for many simulated tables at once: draws (tables, variants, runs); the first is the baseline.

    Returns the runs made (tables, variants) and the half widths (tables, variants - 1).
    """
    tables, variants, most = draws.shape
    count = np.arange(1, most + 1)
    variance = (np.cumsum(draws**2, -1) - np.cumsum(draws, -1) ** 2 / count) / np.maximum(count - 1, 1)
    runs = np.full((tables, variants), FIRST_RUNS)
    while True:
        seen = np.take_along_axis(variance, runs[..., None] - 1, -1)[..., 0]
        parts = (seen[:, 1:], runs[:, 1:], seen[:, :1], runs[:, :1], np.zeros((tables, 1)))
        half = half_width(*parts, comparisons=variants - 1, unseen=ALLOWANCE)
        wide = (half > precision).any(1)
        if not wide.any():
            return runs, half
        wanted = module._plan(*(part[wide] for part in parts), precision, comparisons=variants - 1)
        more = np.minimum((wanted - runs[wide]).clip(min=0), runs[wide]).astype(int)
        assert (more.sum(1) > 0).all()
        runs[wide] += more
        assert runs.max() <= most


def coverage(spreads: list[float], precision: float, tables: int, seed: int = 0) -> tuple[float, np.ndarray]:
    """How often all intervals of a table hold the truth although runs were added until they were narrow; mean runs."""
    generator = np.random.default_rng(seed)
    draws = generator.normal(0, np.array(spreads)[:, None], (tables, len(spreads), 400))
    runs, half = stop_when_narrow(draws, precision)
    # The stopping rule looks at variances alone, which say nothing about means: any number of means may be drawn for
    # the same runs. That makes the simulation many times more precise.
    means = generator.normal(0, (np.array(spreads) / np.sqrt(runs))[..., None], (*runs.shape, 50))
    return (abs(means[:, 1:] - means[:, :1]) <= half[..., None]).all(1).mean(), runs.mean(0)


@pytest.mark.parametrize(
    ("spreads", "precision"),
    [([1.2] * 2, 1), ([1.2] * 8, 1), ([1.2, 3.6, 1.2, 1.2], 2), ([3.6, 1.2, 1.2, 1.2], 2), ([0.2] * 8, 0.3)],
)
def test_intervals_hold_together_although_runs_were_added_until_they_were_narrow(spreads, precision):
    held, _ = coverage(spreads, precision, tables=1500)
    assert 0.945 < held < 0.985  # 1500 tables know it to 0.005


def test_without_the_allowance_they_would_not(monkeypatch):
    monkeypatch.setattr(module, "ALLOWANCE", 0)
    monkeypatch.setitem(globals(), "ALLOWANCE", 0)
    held, _ = coverage([1.2] * 8, 1, tables=1000)
    assert held < 0.93


def test_runs_needed_follows_the_same_rule(monkeypatch):
    monkeypatch.setattr(module, "_seeds_matter", lambda seeds, block: False)  # the rule above does not pair
    draws = np.random.default_rng(5).normal(0, np.array([1.2, 1.2, 2.4])[:, None], (8, 3, 400))
    for table in draws:
        expected, half = stop_when_narrow(table[None], 1.0)
        made = np.full(3, FIRST_RUNS)
        for _ in range(20):
            runs = make_runs({name: table[i, : made[i]] for i, name in enumerate(["base", "a", "b"])})
            asked = runs_needed(runs, "base", 1.0)
            if not asked["more"].any():
                break
            assert (asked["more"] <= asked["expected"]).all()
            made += asked["more"].to_numpy()
        result = decide(runs, "base", margin=2.0).drop("base")
        assert (result["high"] - result["low"]).max() / 2 <= 1.0 and "not decided" not in set(result["verdict"])
        assert made.tolist() == expected[0].tolist()
        assert asked["half"].tolist()[1:] == pytest.approx(half[0].tolist())


def test_the_first_runs_and_failures():
    runs = make_runs({"base": np.arange(5.0), "new": [1.0, 2.0], "broken": [np.nan] * 5, "mapless": [np.nan] * 5})
    runs.loc[runs.variant == "broken", "status"] = "failed"
    asked = runs_needed(runs, "base", 0.5)
    assert asked["more"].to_dict() == {"base": 0, "new": 3, "broken": 0, "mapless": 0}
    runs = pd.concat([runs, make_runs({"new": [3.0, 2.5, 1.5]}).assign(seed=[2, 3, 4])])
    asked = runs_needed(runs, "base", 0.5)
    assert asked["more"].to_dict() == {"base": 5, "new": 5, "broken": 0, "mapless": 0}  # doubled, no more
    assert asked.loc["broken":, "half"].isna().all()
    table = decide(runs, "base", 1.0)
    assert table.loc["broken", ["runs", "failed", "verdict"]].tolist() == [0, 5, "not decided"]
    assert "broken has too few finished runs for an interval: not decided." in in_sentences(table, "base")
    assert not runs_needed(runs[runs.variant.isin(["base", "broken"])], "base", 0.5)["more"].any()


def test_the_plan_takes_the_fewest_runs():
    variance, base = np.array([1.44, 1.44, 4.0]), 2.0
    runs = np.full(3, 12)
    wanted = module._plan(variance, runs, np.full(3, base), np.full(3, 12), np.zeros(3), 1.0, comparisons=3)
    now = half_width(variance, 12, base, 12, comparisons=3, unseen=ALLOWANCE)
    critical = now / np.sqrt((variance + base) / 10)
    totals = {}
    for n_0 in range(10, 300):
        room = (1 / critical) ** 2 - base / n_0
        if (room > 0).all():
            totals[n_0] = n_0 + np.maximum(np.ceil(variance / room), 10).sum()
    assert min(totals.values()) <= (wanted - ALLOWANCE).sum() <= 1.03 * min(totals.values())
    assert wanted[0] > wanted[1] == wanted[2] and wanted[3] > wanted[1]
    assert (critical * np.sqrt(variance / (wanted[1:] - 2) + base / (wanted[0] - 2)) <= 1).all()


def test_errors_of_images_are_part_of_the_precision():
    values = np.random.default_rng(0).normal(0, 0.3, (3, 12))
    runs = make_runs(dict(zip(["base", "a", "b"], values, strict=True)))
    none = runs_needed(runs, "base", 0.25)
    some = runs_needed(runs, "base", 0.25, image_errors={"a": 0.05, "b": 0.05})
    assert some.loc[["a", "b"], "half"].gt(none.loc[["a", "b"], "half"]).all()
    assert some["expected"].sum() > none["expected"].sum()
    hopeless = runs_needed(runs, "base", 0.25, image_errors={"a": 0.5, "b": 0.0})
    assert (hopeless.at["a", "expected"], hopeless.at["a", "more"]) == (math.inf, 0)
    assert hopeless.at["b", "more"] == none.at["b", "more"]
    wide = decide(runs, "base", 1.0, image_errors={"a": 5.0, "b": 5.0}).loc["a"]
    critical = scipy_stats.norm.ppf(1 - (1 - 0.95**0.5) / 2)
    assert (wide["high"] - wide["low"]) / 2 == pytest.approx(critical * 5, rel=0.01)
    with pytest.raises(ValueError, match="image_errors: expected a standard error for each variant, got none for"):
        decide(runs, "base", 1.0, image_errors={"a": 0.1})


def test_intervals_are_scipys():
    generator = np.random.default_rng(1)
    base, other = generator.normal(0, 1, 12), generator.normal(0, 3, 7)
    row = decide(make_runs({"base": base, "a": other}), "base", 1, sequential=False).loc["a"]
    interval = scipy_stats.ttest_ind(other, base, equal_var=False).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx(tuple(interval))
    three = decide(make_runs({"base": base, "a": other, "b": base + 1, "c": base}), "base", 1, sequential=False).loc[
        "a"
    ]
    interval = scipy_stats.ttest_ind(other, base, equal_var=False).confidence_interval(0.95 ** (1 / 3))
    assert (three["low"], three["high"]) == pytest.approx(tuple(interval))
    wider = decide(make_runs({"base": base, "a": other}), "base", 1).loc["a"]
    assert wider["difference"] == row["difference"] and wider["high"] > row["high"]
    few = decide(make_runs({"base": base, "a": other[:3]}), "base", 1).loc["a"]  # one run is left of the three
    assert math.isnan(few["low"]) and few["verdict"] == "not decided"


def test_blocks_are_taken_out_as_a_regression_does():
    """Nine seeds on three trunks that differ by more than their seeds: the regression on trunks has the interval."""
    generator, trunk = np.random.default_rng(5), np.tile(["x", "y", "z"], 3)
    level = pd.Series({"x": 0.0, "y": 20.0, "z": -9.0})[trunk].to_numpy()
    base = level + generator.normal(0, 1, 9)
    other = base + 1 + 0.1 * level + generator.normal(0, 0.2, 9)
    runs = make_runs({"base": base, "a": other}).assign(trunk=[*trunk, *trunk])
    row = decide(runs, "base", 1, sequential=False, blocks="trunk").loc["a"]
    fit = ols("difference ~ C(trunk, Sum)", pd.DataFrame({"difference": other - base, "trunk": trunk})).fit()
    assert row["paired"] and (row["low"], row["high"]) == pytest.approx(tuple(fit.conf_int().loc["Intercept"]))
    without = decide(runs, "base", 1, sequential=False).loc["a"]
    assert without["high"] - without["low"] > 4 * (row["high"] - row["low"])
    # What all runs of a trunk have in common is no correlation of its seeds.
    unrelated = make_runs({"base": base, "a": level + generator.normal(0, 1, 9)}).assign(trunk=[*trunk, *trunk])
    assert not decide(unrelated, "base", 1, blocks="trunk").at["a", "paired"]
    assert runs_needed(runs[runs.seed < 4], "base", 1.0, blocks="trunk")["more"].tolist() == [
        3,
        3,
    ]  # 5 + 2 for the blocks


def test_dunnett_fails_where_spreads_differ_and_our_intervals_do_not():
    """The reason for Welch's intervals: many tables of six variants, the baseline's spread three times the others'."""
    generator, n, tables = np.random.default_rng(2), 10, 4000
    # Dunnett's half width is a constant times the pooled spread, which one call of scipy's gives.
    sample = generator.normal(0, 1, (6, n))
    interval = scipy_stats.dunnett(*sample[1:], control=sample[0], rng=generator).confidence_interval(0.95)
    constant = (interval.high[0] - interval.low[0]) / 2 / math.sqrt(sample.var(1, ddof=1).mean())

    def together(spreads: list[float]) -> tuple[float, float]:
        draws = generator.normal(0, np.array(spreads)[:, None], (tables, 6, n))
        differences = abs(draws.mean(-1)[:, 1:] - draws.mean(-1)[:, :1])
        variance = draws.var(-1, ddof=1)
        dunnett = constant * np.sqrt(variance.mean(1, keepdims=True))
        ours = half_width(variance[:, 1:], n, variance[:, :1], n, comparisons=5)
        return (differences <= dunnett).all(1).mean(), (differences <= ours).all(1).mean()

    dunnett, ours = together([1.0] * 6)
    assert dunnett == pytest.approx(0.95, abs=0.015) and 0.945 < ours < 0.985
    dunnett, ours = together([3.0] + [1.0] * 5)
    assert dunnett < 0.87 and 0.945 < ours < 0.985
    dunnett, ours = together([1.0, 3.0] + [1.0] * 4)
    assert dunnett < 0.935 and 0.945 < ours < 0.985


def test_pairs_where_the_correlation_earns_it():
    generator = np.random.default_rng(3)
    base, noise = generator.normal(0, 1, 12), generator.normal(0, 0.2, 12)
    row = decide(make_runs({"base": base, "a": base + 1 + noise}), "base", 1, sequential=False).loc["a"]
    interval = scipy_stats.ttest_rel(base + 1 + noise, base).confidence_interval(0.95)
    assert row["paired"] and (row["low"], row["high"]) == pytest.approx(tuple(interval))
    # Extra runs of the baseline have no partner.
    more = decide(make_runs({"base": [*base, 50.0], "a": base + 1 + noise}), "base", 1, sequential=False).loc["a"]
    assert more["paired"] and more["low"] == pytest.approx(row["low"])
    # A correlation that four seeds cannot tell from 0, a negative one, and a small one that is certain.
    assert not decide(make_runs({"base": [0, 1, 2, 3.0], "a": [1.0, 0, 2, 3]}), "base", 1).at["a", "paired"]
    assert not decide(make_runs({"base": base, "a": noise - base}), "base", 1).at["a", "paired"]
    base, noise = np.linalg.qr(np.column_stack([np.ones(40), generator.normal(0, 1, (40, 2))]))[0].T[1:]
    other = 0.42 * base + math.sqrt(1 - 0.42**2) * noise  # correlation 0.42, lower end 0.13
    assert decide(make_runs({"base": base, "a": other}), "base", 1).at["a", "paired"]


def test_all_rows_are_paired_where_seeds_matter_in_the_table():
    """As the seeds' F test of statsmodels says; one row of eight seeds alone seldom shows it."""
    generator, words = np.random.default_rng(8), []
    for share in (0, 0.3, 0.5) * 8:
        common = math.sqrt(share) * generator.normal(0, 1, 8)
        runs = make_runs({name: common + math.sqrt(1 - share) * generator.normal(0, 1, 8) for name in "abcd"})
        p = anova_lm(ols("top1 ~ C(variant) + C(seed)", runs).fit()).at["C(seed)", "PR(>F)"]
        paired = decide(runs, "a", 1, sequential=False).drop("a")["paired"]
        assert paired.all() == paired.any() == (p < 0.025)
        words.append(bool(paired.all()))
    assert 0 < sum(words) < len(words)


def test_pairing_keeps_what_intervals_promise():
    """Intervals chosen by the rule, where there is no correlation and where there is a high one."""
    generator = np.random.default_rng(4)
    for correlation, least, most in [(0.0, 0, 0.1), (0.9, 0.9, 1)]:
        common = math.sqrt(correlation) * generator.normal(0, 1, (60, 1, 10))
        draws = common + math.sqrt(1 - correlation) * generator.normal(0, 1, (60, 2, 10))
        rows = pd.DataFrame([decide(make_runs({"b": b, "a": a}), "b", 1, sequential=False).loc["a"] for b, a in draws])
        # Means say nothing about spreads and correlations: the chance that this width covers is known for each table.
        error = math.sqrt(2 * (1 - correlation) / 10)
        held = 1 - 2 * scipy_stats.norm.sf((rows["high"] - rows["low"]).astype(float) / 2 / error)
        assert held.mean() == pytest.approx(0.95, abs=0.02)
        assert least <= rows["paired"].mean() <= most


def test_equivalence_is_two_one_sided_tests():
    generator = np.random.default_rng(6)
    words = set()
    for difference in np.linspace(-1.5, 1.5, 16):
        a, b = generator.normal(difference, 0.5, 9), generator.normal(0, 1, 11)
        word = decide(make_runs({"b": b, "a": a}), "b", 1.2, sequential=False).loc["a", "verdict"]
        p_equivalent = ttost_ind(a, b, -1.2, 1.2, usevar="unequal")[0]
        p_different = scipy_stats.ttest_ind(a, b, equal_var=False).pvalue
        expected = "equivalent" if p_equivalent < 0.025 else "different" if p_different < 0.05 else "not decided"
        assert word == expected
        words.add(word)
    assert words == {"equivalent", "different", "not decided"}


def test_verdicts_are_right_on_runs_with_known_answers():
    truth = {"base": 70.0, "same": 70.0, "little": 70.2, "worse": 67.0, "better": 72.0}
    generator, wrong = np.random.default_rng(7), 0
    for _ in range(15):
        runs = make_runs({name: generator.normal(mean, 0.4, 20) for name, mean in truth.items()})
        words = decide(runs, "base", margin=0.8)["verdict"].to_dict()
        wrong += words != {"base": "", "same": "equivalent", "little": "equivalent"} | dict.fromkeys(
            ["worse", "better"], "different"
        )
    assert wrong <= 2


def test_a_margin_of_twice_the_precision_decides_every_row():
    for low in np.linspace(-3, 2, 101):
        assert verdict(low, low + 2.0, margin=2.0) != "not decided"
    assert verdict(-0.9, 1.1, margin=1.0) == verdict(math.nan, math.nan, 1.0) == "not decided"
    assert verdict(0.1, 0.9, margin=1.0) == "equivalent" and verdict(-1.1, -0.2, margin=1.0) == "different"
    assert verdict(0.0, 1.1, margin=1.0) == verdict(-1.1, 0.0, margin=1.0) == "not decided"  # 0 is not excluded


def test_the_detectable_difference_is_detected_in_four_of_five():
    table = pd.DataFrame({"sd": [1.0, 1.4, np.nan, 1.2], "runs": [24, 8, 1, 10]}, index=["b", "x", "one", "y"])
    found = detectable_difference(table, "b")
    sd = math.sqrt((23 * 1.0 + 7 * 1.4**2 + 9 * 1.2**2) / 39)
    critical = scipy_stats.t.ppf(1 - (1 - 0.95**0.5) / 2, 24 + 8 - 2)
    noncentral = scipy_stats.nct(24 + 8 - 2, found / sd / math.sqrt(1 / 24 + 1 / 8))
    assert noncentral.sf(critical) + noncentral.cdf(-critical) == pytest.approx(0.8, abs=1e-4)


def test_sentences():
    columns = "difference low high verdict margin published_difference".split()
    rows = {
        "SimPool": (0, math.nan, math.nan, "", 0.5, 0),
        "GAP": (-1.2, -1.5, -0.9, "different", 0.5, -2.1),
        "max": (0.25, 0.1, 0.4, "equivalent", 0.5, math.nan),
        "LSE": (0.0, -0.2, 0.2, "equivalent", 0.5, math.nan),
        "GeM": (0.3, -0.4, 1.0, "not decided", 0.5, math.nan),
    }
    table = pd.DataFrame.from_dict(rows, "index", columns=columns)
    assert in_sentences(table, "SimPool", digits=2).split("\n") == [
        "GAP is 1.20 points below SimPool (95 % interval -1.50 to -0.90): different. The paper's difference is -2.10.",
        "max is 0.25 points above SimPool (95 % interval +0.10 to +0.40): significantly different from 0, but within "
        "the margin of 0.5 points, so equivalent.",
        "LSE is 0.00 points below SimPool (95 % interval -0.20 to +0.20): within the margin of 0.5 points, so "
        "equivalent.",
        "GeM is 0.30 points above SimPool (95 % interval -0.40 to +1.00): not decided.",
    ]


def test_the_table_holds_what_the_runs_hold():
    runs = make_runs({"base": [70.0, 72.0, 71.0], "a": [74.0, 73.0, 78.0]})
    runs.loc[len(runs)] = ["a", 3, 99.0, "failed"]
    table = decide(runs, "base", 0.5, sequential=False, published={"base": 50.0, "a": 51.5, "elsewhere": 3.0})
    assert list(table.index) == ["base", "a"]
    names = "mean sd runs failed difference low high paired verdict margin published published_difference"
    assert list(table) == names.split()
    row = table.loc["a"]
    assert row[["mean", "sd", "runs", "failed", "difference", "published_difference"]].tolist() == pytest.approx(
        [75, math.sqrt(7), 3, 1, 4, 1.5]
    )
    assert table.loc["base", ["difference", "verdict", "margin"]].tolist() == [0, "", 0.5]
    assert "published" not in decide(runs, "base", 0.5)
    equal = decide(make_runs({"base": [10.0] * 5, "a": [10.0] * 5, "b": [12.0] * 5}), "base", 0.5)
    assert equal["verdict"].tolist() == ["", "equivalent", "different"] and equal.at["b", "low"] == 2


def test_errors_name_what_is_wrong():
    runs = make_runs({"base": [1.0, 2.0], "a": [2.0, 3.0]})
    with pytest.raises(ValueError, match="margin: expected a positive number"):
        decide(runs, "base", 0)
    with pytest.raises(ValueError, match="precision: expected a positive number"):
        runs_needed(runs, "base", -1)
    with pytest.raises(ValueError, match="baseline: expected one of base, a, got 'GAP'"):
        decide(runs, "GAP", 1)
    with pytest.raises(ValueError, match="metric: expected a column of the runs, got 'top5'"):
        runs_needed(runs, "base", 1, "top5")
    with pytest.raises(ValueError, match=r"correct: expected 2 runs .* by 3 images \(clusters\), got shape \(2, 4\)"):
        errors_by_source(np.ones((2, 4), bool), ["a", "b"], [0, 0, 1], "a")


def test_errors_by_source_against_scipy():
    generator = np.random.default_rng(8)
    clusters = np.repeat(np.arange(60), generator.integers(1, 12, 60))
    easy = generator.normal(0.7, 1, (2, 60))[:, clusters]  # what a glyph does to a variant
    correct = np.concatenate([easy[[v]] + generator.normal(0, 1, (4, len(clusters))) > 0 for v in (0, 1)])
    found = errors_by_source(correct, ["b"] * 4 + ["a"] * 4, clusters, "b", resamples=4000).loc["a"]
    accuracy = 100 * correct.mean(1)
    assert found["difference"] == pytest.approx(accuracy[4:].mean() - accuracy[:4].mean())
    assert found["seeds"] == pytest.approx(np.hypot(*(scipy_stats.sem(part) for part in np.split(accuracy, 2))))
    per_image = 100 * (correct[4:].mean(0) - correct[:4].mean(0))
    sums, sizes = np.bincount(clusters, per_image), np.bincount(clusters)
    scipys = scipy_stats.bootstrap(
        (sums, sizes), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, n_resamples=4000, method="percentile",
        rng=generator,
    ).standard_error  # fmt: skip
    assert found["images"] == pytest.approx(scipys, rel=0.05)
    assert found["images"] > 1.5 * per_image.std() / math.sqrt(len(clusters))  # images of a glyph are not independent
    assert found["both"] == pytest.approx(np.hypot(found["seeds"], found["images"]))
