"""`finetune --help` against a Python that does nothing, many times in turns: seconds of the whole process, medians."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from contract import answer, options

COMMANDS = {"nothing": ["-c", "pass"], "help": ["-m", "finetune", "--help"]}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--times", type=int, default=30)
    given = parser.parse_args()
    for arguments in COMMANDS.values():
        seconds(arguments)  # the first one reads from the disk
    rounds = [{name: seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(given.times)]
    nothing, help_ = (statistics.median(found[name] for found in rounds) for name in COMMANDS)
    answer(("click",), nothing_seconds=nothing, help_seconds=help_, extra_seconds=help_ - nothing)


if __name__ == "__main__":
    main()
