"""Time and memory of a training and of its report, against the number of classes and of pictures.

    python benchmarks/classes.py [--sizes 10x4 1000x4 10000x4 10x400 10x4000] [--work FOLDER]

Each size is CLASSES×PICTURES of a class. Makes grey PNG files of 28×28 pixels from one seed in FOLDER/SIZE/CLASS/, and
runs one epoch of `cnn` on them, then `evaluate --confusion`, `verify`, `--resume` of the run that has finished, and
`push --dry-run`, a process each, with one thread. Seconds are those of the processor, imports included, but those of
the report: from the last step of the training until the process has written all, with the imports it needs. Memory is
the process's peak; that of the report is the peak from the last step of the training on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import PROJECT, circumstances
from PIL import Image

SIZES = ("10x4", "1000x4", "10000x4", "10x400", "10x4000")
SIDE = 28
RECIPE: dict[str, Any] = {
    "kind": "pretrain",
    "model": "cnn",
    "data": {"validation": 0.25},
    "phases": [{"train": "all", "epochs": 1, "batch_size": 64, "optimizer": {"name": "adamw", "lr": 3e-3}}],
}


def make(folder: Path, classes: int, each: int) -> None:
    """A coarse pattern of each class under noise, unless the folder is there."""
    if folder.is_dir():
        return
    random, new = np.random.default_rng(0), folder.with_suffix(".new")
    for number in range(classes):
        (own := new / f"class-{number:05}").mkdir(parents=True)
        pattern = np.kron(random.integers(0, 256, (7, 7)), np.ones((4, 4)))
        for place in range(each):
            pixels = pattern + random.integers(-40, 40, (SIDE, SIDE))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(own / f"{place:04}.png")
    new.rename(folder)


def peak() -> float:
    """The largest resident set of this process since it was last forgotten, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def train(pictures: str) -> None:
    """In a process of its own: trains, and prints what training and report took."""
    import finetune
    from finetune.commands import pretrain

    noted, run_phases = {}, pretrain.run_phases

    def measured(*given: Any) -> Any:
        found = run_phases(*given)
        noted.update(training=peak(), before=time.process_time())
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        return found

    pretrain.run_phases = measured
    finetune.pretrain({**RECIPE, "data": {**RECIPE["data"], "name": pictures}}, out="out.safetensors")
    print(json.dumps([noted["training"], peak(), time.process_time() - noted["before"]]))


def run(folder: Path, *words: str) -> tuple[str, float, float]:
    """What a process printed, its processor seconds, and its peak, MB."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    output = folder / "printed.txt"
    with output.open("w") as file:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}")
    return output.read_text(), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def measure(work: Path, size: str) -> list[str]:
    """One row of the table."""
    classes, each = map(int, size.split("x"))
    make(work / size, classes, each)
    pictures = str(work / size)
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        recipe = folder / "out.json"  # JSON is YAML
        recipe.write_text(json.dumps({**RECIPE, "data": {**RECIPE["data"], "name": pictures}}))
        said, seconds, _ = run(folder, str(Path(__file__).resolve()), "--train", pictures)
        training, report, report_seconds = json.loads(said.splitlines()[-1])
        written = (
            sum(path.stat().st_size for path in (folder / "out.report.json", folder / "out.predictions.csv")) / 1e6
        )
        row = [f"{classes:,}", f"{classes * each:,}", f"{seconds:.1f} s", f"{training:,.0f} MB"]
        row += [f"{report_seconds:.1f} s", f"{report:,.0f} MB", f"{written:.1f} MB"]
        for words in (
            ("evaluate", "out.safetensors", "--data", pictures, "--confusion", "confusion.png"),
            ("verify", "out.safetensors"),
            ("pretrain", "--recipe", "out.json", "--out", "out.safetensors", "--resume"),
            ("push", "out.safetensors", "somebody/many", "--dry-run"),
        ):
            _, seconds, most = run(folder, "-m", "finetune", *words)
            row.append(f"{seconds:.1f} s, {most:,.0f} MB")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "finetune-classes")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(given.train)
        return
    given.work.mkdir(parents=True, exist_ok=True)
    columns = ["classes", "pictures", "training", "its memory", "report", "its memory", "its files"]
    columns += ["`evaluate --confusion`", "`verify`", "`--resume`", "`push --dry-run`"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for size in given.sizes:
        print("| " + " | ".join(measure(given.work.resolve(), size)) + " |", flush=True)
    print(json.dumps(circumstances(1)))


if __name__ == "__main__":
    main()
