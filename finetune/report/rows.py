"""The rows of the verdict: what each is called, how it was got, and what comparing it with `after` shows.

A new row is an entry here and its maker in `finetune/commands/baselines.py`; the report, tables, model card, sentences
and the recipe's `compare` follow from the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row. `title` and `how` are shown in tables and on model cards.

    optional: made only where a recipe's `compare` names it. compared: `after` is compared with it; `cause` is then what
    a difference is due to ("starting from these weights helps"), None where nothing can be said. detailed: the report
    has its scores per class and its confusion matrix. floor: it is about the images and not about any weights, so it
    is in no checkpoint, and the comparison with it is only told where it is not beaten.
    """

    title: str
    how: str
    optional: bool = False
    compared: bool = False
    cause: str | None = None
    detailed: bool = False
    floor: bool = False


MIN_SEEDS = 3  # from which on a comparison may speak of the procedure: of `cause`
INTERPOLATED = "interpolated"
MAJORITY = Row("majority", "always the commonest class of the training images", compared=True, floor=True)

ADAPT_ROWS: dict[str, Row] = {
    "majority": MAJORITY,
    "before": Row("before", "the source as it is", compared=True, cause="fine-tuning"),
    "linear_probe": Row("linear probe", "frozen features, best linear head", optional=True),
    "after": Row("after", "fine-tuned", detailed=True),
    INTERPOLATED: Row(
        "interpolated",
        "source and fine-tuned weights mixed",
        optional=True,
        compared=True,
        detailed=True,
    ),
    "scratch": Row(
        "scratch",
        "same network, images seen and seed, from random weights",
        optional=True,
        compared=True,
        cause="starting from these weights",
    ),
}
"""The rows of an adapt, by their key in reports, in the order of tables."""

PRETRAIN_ROWS: dict[str, Row] = {"majority": MAJORITY, "test": Row("test", "trained from scratch", detailed=True)}


STUDY_ROWS: dict[str, Row] = {"average": Row("average", "the seeds' weights averaged", detailed=True)}

OWN_ROWS = ("average", "after", "test")
"""The rows that are about a checkpoint's own weights; the first that its metadata has is its accuracy."""


def own_row(results: Mapping[str, object], recipe: Mapping[str, Any]) -> str | None:
    """The key of the row that is about a checkpoint's own weights: the one that its recipe's `keep` names, if any."""
    keep = recipe.get("keep")
    rows = (keep, *OWN_ROWS) if keep == INTERPOLATED else OWN_ROWS
    return next((key for key in rows if results.get(key) is not None), None)


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys of rows in the order of the verdict's table; those that are not known here come last, as they are."""
    known = list(ADAPT_ROWS | PRETRAIN_ROWS | STUDY_ROWS)
    return sorted(keys, key=lambda key: known.index(key) if key in known else len(known))


def row_of(key: str) -> Row:
    """The row of a report's key; one that is not known here (of a later version) is called by its key."""
    return (ADAPT_ROWS | PRETRAIN_ROWS | STUDY_ROWS).get(key) or Row(key.replace("_", " "), "")


def wanted_rows(compare: tuple[str, ...]) -> list[str]:
    """The keys of the rows that an adapt makes, where its recipe names these optional ones."""
    return [key for key, row in ADAPT_ROWS.items() if not row.optional or key in compare]


def rows_markdown() -> str:
    """The table of an adapt's rows in docs/reports.md; `python -m finetune.report.rows` prints it."""
    lines = ["| key | row | how it is got | made | compared with `after`, to say that |", "|---|---|---|---|---|"]
    for key, row in ADAPT_ROWS.items():
        made = "if `compare` names it" if row.optional else "always"
        said = (f"{row.cause} helps or hurts" if row.cause else "one is better") if row.compared else "not compared"
        lines.append(f"| `{key}` | {row.title} | {row.how} | {made} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(rows_markdown())
