"""What was asked for and whether it was reached: figures of contestants, round by round, against a bound.

A contestant is compared with another one of the same round, which ran minutes before or after it; the median over the
rounds is held against the bound.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, float]
Round = Mapping[str, Figures]  # by contestant; those that failed are missing
Values = Callable[[Sequence[Round]], list[float]]
Names = str | Sequence[str]


@dataclass(frozen=True)
class Claim:
    """Something asked for: `values` of the rounds, their median not above `at_most` or not below `at_least`.

    `unit` is one of the keys of `page.UNITS`.
    """

    text: str
    values: Values
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        assert (self.at_least is None) != (self.at_most is None), "a claim has one bound"

    def reached(self, rounds: Sequence[Round]) -> bool | None:
        """None when nothing was measured that could tell."""
        found = self.values(rounds)
        if not found:
            return None
        middle = statistics.median(found)
        return middle >= self.at_least if self.at_least is not None else middle <= self.at_most


def each(of: Callable[[Round], float]) -> Values:
    """A number of every round; none of a round that lacks a contestant it needs."""

    def values(rounds: Sequence[Round]) -> list[float]:
        found = []
        for one in rounds:
            try:
                found.append(of(one))
            except KeyError:
                continue
        return found

    return values


def ratio(above: Names, below: Names, figure: str, best: Callable[[list[float]], float] = min) -> Values:
    """`figure` of one contestant over another's, round by round; of several, the `best` of those that finished."""
    return each(lambda one: _best(one, above, figure, best) / _best(one, below, figure, best))


def _best(one: Round, names: Names, figure: str, best: Callable[[list[float]], float]) -> float:
    found = [one[name][figure] for name in ([names] if isinstance(names, str) else names) if name in one]
    if not found:
        raise KeyError(figure)
    return best(found)


def mean(name: str, figure: str) -> Values:
    """The mean over all rounds, as one number."""

    def values(rounds: Sequence[Round]) -> list[float]:
        found = [one[name][figure] for one in rounds if name in one]
        return [statistics.mean(found)] if found else []

    return values


def apart(first: str, second: str, figure: str) -> Values:
    """How far two contestants' means are apart, as a part of the larger of their ranges."""

    def values(rounds: Sequence[Round]) -> list[float]:
        one, other = ([r[name][figure] for r in rounds if name in r] for name in (first, second))
        if len(one) < 2 or len(other) < 2:
            return []
        spread = max(max(one) - min(one), max(other) - min(other))
        distance = abs(statistics.mean(one) - statistics.mean(other))
        return [distance / spread if spread else float(distance > 0) * float("inf")]

    return values


def rounds_of(rows: Iterable[Mapping[str, Any]]) -> list[Round]:
    """The rows of one race as rounds; failed rows are left out."""
    found: dict[int, dict[str, Figures]] = {}
    for row in rows:
        one = found.setdefault(row["round"], {})
        if row["failure"] is None:
            one[row["contestant"]] = row["figures"]
    return [found[number] for number in sorted(found)]
