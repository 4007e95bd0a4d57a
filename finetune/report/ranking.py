"""The report of a ranking of sources: the typed form of `NAME.rank.json`, its table, and its conclusion in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from finetune.report.comparison import SIGNIFICANT, Comparison, p_text
from finetune.report.plots import ForestRow
from finetune.report.report import SeedScore, TargetSummary, TestSetUse, json_values, report_text
from finetune.report.statistics import holm, kendall
from finetune.report.tables import percent, test_set_lines
from finetune.text import amount, first_line, listed

State = Literal["fine-tuned", "not fine-tuned", "failed"]
FINE_TUNED: State = "fine-tuned"
NOT_FINE_TUNED: State = "not fine-tuned"
FAILED: State = "failed"
CHEAP_SCORES = {"logme": "LogME", "probe": "probe", "knn": "k-NN"}  # by their keys; the first one decides


@dataclass(frozen=True)
class CheapScores:
    """Scores of the source's frozen features of the training images; means over the seeds' choices of images.

    knn, probe: accuracies, cross-validated; None where no class has two images. logme: mean log evidence of a label.
    """

    knn: float | None
    probe: float | None
    logme: float
    seconds: float

    @property
    def order(self) -> tuple[float, float]:
        """What the sources are chosen by, higher for better: LogME, among equals the probe's accuracy."""
        return (self.logme, self.probe or 0.0)


@dataclass(frozen=True)
class AgainstBest:
    """A source against the best one, over the same test images and, where there are several, seeds; fractions.

    The interval is of this pair alone. adjusted_p_value: by Holm, for all pairs of fine-tuned sources.
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float
    adjusted_p_value: float
    detectable: float | None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One source of a ranking. `source` as it was given; a key that does not apply is None.

    state: `fine-tuned`, `not fine-tuned` (its scores were too low), or `failed`, for which `error` says why. random:
    it has random weights. place: 1 for the best. tied: it cannot be told from the best. bytes: of its weights with a
    head for the target. seconds: of its fine-tuning, all seeds together.
    """

    source: str
    name: str
    random: bool
    state: State
    place: int | None = None
    model: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    scores: CheapScores | None = None
    accuracy: float | None = None
    ci95: tuple[float, float] | None = None
    per_seed: list[SeedScore] = field(default_factory=list)
    against_best: AgainstBest | None = None
    tied: bool | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """A ranking of sources on one target; the best first, those not fine-tuned below, those that failed last.

    tied: names of the sources that cannot be told from the best, itself among them. comparisons: pairs that the
    p-values are adjusted for. kendall: of each cheap score, how it orders the fine-tuned sources compared with how
    their accuracies do; None with fewer than three.
    """

    kind: str = "rank"
    target: TargetSummary
    recipe: dict[str, Any]
    seeds: list[int]
    shots_vary: bool
    top: int
    candidates: list[Candidate]
    best: str
    tied: list[str]
    comparisons: int
    kendall: dict[str, float | None]
    conclusion: str
    seconds: dict[str, float]
    device: str
    environment: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    test_set: TestSetUse | None = None

    @property
    def failed(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.state == FAILED]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return json_values(asdict(self))

    def to_json(self) -> str:
        """The text of `NAME.rank.json`."""
        return report_text(self.to_dict())


def adjusted(pairs: Mapping[tuple[str, str], Comparison]) -> dict[tuple[str, str], float]:
    """Holm's p-values of all pairs, so that picking the best one by its result is paid for."""
    return dict(zip(pairs, holm([comparison.p_value for comparison in pairs.values()]), strict=True))


def is_tied(adjusted_p_value: float) -> bool:
    return adjusted_p_value >= SIGNIFICANT


def agreement(fine_tuned: Sequence[Candidate]) -> dict[str, float | None]:
    """Kendall's tau of each cheap score with the fine-tuned accuracies."""
    found: dict[str, float | None] = {}
    for key in CHEAP_SCORES:
        pairs = [
            (score, candidate.accuracy)
            for candidate in fine_tuned
            if (score := getattr(candidate.scores, key, None)) is not None and candidate.accuracy is not None
        ]
        found[key] = kendall([score for score, _ in pairs], [accuracy for _, accuracy in pairs])
    return found


def conclude(fine_tuned: Sequence[Candidate], target: str, *, seeds: Sequence[int], left_out: int = 0) -> str:
    """What to start from, in one sentence; the fine-tuned candidates come best first.

    seeds: with a single one it speaks of single trainings. left_out: sources that were not fine-tuned.
    """
    best, *others = fine_tuned
    assert best.accuracy is not None
    score, who = percent(best.accuracy), f"random weights ({best.name})" if best.random else best.name
    if not others:
        return f"{who}: {score} on {target} after fine-tuning; nothing else was fine-tuned, so nothing is compared"
    among = f" of the {len(fine_tuned)} fine-tuned" if left_out else ""
    start = f"best on {target}{among}: {who}, {score} after fine-tuning"
    luck = "; with one seed that is about these trainings alone" if len(seeds) == 1 else ""
    tied = [candidate for candidate in others if candidate.tied]
    if not tied:
        second = others[0].against_best
        assert second is not None
        gap = f"{_points(-second.difference)} points (adjusted {p_text(second.adjusted_p_value)})"
        rest = f"{others[0].name}, by {gap}"
        if len(others) > 1:
            rest = f"each of the others; {others[0].name}, the next, is {gap} behind"
        harm = ": starting from the others hurts or brings nothing" if best.random else ""
        return f"{start}, shown to be better than {rest}{harm}{luck}"
    sentence = f"{start}, but {listed(candidate.name for candidate in tied)} cannot be told from it"
    more = f"; more seeds may tell: --seeds {_twice(seeds)} --resume{luck}"
    if best.random or any(candidate.random for candidate in tied):
        return f"{sentence}: as random weights are among these, no source is shown to help{more}"
    smallest = min([best, *tied], key=lambda candidate: candidate.parameters or 0)
    same = smallest.parameters == best.parameters
    return f"{sentence}{more}" if same else f"{sentence}; of these {smallest.name} is the smallest{more}"


def _twice(seeds: Sequence[int]) -> str:
    """What --seeds takes for these seeds and as many more: as in '6' after 0, 1 and 2, or '3,7,0,1' after 3 and 7."""
    if list(seeds) == list(range(len(seeds))):
        return str(2 * len(seeds))
    others = [seed for seed in range(2 * len(seeds)) if seed not in seeds]
    return ",".join(map(str, [*seeds, *others[: len(seeds)]]))


def rank_parts(report: RankReport) -> list[RenderableType]:
    """What `finetune rank` shows: the table, how far the scores foretold it, and the conclusion."""
    target = report.target
    title = f"{target.name}: {len(target.classes)} classes; {target.train:,} to learn from, {target.test:,} to test"
    table = Table(title=f"{title}; {len(report.seeds)} seeds" if len(report.seeds) > 1 else title, title_justify="left")
    for heading in ("", "source", "fine-tuned, %", "to the best, points"):
        table.add_column(heading, justify="left" if heading == "source" else "right", overflow="fold")
    for heading in (*CHEAP_SCORES.values(), "seconds", "size"):
        table.add_column(heading, justify="right", overflow="fold")
    for candidate in report.candidates:
        table.add_row(*_cells(candidate))
    found: list[RenderableType] = [table]
    found += [Text(f"{own.name} failed: {first_line(own.error)}") for own in report.failed]
    if report.comparisons > 1:
        pairs = f"p-values are adjusted (Holm) for the {report.comparisons} pairs of fine-tuned sources"
        found.append(Text(f"{pairs}; intervals (95 %) are of one pair each"))
    found.append(Text(_kendall_text(report)))
    found += [Text(line) for line in test_set_lines(report.test_set)]
    return [*found, Text(report.conclusion)]


def rank_forest(report: RankReport) -> list[ForestRow]:
    """The fine-tuned sources for a forest plot, the best first."""
    return [
        ForestRow(own.name, own.accuracy, own.ci95, [seed.accuracy for seed in own.per_seed])
        for own in report.candidates
        if own.accuracy is not None and own.ci95 is not None
    ]


def _cells(candidate: Candidate) -> list[str]:
    """A row of the table; seconds are those of the scores and of fine-tuning."""
    scores, against = candidate.scores, candidate.against_best
    result, behind = candidate.state.replace(" ", "\u00a0"), ""
    if candidate.accuracy is not None and candidate.ci95 is not None:
        low, high = candidate.ci95
        result = f"{100 * candidate.accuracy:.2f} ({100 * low:.2f} to {100 * high:.2f})"
        behind = "the best"
    if against is not None:
        ends = " to ".join(_points(end, "+") for end in against.ci95)
        tied = ", tied" if candidate.tied else ""
        behind = f"{_points(against.difference, '+')} ({ends})\n{p_text(against.adjusted_p_value)}{tied}"
    cheap = ["", "", ""] if scores is None else [f"{scores.logme:.3f}", _share(scores.probe), _share(scores.knn)]
    seconds = "" if scores is None else f"{scores.seconds:.1f}"
    seconds += "" if candidate.seconds is None else f"\n+ {candidate.seconds:.1f}"
    known = candidate.parameters is not None and candidate.bytes is not None
    size = f"{_count(candidate.parameters or 0)}\n{amount(candidate.bytes or 0)}" if known else ""
    place = "" if candidate.place is None else str(candidate.place)
    return [place, candidate.name, result, behind, *cheap, seconds, size]


def _kendall_text(report: RankReport) -> str:
    count = sum(candidate.state == FINE_TUNED for candidate in report.candidates)
    known = [f"{CHEAP_SCORES[key]} {tau:+.2f}" for key, tau in report.kendall.items() if tau is not None]
    if count < 3:
        return f"how well the cheap scores foretell the order cannot be said: {count} fine-tuned, 3 are needed"
    if not known:
        return "how well the cheap scores foretell the order cannot be said: all are equal"
    return f"Kendall's tau of cheap scores and fine-tuned accuracy, over {count} sources: {', '.join(known)}"


def _points(fraction: float, sign: str = "") -> str:
    return f"{round(100 * fraction, 2) + 0.0:{sign}.2f}"


def _share(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def _count(number: int) -> str:
    """As in '421.6 k' or '11.7 M'."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
