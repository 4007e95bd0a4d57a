"""Measures what `finetune check` finds of planted twins and turned labels, in real pictures.

    python benchmarks/check.py [--repeats 5] [--pictures PHOTOGRAPHS] [--speed]

FINETUNE_DATA_ROOT says where kmnist, fashion-mnist and mnist are; PHOTOGRAPHS is a folder of photographs, read at 64
pixels, whose twins are planted in all it has (it is left out where none is given). It is run in the root of the
project: labels are told by features of checkpoints/mnist.safetensors.

How it counts: 2,000 pictures that a seed draws from the training part, and 50 more that are copies of others among
them, ten of each kind: shifted by 1 or 2 pixels, with noise of 10 grey values, brighter or darker (by 0.75 to 1.25
times and -20 to 20), as JPEG of quality 60, mirrored. A pair that was not planted is a false one, though the set may
have twins of its own. Of 5,000 pictures 250 get another label at random; found are those of them that are named, wrong
is the share of those named whose label was not turned.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import finetune
from finetune.commands.check import label_issues, projected
from finetune.data.image_folder_dataset import ReadOptions, open_image_folder
from finetune.data.image_io import CropSpec
from finetune.data.quality import contradicted
from finetune.data.registry import open_dataset
from finetune.data.twins import descriptors, find_twins, fit_model, thumbnails
from finetune.train.inference import outputs
from finetune.train.out_of_fold import folds_by_hash, out_of_fold

KINDS = ("shift", "noise", "brightness", "jpeg", "flip")
SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1), (2, 0), (-2, 0), (0, 2), (0, -2), (1, 1), (-1, 2))
TWINS, PICTURES, LABELLED, TURNED = 50, 2_000, 5_000, 250


def drawn(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (uint8, N×C×H×W) of a data set's training part, and labels."""
    train = open_dataset(name, Path(os.environ["FINETUNE_DATA_ROOT"])).train
    chosen = np.random.default_rng(seed).permutation(len(train))[:count]
    return train.images.numpy()[chosen], train.labels.numpy()[chosen]


def photographs(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """All pictures of a folder."""
    spec = CropSpec(3, 64, 1.0, "shorter_side", "bicubic")
    found = open_image_folder(folder, spec, ReadOptions(on_bad_image="skip"))
    parts = [part for part in (found.train, found.validation, found.test) if part is not None]
    images = np.concatenate([part.images[:].numpy() for part in parts])
    return images, np.concatenate([part.labels.numpy() for part in parts])


def changed(picture: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A twin of a picture (uint8, C×H×W)."""
    values = picture.astype(float)
    if kind == "shift":
        down, right = SHIFTS[rng.integers(len(SHIFTS))]
        padded = np.pad(values, ((0, 0), (2, 2), (2, 2)), mode="edge")
        values = padded[:, 2 + down : 2 + down + values.shape[1], 2 + right : 2 + right + values.shape[2]]
    elif kind == "noise":
        values = values + rng.normal(0, 10, values.shape)
    elif kind == "brightness":
        values = values * rng.uniform(0.75, 1.25) + rng.uniform(-20, 20)
    elif kind == "jpeg":
        file = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0).squeeze()).save(file, "JPEG", quality=60)
        read = np.asarray(Image.open(file))
        values = (read[None] if read.ndim == 2 else read.transpose(2, 0, 1)).astype(float)
    else:
        values = values[:, :, ::-1]
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def twins(images: np.ndarray, labels: np.ndarray, seed: int) -> tuple[dict[str, int], int]:
    """How many planted twins of each kind are found, and how many other pairs are named."""
    rng, count = np.random.default_rng(seed), len(images)
    originals = rng.choice(count, TWINS, replace=False).tolist()
    kinds = [KINDS[index % len(KINDS)] for index in range(TWINS)]
    new = np.stack([changed(images[own], kind, rng) for own, kind in zip(originals, kinds, strict=True)])
    thumbs = thumbnails(torch.from_numpy(np.concatenate([images, new])))
    truth = torch.from_numpy(np.concatenate([labels, labels[originals]]))
    everything = np.arange(len(thumbs))
    found = find_twins(thumbs, truth, descriptors(thumbs), everything, everything, fit_model(thumbs, truth))
    planted = {(own, count + index): kind for index, (own, kind) in enumerate(zip(originals, kinds, strict=True))}
    named = {(int(one), int(other)) for one, other in found.pairs}
    each = {kind: sum(planted[pair] == kind for pair in named & planted.keys()) for kind in KINDS}
    return each, len(named - planted.keys())


def labels(name: str, seed: int) -> dict[str, tuple[float, float, int]]:
    """By method: the share of turned labels found, the share of those named that is wrong, how many are named."""
    images, truth = drawn(name, LABELLED, seed)
    rng = np.random.default_rng(seed)
    turned = rng.choice(LABELLED, TURNED, replace=False)
    given, classes = truth.copy(), int(truth.max()) + 1
    given[turned] = (truth[turned] + rng.integers(1, classes, TURNED)) % classes
    classifier = finetune.load("checkpoints/mnist.safetensors")
    normalize = classifier.input.normalizer(torch.device("cpu"))
    features = projected(outputs(classifier.network, torch.from_numpy(images), normalize, stop=-2).flatten(1))
    folds = folds_by_hash([str(index) for index in range(LABELLED)])
    probabilities = out_of_fold(features, torch.from_numpy(given), folds, classes)
    methods = {"own margin": contradicted(given, probabilities)}
    try:
        import cleanlab  # noqa: F401

        methods["cleanlab"] = label_issues(given, probabilities)[1]
    except ImportError:
        pass
    wrong = truth == given
    return {
        method: ((~wrong[own]).sum() / TURNED, wrong[own].mean() if len(own) else 0.0, len(own))
        for method, own in methods.items()
    }


def speed(name: str, count: int) -> None:
    """Seconds of the short check's search: a fifth of so many pictures against the rest."""
    images, truth = drawn(name, count, 0)
    started, cpu = time.perf_counter(), time.process_time()
    thumbs, own = thumbnails(torch.from_numpy(images)), torch.from_numpy(truth)
    rest = count - count // 5
    places = np.arange(count)
    find_twins(thumbs, own, descriptors(thumbs), places[rest:], places[:rest], fit_model(thumbs[:rest], own[:rest]))
    seconds, own_seconds = time.perf_counter() - started, time.process_time() - cpu
    print(
        f"{name}: {count - rest:,} of {count:,} against the rest in {seconds:.2f} s, {own_seconds:.2f} s of processor"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pictures")
    parser.add_argument("--speed", action="store_true")
    given = parser.parse_args()
    if given.speed:
        speed("fashion-mnist", 10_000)
        return
    for name in ("kmnist", "fashion-mnist", "mnist", *([given.pictures] if given.pictures else [])):
        for seed in range(given.repeats):
            images, truth = photographs(name) if name == given.pictures else drawn(name, PICTURES, seed)
            each, false = twins(images, truth, seed)
            shown = ", ".join(f"{kind} {count}" for kind, count in each.items())
            print(
                f"twins, {Path(name).name}, {seed}: {sum(each.values())} of {TWINS} ({shown}), {false} others",
                flush=True,
            )
    for name in ("kmnist", "fashion-mnist"):
        for seed in range(given.repeats):
            for method, (found, wrong, named) in labels(name, seed).items():
                told = f"{100 * found:.1f} % found, {100 * wrong:.1f} % of {named} named are wrong"
                print(f"labels, {name}, {seed}, {method}: {told}", flush=True)


if __name__ == "__main__":
    main()
