"""What the records of a grid say: those that there are, verdicts on them, what a difference owes to the test images."""

import json
from dataclasses import replace

import pandas as pd

from ..measure.decide import decide, errors_by_source
from .config import RunConfig
from .grid import Grid
from .run import load_split
from .store import Store, unpack

MOST_SEEDS = 100  # looked for
PLANNED_SEEDS = {"head": 6, "once": 8, "long": 3}  # of a table before its first run; two heads for each of three trunks


def recorded_runs(grid: Grid, store: Store) -> pd.DataFrame:
    """What a store has of a grid and of further seeds of it, in the grid's order. Nothing is computed.

    Args:
        grid: its ``seeds`` do not matter.
        store: where the records are.
    """
    names = {config.hash(): variant for variant, config in replace(grid, seeds=MOST_SEEDS).runs()}
    records = store.records().set_index("config_hash", drop=False)
    found = records.loc[[key for key in names if key in records.index]].reset_index(drop=True)
    return found.assign(experiment=grid.experiment, variant=found.config_hash.map(names))


def image_errors(runs: pd.DataFrame, baseline: str) -> dict[str, float]:
    """The standard error of each variant's difference in top1 that comes from the choice of test images, in points.

    Images of one glyph belong together on photo-digits, elsewhere each stands for itself. For ``image_errors`` of
    :func:`~simpool_lite.measure.decide.decide`.

    Args:
        runs: records of protocol 2 that were tested on the same images.
        baseline: the variant that the others are compared with.

    Raises:
        ValueError: the records do not say which images were classified correctly.
    """
    runs = runs[runs.status == "ok"]
    if runs.correct.isna().any():
        raise ValueError("runs: expected records of protocol 2, with the column correct, got some without")
    config = RunConfig(**json.loads(runs.config.iloc[0]))
    if config.dataset == "photo-digits":
        clusters = load_split(config, config.measured_on).glyphs[:, 0].tolist()
    else:  # without the images: up to seven bits that fill the last byte count as images on which all agree
        clusters = range(8 * len(runs.correct.iloc[0]))
    correct = unpack(runs.correct, len(clusters))
    return errors_by_source(correct, runs.variant.tolist(), clusters, baseline)["images"].to_dict()


def judge(
    runs: pd.DataFrame,
    baseline: str = "SimPool",
    margin: float = 1.0,
    *,
    metric: str = "top1",
    published: dict[str, float] | None = None,
) -> pd.DataFrame:
    """The verdicts on a grid's runs: :func:`~simpool_lite.measure.decide.decide` as the course uses it.

    Intervals hold for these trunks (the seeds that share one are a block) and, of top1, take the choice of test images
    in. Where a variant has more runs than :data:`PLANNED_SEEDS`, their number followed from the results; the baseline
    and SimPool do not count, whose further runs other tables asked for.

    Args:
        runs: records of one grid.
        baseline: the variant that the others are compared with.
        margin: the smallest difference that would matter, in units of the metric.
        metric: the column to compare.
        published: the paper's numbers by variant.
    """
    others = runs[~runs.variant.isin({baseline, "SimPool"})]
    followed = others.groupby("variant").seed.nunique().max() > PLANNED_SEEDS[runs.regime.iloc[0]]
    blocks = "trunk" if runs.trunk.nunique() > 1 else None
    errors = image_errors(runs, baseline) if metric == "top1" else None
    return decide(
        runs, baseline, margin, metric, sequential=followed, blocks=blocks, image_errors=errors, published=published
    )
