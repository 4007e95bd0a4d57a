"""The usual names of a data set's parts: which split a folder or a cell of a table means."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

SplitName = Literal["train", "validation", "test"]

# What a folder or a table may call each split, in small letters.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "training": "train",
    "trn": "train",
    "trainval": "train",
    "dev": "validation",
    "devel": "validation",
    "development": "validation",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
}
MAIN_NAMES = ("train", "validation", "val", "test")  # those that messages name
EVALUATION = frozenset({"eval", "evaluation"})  # the test split, or the validation split where another is the test's

# Words that may stand beside a split's name and say nothing, as in `train_images`, `Test Set` or `dataset-val`.
FILLERS = frozenset(
    {
        *("set", "sets", "data", "dataset", "datasets", "folder", "split", "part", "subset"),
        *("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos"),
        *("file", "files", "sample", "samples", "example", "examples"),
    }
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")
_GLUED = re.compile(rf"({'|'.join(SPLIT_NAMES)})({'|'.join(sorted(FILLERS))})")


def split_of(text: str) -> SplitName | None:
    """The split that a name means, in any case, by itself or beside a filler: `TRAIN`, `test_set`, `val2017`.

    None for a name with any other word, such as `test_tube`.
    """
    words = _words(text)
    known = [word for word in words if word in SPLIT_NAMES]
    return SPLIT_NAMES[known[0]] if len(known) == 1 and all(w in FILLERS for w in words if w != known[0]) else None


def is_evaluation(text: str) -> bool:
    """Whether the name says `eval` or `evaluation`, which is either of two splits."""
    return not EVALUATION.isdisjoint(_words(text))


def affixed_split(text: str) -> tuple[str, SplitName] | None:
    """The rest of a name and the split, for a split's name among other words: `seg_train` gives `seg_*` and train."""
    known = [word for word in _words(text) if word in SPLIT_NAMES]
    if len(known) != 1:
        return None
    return text.casefold().replace(known[0], "*", 1), SPLIT_NAMES[known[0]]


def find_splits(names: Iterable[str]) -> dict[str, SplitName]:
    """Which of these names mean a split, and which one.

    Names with other words count where two of them differ in the split alone: `seg_train` and `seg_test` do,
    `train_station` and `test_tube` do not. `eval` is the test split unless another one is.
    """
    every = list(names)
    found = {name: split for name in every if (split := split_of(name))}
    affixed = {name: pair for name in every if name not in found and (pair := affixed_split(name))}
    splits_of: dict[str, set[SplitName]] = defaultdict(set)
    for rest, split in affixed.values():
        splits_of[rest].add(split)
    found |= {name: split for name, (rest, split) in affixed.items() if len(splits_of[rest]) > 1}
    if any(split == "test" and not is_evaluation(name) for name, split in found.items()):
        found |= {name: "validation" for name in found if is_evaluation(name)}
    return found


def _words(text: str) -> list[str]:
    """The words of a name in small letters, divided at capitals, digits and punctuation; `trainset` is two."""
    words: list[str] = []
    for word in _WORD.findall(text):
        glued = _GLUED.fullmatch(small := word.casefold())
        words += glued.groups() if glued else [small]
    return words
