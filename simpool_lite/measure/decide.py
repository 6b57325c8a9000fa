"""Many variants against one baseline: intervals that hold together, verdicts, and how many runs they take.

Intervals: Welch's, at Šidák's level for the number of variants in the table, so that *all* of them cover with 95 %.
    Dunnett's (`scipy.stats.dunnett`) are shorter (by 5 % with 20 runs, by 25 % with 5) but take one spread for all
    variants. In simulated tables of six variants with 5 or 10 runs each they hold together in 79 to 83 % of the tables
    where the baseline's spread is three times the others', and in 89 to 95 % where one variant's is; Welch's in 95 to
    98 %. Recorded spreads differ by more than that, so Dunnett is not used. Runs are taken as normal and independent.
Stopping: runs are added until each interval is narrow enough. That stops where the spread looks small by chance, so
    that plain intervals hold together in 88 to 95 % of the tables. An interval therefore counts each variant as if it
    had :data:`ALLOWANCE` runs fewer; measured so: 95 to 98 %.
Pairing by seed where the measured correlation earns it: where seeds matter in the whole table, by the F test of a
    two-way layout (:func:`_seeds_matter`), all its rows are paired. With ten seeds intervals become 23 % shorter at a
    correlation of 0.6, 64 % at 0.9. A paired interval covers as often as it says whatever the correlation; what would
    not is the shorter one of two intervals.
Verdicts: see :func:`verdict`. A margin of at least twice the precision leaves no row undecided.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.power import TTestIndPower

from .stats import CONFIDENCE, by_seed

POWER = 0.8
FIRST_RUNS = 5  # of each variant, before its spread is looked at
ALLOWANCE = 2  # runs per variant that an interval does not count, because a stopping rule looked at them
MOST_GROWTH = 2  # how many times the runs of a variant one round may have: early spreads are rough


def level_per_comparison(comparisons: int) -> float:
    """The two-sided level of each of several tests that all hold with 95 % (Šidák, 1967): 1 - 0.95^(1 / k).

    >>> round(level_per_comparison(5), 4)
    0.0102
    """
    return 1 - CONFIDENCE ** (1 / max(comparisons, 1))


def verdict(low: float, high: float, margin: float) -> str:
    """What an interval of a difference says, given the margin: the smallest difference that would matter.

    - "equivalent": the interval lies within ± margin. This is two one-sided tests (Schuirmann, 1987) at half of the
      interval's level. A difference that is significant *and* within the margin is too small to matter, so the word is
      "equivalent"; :func:`in_sentences` says both.
    - "different": the interval excludes 0 and does not lie within ± margin.
    - "not decided": neither, or there is no interval.

    >>> [verdict(-0.4, 0.3, 0.5), verdict(0.1, 0.4, 0.5), verdict(0.1, 0.6, 0.5), verdict(-0.1, 0.6, 0.5)]
    ['equivalent', 'equivalent', 'different', 'not decided']
    """
    if -margin <= low and high <= margin:
        return "equivalent"
    return "different" if low > 0 or high < 0 else "not decided"


def decide(
    runs: pd.DataFrame,
    baseline: str,
    margin: float,
    metric: str = "top1",
    *,
    sequential: bool = True,
    blocks: str | None = None,
    image_errors: Mapping[str, float] | None = None,
    published: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Every variant against the baseline: one table per experiment, one row per variant.

    Args:
        runs: one row per run with the columns ``variant``, ``seed``, ``status`` and the metric. Failed runs
            do not count.
        baseline: the variant that the others are compared with.
        margin: the smallest difference that would matter, stated before the run.
        metric: the column to compare.
        sequential: the number of runs followed from their results (:func:`runs_needed`). Set it to False only where it
            was fixed beforehand; the intervals are narrower then.
        blocks: a column that is the same for all runs of a seed, such as the trunk whose features they pool. The
            intervals are then for these blocks and take the spread within them.
        image_errors: by variant, the standard error of its difference that comes from the choice of test images: the
            column ``images`` of :func:`errors_by_source`. With it the intervals cover seeds and images; without it they
            hold for these test images only.
        published: the paper's numbers by variant.

    Returns:
        The columns ``mean sd runs failed difference low high paired verdict margin`` and, if ``published`` is given,
        ``published published_difference``. ``low`` and ``high`` are the simultaneous 95 % interval; ``paired`` says
        whether it is paired by seed. What cannot be computed is NaN, as for the baseline itself.

    Raises:
        ValueError: a margin that isn't positive, no such metric or baseline, or a variant has a seed twice.

    >>> runs = pd.DataFrame({"variant": ["SimPool"] * 6 + ["GAP"] * 6, "seed": [*range(6)] * 2, "status": "ok"})
    >>> runs["top1"] = [74.0, 74.1, 73.9, 74.2, 74.0, 74.1, 73.1, 73.0, 72.8, 73.2, 72.9, 73.0]
    >>> decide(runs, "SimPool", margin=0.5)[["mean", "difference", "low", "high", "verdict"]].round(2)
              mean  difference   low  high    verdict
    variant
    SimPool  74.05        0.00   NaN   NaN
    GAP      73.00       -1.05 -1.18 -0.92  different
    """
    if not margin > 0:
        raise ValueError(f"margin: expected a positive number, the smallest difference that would matter, got {margin}")
    rows = _rows(runs, baseline, metric, sequential, image_errors, blocks)
    seeds = by_seed(runs, metric)
    table = pd.DataFrame({"mean": seeds.mean(), "sd": seeds.std(), "runs": seeds.count()})
    table["failed"] = (runs.status == "failed").groupby(runs.variant).sum()
    table["difference"] = rows["difference"]
    table.loc[baseline, "difference"] = 0.0
    table["low"], table["high"] = rows["difference"] - rows["half"], rows["difference"] + rows["half"]
    table["paired"] = rows["paired"].reindex(table.index, fill_value=False)
    words = [verdict(low, high, margin) for low, high in zip(table["low"], table["high"], strict=True)]
    table["verdict"] = pd.Series(words, table.index).where(table.index != baseline, "")
    table["margin"] = margin
    if published is not None:
        table["published"] = pd.Series(published, dtype=float).reindex(table.index)
        table["published_difference"] = table["published"] - table.at[baseline, "published"]
    return table


def in_sentences(table: pd.DataFrame, baseline: str, unit: str = "points", digits: int = 1) -> str:
    """A table of :func:`decide` in plain English, one sentence per variant.

    >>> columns = ["difference", "low", "high", "verdict", "margin"]
    >>> rows = {"SimPool": (0, np.nan, np.nan, "", 0.5), "GAP": (-1.05, -1.27, -0.83, "different", 0.5)}
    >>> print(in_sentences(pd.DataFrame.from_dict(rows, "index", columns=columns), "SimPool"))
    GAP is 1.1 points below SimPool (95 % interval -1.3 to -0.8): different.
    """
    sentences = []
    for name, row in table.drop(index=baseline).iterrows():
        if np.isnan(row["low"]):
            sentences.append(f"{name} has too few finished runs for an interval: not decided.")
            continue
        side, size = "above" if row["difference"] > 0 else "below", abs(row["difference"])
        interval = f"95 % interval {row['low']:+.{digits}f} to {row['high']:+.{digits}f}"
        reason = ""
        if row["verdict"] == "equivalent":
            reason = f"within the margin of {row['margin']:g} {unit}, so "
            if row["low"] > 0 or row["high"] < 0:
                reason = "significantly different from 0, but " + reason
        text = f"{name} is {size:.{digits}f} {unit} {side} {baseline} ({interval}): {reason}{row['verdict']}."
        if not np.isnan(row.get("published_difference", np.nan)):
            text += f" The paper's difference is {row['published_difference']:+.{digits}f}."
        sentences.append(text)
    return "\n".join(sentences)


def detectable_difference(table: pd.DataFrame, baseline: str) -> float:
    """The smallest difference that so many runs find with 80 % power while all intervals hold together with 95 %.

    From the power of the t test (`statsmodels.stats.power`) at Šidák's level, with the pooled standard deviation over
    seeds and the runs of the variant that has fewest. Test images are taken as fixed.

    Args:
        table: one of :func:`decide`.
        baseline: the variant that the others are compared with.

    >>> table = pd.DataFrame({"sd": [1.0, 1.4, 1.2], "runs": [20, 20, 20]}, index=["SimPool", "GAP", "max"])
    >>> round(detectable_difference(table, "SimPool"), 2)
    1.22
    """
    table = table[table["runs"] > 1]
    freedom = table["runs"] - 1
    sd = float(np.sqrt((table["sd"] ** 2 * freedom).sum() / freedom.sum()))
    others = table["runs"].drop(index=baseline)
    alpha, ratio = level_per_comparison(len(others)), table.at[baseline, "runs"] / others.min()
    return sd * float(TTestIndPower().solve_power(nobs1=others.min(), ratio=ratio, alpha=alpha, power=POWER))


def runs_needed(
    runs: pd.DataFrame,
    baseline: str,
    precision: float,
    metric: str = "top1",
    image_errors: Mapping[str, float] | None = None,
    blocks: str | None = None,
) -> pd.DataFrame:
    """How many runs to add so that each difference to the baseline is known to within ± precision.

    Call it, make the runs it asks for, call it again; it is finished when it asks for none. Each variant first gets
    :data:`FIRST_RUNS` runs. Then the spreads seen so far say how many runs reach the precision with the fewest in
    total: wide variants get more, and the baseline, which stands in every difference, most. A round at most doubles a
    variant's runs. It depends on nothing but the finished runs, so it can be resumed.

    Args:
        runs: as in :func:`decide`; variants that have no rows yet are not known to it.
        baseline: the variant that the others are compared with.
        precision: wanted half width of each simultaneous 95 % interval.
        metric: the column to compare.
        image_errors: as in :func:`decide`. More seeds don't make these errors smaller: where they alone are wider than
            the precision, ``more`` is 0 and ``expected`` is infinite.
        blocks: as in :func:`decide`.

    Returns:
        One row per variant, the baseline included: ``runs`` finished so far, ``half`` (width now; NaN without an
        interval), ``more`` (runs to add in the next round) and ``expected`` (runs it will take from now on, by the
        present spreads). A variant that has too few finished runs after :data:`FIRST_RUNS` failures gets no
        more.

    >>> runs = pd.DataFrame({"variant": ["SimPool"] * 6 + ["GAP"] * 6, "seed": [*range(6)] * 2, "status": "ok"})
    >>> runs["top1"] = [74.0, 74.1, 73.9, 74.2, 74.0, 74.1, 73.1, 73.0, 72.8, 73.2, 72.9, 73.0]
    >>> runs_needed(runs, "SimPool", precision=0.1).round(2)
             runs  half  more  expected
    variant
    SimPool     6   NaN     4       4.0
    GAP         6  0.13     4       4.0
    """
    if not precision > 0:
        raise ValueError(f"precision: expected a positive number, half the width of an interval, got {precision}")
    rows = _rows(runs, baseline, metric, True, image_errors, blocks)
    done = by_seed(runs, metric).count()
    table = pd.DataFrame({"runs": done, "half": rows["half"].reindex(done.index), "more": 0, "expected": 0.0})
    without_result = runs.groupby("variant").size().reindex(done.index) - done
    number = 1 if blocks is None else runs[blocks].nunique()
    first = (FIRST_RUNS + number - 1 - done).clip(lower=0).where(without_result < FIRST_RUNS, 0)
    if first.any():
        return table.assign(more=first, expected=first.astype(float))
    images_alone = stats.norm.isf(level_per_comparison(done.size - 1) / 2) * np.sqrt(rows["image_variance"])
    table.loc[rows.index[images_alone >= precision], "expected"] = np.inf
    rows = rows[rows["half"].notna() & (images_alone < precision)]
    if not (rows["half"] > precision).any():
        return table
    wanted = _plan(
        *(rows[name].to_numpy(float) for name in _PLANNED), precision, comparisons=done.size - 1, blocks=number
    )
    wanted[0] = max([wanted[0], *wanted[1:][rows["paired"].to_numpy(bool)]])  # a pair needs its seed on both sides
    names = [baseline, *rows.index]
    expected = (wanted - done[names]).clip(lower=0)
    table.loc[names, "expected"] = expected
    table.loc[names, "more"] = np.minimum(expected, (MOST_GROWTH - 1) * done[names]).astype(int)
    return table


def errors_by_source(
    correct: np.ndarray,
    variants: Sequence[str],
    clusters: Sequence[int],
    baseline: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Standard errors of each difference to the baseline, in points: from the seeds and from the test images.

    ``images`` is the bootstrap over clusters of test images, drawn for all runs together since all saw the same images.
    ``seeds`` is that of means over runs. ``both`` adds them in quadrature; the disagreement of single runs on single
    images is in both sources, so that it is rather too large than too small.

    Args:
        correct: bool (runs, images).
        variants: (runs,) the variant of each run.
        clusters: (images,) which images belong together, such as the glyph they show.
        baseline: the variant that the others are compared with.
        resamples: how often the clusters are drawn.
        seed: of the drawing.

    Returns:
        One row per variant other than the baseline: ``difference seeds images both``.

    >>> correct = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=bool)
    >>> errors_by_source(correct, ["A", "A", "B", "B"], [0, 0, 1, 1], "A")[["difference", "seeds"]].round(1)
       difference  seeds
    B       -37.5   12.5
    """
    correct, names = np.asarray(correct, dtype=float), pd.Index(variants)
    if correct.shape != (len(names), len(clusters)) or baseline not in names:
        raise ValueError(
            f"correct: expected {len(names)} runs (variants, {baseline!r} among them) by {len(clusters)} images "
            f"(clusters), got shape {correct.shape}"
        )
    groups = names.unique()
    member = pd.get_dummies(pd.Series(clusters)).to_numpy(float)  # (images, clusters)
    means = pd.DataFrame(correct).groupby(names).mean().loc[groups].to_numpy()  # (variants, images)
    number = member.shape[1]
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), resamples)
    accuracy = 100 * (draws @ (means @ member).T) / (draws @ member.sum(0))[:, None]  # (resamples, variants)
    by_run = pd.Series(100 * correct.mean(1)).groupby(names).agg(["mean", "sem"]).loc[groups]
    reference = by_run.loc[baseline]
    table = pd.DataFrame({"difference": by_run["mean"] - reference["mean"]})
    table["seeds"] = np.hypot(by_run["sem"], reference["sem"])
    table["images"] = (accuracy - accuracy[:, [groups.get_loc(baseline)]]).std(0, ddof=1)
    table["both"] = np.hypot(table["seeds"], table["images"])
    return table.drop(index=baseline)


_PLANNED = ["variance", "runs", "base_variance", "base_runs", "image_variance"]


def _rows(
    runs: pd.DataFrame,
    baseline: str,
    metric: str,
    sequential: bool,
    image_errors: Mapping[str, float] | None,
    blocks: str | None,
) -> pd.DataFrame:
    """Of each variant but the baseline: difference, half width, paired or not, and what the half width is made of."""
    seeds = by_seed(runs, metric)
    if baseline not in seeds:
        raise ValueError(f"baseline: expected one of {', '.join(map(str, seeds))}, got {baseline!r}")
    others = seeds.columns.drop(baseline)
    if image_errors is not None and (missing := others.difference(image_errors.keys()).tolist()):
        raise ValueError(f"image_errors: expected a standard error for each variant, got none for {missing}")
    block = runs.assign(_all=0).drop_duplicates("seed").set_index("seed")[blocks or "_all"]
    reference, unseen = seeds[baseline].dropna(), ALLOWANCE if sequential else 0
    paired = _seeds_matter(seeds.dropna(), block)
    rows = {}
    for name in others:
        own, both = seeds[name].dropna(), seeds[[name, baseline]].dropna()
        images = 0.0 if image_errors is None else image_errors[name] ** 2
        differences = both[name] - both[baseline]
        choices = []  # Welch's interval, and the paired one, which is Welch's with a baseline that has no spread
        for difference, sample, base_variance, base_runs in (
            (own.mean() - reference.mean(), own, _variance(reference, block), len(reference)),
            (differences.mean(), differences, 0.0, len(both)),
        ):
            parts = (_variance(sample, block), len(sample), base_variance, base_runs, images)
            half = half_width(*parts, comparisons=len(others), unseen=unseen, blocks=block.nunique())
            choices.append((difference, float(half), *parts))
        of_row = paired and len(both) > block.nunique() + 1
        rows[name] = (*choices[of_row], of_row)
    return pd.DataFrame.from_dict(rows, "index", columns=["difference", "half", *_PLANNED, "paired"])


def _variance(values: pd.Series, block: pd.Series) -> float:
    """Of values by seed, within blocks."""
    freedom = len(values) - block[values.index].nunique()
    return float((_within(values, block) ** 2).sum() / freedom) if freedom > 0 else np.nan


def _within(values: pd.Series, block: pd.Series) -> pd.Series:
    return values - values.groupby(block[values.index]).transform("mean")


def _seeds_matter(seeds: pd.DataFrame, block: pd.Series) -> bool:
    """Whether runs of one seed are alike, over all variants, within blocks: a two-way analysis of variance at 2.5 %."""
    within = seeds.apply(_within, block=block)
    freedom, others = len(seeds) - block[seeds.index].nunique(), seeds.shape[1] - 1
    if freedom < 3 or others < 1:
        return False
    by_seed_alone = within.mean(axis=1)
    rest = ((within.sub(by_seed_alone, axis=0)) ** 2).to_numpy().sum() / others
    between = seeds.shape[1] * (by_seed_alone**2).sum()
    return bool(between > rest * stats.f.isf((1 - CONFIDENCE) / 2, freedom, freedom * others))


def half_width(
    variance, runs, base_variance, base_runs, image_variance=0.0, *, comparisons: int, unseen: int = 0, blocks: int = 1
):
    """Half of Welch's interval of a difference of means at Šidák's level; all arguments broadcast.

    t(nu) sqrt(v / n + v_0 / n_0 + images), with n and n_0 smaller by ``unseen`` (:data:`ALLOWANCE` or 0) and Welch's
    degrees of freedom nu, for which the images' variance counts as known; a variance within ``blocks`` has as many
    fewer. NaN with fewer than two runs.

    >>> float(half_width(1.0, 5, 1.0, 5, comparisons=1).round(3))  # t(8) sqrt(2 / 5)
    1.458
    """
    error, freedom = _error(variance, runs, base_variance, base_runs, image_variance, unseen, blocks)
    return error * stats.t.isf(level_per_comparison(comparisons) / 2, freedom)


def _error(variance, runs, base_variance, base_runs, image_variance, unseen, blocks):
    """Standard error of a difference and its degrees of freedom (Welch, 1947)."""
    n, n_0 = (np.where((m := np.asarray(count, float) - unseen) > blocks, m, np.nan) for count in (runs, base_runs))
    own, base = variance / n, base_variance / n_0
    total = own + base + image_variance
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 / (own**2 / (n - blocks) + base**2 / (n_0 - blocks))
    return np.sqrt(total), np.where(total > 0, freedom, 1.0)  # without any spread the width is 0


def _plan(
    variance, runs, base_variance, base_runs, image_variance, precision: float, *, comparisons: int, blocks: int = 1
) -> np.ndarray:
    """Runs of the baseline and of k variants that reach a precision with the fewest in total, by present spreads.

    Args:
        variance, runs, base_variance, base_runs, image_variance: (..., k), as in :func:`half_width`.
        precision: wanted half width.
        comparisons, blocks: as in :func:`half_width`.

    Returns:
        (..., 1 + k), the baseline first; infinite where the spreads are known too badly to tell.
    """
    _, freedom = _error(variance, runs, base_variance, base_runs, image_variance, ALLOWANCE, blocks)
    room = (precision / stats.t.isf(level_per_comparison(comparisons) / 2, freedom)) ** 2 - image_variance
    start = np.max(base_runs, axis=-1, keepdims=True) - ALLOWANCE
    tried = np.ceil(start * np.geomspace(1, 200, 100))[..., None]  # (..., tried, 1) runs of the baseline
    left = room[..., None, :] - base_variance[..., None, :] / tried
    with np.errstate(divide="ignore"):
        others = np.ceil(variance[..., None, :] / np.maximum(left, 0))
    others = np.maximum(np.nan_to_num(others, nan=np.inf, posinf=np.inf), runs[..., None, :] - ALLOWANCE)
    best = (others.sum(-1) + tried[..., 0]).argmin(-1)[..., None]
    chosen = np.take_along_axis(np.concatenate([tried, others], -1), best[..., None], -2)[..., 0, :]
    return np.where(np.isinf(chosen).any(-1, keepdims=True), np.inf, chosen + ALLOWANCE)
