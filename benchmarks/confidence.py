"""How true a checkpoint's confidence is: calibration, promises and novelty, of mnist adapted to kmnist over seeds.

    python benchmarks/confidence.py --seeds 5,6,7,8,9

Trains with 100 labelled images a class (all three figures) and with all 8,000 (the promise again), then prints the
tables of docs/benchmarks.md. Needs mnist, kmnist, fashion-mnist and a folder of photographs, hymenoptera, below
FINETUNE_DATA_ROOT.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

import finetune
from finetune.data.image_dataset import ImageSet, join
from finetune.data.image_io import read_image
from finetune.data.registry import open_dataset
from finetune.data.split import image_hashes
from finetune.models.classifier import Classifier
from finetune.models.novelty import run_with_features
from finetune.paths import data_root
from finetune.recipe.schema import DataSettings
from finetune.run.data import open_run_data
from finetune.train.abstention import find_threshold
from finetune.train.inference import batched_apply

SHOTS, DIVISIONS, MAX_ERROR = 100, 100, 0.01
Numbers = npt.NDArray[np.float64]


def trained(seed: int, shots: int | None, folder: Path) -> Classifier:
    out = folder / f"{shots}-{seed}.safetensors"
    if not out.exists():
        finetune.adapt("mnist", "kmnist", shots=shots, seed=seed, compare=False, out=out)
    return finetune.load(out)


@torch.no_grad()
def looked_at(classifier: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, Numbers]:
    """Logits and novelty scores of uint8 images."""
    assert classifier.novelty is not None
    normalize = classifier.input.normalizer(torch.device("cpu"))

    def run(part: torch.Tensor) -> torch.Tensor:
        logits, features = run_with_features(classifier.network, normalize(part), classifier.novelty.cuts)
        return torch.cat([logits, classifier.novelty.scores(features)[:, None]], 1)

    found = batched_apply(run, classifier.network, images, 250)
    return found[:, :-1], found[:, -1].double().numpy()


def calibration(seeds: Sequence[int], folder: Path) -> None:
    before, after, changed = [], [], 0
    test = open_dataset("kmnist", data_root(None)).test
    for seed in seeds:
        classifier = trained(seed, SHOTS, folder)
        logits, _ = looked_at(classifier, test.images)
        own, calibrated = logits.double().softmax(1), classifier.probabilities(logits)
        changed += int((own.argmax(1) != calibrated.argmax(1)).sum())
        before.append(error_of(test, own))
        after.append(error_of(test, calibrated))
    print(
        f"calibration error without the temperature {shown(before)}, with it {shown(after)}, "
        f"{np.mean(after) / np.mean(before):.2f} of it; answers changed: {changed}"
    )


def error_of(test: ImageSet, probabilities: torch.Tensor) -> float:
    from finetune.report.metrics import metric_value

    value = metric_value("calibration_error", test.labels.numpy(), probabilities.numpy()).value
    assert value is not None
    return 100 * value


def promises(seeds: Sequence[int], shots: int | None, folder: Path, *, unlearnt: bool = False) -> None:
    """Random divisions of held-out images into halves: a promise made on one, looked at on the other."""
    broken, none, shares, ratios = [], [], [], []
    for seed in seeds:
        classifier = trained(seed, shots, folder)
        images = held_out(classifier, seed, shots) if unlearnt else open_dataset("kmnist", data_root(None)).test
        probabilities = classifier.probabilities(looked_at(classifier, images.images)[0])
        highest, predicted = probabilities.max(1)
        found = [divided(highest.numpy(), (predicted == images.labels).numpy(), number) for number in range(DIVISIONS)]
        broken.append(float(sum(own[0] for own in found)))
        none.append(float(sum(own[1] == 0 for own in found)))
        shares.append(100 * float(np.mean([own[1] for own in found])))
        ratios.append(float(np.mean([own[1] for own in found]) / np.mean([own[2] for own in found])))
    name = f"{shots} a class" if shots else "all 8,000 images"
    print(
        f"promise of 1 %, {name}, halves of {len(images):,}: broken in {shown(broken)} of {DIVISIONS} divisions; "
        f"answered {shown(shares)} %, of what the oracle answers {shown(ratios)}; nothing promised in {shown(none)}"
    )


def held_out(classifier: Classifier, seed: int, shots: int | None) -> ImageSet:
    """The test images and those of the training part that it has not learnt from."""
    settings = DataSettings(name="kmnist", shots=shots, validation=0.1)
    data = open_run_data(settings, data_root(None), seed, classifier.input)
    assert data.splits is not None
    learnt = image_hashes(data.train.images, "confidence")
    own = image_hashes(data.splits.train.images, "confidence")
    return join([data.splits.train.subset(np.flatnonzero(~np.isin(own, learnt))), data.test], "kmnist held out")


def divided(probability: Numbers, right: npt.NDArray[np.bool_], number: int) -> tuple[bool, float, float]:
    """Whether the promise of one half is broken on the other; the share answered there, and the oracle's."""
    order = np.random.default_rng(number).permutation(len(right))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    ranked = np.argsort(-probability[second], kind="stable")
    counts = np.arange(1, len(second) + 1)
    allowed = np.cumsum(~right[second][ranked]) <= MAX_ERROR * counts
    oracle = float(counts[allowed].max(initial=0)) / len(second)
    found = find_threshold(probability[first], right[first], MAX_ERROR)
    if found is None:
        return False, 0.0, oracle
    answered = probability[second] >= found.probability
    wrong = float((~right[second][answered]).mean()) if answered.any() else 0.0
    return wrong > MAX_ERROR, float(answered.mean()), oracle


def novelty(seeds: Sequence[int], folder: Path) -> None:
    root = data_root(None)
    known = open_dataset("kmnist", root).test.images
    others = {
        "Fashion-MNIST": open_dataset("fashion-mnist", root).test.images,
        "MNIST digits": open_dataset("mnist", root).test.images,
    }
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in seeds:
        classifier = trained(seed, SHOTS, folder)
        if "ants, grey" not in others:
            how = classifier.input.crop_spec(1)
            files = sorted((root / "hymenoptera").glob("*/ants/*.jpg"))
            pixels = [torch.from_numpy(how.square(read_image(file, how))).permute(2, 0, 1) for file in files]
            others["ants, grey"] = torch.stack(pixels)
        logits, own = looked_at(classifier, known)
        sure = logits.softmax(1).amax(1).numpy()
        for name, images in others.items():
            logits, scores = looked_at(classifier, images)
            truth = np.r_[np.zeros(len(own)), np.ones(len(scores))]
            softmax = roc_auc_score(truth, -np.r_[sure, logits.softmax(1).amax(1).numpy()])
            above = 100 * float(np.mean([classifier.is_unlike(score) for score in scores]))
            found.setdefault(name, []).append((roc_auc_score(truth, np.r_[own, scores]), softmax, above))
        above = 100 * float(np.mean([classifier.is_unlike(score) for score in own]))
        found.setdefault("none: kmnist's own test images", []).append((0.5, 0.5, above))
    for name, values in found.items():
        ours, theirs, flagged = zip(*values, strict=True)
        print(
            f"novelty against {name}: AUROC {shown(ours, 4)}; of the highest softmax {shown(theirs, 4)}; called unlike "
            f"{shown(flagged)} %"
        )


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Mean and range over seeds."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="5,6,7,8,9")
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept, to be used again")
    parser.add_argument("--only", choices=["novelty"], help="leaves the other figures out")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        novelty(seeds, folder)
        if given.only:
            return
        calibration(seeds, folder)
        promises(seeds, SHOTS, folder)
        promises(seeds, SHOTS, folder, unlearnt=True)
        promises(seeds, None, folder)


if __name__ == "__main__":
    main()
