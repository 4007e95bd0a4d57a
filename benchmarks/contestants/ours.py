"""One finetune command, run in this process as the command line runs it; figures from its report and from watches.

    python ours.py --data ROOT --work FOLDER --seed N [--watch NAME=MODULE:FUNCTION ...] [--preload MODULE] [--again]
        COMMAND [OPTION ...]

`{work}` in an option becomes the folder of what was prepared. `--watch` times every call of a function of finetune's:
NAME_seconds is their sum. `--preload` imports a module beforehand: the clocks of the peers start after all imports too.
`--again` runs the command once before, in a process of its own, so that what a first run keeps
is there; otherwise nothing is.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract import answer, options

PROJECT = Path(__file__).resolve().parents[2]


class Watch:
    """Seconds spent in a function of finetune's, put in its place in the module that calls it."""

    def __init__(self, place: str) -> None:
        module, _, name = place.partition(":")
        self.seconds = 0.0
        try:
            self.inner: Callable[..., Any] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            sys.exit(f"--watch {place}: {error}; mend the row of benchmarks/races.py")
        setattr(sys.modules[module], name, self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return self.inner(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - started


def command_line(rest: list[str], work: Path, seed: int) -> list[str]:
    """finetune's arguments, with paths in the project made absolute: the command runs in an empty folder."""
    given = [argument.replace("{work}", str(work)) for argument in rest]
    given = [str(PROJECT / argument) if (PROJECT / argument).is_file() else argument for argument in given]
    return [*given, "--seed", str(seed), "--json", "--quiet", "--out", "out.safetensors"]


def run_command(
    arguments: list[str], places: dict[str, str], preload: list[str]
) -> tuple[dict[str, Any], dict[str, Watch]]:
    """Runs `python -m finetune` here; the report that it prints, and the watches put up.

    They are put up where the command line hands over to click: before that nothing heavy may be imported.
    """
    from finetune.cli.main import cli

    watches: dict[str, Watch] = {}
    inner = cli.main

    def watched(*given: Any, **named: Any) -> Any:
        for module in preload:
            importlib.import_module(module)
        watches.update({name: Watch(place) for name, place in places.items()})
        return inner(*given, **named)

    cli.main = watched  # type: ignore[method-assign]
    sys.argv = ["finetune", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        runpy.run_module("finetune", run_name="__main__", alter_sys=True)
    if not printed.getvalue():
        sys.exit("finetune printed no report")
    return json.loads(printed.getvalue()), watches


def figures(report: dict[str, Any], watches: dict[str, Watch]) -> dict[str, float]:
    """What the races read from a report: `rows_seconds` is the time of the epochs as the report has them."""
    rows = [row for phase in report["phases"] for row in phase["epochs"]]
    result = report["results"].get("test") or report["results"]["after"]
    return {
        "rows_seconds": sum(row["seconds"] for row in rows),
        "images_per_second": rows[-1]["images_per_second"],
        "accuracy": result["accuracy"],
        **{f"{name}_seconds": watch.seconds for name, watch in watches.items()},
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--watch", action="append", default=[], metavar="NAME=MODULE:FUNCTION")
    parser.add_argument("--preload", action="append", default=[], metavar="MODULE")
    parser.add_argument("--again", action="store_true")
    given, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FINETUNE_DATA_ROOT"] = str(given.data.resolve())
        os.environ["FINETUNE_CACHE"] = f"{folder}/cache"
        arguments = command_line(rest, given.work.resolve(), given.seed)
        os.chdir(folder)
        if given.again:
            subprocess.run([sys.executable, "-m", "finetune", *arguments], check=True, stdout=subprocess.DEVNULL)
        places = dict(text.partition("=")[::2] for text in given.watch)
        report, watches = run_command(arguments, places, given.preload)
        os.chdir(PROJECT)
    answer(("torch", "timm"), **figures(report, watches))


if __name__ == "__main__":
    main()
