"""Decodes images once and finds their pixels again by content.

A cache file is a plain .npy (uint8 N×C×R×R) with a .json of the same name beside it, which has for each row the digest
of the encoded image and a hash of its pixels. Both are checked when they are read; what is damaged is decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL

from finetune.data.bit_depth import depth_of
from finetune.data.image_facts import ImageFacts, find_facts, needs_look
from finetune.data.image_io import EXACT, QUIET_WARNINGS, START_OF_IMAGE, CropSpec, Decoding, decode_image, is_grey
from finetune.data.loader import prefetch
from finetune.data.manifest import ImageRecord
from finetune.data.split import array_hashes
from finetune.errors import DataError, OutputError
from finetune.io.atomic import TemporaryFile, open_atomic, temporary_file
from finetune.io.safe_open import open_regular, read_regular

PixelArray: TypeAlias = npt.NDArray[np.uint8]
Progress: TypeAlias = Callable[[int, int], None]  # called with (done, all)
FORMAT = 1
SALT = "photograph"  # of the hashes of pixels
HEADER_BYTES = 128  # of the .npy
MAX_JSON_BYTES = 1 << 30  # of 16 million images
MODE = 0o600  # of cache files: decoded images may be private
STALE_AFTER = 24 * 3600  # seconds after which a file without its partner was left by a process that died
MIN_SIZE_FOR_THREADS = 8_192  # mean bytes of an image; below, Python has more to do than what lets other threads run
SIZE_SAMPLE = 200  # images whose sizes are looked at
VERIFY_BYTES = 4 << 20  # of pixels hashed by one call


class ParallelMap(Protocol):
    """`map`, or the same in several threads: a function of each item, in the order of the items."""

    def __call__(self, function: Any, items: Any, /) -> Iterator[Any]: ...


@dataclass(frozen=True)
class DecodedImages:
    """The pixels of image records, in their order.

    rows: each record's row in `cache.pixels`, -1 for a bad one. digests: of the encoded images, "" where they could not
    be read. bad: (index of the record, reason). not_kept: why the cache could not be written, if so. facts: of each
    record. decoding: how files became pixels.
    """

    cache: CacheFile
    rows: npt.NDArray[np.int64]
    digests: tuple[str, ...]
    bad: tuple[tuple[int, str], ...]
    not_kept: str | None
    facts: tuple[ImageFacts, ...]
    decoding: Decoding


def decode_images(
    records: Sequence[ImageRecord], spec: CropSpec, folder: Path, progress: Progress | None = None
) -> DecodedImages:
    """Crops all images to squares as `spec` says: those that no cache file under `folder` has are decoded and kept.

    `progress` counts the decoded ones alone. With spec.channels None, there is one channel if every image is grey, else
    three; with spec.bits None, the largest value of all deep images tells the bits. Images of equal bytes share a row.
    """
    threads = os.cpu_count() or 1
    parallel_map: ParallelMap = partial(prefetch, threads=threads, ahead=4 * threads)
    if _mean_size(records) < MIN_SIZE_FOR_THREADS:
        parallel_map = map
    with QUIET_WARNINGS:
        digested: list[_Digested] = list(parallel_map(_digest_record, records))
        by_digest: dict[str, ImageRecord] = {}  # the first record of each content
        for record, found in zip(records, digested, strict=True):
            if not found.error:
                by_digest.setdefault(found.digest, record)
        look = {found.digest: by_digest[found.digest] for found in digested if found.look}
        facts = find_facts(look, folder, parallel_map)
        decoding = _decoding(spec, facts.values(), jpeg=any(found.jpeg for found in digested))
        spec = replace(spec, channels=spec.channels or _count_channels(by_digest.values()), **vars(decoding))
        cache, undecodable, not_kept = _find_or_decode(by_digest, spec, folder, parallel_map, progress)
    digests = tuple(found.digest for found in digested)
    rows = np.array([cache.row_of.get(digest, -1) for digest in digests], dtype=np.int64)
    bad = tuple((i, found.error or undecodable[found.digest]) for i, found in enumerate(digested) if rows[i] < 0)
    of_records = tuple(facts.get(digest, ImageFacts()) for digest in digests)
    return DecodedImages(cache, rows, digests, bad, not_kept, of_records, decoding)


def _find_or_decode(
    by_digest: dict[str, ImageRecord],
    spec: CropSpec,
    folder: Path,
    parallel_map: ParallelMap,
    progress: Progress | None,
) -> tuple[CacheFile, dict[str, str], str | None]:
    """One cache file with a row for each digest; the reasons, by digest, of those without one; and why it is not kept.

    A cache file that has all rows already is used as it is; else a new one is made from old rows and decoded images.
    """
    assert spec.channels is not None
    shape, folder = (spec.channels, spec.side, spec.side), folder / _folder_name(spec)
    found = _find_cached(read_cache_files(folder, shape, by_digest), list(by_digest), parallel_map)
    missing = [digest for digest in by_digest if digest not in found]
    undecodable: dict[str, str] = {}
    sources = list({id(cache): cache for cache, _ in found.values()}.values())
    if not missing and len(sources) == 1:
        return sources[0], undecodable, None
    with CacheFileWriter(folder, shape, len(by_digest)) as writer:
        work = [(digest, by_digest[digest], spec) for digest in missing]
        for done, (digest, result) in enumerate(zip(missing, parallel_map(_decode_record, work), strict=True), 1):
            if isinstance(result, str):
                undecodable[digest] = result
            else:
                writer.add(digest, *result)
            if progress is not None:
                progress(done, len(missing))
        if not writer.digests and len(sources) == 1:
            return sources[0], undecodable, None
        for digest, (cache, row) in found.items():
            writer.add(digest, cache.pixels[row], int(cache.hashes[row]))
        made = writer.finish()
        remove_stale_files(folder, made)
        error = writer.error
    return made, undecodable, None if error is None else f"{folder} ({error.strerror or error})"


def _find_cached(
    caches: list[CacheFile], wanted: list[str], parallel_map: ParallelMap
) -> dict[str, tuple[CacheFile, int]]:
    """Where the pixels of each digest are, all in one cache file if one has them. Deletes files with damaged rows."""
    found: dict[str, tuple[CacheFile, int]] = {}
    for cache in caches:
        present = [digest for digest in wanted if digest in cache.row_of]
        if len(present) < len(wanted):
            present = [digest for digest in present if digest not in found]
        intact = cache.intact([cache.row_of[digest] for digest in present], parallel_map)
        if not intact.all():
            cache.delete()
        elif len(present) == len(wanted):
            return {digest: (cache, cache.row_of[digest]) for digest in wanted}
        found.update({digest: (cache, cache.row_of[digest]) for digest, ok in zip(present, intact, strict=True) if ok})
        if len(found) == len(wanted):
            break
    return found


@dataclass(frozen=True)
class _Digested:
    """The digest of an image's bytes, whether it has facts to look for, and whether it is a JPEG; or an error."""

    digest: str
    error: str = ""
    look: bool = False
    jpeg: bool = False


def _digest_record(record: ImageRecord) -> _Digested:
    try:
        content = record.open()
    except DataError as error:
        return _Digested("", str(error))
    return _Digested(_digest(content), "", needs_look(content), content.startswith(START_OF_IMAGE))


def _decoding(spec: CropSpec, facts: Iterable[ImageFacts], *, jpeg: bool) -> Decoding:
    """How to decode images of these facts: "scaled" only where there are JPEG files, which alone it concerns."""
    white = max((found.white for found in facts), default=0)
    bits = spec.bits or (depth_of(white) if white else EXACT.bits)
    return Decoding(spec.decode if jpeg else EXACT.decode, bits)


def _count_channels(records: Iterable[ImageRecord]) -> int:
    """1 if every image is grey, else 3; reads up to the first colour image."""
    for record in records:
        with contextlib.suppress(DataError):  # it was readable before, and is opened again to be decoded
            if is_grey(record.open()) is False:
                return 3
    return 1


def _decode_record(work: tuple[str, ImageRecord, CropSpec]) -> tuple[PixelArray, int] | str:
    """The pixels (uint8 C×R×R) of a record with this digest and their hash, or the reason why there are none."""
    digest, record, spec = work
    try:
        content = record.open()
        if _digest(content) != digest:
            return "changed while it was being read; try again"
        image = decode_image(content, spec)
    except DataError as error:
        return str(error)
    pixels = np.ascontiguousarray(spec.square(image).transpose(2, 0, 1))
    return pixels, int(array_hashes(pixels[None], SALT)[0])


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def _folder_name(spec: CropSpec) -> str:
    """The folder of the pixels made this very way. Another Pillow may decode or resize differently."""
    what = {**asdict(spec), "pillow": PIL.__version__, "format": FORMAT}
    key = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=6).hexdigest()
    return f"photographs/{spec.channels}x{spec.side}-{key}"


def _mean_size(records: Sequence[ImageRecord]) -> float:
    """Mean bytes of an image, from a sample over the whole sequence."""
    sample = records[:: -(-len(records) // SIZE_SAMPLE) or 1]
    sizes = [size for record in sample if (size := record.size()) is not None]
    return sum(sizes) / max(1, len(sizes))


@dataclass(frozen=True)
class CacheFile:
    """pixels: uint8 N×C×R×R, mapped from the file or in memory. hashes: of each row's pixels. row_of: by digest."""

    pixels: PixelArray
    hashes: npt.NDArray[np.uint64]
    row_of: dict[str, int]
    sidecar: Path | None = None  # the .json

    def intact(self, rows: Sequence[int], parallel_map: ParallelMap) -> npt.NDArray[np.bool_]:
        """For each of these rows whether its pixels are what was written."""
        step = max(1, VERIFY_BYTES // max(1, self.pixels[0].size))
        blocks = [np.array(rows[i : i + step], dtype=np.int64) for i in range(0, len(rows), step)]
        found = parallel_map(lambda block: array_hashes(self.pixels[block], SALT) == self.hashes[block], blocks)
        return np.concatenate([np.empty(0, dtype=bool), *found])

    def delete(self) -> None:
        """Deletes the files; who has them mapped keeps them."""
        if self.sidecar is not None:
            _delete_pair(self.sidecar)


def _delete_pair(sidecar: Path) -> None:
    for file in (sidecar, sidecar.with_suffix(".npy")):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def read_cache_files(folder: Path, shape: tuple[int, int, int], wanted: Iterable[str]) -> list[CacheFile]:
    """The cache files of a folder with any of these digests, those with the most first; damaged ones are ignored."""
    digests = set(wanted)
    try:
        sidecars = sorted(folder.glob("*.json"))
    except OSError:
        return []
    caches = [cache for sidecar in sidecars if (cache := _read(sidecar, shape)) and digests & cache.row_of.keys()]
    return sorted(caches, key=lambda cache: -len(digests & cache.row_of.keys()))


def _read(sidecar: Path, shape: tuple[int, int, int]) -> CacheFile | None:
    try:
        content = json.loads(read_regular(sidecar, MAX_JSON_BYTES))
        digests, hashes = content["digests"], np.array([int(h, 16) for h in content["hashes"]], dtype=np.uint64)
        open_regular(sidecar.with_suffix(".npy")).close()  # numpy would wait at a pipe for ever
        pixels = np.load(sidecar.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        fits = pixels.dtype == np.uint8 and pixels.shape == (len(digests), *shape) and pixels.flags.c_contiguous
        if content["format"] != FORMAT or not fits or len(hashes) != len(digests):
            return None
        return CacheFile(pixels, hashes, {digest: row for row, digest in enumerate(digests)}, sidecar)
    except Exception:  # a damaged JSON or .npy raises nearly anything; the images themselves are at hand
        return None


class CacheFileWriter:
    """Writes decoded images one by one to a new cache file in `folder`, or to memory where that cannot be written.

    `error` says why it could not. Use it in a `with`: what is not finished is removed.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], max_rows: int) -> None:
        self.folder, self.shape, self.max_rows = folder, shape, max_rows
        self.digests: list[str] = []
        self.hashes: list[int] = []
        self.error: OSError | None = None
        self.memory: PixelArray | None = None
        self.file: TemporaryFile | None = None
        self.path = folder  # of the pixels written so far
        self.stack = ExitStack()

    def __enter__(self) -> CacheFileWriter:
        try:
            self.file = self.stack.enter_context(temporary_file(self.folder / "pixels.npy"))
            self.path = self.file.temporary
            os.fchmod(self.file.descriptor, MODE)
            self.file.write(_npy_header((0, *self.shape)))
        except OSError as error:
            self._move_to_memory(error)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, digest: str, pixels: PixelArray, pixels_hash: int) -> None:
        """Adds one image, uint8 C×R×R, with the digest of its bytes and the hash of its pixels."""
        if self.memory is None and self.file is not None:
            try:
                self.file.write(np.ascontiguousarray(pixels).tobytes())
            except OSError as error:
                self._move_to_memory(error)
        if self.memory is not None:
            self.memory[len(self.digests)] = pixels
        self.digests.append(digest)
        self.hashes.append(pixels_hash)

    def finish(self) -> CacheFile:
        """The cache file of all images added, under its name or in memory."""
        row_of = {digest: row for row, digest in enumerate(self.digests)}
        hashes = np.array(self.hashes, dtype=np.uint64)
        if self.memory is None and self.file is not None:
            try:
                pixels, sidecar = self._commit(self.file)
                return CacheFile(pixels, hashes, row_of, sidecar)
            except OSError as error:
                self._move_to_memory(error)
        assert self.memory is not None
        return CacheFile(self.memory[: len(self.digests)], hashes, row_of)

    def _commit(self, file: TemporaryFile) -> tuple[PixelArray, Path]:
        shape = (len(self.digests), *self.shape)
        os.lseek(file.descriptor, 0, os.SEEK_SET)
        file.write(_npy_header(shape))
        os.fsync(file.descriptor)
        # Mapped before it gets its name, so that another process which tidies up cannot come between.
        pixels: PixelArray = np.memmap(file.temporary, dtype=np.uint8, mode="r", offset=HEADER_BYTES, shape=shape)
        name = hashlib.blake2b("".join(self.digests).encode(), digest_size=10).hexdigest()
        sidecar = self.folder / f"{name}.json"
        content = {"format": FORMAT, "digests": self.digests, "hashes": [f"{h:016x}" for h in self.hashes]}
        with open_atomic(sidecar) as sidecar_file:
            os.fchmod(sidecar_file.descriptor, MODE)
            sidecar_file.write(json.dumps(content).encode())
            self.path = file.temporary.replace(sidecar.with_suffix(".npy"))  # before the sidecar has its name
        return pixels, sidecar

    def _move_to_memory(self, error: OSError) -> None:
        """Goes on in memory, with the rows that the file has."""
        self.error = error
        try:
            self.memory = np.empty((self.max_rows, *self.shape), dtype=np.uint8)
        except MemoryError:
            raise OutputError(
                f"{self.folder}: cannot be written ({error.strerror}), and the decoded pictures do not fit into "
                "memory; name a folder with room in FINETUNE_CACHE"
            ) from None
        if self.file is not None and self.digests:
            written = self.memory[: len(self.digests)]
            with self.path.open("rb") as file:
                file.seek(HEADER_BYTES)
                if file.readinto(written.data) < written.nbytes:
                    raise OutputError(f"{self.folder}: cannot be read back ({error.strerror}); try again")


def remove_stale_files(folder: Path, new: CacheFile) -> None:
    """Deletes cache files whose every row the new one has, and what processes that died have left behind."""
    if new.sidecar is None:
        return
    with contextlib.suppress(OSError):
        for file in list(folder.iterdir()):
            if file.suffix == ".json" and file != new.sidecar:
                with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                    if new.row_of.keys() >= set(json.loads(read_regular(file, MAX_JSON_BYTES))["digests"]):
                        _delete_pair(file)
            alone = file.suffix == ".npy" and not file.with_suffix(".json").exists()
            if file.suffix == ".part" or alone:
                with contextlib.suppress(OSError):
                    if time.time() - file.stat().st_mtime > STALE_AFTER:
                        file.unlink(missing_ok=True)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The start of a .npy file of this shape, always of HEADER_BYTES, so that it can be written last."""
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text = fields.ljust(HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
