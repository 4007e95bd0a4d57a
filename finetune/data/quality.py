"""What pictures, labels and file names say of a data set before anything is trained on it."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.data.image_dataset import Images, ImageSet
from finetune.data.manifest import find_group, path_in_class
from finetune.data.split import image_hashes

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Regular expressions for `data.group`, the most common first: a burst's or a slice's number at the end, what stands
# before the first - or _, a number before anything else, and the folder.
PATTERNS = (r"(.+)_\d+", r"(.+)-\d+", r"(.+) \(\d+\)", r"(.+/[^/_-]+)[_-]", r"(.+/\D*\d+)\D", "folder")
MAX_PATH = 300  # characters; a pattern takes time with the cube of them
COMPARED = 2_000  # pictures whose likeness within and outside their group is compared, at most
MIN_COMPARED = 40
ALIKE = 0.75  # share of these that must be more like one of their group than like one of another group, by chance half
GROUPED = 0.5  # share of pictures that must have others in their group
PLAIN = 2.0  # standard deviation of grey values, below which a picture shows nothing
ODD = 6.0  # deviations from the median distance to the nearest picture, from which on one is odd
MARGIN = 0.5  # of a class's usual probability, by which it must be above that of the label
UNEVEN, FEW = 5, 5


@dataclass(frozen=True)
class Grouping:
    """A grouping that file names show. pattern: for `data.group`. alike: how often a picture is more like one of its
    group than like another of its class, by chance 0.5. examples: one group's pictures.
    """

    pattern: str
    groups: int
    pictures: int
    alike: float
    examples: tuple[str, ...]

    def sentence(self, name: str) -> str:
        """What a person should do about it, of the data set `name`."""
        return (
            f"{name}: file names show {self.groups:,} groups of pictures, such as {', '.join(self.examples)}, and a "
            f"picture is more like one of its group than another of its class in {100 * self.alike:.0f} % of cases (by "
            f"chance 50 %): keep groups together with --set {shlex.quote(f'data.group={self.pattern}')}, or accuracy "
            "flatters"
        )


def likely_grouping(
    names: Sequence[str], labels: Integers, vectors: Tensor, class_names: Sequence[str]
) -> Grouping | None:
    """The grouping of pictures that their names show and their likeness confirms; None where there is none.

    names: of the files, N. labels: int64, N. vectors: N×D, of length 1 (`twins.descriptors`), near for like pictures.
    """
    best: Grouping | None = None
    for pattern in PATTERNS:
        groups = group_names(pattern, names, labels, class_names)
        counts = Counter(group for group in groups if group)
        several = {group for group, count in counts.items() if count > 1}
        pictures = sum(counts[group] for group in several)
        if pictures < GROUPED * len(names):
            continue
        compared, alike = _likeness(groups, several, labels, vectors)
        if compared < MIN_COMPARED or alike < ALIKE or (best is not None and alike < best.alike + 0.05):
            continue
        largest = max(several, key=lambda group: counts[group])
        examples = tuple(name for name, group in zip(names, groups, strict=True) if group == largest)[:3]
        best = Grouping(pattern, len(several), pictures, alike, examples)
    return best


def group_names(pattern: str, names: Sequence[str], labels: Integers, class_names: Sequence[str]) -> list[str]:
    """The group of each picture by one of PATTERNS, "" for none and for a very long path, as `data.group` finds it."""
    paths = [path_in_class(name, class_names[label]) for name, label in zip(names, labels.tolist(), strict=True)]
    return [find_group(pattern, path) if len(path) <= MAX_PATH else "" for path in paths]


def _likeness(groups: Sequence[str], several: set[str], labels: Integers, vectors: Tensor) -> tuple[int, float]:
    """How many pictures could be compared, and which share is more like one of its group than of its class's others."""
    members: dict[str, list[int]] = defaultdict(list)
    by_label: dict[int, list[int]] = defaultdict(list)
    for index, (group, label) in enumerate(zip(groups, labels.tolist(), strict=True)):
        members[group].append(index)
        by_label[label].append(index)
    rng = np.random.default_rng(0)
    own = [index for group in sorted(several) for index in members[group]]
    triples = []
    for index in rng.permutation(own)[:COMPARED].tolist():
        mates = [other for other in members[groups[index]] if other != index and labels[other] == labels[index]]
        strangers = by_label[int(labels[index])]
        drawn = (strangers[place] for place in rng.integers(0, len(strangers), 5).tolist())
        stranger = next((other for other in drawn if groups[other] != groups[index]), None)
        if mates and stranger is not None:
            triples.append((index, mates[int(rng.integers(len(mates)))], stranger))
    if not triples:
        return 0, 0.0
    one, mate, stranger_of = (vectors[list(column)] for column in zip(*triples, strict=True))
    return len(triples), float(((one * mate).sum(1) > (one * stranger_of).sum(1)).double().mean())


def equal_pixels(parts: Sequence[Images]) -> list[Integers]:
    """The indices of pictures with equal pixels, for each picture that is there more than once.

    Indices count through the parts, one after the other.
    """
    hashes = np.concatenate([image_hashes(part, "twins") for part in parts])
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order])) + 1
    return [np.sort(part) for part in np.split(order, starts) if len(part) > 1]


def contradicted(labels: Integers, probabilities: Floats) -> Integers:
    """Pictures whose label out-of-fold probabilities (N×C) contradict, worst first.

    A picture is named where another class is likelier than its own label by more than MARGIN of what that class has on
    average among pictures that have its label: the class's own confidence, as in confident learning.

    Source: C. Northcutt, L. Jiang and I. Chuang, Confident learning: estimating uncertainty in dataset labels, 2021.
    """
    rows, classes = np.arange(len(labels)), probabilities.shape[1]
    own = probabilities[rows, labels]
    sums = np.bincount(labels, weights=own, minlength=classes)
    usual = sums / np.maximum(1, np.bincount(labels, minlength=classes))
    likeliest = likeliest_other(labels, probabilities)
    margin = (own - probabilities[rows, likeliest]) / np.maximum(usual[likeliest], 1e-9)
    named = np.flatnonzero(margin < -MARGIN)
    found: Integers = named[np.argsort(margin[named], kind="stable")]
    return found


def likeliest_other(labels: Integers, probabilities: Floats) -> Integers:
    """The likeliest class of each picture besides its label (N)."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    found: Integers = others.argmax(1).astype(np.int64)
    return found


def plain_pictures(thumbs: Tensor) -> Integers:
    """Pictures that show nothing: all pixels of their thumbnails (N×S×S) are nearly alike. The plainest first."""
    deviation = thumbs.flatten(1).std(1, correction=0).numpy()
    plain = np.flatnonzero(deviation < PLAIN)
    worst: Integers = plain[np.argsort(deviation[plain], kind="stable")]
    return worst


def odd_pictures(features: Tensor, most: int = 1_000) -> Integers:
    """Pictures unlike all others (features: float, N×F), oddest first, by the distance to the nearest of `most`.

    Named are those whose log distance is ODD robust deviations above the median.
    """
    if len(features) < MIN_COMPARED:
        return np.empty(0, dtype=np.int64)
    every = features.float()
    every = (every - every.mean(0)) / every.std(0).clamp_min(1e-6)
    places = torch.arange(0, len(every), max(1, len(every) // most))
    nearest = []
    for start in range(0, len(every), 2_000):
        distances = torch.cdist(every[start : start + 2_000], every[places])
        own = torch.arange(start, min(start + 2_000, len(every)))
        distances[own[:, None] == places] = torch.inf
        nearest.append(distances.min(1).values)
    logs = torch.cat(nearest).clamp_min(1e-6).log().double().numpy()
    middle = float(np.median(logs))
    deviation = 1.4826 * float(np.median(np.abs(logs - middle)))
    score = (logs - middle) / max(deviation, 1e-3)
    odd = np.flatnonzero(score > ODD)
    found: Integers = odd[np.argsort(-score[odd], kind="stable")]
    return found


def same_but_for_case(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Class names that differ in case or in surrounding punctuation only, together."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_key[re.sub(r"[\s_-]+", " ", name.casefold()).strip()].append(name)
    return [tuple(found) for found in by_key.values() if len(found) > 1]


def scarce_classes(train: ImageSet) -> tuple[list[str], str | None]:
    """Classes with fewer than FEW images to learn from, as "name (3)"; and a sentence where classes are uneven."""
    counts = train.counts()
    few = [f"{name} ({count:,})" for name, count in counts.items() if count < FEW]
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < UNEVEN * max(1, counts[least]):
        return few, None
    return few, f"{counts[most]:,} images to learn from of {most}, {counts[least]:,} of {least}"
