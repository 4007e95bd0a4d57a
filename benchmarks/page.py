"""The speed part of docs/benchmarks.md, from the rows of the races' files: nothing in it is written by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contest import Race
from judging import Claim, rounds_of

BEGIN, END = "<!-- speed: written by `make bench` -->", "<!-- speed: end -->"
Format = Callable[[float], str]
UNITS: dict[str, Format] = {  # of claims
    "times": lambda x: f"{x:.2f} times",
    "times as long": lambda x: f"{x:.1f} times as long",
    "forward passes": lambda x: f"{x:.2f} forward passes",
    "%": lambda x: f"{100 * x:.2f} %",
    "s": lambda x: f"{x:.3f} s",
    "GB": lambda x: f"{x / 1e9:.2f} GB",
}
COLUMNS: dict[str, tuple[str, Format]] = {  # figures that tables show, in this order
    "seconds": ("whole process, s", lambda x: f"{x:.1f}"),
    "work_seconds": ("after imports, s", lambda x: f"{x:.2f}"),
    "data_seconds": ("of it reading, s", lambda x: f"{x:.2f}"),
    "train_seconds": ("of it training, s", lambda x: f"{x:.2f}"),
    "pass_seconds": ("a pass, s", lambda x: f"{x:.2f}"),
    "pass_float32_seconds": ("a pass in float32, s", lambda x: f"{x:.2f}"),
    "nothing_seconds": ("`python -c pass`, s", lambda x: f"{x:.3f}"),
    "help_seconds": ("`finetune --help`, s", lambda x: f"{x:.3f}"),
    "images_per_second": ("images/s", lambda x: f"{x:,.0f}"),
    "fixed_images_per_second": ("a fixed batch, images/s", lambda x: f"{x:,.0f}"),
    "share": ("share", lambda x: f"{100 * x:.1f} %"),
    "accuracy": ("accuracy", lambda x: f"{100 * x:.2f} %"),
    "peak_bytes": ("peak memory, MB", lambda x: f"{x / 1e6:,.0f}"),
}


@dataclass(frozen=True)
class Result:
    """What a race's file holds: `about` the run (machine, threads, date, command), and a row for every time one ran."""

    race: Race
    about: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def speed_part(results: Sequence[Result]) -> str:
    """Everything between the markers: what was asked and reached, then a table for each race."""
    if not results:
        return "Not measured yet: `make bench` measures and writes this part."
    asked = ["| asked | measured | reached |", "|---|---|---|"]
    asked += [claim_row(claim, result) for result in results for claim in result.race.claims]
    head = "Medians over the rounds and, in brackets, their range; contestants ran in turns, a round after the other."
    return "\n".join([head, "", *asked, *(line for result in results for line in ("", *_section(result)))])


def claim_row(claim: Claim, result: Result) -> str:
    """The line of one claim."""
    rounds, show = rounds_of(result.rows), UNITS[claim.unit]
    bound = f"at least {show(claim.at_least)}" if claim.at_least is not None else f"at most {show(claim.at_most or 0)}"
    reached = {True: "yes", False: "no", None: "not measured"}[claim.reached(rounds)]
    return f"| {claim.text}: {bound} | {middle_and_range(claim.values(rounds), show)} | {reached} |"


def middle_and_range(values: Sequence[float], show: Format) -> str:
    """`median (least to most)`, the median alone where there is one value, a dash where there is none."""
    if not values:
        return "–"
    middle, least, most = show(statistics.median(values)), show(min(values)), show(max(values))
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


def _section(result: Result) -> list[str]:
    race, about, rows = result.race, result.about, result.rows
    shown = [key for key in COLUMNS if any(key in row["figures"] for row in rows)]
    table = ["| | " + " | ".join(COLUMNS[key][0] for key in shown) + " |", "|---|" + "---|" * len(shown)]
    failures = []
    for contestant in race.contestants:
        own = [row for row in rows if row["contestant"] == contestant.name]
        good = [row["figures"] for row in own if row["failure"] is None]
        cells = [middle_and_range([f[key] for f in good if key in f], COLUMNS[key][1]) for key in shown]
        table.append(f"| {contestant.name} | " + " | ".join(cells) + " |")
        bad = [row["failure"] for row in own if row["failure"] is not None]
        if bad:
            failures.append(f"{contestant.name}: failed in {len(bad)} of {len(own)} rounds ({bad[-1]}).")
        elif not own:
            failures.append(f"{contestant.name}: did not run.")
    return [f"### {race.title}", "", race.about, "", *table, "", *failures, *_circumstances(about, rows)]


def _circumstances(about: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    versions = sorted({f"{name} {number}" for row in rows for name, number in row["versions"].items()})
    rounds = 1 + max((row["round"] for row in rows), default=-1)
    threads = f"{about['threads']} thread{'s' if about['threads'] != 1 else ''}"
    return [
        f"{rounds} rounds on {about['date']}, {threads}; {about['machine']}; Python {about['python']}, "
        f"{', '.join(versions)}; commit {about['commit']}; `{about['command']}`."
    ]


def rewrite(page: Path, part: str) -> None:
    """Puts the speed part between the markers of the page. ValueError where they are not."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: expected two lines, {BEGIN} and below it {END}, for what is written between them")
    page.write_text(f"{before}{BEGIN}\n\n{part}\n\n{END}{after}", encoding="utf-8")
