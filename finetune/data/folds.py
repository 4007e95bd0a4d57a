"""Cross-validation: divides all images of a data set into folds, each of which is the test part of one training.

Folds are chosen by a hash of each image's name, pixels or group, never by its position, and stratified by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.data.image_dataset import DataSplits, ImageSet, join
from finetune.data.split import Integers, image_hashes, inseparable, name_hashes
from finetune.errors import DataError
from finetune.text import listed

SALT = "folds"
MAX_NAMED = 10  # classes in one message


@dataclass(frozen=True)
class Fold:
    """One training of a cross-validation: it is tested on fold `number` (from 0) of `of`, and learns from the others.

    number None: it learns from all images, and has none to be tested on.
    """

    number: int | None
    of: int

    @property
    def name(self) -> str:
        """As in 'fold-1-of-5'."""
        return "all" if self.number is None else f"fold-{self.number + 1}-of-{self.of}"


@dataclass(frozen=True, eq=False)
class FoldedImages:
    """All images of a data set, and the fold (int64, N, from 0) in which each is a test image.

    own_test: the data set's own test images, which are divided like all others: how many, and their fingerprint. notes:
    what people should know of the images and folds.
    """

    images: ImageSet
    numbers: Integers
    own_test: dict[str, object]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, parts: DataSplits, folds: int) -> FoldedImages:
        """Joins the parts of a data set and divides them into folds. DataError where that cannot be."""
        own = [part for part in (parts.train, parts.validation, parts.test) if part is not None and len(part)]
        images = join(own, parts.train.origin.removesuffix(" train"))
        numbers, notes = fold_numbers(images, folds)
        kept = tuple(note for note in parts.notes if note not in parts.split_notes)
        own_test: dict[str, object] = {"images": len(parts.test), "fingerprint": parts.test.fingerprint()}
        return cls(images, numbers, own_test, (*kept, *notes))

    def splits(self, fold: Fold) -> DataSplits:
        """The images that a training learns from, and those that it is tested on."""
        train, test = self.images, self.images.subset([])
        if fold.number is not None:
            tested = self.numbers == fold.number
            train, test = (self.images.subset(np.flatnonzero(chosen)) for chosen in (~tested, tested))
        return DataSplits(
            replace(train, origin=f"{self.images.origin} {fold.name} train"),
            replace(test, origin=f"{self.images.origin} {fold.name} test"),
            notes=self.notes,
        )


def fold_numbers(images: ImageSet, folds: int) -> tuple[Integers, list[str]]:
    """The fold, 0 to folds - 1, in which each image is tested (int64, N), and what people should know about that.

    Each class is spread over the folds as evenly as its images allow, and so are all images; those of equal pixels and
    of one group stay together, and count as of the lowest label among them. An image's place is by the hash of its
    group, of its name, or, without names, of its pixels: the same in any order of the images.
    DataError for fewer than 2 folds or more than there are images or groups, and for a class that has no two of them.
    """
    labels: Integers = images.labels.cpu().numpy()
    hashes = image_hashes(images.images, SALT)
    sets = inseparable(hashes, images.group_indices())
    keys = name_hashes(images.files, SALT) if images.files else hashes
    if images.groups:
        keys = np.where(np.array(images.groups) != "", name_hashes(images.groups, SALT), keys)
    notes = _check_folds(images, sets, folds)
    count = int(sets.max()) + 1
    key, home = np.zeros(count, np.uint64), np.full(count, len(images.class_names), np.int64)
    np.maximum.at(key, sets, keys)
    np.minimum.at(home, sets, labels)
    sizes, totals = np.bincount(sets), np.zeros(folds, np.int64)
    of_class = np.zeros((len(images.class_names), folds), np.int64)
    found = np.empty(count, np.int64)
    for one in np.lexsort((key, home, -sizes)).tolist():  # large sets first, so that single images even them out
        fold = int(np.argmin(of_class[home[one]] * (len(labels) + 1) + totals))
        found[one] = fold
        of_class[home[one], fold] += sizes[one]
        totals[fold] += sizes[one]
    return found[sets], notes


def _check_folds(images: ImageSet, sets: Integers, folds: int) -> list[str]:
    """A note on classes that are not in every fold. DataError where so many folds cannot be made."""
    what = "groups" if images.groups else "pictures that differ"
    pairs = np.unique(np.stack([images.labels.cpu().numpy(), sets], 1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(images.class_names)).tolist()
    every = dict(zip(images.class_names, counts, strict=True))
    total = int(sets.max(initial=-1)) + 1
    if not 2 <= folds <= total:
        few = f"; the smallest class is {min(every, key=every.__getitem__)} with {min(counts):,}"
        raise DataError(f"--folds {folds}: expected 2 to {total:,}, as {images.origin} has {total:,} {what}{few}")
    if alone := [name for name, count in every.items() if count < 2]:
        raise DataError(
            f"--folds {folds}: {images.origin} has fewer than 2 {what} of {_some(alone, every)}, and one cannot be "
            "learnt from and tested; add some, or leave the class out with data.classes"
        )
    few_of = [name for name, count in every.items() if count < folds]
    return [f"fewer {what} than folds, so some folds do not test: {_some(few_of, every)}"] if few_of else []


def _some(names: Sequence[str], counts: dict[str, int]) -> str:
    more = f" and {len(names) - MAX_NAMED:,} more classes" if len(names) > MAX_NAMED else ""
    return listed(f"{name} ({counts[name]:,})" for name in names[:MAX_NAMED]) + more
