"""Downloads the files of registered data sets and checks their MD5."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from finetune.errors import DownloadError, OutputError
from finetune.io.atomic import TemporaryFile, open_atomic, temporary_file

if TYPE_CHECKING:
    from finetune.data.spec import Archive, DatasetSpec

TIMEOUT = 10.0  # seconds to wait for a connection, and for the next bytes on it
_CHUNK = 1 << 16


class _MirrorFailed(Exception):
    """Why one mirror did not give an archive; the next is tried."""


def fetch(row: DatasetSpec, root: Path) -> None:
    """Downloads the missing files of a data set to `root`, in torchvision's layout; existing ones stay as they are.

    Shows a bar on a terminal and plain lines elsewhere, on standard error. Raises DownloadError naming every address
    tried and why it failed, and OutputError where `root` cannot be written. What was complete by then is kept.
    """
    raw = row.raw_folder(root)
    missing = row.missing(root)
    try:
        raw.mkdir(parents=True, exist_ok=True)
        for archive in row.archives:
            holds_all = archive.name.endswith(".zip")
            if wanted := [name for name in missing if holds_all or archive.name == f"{name}.gz"]:
                _fetch_archive(row, archive, wanted, raw)
    except OSError as fault:  # the network's own errors never come this far
        raise OutputError(
            f"{raw}: cannot be written: {fault.strerror or fault}; name another folder with --data-root"
        ) from None


def _fetch_archive(row: DatasetSpec, archive: Archive, wanted: list[str], raw: Path) -> None:
    """Unpacks `wanted` from the archive: from a good copy already there, else from the first mirror that works."""
    kept = raw / archive.name
    reasons = []
    if kept.is_file() and _md5(kept) == archive.md5:
        try:
            return _unpack(kept, archive, wanted, raw)
        except _MirrorFailed as fault:
            reasons.append(f"{kept}: {fault}")
    for mirror in row.mirrors:
        url = mirror + archive.name
        try:
            return _fetch_from(url, archive, wanted, raw)
        except _MirrorFailed as fault:
            reasons.append(f"{url}: {fault}")
            print(f"{url}: {fault}", file=sys.stderr)
    raise DownloadError(
        f"{row.name}: no mirror gave {archive.name}\n"
        + "".join(f"  {reason}\n" for reason in reasons)
        + f"Expected in {raw}, plain or .gz: {', '.join(row.files)}.\n"
        "Put them there by hand or try again later. Without a network, go on with the bundled digits:\n"
        "  finetune pretrain --recipe recipes/digits.yaml"
    )


def _fetch_from(url: str, archive: Archive, wanted: list[str], raw: Path) -> None:
    if archive.name.endswith(".zip"):  # kept, as it holds other data sets too
        with open_atomic(raw / archive.name) as file:
            _receive(url, archive.md5, file)
        _unpack(raw / archive.name, archive, wanted, raw)
    else:
        with temporary_file(raw / archive.name) as file:
            _receive(url, archive.md5, file)
            _unpack(file.temporary, archive, wanted, raw)


def _receive(url: str, md5: str, file: TemporaryFile) -> None:
    """Downloads `url` to `file`. Raises _MirrorFailed where it is not the file with this MD5."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    for chunk in _read_chunks(url):
        digest.update(chunk)
        size += file.write(chunk)
    if digest.hexdigest() != md5:
        raise _MirrorFailed(f"expected MD5 {md5}, found {digest.hexdigest()} ({size:,} bytes)")


def _read_chunks(url: str) -> Iterator[bytes]:
    """Yields the bytes of `url` as they arrive, with a bar on a terminal. _MirrorFailed for all that goes wrong."""
    received, total = 0, None
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "finetune"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length") or ""
            total = int(length) if length.isdecimal() else None
            with _progress(url, total) as advance:
                while chunk := response.read(_CHUNK):
                    received += len(chunk)
                    advance(len(chunk))
                    yield chunk
    except (OSError, HTTPException, ValueError) as fault:
        raise _MirrorFailed(_reason(fault)) from None
    if total is not None and received < total:
        raise _MirrorFailed(f"cut off after {received:,} of {total:,} bytes")


def _reason(fault: Exception) -> str:
    """Says in a few words what went wrong on the network."""
    if isinstance(fault, urllib.error.HTTPError):
        fault.close()
        return f"HTTP {fault.code} {_one_line(fault.reason)}"
    cause = fault.reason if isinstance(fault, urllib.error.URLError) else fault
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return _one_line(str(cause)) or type(cause).__name__


def _one_line(text: str) -> str:
    """A server's own words, without characters that could move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()


@contextlib.contextmanager
def _progress(url: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else one line. Yields a function that adds bytes received."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"downloading {url}" + (f" ({total / 1e6:.1f} MB)" if total else ""), file=sys.stderr, flush=True)
        yield lambda _: None
        return
    name = TextColumn("{task.description}", markup=False)
    with Progress(name, BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(url.rpartition("/")[2], total=total)
        yield lambda count: bar.advance(task, count)


def _unpack(path: Path, archive: Archive, wanted: list[str], raw: Path) -> None:
    """Unpacks the files `wanted` into `raw`, under these names alone: a name inside an archive is never a path."""
    try:
        if not archive.name.endswith(".zip"):
            with path.open("rb") as packed:
                return _gunzip(packed, raw / wanted[0])
        with zipfile.ZipFile(path) as bundle:
            members = {PurePosixPath(member.filename).name: member for member in bundle.infolist()}
            for name in wanted:
                with bundle.open(members[f"{name}.gz"]) as packed:
                    _gunzip(packed, raw / name)
    except KeyError as fault:
        raise _MirrorFailed(f"holds no {fault.args[0]}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as fault:
        raise _MirrorFailed(f"cannot be unpacked: {fault}") from None


def _gunzip(packed: IO[bytes], target: Path) -> None:
    with open_atomic(target) as file, gzip.open(packed) as source:
        shutil.copyfileobj(source, file, _CHUNK)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
