"""The images of a run: what a recipe's `data` names, cut down to its classes and shots, and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.data.catalog import find_dataset, open_dataset
from finetune.data.images import ImageSet
from finetune.data.split import hold_out, take_shots
from finetune.errors import DataError, SettingError
from finetune.models.registry import InputSpec
from finetune.recipe.schema import DataSettings


@dataclass(frozen=True)
class Material:
    """The parts of one data set. `validation` may be empty; `test` is for the end of a run only."""

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def describe(self) -> dict[str, object]:
        """For a checkpoint: name, classes, and fingerprints that change when an image or a label does."""
        return {
            "name": self.name,
            "classes": list(self.class_names),
            "train": {"images": len(self.train), "fingerprint": self.train.fingerprint()},
            "validation": {"images": len(self.validation), "fingerprint": self.validation.fingerprint()},
            "test": {"images": len(self.test), "fingerprint": self.test.fingerprint()},
        }


def open_material(data: DataSettings, root: Path, seed: int, spec: InputSpec) -> Material:
    """Opens the data set, takes classes and shots, and holds out validation images from what is left to learn from.

    Shots are all the labels there are: validation images are taken out of them, not added to them.
    """
    if data.name is None:
        raise SettingError("no target: name a data set with --target, for example --target kmnist")
    name = find_dataset(data.name).name
    splits = open_dataset(name, root)
    train, test = splits.train, splits.test
    if data.classes is not None:
        train, test = train.with_classes(data.classes), test.with_classes(data.classes)
    if data.shots is not None:
        train = take_shots(train, data.shots, seed=seed)
    empty = [name for name, count in train.counts().items() if count == 0]
    if empty:
        raise DataError(
            f"{train.origin}: no image to learn from of {', '.join(empty)}; leave them out with data.classes"
        )
    train, validation = hold_out(train, data.validation)
    if data.validation and not len(validation):
        raise DataError(
            f"{train.origin}: data.validation is {data.validation}, which is no image of {len(train)}; "
            "ask for more, or for none with --set data.validation=0"
        )
    check_fits(train, spec)
    return Material(name, train, validation, test)


def check_fits(images: ImageSet, spec: InputSpec) -> None:
    """DataError unless the images are of the shape that the network takes."""
    found = tuple(images.images.shape[1:])
    wanted = (spec.channels, spec.size, spec.size)
    if found != wanted:
        raise DataError(
            f"{images.origin}: images of {'×'.join(map(str, found))} (channels, height, width), "
            f"but the model takes {'×'.join(map(str, wanted))}"
        )
