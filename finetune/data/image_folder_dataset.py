"""Opens a source of images, such as a folder or a CSV, as a data set: train, validation and test images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from finetune.data.decode_cache import DecodedImages, Progress, decode_images
from finetune.data.image_dataset import DataSplits, Images, ImageSet, MemmapImages, group_indices
from finetune.data.image_facts import notes_on_facts
from finetune.data.image_io import CropSpec
from finetune.data.manifest import MAX_SHOWN, ImageRecord, Manifest, and_more, list_some
from finetune.data.openers import read_manifest
from finetune.data.split import choose_test, inseparable, name_hashes
from finetune.data.split_names import SplitName
from finetune.data.table_columns import ColumnNames
from finetune.errors import DataError
from finetune.io.sanitize import printable
from finetune.paths import CACHE_VARIABLE, cache_folder
from finetune.system import CONTAINER, available_memory, local_processes

Hashes = npt.NDArray[np.uint64]
MEMORY_LIMIT = CONTAINER
TEST_FRACTION = 0.2  # of each class, where a data set has no test split of its own
FEW = 5  # images to learn from; a class with fewer is mentioned


def memory_budget() -> int:
    """Bytes of pixels held in memory: of all processes together a quarter of what the machine or its container has."""
    return available_memory(MEMORY_LIMIT) // 4 // local_processes()


@dataclass(frozen=True)
class ReadOptions:
    """How a folder, a table or shards are read, as `data` of a recipe says."""

    classes: Sequence[str] | None = None
    """Only these, in this order."""
    group: str | None = None
    """Which images belong together, as `data.group` of a recipe."""
    columns: ColumnNames | None = None
    """What a table calls its columns."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """Images that cannot be read raise DataError, or are left out and noted."""
    to_train: bool = True
    """False: for measuring only. Nothing need be there to learn from, and without a test split `train` has all images,
    those in `test` too; `test` may then be empty."""


def open_image_folder(
    name: str,
    spec: CropSpec,
    options: ReadOptions = ReadOptions(),
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> DataSplits:
    """The images of a folder, a CSV, or any other source that `openers.OPENERS` knows, cropped to squares by `spec`.

    cache: the folder for decoded images, by default `cache_folder()`. progress: called with (done, all) while images
    are decoded; not at all where none has to be. folder: where the files of a data set on the Hub were put.

    Without a test split, about TEST_FRACTION of the images become one, each chosen by its content or its group: the
    same at every opening, and when others are added.
    Raises DataError for what does not exist, a class without an image to learn from, and for bad images, all in one
    message.
    """
    manifest = read_manifest(name, options.columns, folder)
    manifest = manifest.with_groups(options.group).with_classes(options.classes)
    manifest.check_groups()
    if options.to_train:
        manifest.check_trainable()
    elif not manifest.records:
        raise DataError("; ".join([f"{manifest.name}: no picture to measure", *manifest.unread.values()]))
    decoded = decode_images(manifest.records, spec, cache_folder(cache), progress)
    bad = sorted([*manifest.bad, *((manifest.records[i].where, reason) for i, reason in decoded.bad)])
    if bad and options.on_bad_image == "fail":
        raise DataError(_bad_images(manifest.name, bad))
    notes = list(manifest.notes)
    if bad:
        lines = "; ".join(f"{printable(image)}: {reason}" for image, reason in bad[:MAX_SHOWN])
        notes.append(f"{manifest.name}: {len(bad):,} bad images left out: {lines}{and_more(len(bad))}")
    if decoded.not_kept:
        notes.append(
            f"decoded pictures cannot be kept in {decoded.not_kept}, so they are decoded each time; "
            f"name another folder in {CACHE_VARIABLE}"
        )
    notes += notes_on_facts(manifest, decoded.facts, decoded.decoding.bits, given=spec.bits is not None)
    make = _make_splits if options.to_train else _make_measured
    made = make(manifest, decoded, notes)
    return replace(made, decoding=decoded.decoding)


def _bad_images(name: str, bad: Sequence[tuple[str, str]]) -> str:
    lines = [f"  {printable(image)}: {reason}" for image, reason in bad[:MAX_SHOWN]]
    more = [f" {and_more(len(bad))}"] if len(bad) > MAX_SHOWN else []
    images = "image" if len(bad) == 1 else "images"
    hint = (
        "Mend or remove them, or go on without them with data.on_bad_image: skip in the recipe "
        "(--set data.on_bad_image=skip; evaluate: --on-bad-image skip), which lists them."
    )
    return "\n".join([f"{name}: {len(bad):,} bad {images}", *lines, *more, hint])


def _make_splits(manifest: Manifest, decoded: DecodedImages, notes: list[str]) -> DataSplits:
    """The decoded images by split, with `notes` and what else people should know about them."""
    good = np.flatnonzero(decoded.rows >= 0)
    manifest = replace(manifest, records=tuple(manifest.records[i] for i in good))
    manifest.check_trainable()
    rows = decoded.rows[good]
    hashes, own = decoded.cache.hashes[rows], list[str]()
    held_out = not any(record.split == "test" for record in manifest.records)
    if held_out:
        manifest = _hold_out_test(manifest, [decoded.digests[i] for i in good], hashes)
        own.append(
            f"{manifest.name}: no test part of its own, so {sum(manifest.counts('test').values()):,} of "
            f"{len(manifest.records):,} pictures are kept for the test, chosen by "
            + ("their groups" if any(record.group for record in manifest.records) else "their content")
        )
    notes += _two_labels(manifest, hashes)
    own += _test_images_in_train(manifest, hashes) + _small_classes(manifest)
    train, validation, test = _image_sets(manifest, decoded.cache.pixels, rows)
    own_validation = validation if len(validation) else None
    return DataSplits(train, test, own_validation, (*notes, *own), held_out, split_notes=tuple(own))


def _make_measured(manifest: Manifest, decoded: DecodedImages, notes: list[str]) -> DataSplits:
    """`_make_splits` for images that nothing is to learn from: without a test split, `train` has all of them."""
    good = np.flatnonzero(decoded.rows >= 0)
    if not len(good):
        raise DataError(_bad_images(manifest.name, [(manifest.records[i].where, reason) for i, reason in decoded.bad]))
    manifest = replace(manifest, records=tuple(manifest.records[i] for i in good))
    rows = decoded.rows[good]
    hashes = decoded.cache.hashes[rows]
    train, validation, test = _image_sets(manifest, decoded.cache.pixels, rows)
    if len(test):
        notes += _test_images_in_train(manifest, hashes)
        return DataSplits(train, test, validation if len(validation) else None, tuple(notes))
    try:
        held = _hold_out_test(manifest, [decoded.digests[i] for i in good], hashes)
    except DataError:  # no class has two pictures: then none is held out of a training either
        return DataSplits(train, test, None, tuple(notes), held_out=True)
    chosen = [i for i, record in enumerate(held.records) if record.split == "test"]
    return DataSplits(train, train.subset(chosen), None, tuple(notes), held_out=True)


def _hold_out_test(manifest: Manifest, digests: Sequence[str], hashes: Hashes) -> Manifest:
    """Makes about TEST_FRACTION of the training images the test split, by each one's content or its group.

    Chosen by the digests of the encoded images, not by the stored pixels, so that it is the same for every input size.
    Images of equal pixels stay together. DataError where no class has two images that differ.
    """
    label_of = {name: label for label, name in enumerate(manifest.class_names)}
    train = np.flatnonzero([record.split == "train" for record in manifest.records])
    records = [manifest.records[i] for i in train.tolist()]
    own_keys = np.array([int(digests[i][:16], 16) for i in train.tolist()], dtype=np.uint64)
    grouped = np.array([bool(record.group) for record in records])
    keys = np.where(grouped, name_hashes((record.group for record in records), "test"), own_keys)
    labels = np.array([label_of[record.label] for record in records], dtype=np.int64)
    sets = inseparable(hashes[train], group_indices([record.group for record in records]))
    held = set(train[choose_test(keys, sets, labels, TEST_FRACTION)].tolist())
    if not held:
        different = "groups" if grouped.any() else "pictures that differ"
        raise DataError(
            f"{manifest.name}: no class has two {different}, so none can be kept for the test; add pictures"
        )
    chosen = [replace(record, split="test") if i in held else record for i, record in enumerate(manifest.records)]
    return replace(manifest, records=tuple(chosen))


def _test_images_in_train(manifest: Manifest, hashes: Hashes) -> list[str]:
    """A note that names each pair of a test image and a training or validation image with the same pixels."""
    learnt: dict[int, list[str]] = defaultdict(list)
    tested: list[tuple[ImageRecord, int]] = []
    for record, pixels_hash in zip(manifest.records, hashes.tolist(), strict=True):
        if record.split == "test":
            tested.append((record, pixels_hash))
        else:
            learnt[pixels_hash].append(record.name)
    pairs = [f"{name} = {record.name}" for record, pixels_hash in tested for name in learnt.get(pixels_hash, [])]
    count = sum(pixels_hash in learnt for _, pixels_hash in tested)
    are = "picture is" if count == 1 else "pictures are"
    note = f"{manifest.name}: {count:,} test {are} also in train: {list_some(pairs)}; accuracy on them flatters"
    return [note] if pairs else []


def _two_labels(manifest: Manifest, hashes: Hashes) -> list[str]:
    """A note that names the images whose pixels another image has, under another label."""
    first: dict[int, ImageRecord] = {}
    pairs = []
    for record, pixels_hash in zip(manifest.records, hashes.tolist(), strict=True):
        other = first.setdefault(pixels_hash, record)
        if other.label != record.label:
            pairs.append(f"{other.name} = {record.name}")
    pictures = "picture is" if len(pairs) == 1 else "pictures are"
    note = f"{manifest.name}: {len(pairs):,} {pictures} there under two labels: {list_some(pairs)}; one is wrong"
    return [note] if pairs else []


def _small_classes(manifest: Manifest) -> list[str]:
    few = [f"{name} ({count})" for name, count in manifest.counts("train").items() if count < FEW]
    untested = [name for name, count in manifest.counts("test").items() if not count]
    notes = [f"{manifest.name}: fewer than {FEW} images to learn from: {list_some(few)}"] if few else []
    return notes + ([f"{manifest.name}: no test picture of {list_some(untested)}"] if untested else [])


def _image_sets(manifest: Manifest, pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> list[ImageSet]:
    """The images of each split, whose pixels are the `rows` of `pixels` (uint8 M×C×R×R)."""
    memmap = isinstance(pixels, np.memmap) and len(rows) * pixels[0].size > memory_budget()
    label_of = {name: label for label, name in enumerate(manifest.class_names)}
    origin = Path(manifest.name).resolve().name
    splits: tuple[SplitName, ...] = ("train", "validation", "test")
    found = []
    for split in splits:
        own = [i for i, record in enumerate(manifest.records) if record.split == split]
        images: Images = MemmapImages(pixels, rows[own]) if memmap else torch.from_numpy(np.asarray(pixels)[rows[own]])
        labels = torch.tensor([label_of[manifest.records[i].label] for i in own], dtype=torch.int64)
        names = tuple(manifest.records[i].name for i in own)
        groups = tuple(manifest.records[i].group for i in own)
        found.append(
            ImageSet(images, labels, manifest.class_names, f"{origin} {split}", names, groups if any(groups) else ())
        )
    return found
