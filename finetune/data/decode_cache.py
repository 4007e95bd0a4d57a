"""Decodes images once and finds them again by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import PIL

from finetune.data.cache_file import (
    FORMAT,
    SALT,
    CacheFile,
    CacheFileWriter,
    Each,
    read_cache_files,
    remove_stale_files,
)
from finetune.data.image_io import crop_to_square, decode_picture, is_grey, quiet_decoding, read_bytes, resized_side
from finetune.data.split import array_hashes
from finetune.errors import DataError

if TYPE_CHECKING:
    from finetune.data.image_io import CropSpec


Progress: TypeAlias = Callable[[int, int], None]

# Bytes of a file, on average, below which threads do not pay: Python then has more to do than what lets others run.
SMALL = 8_192

SAMPLE = 200  # files whose sizes are looked at

_Row: TypeAlias = tuple[npt.NDArray[np.uint8], int]  # C×R×R, and its hash

_Item = TypeVar("_Item")

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class DecodedImages:
    """What became of the files, in their order.

    rows: each file's row of pack.pixels, -1 for a bad one. digests: of their bytes, "" where they could not be read.
    bad: (place of the file, reason). fault: why the pack could not be kept, if so.
    """

    pack: CacheFile
    rows: npt.NDArray[np.int64]
    digests: tuple[str, ...]
    bad: tuple[tuple[int, str], ...]
    fault: str | None


def decode_files(
    files: Sequence[Path], frame: CropSpec, folder: Path, progress: Progress | None = None
) -> DecodedImages:
    """Decodes what no pack under `folder` has, and keeps it there. `progress` is told (done, all) of those alone.

    With frame.channels None, the pixels have one channel if every picture is grey, else 3.
    """
    with _workers(files) as each:
        named = list(each(_named, files))
        reasons = {place: reason for place, (_, reason) in enumerate(named) if reason}
        first: dict[str, int] = {}  # the first file with each content
        for place, (digest, _) in enumerate(named):
            if place not in reasons:
                first.setdefault(digest, place)
        channels = frame.channels or _channels(files[place] for place in first.values())
        side = resized_side(frame.size, frame.crop)
        shape, folder = (channels, side, side), folder / _frame_key(frame, channels)
        pack, fault = _cache_path(first, files, frame, shape, folder, each, progress, reasons)
    rows = np.array([pack.row_of.get(digest, -1) for digest, _ in named], dtype=np.int64)
    for place in np.flatnonzero(rows < 0).tolist():
        reasons.setdefault(place, reasons.get(first.get(named[place][0], -1), ""))
    bad = tuple(sorted(reasons.items()))
    return DecodedImages(pack, rows, tuple(digest for digest, _ in named), bad, fault)


def _cache_path(
    first: dict[str, int],
    files: Sequence[Path],
    frame: CropSpec,
    shape: tuple[int, int, int],
    folder: Path,
    each: Each,
    progress: Progress | None,
    reasons: dict[int, str],
) -> tuple[CacheFile, str | None]:
    """A pack with a row for each content in `first` that is a picture; `reasons` gets why the others are none."""
    found = _from_cache(read_cache_files(folder, shape, first), list(first), each)
    missing = [digest for digest in first if digest not in found]
    sources = {id(pack): pack for pack, _ in found.values()}
    if not missing and len(sources) == 1:
        return next(iter(sources.values())), None
    with CacheFileWriter(folder, shape, len(first)) as writer:
        work = [(files[first[digest]], digest, frame, shape[0]) for digest in missing]
        for done, (digest, result) in enumerate(zip(missing, each(_decode_missing, work), strict=True), 1):
            if isinstance(result, str):
                reasons[first[digest]] = result
            else:
                writer.add(digest, *result)
            if progress is not None:
                progress(done, len(missing))
        if not writer.digests and len(sources) == 1:
            return next(iter(sources.values())), None
        for digest, (pack, row) in found.items():
            writer.add(digest, pack.pixels[row], int(pack.hashes[row]))
        made = writer.finish()
        remove_stale_files(folder, made)
        return made, None if writer.fault is None else f"{folder} ({writer.fault.strerror or writer.fault})"


def _from_cache(packs: list[CacheFile], wanted: list[str], each: Each) -> dict[str, tuple[CacheFile, int]]:
    """Where each content wanted lies, from one pack if one has them all. Packs with damaged rows are deleted."""
    found: dict[str, tuple[CacheFile, int]] = {}
    for pack in packs:
        there = [digest for digest in wanted if digest in pack.row_of]
        if len(there) < len(wanted):
            there = [digest for digest in there if digest not in found]
        good = pack.intact([pack.row_of[digest] for digest in there], each)
        if not good.all():
            pack.forget()
        elif len(there) == len(wanted):
            return {digest: (pack, pack.row_of[digest]) for digest in wanted}
        found.update({d: (pack, pack.row_of[d]) for d, whole in zip(there, good, strict=True) if whole})
        if len(found) == len(wanted):
            break
    return found


def _named(file: Path) -> tuple[str, str]:
    """A file's digest, or the reason why it cannot be read."""
    try:
        return _digest(read_bytes(file)), ""
    except DataError as error:
        return "", _reason(error, file)


def _channels(files: Iterable[Path]) -> int:
    """1 if every picture is grey, else 3; the heads of files are looked at up to the first colour."""
    for file in files:
        try:
            grey = is_grey(read_bytes(file))
        except DataError:  # gone since; it will be met again
            continue
        if grey is False:
            return 3
    return 1


def _decode_missing(work: tuple[Path, str, CropSpec, int]) -> _Row | str:
    """The pixels kept of a file, or why there are none. `work`: it, its digest, the frame, and how many channels."""
    file, digest, frame, channels = work
    try:
        content = read_bytes(file)
        if _digest(content) != digest:
            return "changed while it was being read; try again"
        picture = decode_picture(content, file)
    except DataError as error:
        return _reason(error, file)
    square = crop_to_square(
        picture,
        channels=channels,
        size=frame.size,
        crop=frame.crop,
        resize=frame.resize,
        interpolation=frame.interpolation,
    )
    pixels = np.ascontiguousarray(square.transpose(2, 0, 1))
    return pixels, int(array_hashes(pixels[None], SALT)[0])


def _reason(error: DataError, file: Path) -> str:
    return str(error).removeprefix(f"{file}: ")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def _frame_key(frame: CropSpec, channels: int) -> str:
    """The folder for pixels made this very way. Another Pillow may decode or resize otherwise."""
    what = {**asdict(frame), "channels": channels, "pillow": PIL.__version__, "format": FORMAT}
    key = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=6).hexdigest()
    return f"photographs/{channels}x{resized_side(frame.size, frame.crop)}-{key}"


@contextmanager
def _workers(files: Sequence[Path]) -> Iterator[Each]:
    """What works through these files: this thread where they are small, else one a core.

    Pillow and hashlib let the others run meanwhile. Ctrl-C waits for no more than is begun.
    """
    with quiet_decoding():
        if _mean_size(files) < SMALL:
            yield map
            return
        threads = os.cpu_count() or 1
        pool = ThreadPoolExecutor(threads)
        try:
            yield lambda work, items: _in_order(pool, work, items, 4 * threads)
        finally:
            pool.shutdown(cancel_futures=True)


def _mean_size(files: Sequence[Path]) -> float:
    """Bytes; of some files from all over the list."""
    sizes = []
    for file in files[:: -(-len(files) // SAMPLE) or 1]:
        try:
            sizes.append(file.stat().st_size)
        except (OSError, ValueError):  # the reason is told when it is read
            continue
    return sum(sizes) / max(1, len(sizes))


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Found], items: Iterable[_Item], ahead: int
) -> Iterator[_Found]:
    """`work` of each item, in order; only a few results wait in memory at a time."""
    waiting: deque[Future[_Found]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
