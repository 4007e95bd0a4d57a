"""Measures what `finetune where` answers, and what its recipe brings against the one it was given.

    python benchmarks/where.py kmnist [--seeds 5]
    python benchmarks/where.py pictures --data hymenoptera --weights WEIGHTS [--seeds 5]
    python benchmarks/where.py planted [--seeds 5]

kmnist: from mnist to kmnist, 100 labelled images a class, against recipes/adapt.yaml. pictures: from a bare file of
weights of timm/mobilenetv2_035 to a folder, against recipes/adapt-timm.yaml. Each seed asks anew, from the images that
it learns from, and trains by both recipes; where the answer is all stages in every phase these are one training. The
interval is Student's, of the paired differences over the seeds. Seconds are of the training, scores beside them.

planted: 1,000 images of MNIST, other ones for each seed, as a folder, from the network of MNIST itself: once blurred
(a Gaussian of 1.5 pixels) with noise (a deviation of 40 of 255), where the first stages are to be named, and once with
labels permuted, where the head alone is. FINETUNE_DATA_ROOT says where the data sets are.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import t as student

import finetune
from finetune.data.registry import open_dataset
from finetune.paths import data_root

IMAGES, BLUR, NOISE = 1_000, 1.5, 40.0
Pixels = npt.NDArray[np.uint8]


def compare(source: str, target: str, recipe: str, seeds: int, given: dict[str, Any]) -> None:
    """Prints a line a seed, and the mean difference with its interval."""
    differences = []
    with tempfile.TemporaryDirectory() as work:
        for seed in range(seeds):
            own = {**given, "seed": seed, "device": "cpu"}
            answer = finetune.where(source, target, recipe, out=f"{work}/where.yaml", **own)
            reports = {}
            for name, file in (("given", recipe), ("where", f"{work}/where.yaml")):
                trains = [phase["train"] for phase in answer.recipe["phases"]]
                if name == "where" and trains == [phase["train"] for phase in reports["given"].recipe["phases"]]:
                    reports[name] = reports["given"]
                    continue
                out = f"{work}/{name}.safetensors"
                reports[name] = finetune.adapt(source, target, file, out=out, compare=False, **own)
            accuracy = {name: report.results["after"].accuracy for name, report in reports.items()}
            differences.append(accuracy["where"] - accuracy["given"])
            print(f"seed {seed}: {answer.conclusion}")
            for name, report in reports.items():
                most = max(phase.trainable_parameters for phase in report.phases)
                print(
                    f"  {name}: {100 * accuracy[name]:.2f} %, {most:,} parameters, {report.seconds:.0f} s", flush=True
                )
            print(f"  scores: {answer.seconds:.1f} s", flush=True)
    mean = statistics.mean(differences)
    half = float(student.ppf(0.975, seeds - 1)) * statistics.stdev(differences) / math.sqrt(seeds) if seeds > 1 else 0
    print(f"where - given over {seeds} seeds: {100 * mean:+.2f} ± {100 * half:.2f} points")


def planted(seeds: int) -> None:
    """Prints the answers to both planted problems, and in how many seeds they are the ones to be named."""
    train = open_dataset("mnist", data_root(None), download=False).train
    counts = {"blurred and noisy": 0, "permuted": 0}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        some = train.subset(rng.permutation(len(train))[:IMAGES])
        pixels, labels = some.images[:].numpy()[:, 0], some.labels.numpy()
        for name, (images, classes) in planted_problems(pixels, labels, rng):
            with tempfile.TemporaryDirectory() as work:
                write_folder(Path(work) / "images", images, classes)
                answer = finetune.where("mnist", f"{work}/images", out=f"{work}/where.yaml", device="cpu")
            trains = answer.where.trains
            wanted = trains == ["head"] if name == "permuted" else trains in (["conv1"], ["conv1", "conv2"])
            counts[name] += wanted
            gradients = ", ".join(f"{row.stage} {row.gradient:.2f}" for row in answer.where.stages)
            probe = answer.where.stages[-2].probe
            assert probe is not None
            print(f"seed {seed}, {name}: {' '.join(trains)}; probe {100 * probe:.1f} %, {gradients}", flush=True)
    print(", ".join(f"{name}: {count} of {seeds}" for name, count in counts.items()))


def planted_problems(
    pixels: Pixels, labels: npt.NDArray[np.int64], rng: np.random.Generator
) -> Iterator[tuple[str, tuple[Pixels, npt.NDArray[np.int64]]]]:
    """Images (uint8, N×H×W) and labels of each problem, by its name."""
    blurred = np.stack([gaussian_filter(image.astype(float), BLUR) for image in pixels])
    noisy = blurred + rng.normal(0, NOISE, pixels.shape)
    yield "blurred and noisy", (noisy.clip(0, 255).round().astype(np.uint8), labels)
    yield "permuted", (pixels, rng.permutation(10)[labels])


def write_folder(root: Path, images: Pixels, labels: npt.NDArray[np.int64]) -> None:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kmnist", "pictures", "planted"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default="hymenoptera")
    parser.add_argument("--weights")
    given = parser.parse_args()
    if given.what == "planted":
        planted(given.seeds)
    elif given.what == "kmnist":
        compare("mnist", "kmnist", "recipes/adapt.yaml", given.seeds, {"shots": 100})
    else:
        if given.weights is None:
            parser.error("pictures needs --weights, a file of ImageNet weights of mobilenetv2_035")
        options = {"model": "timm/mobilenetv2_035", "settings": ["model.pad_type=same"]}
        compare(given.weights, given.data, "recipes/adapt-timm.yaml", given.seeds, options)


if __name__ == "__main__":
    main()
