"""Opening JPEGs of 12 megapixels, scaled by the decoder or exactly: seconds, and accuracy of one checkpoint on both.

    python benchmarks/decode.py FOLDER --weights FILE [--model timm/mobilenetv2_035] [--data ROOT] [--timed 12]

The pictures are the test photographs of ROOT/hymenoptera, blown up to 12 megapixels, with a camera's grain over them
and, some of them, without; they are kept in FOLDER. A checkpoint is made from the weights, its head solved on the
photographs as they are (the first phase of recipes/adapt-timm.yaml), unless FOLDER has one; then it is measured on both
sets of test photographs, decoded either way.

Seconds are of the processor, all threads together, for what is decoded by finetune (read, hashed, decoded, resized,
kept) and by torchvision's ImageFolder with Resize and CenterCrop, in turn, the least of three rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import circumstances
from PIL import Image

import finetune
from finetune.commands.evaluate import evaluate_classifier
from finetune.data.decode_cache import decode_images
from finetune.data.image_folder import list_folder
from finetune.models.spec import InputSpec
from finetune.report.console import Console
from finetune.train.device import choose_runtime

PIXELS = 12_000_000
GRAIN = 5.0  # standard deviation, of 255
QUALITY = 90
ROUNDS = 3
WAYS = ("exact", "scaled")
RECIPE = {"kind": "adapt", "data": {"validation": 0}, "head": "auto", "phases": [{"train": "head", "solver": "lbfgs"}]}


def blow_up(file: Path, to: Path, grain: np.ndarray) -> None:
    """Writes the photograph at about PIXELS, with grain (int16, at least as large as any)."""
    with Image.open(file) as photograph:
        picture = photograph.convert("RGB")
    factor = (PIXELS / (picture.width * picture.height)) ** 0.5
    size = round(picture.width * factor), round(picture.height * factor)
    pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS)).astype(np.int16)
    pixels += np.resize(np.roll(grain, len(file.name) * 7919), pixels.shape)
    to.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(to, "JPEG", quality=QUALITY)


def prepare(done: Path, photographs: Path, deviation: float, every: int) -> Path:
    """DONE/val with every so-manieth test photograph blown up, DONE/train with one of each class as it is."""
    new = done.with_suffix(".new")
    if not done.is_dir():
        shutil.rmtree(new, ignore_errors=True)
        grain = (np.random.default_rng(0).normal(0, deviation, 4_000_037)).astype(np.int16)
        for file in sorted((photographs / "val").glob("*/*.jpg"))[::every]:
            blow_up(file, new / "val" / file.parent.name / file.name, grain)
        for kind in sorted((photographs / "train").iterdir()):
            (new / "train" / kind.name).mkdir(parents=True)
            shutil.copy(min(kind.glob("*.jpg")), new / "train" / kind.name)
        new.rename(done)
    return done


def seconds_of(work: Callable[[], object]) -> float:
    """The processor's seconds, all threads together."""
    start = time.process_time()
    work()
    return time.process_time() - start


def time_opening(name: str, blown: Path, spec: InputSpec, every: int) -> None:
    """Prints the milliseconds of the processor for each picture, by way."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    records = [record for record in list_folder(blown).records if record.split == "test"][::every]
    side, least = spec.working, dict.fromkeys((*WAYS, "torchvision"), float("inf"))
    change = transforms.Compose(
        [transforms.Resize(side, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )
    images = ImageFolder(str(blown / "val"), change)
    chosen = [index for index, (path, _) in enumerate(images.samples) if Path(path) in {r.path for r in records}]
    for _ in range(ROUNDS):
        for way in WAYS:
            crop_spec = replace(spec.crop_spec(3), decode=way)
            with tempfile.TemporaryDirectory() as cache:
                took = seconds_of(lambda: decode_images(records, crop_spec, Path(cache)))  # noqa: B023
            least[way] = min(least[way], took / len(records))
        took = seconds_of(lambda: [images[index] for index in chosen])
        least["torchvision"] = min(least["torchvision"], took / len(chosen))
    size = sum(record.path.stat().st_size for record in records) / len(records) / 1e6
    print(f"opening {len(records)} pictures {name} of {size:.1f} MB, ms of the processor each:")
    for way, each in least.items():
        print(f"  {way:12} {each * 1e3:6.1f}  {least['exact'] / each:.2f} times as fast as exact")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", default="timm/mobilenetv2_035")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FINETUNE_DATA_ROOT", "data")))
    parser.add_argument("--timed", type=int, default=12)
    given = parser.parse_args()
    photographs, checkpoint = given.data / "hymenoptera", given.folder / "hymenoptera.safetensors"
    given.folder.mkdir(parents=True, exist_ok=True)
    if not checkpoint.is_file():
        own = {"model": given.model, "settings": ["model.pad_type=same"], "out": checkpoint}
        finetune.adapt(given.weights, str(photographs), RECIPE, **own)
    classifier, every = finetune.load(checkpoint), -(-153 // given.timed)
    blown = prepare(given.folder / "blown", photographs, GRAIN, 1)
    time_opening("with grain", blown, classifier.input, every)
    smooth = prepare(given.folder / "smooth", photographs, 0.0, every)
    time_opening("without grain", smooth, classifier.input, 1)
    for name, data in (("12 megapixels", blown), ("as they are", photographs)):
        for way in WAYS:
            classifier.input = replace(classifier.input, decode=way)
            console = Console(quiet=True, results=False)
            runtime = choose_runtime("cpu", "float32")
            found = evaluate_classifier(classifier, name, str(data), given.data, runtime, console).evaluation.result
            print(f"{name}, {way}: {found.correct} of {found.total} right, {100 * found.accuracy:.2f} %")
    print(circumstances(os.cpu_count() or 1))


if __name__ == "__main__":
    main()
