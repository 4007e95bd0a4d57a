"""Which images of a data set a checkpoint is measured on: a test split, or all that it did not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from finetune.checkpoint.format import Metadata
from finetune.data.image_dataset import DataSplits, ImageSet
from finetune.data.openers import is_image_path, short_name
from finetune.data.split import hold_out
from finetune.errors import DataError
from finetune.recipe.schema import DataSettings

Part = Literal["test", "held_out", "all", "trained_on"]


@dataclass(frozen=True)
class LearntFrom:
    """What a checkpoint's metadata says of the images that it, or an ancestor, learnt from.

    names: of the data sets. images, fingerprints: by split, of the last training. classes, recipe: of that training.
    """

    names: frozenset[str] = frozenset()
    images: Mapping[str, int] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Metadata | None) -> LearntFrom:
        """Reads a checkpoint's metadata, of which nothing need be as we write it."""
        if metadata is None:
            return cls()
        data = metadata.data
        named = [data.get("name"), *(ancestor.get("task") for ancestor in metadata.lineage)]
        found = {split: data.get(split) for split in ("train", "validation", "test")}
        whole = {
            split: value
            for split, value in found.items()
            if isinstance(value, Mapping) and isinstance(value.get("images"), int) and "fingerprint" in value
        }
        return cls(
            frozenset(name for name in named if isinstance(name, str)),
            {split: value["images"] for split, value in whole.items()},
            {split: str(value["fingerprint"]) for split, value in whole.items()},
            tuple(metadata.classes),
            metadata.recipe,
        )

    def reading(self, data: str) -> dict[str, Any]:
        """The data settings that say how its images were read, for `open_test`; of other data, whose names may differ,
        only what the columns of a table are called."""
        settings = self._settings()
        if settings is None:
            return {}
        same = is_image_path(data) and short_name(data) in self.names
        keys = {"columns", "group"} if same else {"columns"}
        return settings.model_dump(include=keys, exclude_none=True)

    def has_test(self, images: ImageSet) -> bool:
        """Whether these images, those of the checkpoint's classes alone, are what it was tested on."""
        return self._same(images, "test")

    def has_learnt(self, images: ImageSet) -> bool:
        """Whether the checkpoint was trained on these very images, or on what was left of them for validation."""
        if self._same(images, "train"):
            return True
        settings, own = self._settings(), self._own_classes(images)
        if settings is None or len(own) != sum(self.images.get(split, 0) for split in ("train", "validation")):
            return False
        with suppress(DataError):
            rest, _ = hold_out(own, settings.validation)
            return rest.fingerprint() == self.fingerprints.get("train")
        return False

    def _settings(self) -> DataSettings | None:
        data = self.recipe.get("data")
        try:
            return DataSettings.model_validate(data) if isinstance(data, Mapping) else None
        except ValidationError:
            return None

    def _own_classes(self, images: ImageSet) -> ImageSet:
        known = set(images.class_names)
        names = [name for name in self.classes if name in known]
        return images.with_classes(names, empty=True) if names else images.subset([])

    def _same(self, images: ImageSet, split: str) -> bool:
        if split not in self.fingerprints or not set(self.classes) <= set(images.class_names):
            return False
        own = self._own_classes(images)
        return len(own) == self.images[split] > 0 and own.fingerprint() == self.fingerprints[split]


def choose_measured(found: DataSplits, name: str, checkpoint: str, learnt: LearntFrom) -> tuple[ImageSet, Part, str]:
    """The images to measure a checkpoint on, what they are of the data set, and what to tell of that ("" if nothing).

    found: as `open_test` gives it. name: the data set's short name. Without a test split all images are measured,
    unless the checkpoint learnt from them: of those, what it held out.
    """
    if not found.held_out:
        if learnt.has_learnt(found.test):
            return found.test, "trained_on", _trained_on(name, checkpoint, len(found.test))
        return found.test, "test", ""
    every, held = found.train, found.test
    of = f"{len(held):,} of {len(every):,} pictures"
    if len(held) and learnt.has_test(held):
        return (
            held,
            "held_out",
            (f"{name}: {checkpoint} was trained on these, so it is measured on the {of} that were kept for the test"),
        )
    if learnt.has_learnt(every):
        return every, "trained_on", _trained_on(name, checkpoint, len(every))
    if name in learnt.names and len(held):
        return (
            held,
            "held_out",
            (
                f"{name}: {checkpoint} was trained on a data set of this name, with other pictures; as some may be the "
                f"same, it is measured on the {of} that a training keeps for the test. To measure all, put them into a "
                "folder test/, or rename the folder"
            ),
        )
    note = f"{name}: no test part, so all {len(every):,} pictures are measured; "
    known = "whether some are among what {} was trained on cannot be told" if learnt.names else "{} does not say"
    known += "" if learnt.names else " what it was trained on"
    return every, "all", f"{note}{known.format(checkpoint)}"


def _trained_on(name: str, checkpoint: str, count: int) -> str:
    return f"{name}: {checkpoint} was trained on these {count:,} pictures, so its accuracy on them is no test of it"
