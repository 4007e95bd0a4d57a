"""Runs one finetune command over several seeds and prints mean and range of its accuracies and seconds.

    python benchmarks/seeds.py [--seeds 0,1,2,3,4] [--keep FOLDER] COMMAND [OPTION ...]

for example `python benchmarks/seeds.py pretrain --recipe recipes/mnist.yaml`. Each seed is a process of its own, timed
whole, imports included. `{seed}` in an option becomes the seed. Checkpoints and run folders go to a temporary folder,
or, as seed-0.safetensors, runs/seed-0 and so on, to the folder given with --keep.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def absolute(argument: str) -> str:
    """A path that exists, so that it can be found from another folder; anything else as it is."""
    return str(Path(argument).resolve()) if Path(argument).exists() else argument


def run_seed(arguments: list[str], seed: int, folder: Path) -> tuple[dict[str, float], float, str]:
    """The accuracies in the report of one run, the seconds of the whole process, and the machine."""
    given = [absolute(argument.replace("{seed}", str(seed))) for argument in arguments]
    out = f"seed-{seed}.safetensors"
    command = [sys.executable, "-m", "finetune", *given, "--seed", str(seed), "--quiet", "--json", "--out", out]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=folder)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"seed {seed}: exit code {done.returncode}")
    report = json.loads(done.stdout)
    found = {name: result["accuracy"] for name, result in report["results"].items() if result is not None}
    if report["retention"]:
        found["source before"], found["source after"] = report["retention"]["before"], report["retention"]["after"]
    where = report["environment"]
    machine = f"{where['processor']}, {where['threads']} threads, {where['precision']}, torch {where['torch']}"
    return found, seconds, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--keep", type=Path)
    known, arguments = parser.parse_known_args()
    rows: dict[str, list[float]] = {}
    seconds = []
    if "FINETUNE_DATA_ROOT" in os.environ:
        os.environ["FINETUNE_DATA_ROOT"] = absolute(os.environ["FINETUNE_DATA_ROOT"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = known.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in known.seeds:
            found, spent, machine = run_seed(arguments, seed, folder)
            seconds.append(spent)
            for name, accuracy in found.items():
                rows.setdefault(name, []).append(100 * accuracy)
            print(
                f"seed {seed}: " + ", ".join(f"{n} {100 * a:.2f}" for n, a in found.items()) + f", {spent:.1f} s",
                flush=True,
            )
    print(f"\nfinetune {' '.join(arguments)}: {len(known.seeds)} seeds, {machine}")
    for name, values in rows.items():
        print(f"{name:14} mean {statistics.mean(values):.2f} %, range {min(values):.2f} to {max(values):.2f}")
    print(f"{'seconds':14} mean {statistics.mean(seconds):.1f}, range {min(seconds):.1f} to {max(seconds):.1f}")


if __name__ == "__main__":
    main()
