"""Opens a run's data: classes, shots, and the train, validation and test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.data.image_dataset import DataSplits, ImageSet
from finetune.data.image_folder_dataset import ReadOptions, open_image_folder
from finetune.data.image_io import EXACT, CropSpec, Decoding
from finetune.data.openers import is_hub_data, is_image_path, short_name
from finetune.data.registry import find_dataset, open_dataset
from finetune.data.split import hold_out, take_shots
from finetune.data.table_columns import ROLES, ColumnNames, Role
from finetune.errors import DataError, SettingError
from finetune.hub.dataset import fetch_dataset
from finetune.io.sanitize import without_folders
from finetune.io.text_path import unicode_text
from finetune.models.spec import InputSpec
from finetune.recipe.schema import AdaptRecipe, DataSettings, PretrainRecipe
from finetune.report.console import Console
from finetune.report.rows import INTERPOLATED
from finetune.text import listed

UNEVEN = 5  # times as many images to learn from of one class as of another, from which on a note is due


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
    def decoding(self) -> Decoding:
        """How the images' files became pixels."""
        return self.splits.decoding if self.splits is not None else EXACT

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

    Validation images are part of the shots, not added to them. A person's own images are decoded as `data` says, and
    resized and cropped for `spec`; with `any_channels` they stay as grey or colourful as they are. DataError,
    SettingError.
    """
    if data.name is None:
        raise SettingError(
            "no target: name a data set with --target, for example --target kmnist, or a folder of pictures, or a CSV "
            "file of path,label[,split]"
        )
    console = console or Console(quiet=True, results=False)
    crop_spec = spec.crop_spec(None if any_channels else spec.channels)
    crop_spec = replace(crop_spec, decode=data.decode or "scaled", bits=None)  # whatever the source was trained with
    name, found, id = _open_parts(data, data.name, root, crop_spec, console)
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
            notes = (*notes, f"{data.shots:,} shots asked for; all there are of {listed(scarce)}")
        train = take_shots(train, data.shots, seed=seed)
    empty = [name for name, count in train.counts().items() if count == 0]
    if empty:
        raise DataError(f"{train.origin}: no image to learn from of {listed(empty)}; leave them out with data.classes")
    if found.validation is not None and len(found.validation):
        return RunData(name, train, found.validation, found.test, notes, found)
    train, validation = hold_out(train, data.validation)
    if data.validation and not len(validation):
        notes = (*notes, f"data.validation is {data.validation}, which is no image of {len(train):,}: none is held out")
    return RunData(name, train, validation, found.test, notes, found)


def advise(data: RunData, recipe: PretrainRecipe | AdaptRecipe) -> RunData:
    """Adds a note where classes are uneven and nothing is done about it.

    DataError where a phase keeps its best weights and no images are held out to choose them by; SettingError where a
    mix of weights is to be chosen.
    """
    if isinstance(recipe, AdaptRecipe) and INTERPOLATED in recipe.rows and not len(data.validation):
        raise SettingError(
            f"{data.train.origin}: the row interpolated is chosen on validation images, and there are none "
            f"(data.validation is {recipe.data.validation}, of {len(data.train):,} images); hold more out, for example "
            "--set data.validation=0.5, or leave interpolated out of compare and keep"
        )
    chooses = [phase.name for phase in recipe.phases if phase.keep == "best"]
    if chooses and not len(data.validation):
        raise DataError(
            f"{data.train.origin}: phase {chooses[0]} keeps the weights that are best on validation images, and "
            f"data.validation, {recipe.data.validation}, is no image of {len(data.train):,}; hold out more, for "
            "example --set data.validation=0.5, or set keep: last"
        )
    counts = data.train.counts()
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if recipe.balance is not None or counts[most] < UNEVEN * counts[least]:
        return data
    note = (
        f"the classes are uneven: {counts[most]:,} images to learn from of {most}, {counts[least]:,} of {least}; where "
        "rare classes matter as much as common ones, try --set balance=logit_adjustment"
    )
    return replace(data, notes=(*data.notes, note))


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
    name: str,
    root: Path,
    spec: InputSpec,
    console: Console,
    *,
    on_bad_image: str = "fail",
    like: Mapping[str, Any] | None = None,
) -> tuple[str, DataSplits]:
    """A data set's short name and its splits, of all its classes, for its test images to be measured.

    like: data settings that say how a person's own images are read; of columns the usual names will do too. Where they
    have no test split, `train` has all of them, and `test` those that a training would hold out.
    """
    if not name:
        raise DataError("an empty text names no images; the current folder is .")
    data = DataSettings.model_validate({**(like or {}), "name": unicode_text(name), "on_bad_image": on_bad_image})
    short, found, _ = _open_parts(data, name, root, spec.crop_spec(spec.channels), console, to_train=False)
    return short, found


def _open_parts(
    data: DataSettings, name: str, root: Path, crop_spec: CropSpec, console: Console, *, to_train: bool = True
) -> tuple[str, DataSplits, str | None]:
    """The short name and splits of a registered data set or of a person's own images, with the classes asked for.

    The third is the id, with its commit, of a data set on the Hub, which is fetched first.
    """
    if not is_image_path(name):
        name = find_dataset(name).name
        for key in ("group", "columns", "decode"):
            if getattr(data, key) is not None:
                raise SettingError(f"{name} is a registered data set, without picture files: leave data.{key} out")
        splits = open_dataset(name, root)
        train, test = splits.train, splits.test
        if data.classes is not None:
            train, test = train.with_classes(data.classes), test.with_classes(data.classes)
        return name, DataSplits(train, test), None
    fetched = fetch_dataset(name, note=console.note, bars=not console.quiet) if is_hub_data(name) else None
    columns = ColumnNames(column_names(data), required=to_train)
    options = ReadOptions(data.classes, data.group, columns, data.on_bad_image, to_train)
    with console.task("decoding") as progress:
        found = open_image_folder(
            name,
            crop_spec,
            options,
            progress=progress,
            folder=fetched.folder if fetched is not None else None,
        )
    for note in found.notes:
        console.note(note)
    notes, about_parts = (tuple(map(without_folders, each)) for each in (found.notes, found.split_notes))
    found = replace(found, notes=notes, split_notes=about_parts)  # reports are passed on
    return short_name(name), found, fetched.id if fetched is not None else None


def column_names(data: DataSettings) -> dict[Role, str]:
    """What a table calls its columns, where data settings say so."""
    named: dict[Role, str | None] = {role: getattr(data.columns, role, None) for role in ROLES}
    return {role: name for role, name in named.items() if name is not None}
