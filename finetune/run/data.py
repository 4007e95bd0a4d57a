"""Opens a run's data: classes, shots, and the train, validation and test split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from finetune.data.image_dataset import DataSplits, ImageSet
from finetune.data.image_folder_dataset import open_image_folder
from finetune.data.openers import is_hub_data, is_image_path, short_name
from finetune.data.registry import find_dataset, open_dataset
from finetune.data.split import hold_out, take_shots
from finetune.errors import DataError, SettingError
from finetune.hub.dataset import fetch_dataset
from finetune.models.spec import InputSpec
from finetune.recipe.schema import DataSettings
from finetune.report.console import Console


@dataclass(frozen=True)
class RunData:
    """The train, validation and test images of a run. `validation` may be empty; `test` is for the end only.

    `notes` are what a person should know of their own images: what was left out, is in two parts, or is scarce.
    `splits` are the images that these were chosen from. `id` of a data set on the Hub has the commit.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()
    splits: DataSplits | None = None
    id: str | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return int(self.train.images.shape[1])

    @property
    def side(self) -> int:
        """The side of the square images as they are stored, in pixels."""
        return int(self.train.images.shape[-1])

    def describe(self) -> dict[str, object]:
        """For a checkpoint: name, classes, and fingerprints that change when an image or a label does."""
        return dict(self._description)

    @cached_property
    def _description(self) -> dict[str, object]:
        return {
            "name": self.name,
            **({"id": self.id} if self.id is not None else {}),
            "classes": list(self.class_names),
            "train": {"images": len(self.train), "fingerprint": self.train.fingerprint()},
            "validation": {"images": len(self.validation), "fingerprint": self.validation.fingerprint()},
            "test": {"images": len(self.test), "fingerprint": self.test.fingerprint()},
        }


def open_run_data(
    data: DataSettings,
    root: Path,
    seed: int,
    spec: InputSpec,
    console: Console | None = None,
    *,
    any_channels: bool = False,
) -> RunData:
    """Opens the data set, takes classes and shots, and holds out validation images from what is left to learn from.

    Validation images are part of the shots, not added to them. A person's own images are resized and cropped for
    `spec`; with `any_channels` they stay as grey or colourful as they are. DataError, SettingError.
    """
    if data.name is None:
        raise SettingError(
            "no target: name a data set with --target, for example --target kmnist, or a folder of pictures, or a CSV "
            "file of path,label[,split]"
        )
    console = console or Console(quiet=True, results=False)
    name, found, id = _open_parts(data, data.name, root, spec, console, None if any_channels else spec.channels)
    chosen = replace(choose_run_data(name, found, data, seed), id=id)
    for note in chosen.notes[len(found.notes) :]:
        console.note(note)
    return chosen


def choose_run_data(name: str, found: DataSplits, data: DataSettings, seed: int) -> RunData:
    """Takes the shots that `seed` chooses, and holds out validation images. DataError."""
    train, notes = found.train, found.notes
    if data.shots is not None:
        scarce = [f"{label} ({count:,})" for label, count in train.counts().items() if 0 < count < data.shots]
        if scarce:
            notes = (*notes, f"{data.shots:,} shots asked for; all there are of {', '.join(scarce)}")
        train = take_shots(train, data.shots, seed=seed)
    empty = [name for name, count in train.counts().items() if count == 0]
    if empty:
        raise DataError(
            f"{train.origin}: no image to learn from of {', '.join(empty)}; leave them out with data.classes"
        )
    if found.validation is not None and len(found.validation):
        return RunData(name, train, found.validation, found.test, notes, found)
    train, validation = hold_out(train, data.validation)
    if data.validation and not len(validation):
        raise DataError(
            f"{train.origin}: data.validation is {data.validation}, which is no image of {len(train)}; "
            "ask for more, or for none with --set data.validation=0"
        )
    return RunData(name, train, validation, found.test, notes, found)


def same_choice(chosen: RunData, found: DataSplits) -> RunData:
    """The images that were chosen from one decoding of a person's pictures, in another decoding of the same.

    Shots and validation images are chosen by their pixels, so that each size of input would choose others.
    """

    def same(own: ImageSet, every: ImageSet) -> ImageSet:
        place = {file: index for index, file in enumerate(every.files)}
        return every.subset([place[file] for file in own.files])

    given = found.validation if found.validation is not None and len(found.validation) else found.train
    train, validation = same(chosen.train, found.train), same(chosen.validation, given)
    return RunData(chosen.name, train, validation, found.test, chosen.notes, found, chosen.id)


def open_test(
    name: str, root: Path, spec: InputSpec, console: Console, *, on_bad_image: str = "fail"
) -> tuple[str, ImageSet]:
    """A data set's short name and its test images, of all its classes."""
    data = DataSettings.model_validate({"name": name, "on_bad_image": on_bad_image})
    short, found, _ = _open_parts(data, name, root, spec, console, spec.channels)
    return short, found.test


def _open_parts(
    data: DataSettings, name: str, root: Path, spec: InputSpec, console: Console, channels: int | None
) -> tuple[str, DataSplits, str | None]:
    """The short name and the splits of a registered data set or of a person's own images, with the classes asked for.

    The third is the id, with its commit, of a data set on the Hub, which is fetched first. `channels` None: images stay
    as grey or colourful as they are.
    """
    if not is_image_path(name):
        name = find_dataset(name).name
        splits = open_dataset(name, root)
        train, test = splits.train, splits.test
        if data.classes is not None:
            train, test = train.with_classes(data.classes), test.with_classes(data.classes)
        return name, DataSplits(train, test), None
    fetched = fetch_dataset(name, note=console.note, bars=not console.quiet) if is_hub_data(name) else None
    with console.task("decoding") as progress:
        found = open_image_folder(
            name,
            spec.crop_spec(channels),
            classes=data.classes,
            on_bad_image=data.on_bad_image,
            progress=progress,
            folder=fetched.folder if fetched is not None else None,
        )
    for note in found.notes:
        console.note(note)
    return short_name(name), found, fetched.id if fetched is not None else None
