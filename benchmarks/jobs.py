"""Times `finetune adapt --seeds` with several trainings at once against one after the other, side by side.

    python benchmarks/jobs.py [--jobs 2] [--rounds 1] [--engine dask://HOST:PORT | --singles] COMMAND [OPTION ...]

such as `... jobs.py adapt --from checkpoints/mnist.safetensors --target kmnist --shots 100 --seeds 6`. In each round
both run, each as a process of its own, timed whole with imports; which one is first changes. With --engine the second
is a run on that cluster; with --singles it is one `adapt --seed` after the other. Every training has one thread
(OMP_NUM_THREADS=1). Prints seconds, their ratio and the machine's load, and whether checkpoints and reports (times
aside) are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from finetune.study.design import parse_seeds

TIMES = ("seconds", "images_per_second")
SINGLES = "one run for each seed"


def absolute(argument: str) -> str:
    return str(Path(argument).resolve()) if Path(argument).exists() else argument


def timeless(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: timeless(value) for key, value in values.items() if key not in TIMES}
    return [timeless(value) for value in values] if isinstance(values, list) else values


def run_singles(words: list[str], folder: Path) -> tuple[float, str]:
    """Seconds of one run after the other, each of one of the seeds after --seeds; no hash."""
    place = words.index("--seeds")
    seeds = parse_seeds(words[place + 1])
    single = words[:place] + words[place + 2 :]
    return sum(run(single, ["--seed", str(seed)], folder)[0] for seed in seeds), ""


def run(words: list[str], more: list[str], folder: Path) -> tuple[float, str]:
    """Seconds of a run, and a hash of what it ends with."""
    command = [sys.executable, "-m", "finetune", *words, *more, "--quiet", "--json", "--out", "study.safetensors"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=folder, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        sys.exit(f"{' '.join(more)}: exit code {done.returncode}")
    report = json.dumps(timeless(json.loads(done.stdout)), sort_keys=True).encode()
    return seconds, hashlib.sha256((folder / "study.safetensors").read_bytes() + report).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engine")
    parser.add_argument("--singles", action="store_true")
    known, given = parser.parse_known_args()
    words = [absolute(word) for word in given]
    if "FINETUNE_DATA_ROOT" in os.environ:
        os.environ["FINETUNE_DATA_ROOT"] = absolute(os.environ["FINETUNE_DATA_ROOT"])
    many = f"--engine {known.engine}" if known.engine else f"--jobs {known.jobs}"
    many = SINGLES if known.singles else many
    ways = {"--jobs 1": ["--jobs", "1"], many: many.split()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ends = set()
    for number in range(known.rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            load = os.getloadavg()[0]
            with tempfile.TemporaryDirectory() as folder:
                single = name == SINGLES
                spent, end = run_singles(words, Path(folder)) if single else run(words, ways[name], Path(folder))
            seconds[name].append(spent)
            ends |= {end} if end else set()
            print(f"{name}: {spent:.1f} s (load {load:.1f} before, {os.getloadavg()[0]:.1f} after)", flush=True)
    one, several = (statistics.median(seconds[name]) for name in ways)
    print(f"--jobs 1 takes {one / several:.2f} times as long as {many}; 1 thread a training")
    print("the same checkpoints and reports" if len(ends) == 1 else "DIFFERENT checkpoints or reports")


if __name__ == "__main__":
    main()
