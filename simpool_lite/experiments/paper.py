"""What the paper and its release report: ``data/paper.csv``, every number once, with its setting and source."""

from collections.abc import Collection
from difflib import get_close_matches
from functools import cache

import pandas as pd

from ..files import repository_root

KEY = ["table", "row", "network", "setting", "metric"]  # names a number; value and source follow it


@cache
def _everything() -> pd.DataFrame:
    # Text stays text: the table "2" is no number, and an empty setting is not missing.
    return pd.read_csv(
        repository_root() / "data" / "paper.csv", dtype=dict.fromkeys([*KEY, "source"], str), keep_default_na=False
    )


def paper_table(**where: str | Collection[str]) -> pd.DataFrame:
    """Return the published numbers whose columns have the given values.

    Args:
        **where: a column and its value, or several values of which a row must have one.

    Returns:
        Columns ``table row network setting metric value source``, in the file's order.

    Raises:
        ValueError: there is no such column, or no number with that value and those before it.

    Source: Psomas et al., ICCV 2023, and the READMEs and model cards of its release.

    >>> paper_table(table="3", network="ViT-S", row="SimPool")[["setting", "metric", "value"]].values.tolist()
    [['DINO, 100 epochs, no gamma', 'k-NN', 69.8], ['DINO, 100 epochs, gamma 1.25', 'linear', 72.8]]
    """
    rows = _everything()
    for column, values in where.items():
        _check(f"column {column!r}", column, list(rows))
        values = [values] if isinstance(values, str) else list(values)
        for value in values:
            _check(f"{column} {value!r} in {_words(where, column)}", value, rows[column].unique())
        rows = rows[rows[column].isin(values)]
    return rows.reset_index(drop=True)


def published(table: str, **where: str | Collection[str]) -> dict[str, float]:
    """Return the numbers of one table of the paper by the name of their row.

    Args:
        table: "2" to "10", "Figure 3", or "README" for what the release itself reports.
        **where: see :func:`paper_table`.

    Returns:
        Row to value, for example for ``judge(..., published=...)``.

    Raises:
        ValueError: as in :func:`paper_table`; or a row has two numbers: the message names the columns in which they
            differ, and their values.

    >>> published("5", setting="DINO, CUB")
    {'CLS': 82.7, 'SimPool': 86.1}
    """
    rows = paper_table(table=table, **where)
    twice = rows[rows.row.duplicated(keep=False)]
    if len(twice):
        differ = [column for column in KEY if (twice.groupby("row")[column].nunique() > 1).any()]
        choices = "; ".join(f"{column}: {', '.join(map(repr, twice[column].unique()))}" for column in differ)
        raise ValueError(f"row: expected one number each, {twice.row.iloc[0]!r} has several; choose by {choices}")
    return dict(zip(rows.row, rows.value, strict=True))


def _check(what: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        nearest = get_close_matches(str(value), map(str, known), n=1, cutoff=0)[0]
        raise ValueError(f"paper.csv has no {what}; the nearest is {nearest!r}")


def _words(where: dict, until: str) -> str:
    earlier = list(where)[: list(where).index(until)]
    return " and ".join(f"{column} {where[column]!r}" for column in earlier) or "any table"
