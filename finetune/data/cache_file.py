"""The file format of the decoded-image cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from finetune.data.split import array_hashes
from finetune.errors import OutputError
from finetune.io.safe_open import open_regular, read_regular

FORMAT = 1

SALT = "photograph"  # of the hashes of pixels

_HEADER = 128  # bytes

_MAX_ABOUT = 1 << 30  # bytes of a JSON: of 16 million pictures

_LEFTOVER = 24 * 3600  # seconds after which a file without its partner was left by a process that died


class Each(Protocol):
    """`map`, or what does the same in several threads: a function of each item, in the order of the items."""

    def __call__(self, function: Any, items: Any, /) -> Iterator[Any]: ...


Bytes = npt.NDArray[np.uint8]

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class CacheFile:
    """pixels: uint8 N×C×R×R, mapped from the file or in memory. hashes: of each row's pixels. row_of: by digest."""

    pixels: Bytes
    hashes: Hashes
    row_of: dict[str, int]
    sidecar: Path | None = None

    def intact(self, rows: Sequence[int], each: Each) -> npt.NDArray[np.bool_]:
        """For each of these rows whether its pixels are what was written."""
        step = max(1, (4 << 20) // max(1, self.pixels[0].size))
        parts = [np.array(rows[i : i + step], dtype=np.int64) for i in range(0, len(rows), step)]
        found = each(lambda part: array_hashes(self.pixels[part], SALT) == self.hashes[part], parts)
        return np.concatenate([np.empty(0, dtype=bool), *found])

    def forget(self) -> None:
        """Deletes its files; who has them mapped keeps them."""
        if self.sidecar is not None:
            for file in (self.sidecar, self.sidecar.with_suffix(".npy")):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)


def read_cache_files(folder: Path, shape: tuple[int, int, int], wanted: Iterable[str]) -> list[CacheFile]:
    """The packs of a folder that have any row wanted, those with the most first; what is damaged is as if not there."""
    known = set(wanted)
    try:
        sidecars = sorted(folder.glob("*.json"))
    except OSError:
        return []
    packs = [pack for sidecar in sidecars if (pack := _read(sidecar, shape)) and known & pack.row_of.keys()]
    return sorted(packs, key=lambda pack: -len(known & pack.row_of.keys()))


def _read(sidecar: Path, shape: tuple[int, int, int]) -> CacheFile | None:
    try:
        about = json.loads(read_regular(sidecar, _MAX_ABOUT))
        digests, hashes = about["digests"], np.array([int(h, 16) for h in about["hashes"]], dtype=np.uint64)
        open_regular(sidecar.with_suffix(".npy")).close()  # numpy would wait at a pipe for ever
        pixels = np.load(sidecar.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        fits = pixels.dtype == np.uint8 and pixels.shape == (len(digests), *shape) and pixels.flags.c_contiguous
        if about["format"] != FORMAT or not fits or len(hashes) != len(digests):
            return None
        return CacheFile(pixels, hashes, {digest: row for row, digest in enumerate(digests)}, sidecar)
    except Exception:  # a damaged JSON or .npy raises nearly anything; the pictures themselves are at hand
        return None


class CacheFileWriter:
    """Takes decoded pictures one by one; they become a pack in `folder`, or one in memory where that cannot be written.

    `fault` says why it could not. Use it in a `with`: what is not finished is removed.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], most: int) -> None:
        self.folder, self.shape, self.most = folder, shape, most
        self.digests: list[str] = []
        self.hashes: list[int] = []
        self.fault: OSError | None = None
        self.memory: Bytes | None = None
        self.temporary: Path | None = None
        self.file: io.FileIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".part")
            self.temporary, self.file = Path(name), io.FileIO(handle, "w+b")
            self._write(_header((0, *shape)))
        except OSError as fault:
            self._to_memory(fault)

    def __enter__(self) -> CacheFileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.temporary is not None:
            with contextlib.suppress(OSError):
                self.temporary.unlink(missing_ok=True)

    def add(self, digest: str, pixels: Bytes, pixels_hash: int) -> None:
        """One picture, uint8 C×R×R, with the digest of its file and the hash of its pixels."""
        if self.memory is None:
            try:
                self._write(np.ascontiguousarray(pixels).tobytes())
            except OSError as fault:
                self._to_memory(fault)
        if self.memory is not None:
            self.memory[len(self.digests)] = pixels
        self.digests.append(digest)
        self.hashes.append(pixels_hash)

    def finish(self) -> CacheFile:
        """The pack of all that was added; its files are in place, or it is in memory."""
        row_of = {digest: row for row, digest in enumerate(self.digests)}
        hashes = np.array(self.hashes, dtype=np.uint64)
        if self.memory is None:
            try:
                pixels, sidecar = self._place()
                return CacheFile(pixels, hashes, row_of, sidecar)
            except OSError as fault:
                self._to_memory(fault)
        assert self.memory is not None
        return CacheFile(self.memory[: len(self.digests)], hashes, row_of)

    def _place(self) -> tuple[Bytes, Path]:
        assert self.file is not None and self.temporary is not None
        shape = (len(self.digests), *self.shape)
        self.file.seek(0)
        self._write(_header(shape))
        os.fsync(self.file.fileno())
        # Mapped before it gets its name, so that another process which tidies up cannot come between.
        pixels: Bytes = np.memmap(self.temporary, dtype=np.uint8, mode="r", offset=_HEADER, shape=shape)
        name = hashlib.blake2b("".join(self.digests).encode(), digest_size=10).hexdigest()
        sidecar = self.folder / f"{name}.json"
        about = {"format": FORMAT, "digests": self.digests, "hashes": [f"{h:016x}" for h in self.hashes]}
        self.temporary.replace(sidecar.with_suffix(".npy"))
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".part", delete=False) as file:
            self.temporary = Path(file.name)
            file.write(json.dumps(about).encode())
            file.flush()
            os.fsync(file.fileno())
        self.temporary.replace(sidecar)
        return pixels, sidecar

    def _write(self, content: bytes) -> None:
        assert self.file is not None
        rest = memoryview(content)
        while rest:  # a disk that gets full takes a part first
            rest = rest[self.file.write(rest) :]

    def _to_memory(self, fault: OSError) -> None:
        """From here on in memory, with what the file has."""
        self.fault = fault
        try:
            self.memory = np.empty((self.most, *self.shape), dtype=np.uint8)
        except MemoryError:
            raise OutputError(
                f"{self.folder}: cannot be written ({fault.strerror}), and the decoded pictures do not fit into "
                "memory; name a folder with room in FINETUNE_CACHE"
            ) from None
        if self.file is not None and self.digests:
            self.file.seek(_HEADER)
            done = self.memory[: len(self.digests)].reshape(-1)
            place = 0
            while place < len(done):
                got = self.file.readinto(memoryview(done)[place:])  # type: ignore[arg-type]
                if not got:
                    raise OutputError(f"{self.folder}: cannot be read back ({fault.strerror}); try again") from None
                place += got


def remove_stale_files(folder: Path, new: CacheFile) -> None:
    """Deletes the packs whose every row the new one has, and what processes that died have left behind."""
    if new.sidecar is None:
        return
    with contextlib.suppress(OSError):
        for file in list(folder.iterdir()):
            if file.suffix == ".json" and file != new.sidecar:
                with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                    if new.row_of.keys() >= set(json.loads(read_regular(file, _MAX_ABOUT))["digests"]):
                        file.unlink(missing_ok=True)
                        file.with_suffix(".npy").unlink(missing_ok=True)
            alone = file.suffix == ".npy" and not file.with_suffix(".json").exists()
            if file.suffix == ".part" or alone:
                with contextlib.suppress(OSError):
                    if time.time() - file.stat().st_mtime > _LEFTOVER:
                        file.unlink(missing_ok=True)


def _header(shape: tuple[int, ...]) -> bytes:
    """The start of a .npy file of this shape, always _HEADER bytes long, so that it can be written last."""
    about = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text = about.ljust(_HEADER - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
