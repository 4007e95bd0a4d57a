"""What each `balance` of a recipe does to accuracy and balanced accuracy where classes are uneven, as Markdown.

    FINETUNE_DATA_ROOT=data python benchmarks/balance.py [--seeds 0,1,2] [--ratio 100] [--methods none,loss]

kmnist's training images in a long tail: 600 of the first class, and of each next one fewer by the same factor, down to
600 / RATIO. Measured on 150 others of each class of the training images, so that no test image has a say. Accuracy is
that on images as uneven as those to learn from: the classes weigh what they weigh there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import finetune
from finetune.data.image_dataset import ImageSet
from finetune.data.registry import open_dataset
from finetune.paths import data_root
from finetune.report.predictions import read_predictions

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("none", "sampler", "loss", "logit_adjustment")
ROWS = {"linear_probe": "linear probe", "after": "after"}
MOST, MEASURED = 600, 150
SETTINGS = ("data.validation=0", "phases[1].epochs=15", 'compare=["linear_probe"]')


def write_pictures(images: ImageSet, counts: list[int], folder: Path) -> None:
    """Writes train/CLASS and test/CLASS: `counts` pictures of each class to learn from, MEASURED others to measure."""
    for label, (name, count) in enumerate(zip(images.class_names, counts, strict=True)):
        chosen = (images.labels == label).nonzero().squeeze(1)[: count + MEASURED]
        for place, index in enumerate(chosen.tolist()):
            file = folder / ("test" if place < MEASURED else "train") / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[torch.tensor([index])][0, 0].numpy()).save(file)


def train(folder: Path, method: str, seed: int, counts: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Accuracy on images as uneven as those to learn from, and balanced accuracy, by row; in percent."""
    out, source = folder.parent / f"{method}-{seed}.safetensors", ROOT / "checkpoints" / "mnist.safetensors"
    settings = [*SETTINGS, f"balance={method}"]
    finetune.adapt(source, str(folder), ROOT / "recipes" / "adapt.yaml", settings=settings, seed=seed, out=out)
    answers = read_predictions(out.with_suffix(".predictions.csv"))
    found = {}
    for (row, _), column in answers.columns.items():
        right = column.predicted == answers.labels
        recalls = [100 * right[answers.labels == label].mean() for label in range(len(answers.class_names))]
        weights = [counts[name] for name in answers.class_names]
        found[row] = float(np.average(recalls, weights=weights)), statistics.mean(recalls)
    return found


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} % ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--ratio", default=100.0, type=float)
    parser.add_argument("--methods", default=",".join(METHODS))
    given = parser.parse_args()
    images = open_dataset("kmnist", data_root(None)).train
    classes = images.class_names
    counts = [round(MOST * given.ratio ** (-place / (len(classes) - 1))) for place in range(len(classes))]
    print(f"{', '.join(map(str, counts))} images to learn from\n")
    print("| `balance` | " + " | ".join(f"{row}: accuracy | balanced accuracy" for row in ROWS.values()) + " |")
    print("|---" * (1 + 2 * len(ROWS)) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        write_pictures(images, counts, folder)
        os.chdir(temporary)
        for method in given.methods.split(","):
            runs = [train(folder, method, seed, dict(zip(classes, counts, strict=True))) for seed in given.seeds]
            cells = [shown([run[row][which] for run in runs]) for row in ROWS for which in (0, 1)]
            print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
