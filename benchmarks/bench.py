"""finetune and its peers side by side, in turns, on the same images, machine and threads; writes docs/benchmarks.md.

    python benchmarks/bench.py [--races NAME,...] [--contestants NAME;...] [--rounds N] [--threads N]
    python benchmarks/bench.py --smoke      # finetune alone, small, about a minute: does it all still work?
    python benchmarks/bench.py --small      # the peers too, small and everything
    python benchmarks/bench.py --page       # measures nothing: writes the page again from benchmarks/results

A race runs all its contestants once, then all of them again in another order, and so on. What each one gave is a line
of benchmarks/results/RACE.jsonl, which replaces the one before when the race is done; the page is written from those
files. A contestant that fails costs its own row only. With --contestants or in small form nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contest import Contestant, Race
from environments import OURS, prepare
from machine import circumstances
from page import Result, claim_row, rewrite, speed_part
from races import RACES
from running import Ground, run

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs/benchmarks.md"


def in_turn(contestants: Sequence[Contestant], number: int) -> list[Contestant]:
    """The order of a round: each time another one is first."""
    first = number % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def rows_of(race: Race, ground: Ground, missing: dict[str, str], *, small: bool) -> Iterator[dict[str, Any]]:
    """Runs a race and yields a row for every run. `missing`: why an environment could not be made."""
    for number in range(race.rounds):
        for contestant in in_turn(race.contestants, number):
            if contestant.environment in missing:
                found = {"figures": {}, "versions": {}, "failure": missing[contestant.environment]}
            else:
                found = run(contestant, ground, number, race.limit, small=small)
            yield {"race": race.name, "contestant": contestant.name, "round": number, **found}


class Lines:
    """A file of JSON lines, called `file`.part until it is finished; none at all for None."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.part = file, file.with_name(f"{file.name}.part") if file is not None else None
        if self.part is not None:
            self.part.parent.mkdir(exist_ok=True)
            self.part.write_text("")

    def add(self, value: dict[str, Any]) -> None:
        if self.part is not None:
            with self.part.open("a") as opened:
                opened.write(json.dumps(value) + "\n")

    def finish(self) -> None:
        if self.part is not None:
            self.part.replace(self.file)


def hold(race: Race, ground: Ground, missing: dict[str, str], file: Path | None, *, small: bool) -> Result:
    """Runs a race, says on the way how it goes, and keeps its rows in `file`."""
    print(f"\n{race.title}: {race.rounds} rounds of {len(race.contestants)}", flush=True)
    about, rows, lines = circumstances(ground.threads), [], Lines(file)
    lines.add({"about": about})
    for row in rows_of(race, ground, missing, small=small):
        rows.append(row)
        lines.add(row)
        said = row["failure"] or ", ".join(f"{name} {number:,.4g}" for name, number in row["figures"].items())
        print(f"  round {row['round'] + 1}, {row['contestant']}: {said}", flush=True)
    result = Result(race, about, rows)
    for claim in race.claims:
        print(f"  {claim_row(claim, result)}", flush=True)
    lines.finish()
    return result


def kept() -> list[Result]:
    """What the files of the races hold, in the order of the registry."""
    results = []
    for race in RACES.values():
        file = RESULTS / f"{race.name}.jsonl"
        if file.is_file():
            about, *rows = map(json.loads, file.read_text().splitlines())
            results.append(Result(race, about["about"], rows))
    return results


def chosen(given: argparse.Namespace) -> list[Race]:
    """The races asked for, with the contestants and rounds asked for. Ends with what there is for an unknown name."""
    names = given.races.split(",") if given.races else list(RACES)
    if unknown := [name for name in names if name not in RACES]:
        sys.exit(f"no race {', '.join(unknown)}; there are {', '.join(RACES)}")
    races = [RACES[name] for name in names]
    if given.contestants:
        wanted = given.contestants.split(";")
        known = {contestant.name for race in races for contestant in race.contestants}
        if unknown := [name for name in wanted if name not in known]:
            sys.exit(f"no contestant {'; '.join(unknown)} in these races; there are {'; '.join(sorted(known))}")
        races = [replace(r, contestants=tuple(c for c in r.contestants if c.name in wanted)) for r in races]
    if given.smoke:
        races = [replace(r, contestants=tuple(c for c in r.contestants if c.environment == OURS)[:2]) for r in races]
    rounds = given.rounds or (1 if given.small else None)
    return [replace(race, rounds=rounds or race.rounds) for race in races if race.contestants]


def made(environments: set[str]) -> dict[str, str]:
    """Makes the environments; why, where one cannot be made."""
    missing = {}
    for name in sorted(environments):
        try:
            prepare(name)
        except (OSError, subprocess.CalledProcessError) as error:
            missing[name] = f"its environment could not be made: {error}"
    return missing


def make_photographs(ground: Ground, train: str, test: str) -> None:
    """In a process of its own: what this one has in memory would be in the peak memory of those that it starts."""
    counts = ["--train", train, "--test", test, "--data", str(ground.data)]
    subprocess.run([sys.executable, str(HERE / "photographs.py"), str(ground.work), *counts], check=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", help="names with commas between; all of them")
    parser.add_argument("--contestants", help="names with semicolons between; all of them")
    parser.add_argument("--rounds", type=int, help="how often each runs; what the race says")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for all alike; every core")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("FINETUNE_DATA_ROOT", "data")))
    parser.add_argument("--small", action="store_true", help="few images and steps, one round, nothing written")
    parser.add_argument("--smoke", action="store_true", help="the same of finetune alone")
    parser.add_argument("--page", action="store_true", help="write the page from the results that there are")
    given = parser.parse_args()
    given.small = given.small or given.smoke
    return given


def end_together() -> None:
    """A termination ends the contestant under way too, as Ctrl-C does; it would go on, and slow down the next race."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main() -> None:
    end_together()
    given = options()
    if not given.page:
        races = chosen(given)
        ground = Ground(given.data_root.resolve(), HERE / ".work" / ("small" if given.small else "full"), given.threads)
        if any(race.mnist for race in races) and not (ground.data / "MNIST/raw").is_dir():
            sys.exit(f"{ground.data}: MNIST is not there, as torchvision keeps it; name its folder with --data-root")
        if any(race.photographs for race in races):
            make_photographs(ground, *(("200", "50") if given.small else ("2000", "500")))
        missing = made({contestant.environment for race in races for contestant in race.contestants})
        keeps = not given.small and not given.contestants
        results = [
            hold(race, ground, missing, RESULTS / f"{race.name}.jsonl" if keeps else None, small=given.small)
            for race in races
        ]
        failed = [row for result in results for row in result.rows if row["failure"] is not None]
        if not keeps:
            sys.exit(1 if failed else 0)
    rewrite(PAGE, speed_part(kept()))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
