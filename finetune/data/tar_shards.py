"""Reads WebDataset shards: tar archives in which files of one name but for their endings are one sample.

`cat/0001.jpg` with `cat/0001.cls` (a number or a name) or `cat/0001.json`. Nothing is ever written to the disk: members
are found once, and their bytes read from their places in the archive.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from finetune.data.image_io import IMAGE_SUFFIXES, MAX_BYTES
from finetune.data.manifest import ImageRecord, Manifest
from finetune.data.shards import (
    COMPRESSED_TARS,
    MAX_ROWS,
    TAR,
    Label,
    Shard,
    choose_names,
    find_shards,
    label_class,
    make_manifest,
    read_class_list,
)
from finetune.errors import DataError
from finetune.io.safe_open import open_regular
from finetune.io.sanitize import printable
from finetune.io.strict_json import parse_json
from finetune.text import first_line, listed

MAX_LABEL = 10_000  # bytes of a .cls
MAX_JSON = 1_000_000  # bytes of a .json
MAX_EXTENDED_HEADER = 1_000_000  # bytes of what says a long name and the like
MAX_AFTER_END = 1 << 20  # bytes of padding behind the end of an archive
LABEL_KEYS = ("class_name", "label_name", "label", "class", "cls", "category")  # of a .json, the first that is there
BLOCK = 512


class _Member(NamedTuple):
    """A file in an archive: its name, the sample's key, the ending after the first dot, and where its bytes are."""

    name: str
    key: str
    ending: str
    offset: int
    size: int


@dataclass
class _Sample:
    """The files of one key."""

    key: str
    pictures: list[_Member] = field(default_factory=list)
    label: Label = None
    group: str = ""


@dataclass(frozen=True)
class TarRecord(ImageRecord):
    """An image in a tar archive, read from its place there."""

    archive: Path
    shard: str
    member: str
    offset: int
    length: int

    @property
    def where(self) -> str:
        return f"{self.shard}: {self.member}"

    def open(self) -> bytes:
        if self.length > MAX_BYTES:
            raise DataError(f"cannot be read as an image ({self.length:,} bytes, and at most {MAX_BYTES:,} are read)")
        try:
            with open_regular(self.archive) as file:
                file.seek(self.offset)
                content = file.read(self.length)
        except OSError as error:
            raise DataError(f"cannot be read from the archive ({error.strerror or error})") from None
        if len(content) < self.length:
            raise DataError("cannot be read from the archive (it was cut short meanwhile)")
        return content

    def size(self) -> int | None:
        return self.length


def read_tar(name: str, columns: object = None) -> Manifest:
    """Lists the images of a folder of WebDataset tars, or of one, in the order of their files' names; decodes none.

    Splits are those that the names of files or folders say. A number is the class of that line of classes.txt beside
    the shards, where there is one. DataError for an archive that is damaged, cut short or compressed, and for members
    that are no plain files or have absolute or upward paths.
    """
    place = Path(name)
    shards, notes = find_shards(place, TAR, name)
    class_names = read_class_list(place, name)
    found = [(shard, sample) for shard in shards for sample in _samples(shard, name)]
    names = _names(found)
    records: list[TarRecord] = []
    unlabelled, numbers = [], False
    spellings: dict[str, set[str]] = defaultdict(set)
    for (shard, sample), own in zip(found, names, strict=True):
        try:
            label = label_class(sample.label, class_names)
        except ValueError as error:
            raise DataError(f"{name}: {shard.name}: {printable(sample.key)}: {error}") from None
        numbers |= isinstance(sample.label, int)
        if label is None:
            unlabelled.append(own)
        else:
            records.append(_record(shard, sample, own, label))
            spellings[label].add(str(sample.label))
    if numbers and class_names is None:
        notes.append(
            f"{name}: labels are numbers without names, so the classes are called by their numbers; a file classes.txt "
            "beside the shards, one name a line, names them"
        )
    return make_manifest(name, records, notes, spellings, unlabelled)


def unlabelled_tar(name: str) -> list[TarRecord]:
    """All images of WebDataset tars, with "" for labels and splits that do not matter, to be classified. DataError."""
    shards, _ = find_shards(Path(name), TAR, name)
    found = [(shard, sample) for shard in shards for sample in _samples(shard, name, labelled=False)]
    return [_record(shard, sample, own, "") for (shard, sample), own in zip(found, _names(found), strict=True)]


def _record(shard: Shard, sample: _Sample, name: str, label: str) -> TarRecord:
    picture = sample.pictures[0]
    place = (shard.path, shard.name, picture.name, picture.offset, picture.size)
    return TarRecord(name, label, shard.split, *place, group=sample.group)


def _names(found: Sequence[tuple[Shard, _Sample]]) -> Sequence[str]:
    inner = [sample.pictures[0].name for _, sample in found]
    return choose_names(inner, [f"{shard.name}#{sample.pictures[0].offset}" for shard, sample in found])


def _samples(shard: Shard, title: str, *, labelled: bool = True) -> Iterator[_Sample]:
    """The samples of one archive that have a picture. DataError where one has several, or a label that is none."""
    where = f"{title}: {shard.name}"
    try:
        with open_regular(shard.path) as file:
            sample, count = _Sample(""), 0
            for member in _members(file, shard.name, where):
                if member.key != sample.key:
                    yield from [sample] if sample.pictures else []
                    sample, count = _Sample(member.key), count + 1
                if count > MAX_ROWS:
                    raise DataError(f"{where}: over {MAX_ROWS:,} samples, and at most so many are read")
                _add(sample, member, file, where, labelled)
            yield from [sample] if sample.pictures else []
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error})") from None


def _add(sample: _Sample, member: _Member, file: BinaryIO, where: str, labelled: bool) -> None:
    """Adds one file to the sample of its key."""
    if f".{member.ending}" in IMAGE_SUFFIXES:
        sample.pictures.append(member)
        if len(sample.pictures) > 1:
            both = listed([printable(picture.name) for picture in sample.pictures])
            raise DataError(f"{where}: expected one picture of each name, found {both}")
    elif member.ending == "cls" and labelled:
        text = _content(file, member, MAX_LABEL, where).decode("utf-8", "replace").strip()
        sample.label = int(text) if re.fullmatch(r"-?\d{1,9}", text, re.ASCII) else text
    elif member.ending == "json" and labelled:
        try:
            values = parse_json(_content(file, member, MAX_JSON, where), MAX_JSON)
        except ValueError as error:
            raise DataError(f"{where}: {printable(member.name)}: expected JSON, found none ({error})") from None
        if isinstance(values, dict):
            sample.label = sample.label if sample.label is not None else _label_in(values)
            sample.group = str(values.get("group", "")) if isinstance(values.get("group"), str | int) else ""


def _label_in(values: dict[str, Any]) -> Label:
    given = next((values[key] for key in LABEL_KEYS if key in values), None)
    return given if isinstance(given, str | int) and not isinstance(given, bool) else None


def _content(file: BinaryIO, member: _Member, most: int, where: str) -> bytes:
    if member.size > most:
        raise DataError(f"{where}: {printable(member.name)}: {member.size:,} bytes, and at most {most:,} are read")
    place = file.tell()
    file.seek(member.offset)
    content = file.read(member.size)
    file.seek(place)
    return content


class _HeaderFile:
    """What tarfile reads headers from: the file, without long reads, as a header may ask for any number of bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Reads so many bytes. tarfile.ReadError for more than a header may take."""
        if not 0 <= size <= MAX_EXTENDED_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def _members(file: BinaryIO, name: str, where: str) -> Iterator[_Member]:
    """The plain files of an archive in their order. DataError for members of any other kind, and for damage."""
    length = os.fstat(file.fileno()).st_size
    _refuse_compressed(file.read(6), name, where)
    file.seek(0)
    try:
        with tarfile.open(fileobj=_HeaderFile(file), mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members = []  # it would keep them all
                if member.isdir():
                    continue
                _refuse_unsafe(member, where)
                if member.size < 0 or member.offset_data + member.size > length:
                    found = f"{printable(member.name)} has {member.size:,} bytes, and the file ends before"
                    raise DataError(f"{where}: cut short: {found}; copy or download it again")
                path, _, base = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = base.partition(".")
                if stem:  # not a hidden file
                    key = f"{path}/{stem}"
                    yield _Member(member.name, key, ending.lower(), member.offset_data, member.size)
            end = archive.offset
    except (tarfile.TarError, OverflowError, MemoryError, ValueError, RecursionError) as error:
        said = printable(first_line(str(error))[:200]) or type(error).__name__
        raise DataError(f"{where}: cannot be read as a tar archive ({said}); it is damaged or cut short") from None
    _check_end(file, end, length, where)


def _check_end(file: BinaryIO, end: int, length: int, where: str) -> None:
    """DataError unless the archive ends with a block of zeros at `end`, and nothing but padding follows."""
    file.seek(end)
    rest = file.read(MAX_AFTER_END + 1)
    if rest[:BLOCK] != bytes(BLOCK):
        raise DataError(
            f"{where}: damaged or cut short at byte {end:,}, where neither a file nor the end mark is; copy it again"
        )
    if len(rest) > MAX_AFTER_END or rest.strip(b"\0"):
        raise DataError(
            f"{where}: {length - end:,} bytes follow the archive's end; of archives that were joined only the first is "
            "read, so keep them apart"
        )


def _refuse_compressed(start: bytes, name: str, where: str) -> None:
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")) or name.endswith(COMPRESSED_TARS):
        raise DataError(f"{where}: a compressed archive, in which no picture has a place; unpack it to a plain .tar")


def _refuse_unsafe(member: tarfile.TarInfo, where: str) -> None:
    """DataError for links, devices and the like, and for paths that lead out of a folder."""
    name = printable(member.name[:200])
    if not member.isreg() or member.issparse():
        kinds = ((member.issym() or member.islnk(), "a link"), (member.issparse(), "a file with holes"))
        kind = next((text for yes, text in kinds if yes), "a device or a pipe")
        raise DataError(f"{where}: expected plain files, found {kind}, {name}; make the archive without it")
    if member.name.startswith(("/", "\\")) or ".." in re.split(r"[\\/]", member.name):
        raise DataError(f"{where}: expected paths inside the archive, found {name}, which leads out of it")
