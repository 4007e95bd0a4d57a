"""What a repository holds at one commit, from the Hub or, offline, its cache; and whether a file is the one meant."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import HubRefusal, OutputError
from finetune.files import write_whole
from finetune.hub.client import Note, asked, is_offline, silent
from finetune.hub.faults import RepositoryMissing
from finetune.hub.names import OUR_FILES, HubName
from finetune.strangers.regular import read_regular
from finetune.strangers.strict_json import parse_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 20
MOST_JSON = 5_000_000  # bytes of a config.json, whose largest part are class names


@dataclass(frozen=True)
class Mark:
    """How the Hub knows a file's content: a large one by sha256, a small one by git's sha1 of it. One is None."""

    sha256: str | None
    git_sha1: str | None

    def fits(self, content: bytes | Path) -> bool:
        """Whether the content is the one; True when the Hub said neither."""
        if self.sha256 is not None:
            return sha256_of(content) == self.sha256
        return self.git_sha1 is None or git_sha1_of(content) == self.git_sha1

    @property
    def is_known(self) -> bool:
        return self.sha256 is not None or self.git_sha1 is not None


@dataclass(frozen=True)
class Remote:
    """A repository at one commit: its files, and what its card says. `commit` is None for one without any commit."""

    repo: str
    commit: str | None
    files: Mapping[str, Mark]
    private: bool | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, files: Mapping[str, bytes | Path]) -> bool:
        """Whether all these files are there with the same content."""
        return not self.changed(files)

    def changed(self, files: Mapping[str, bytes | Path]) -> list[str]:
        """The names of those files that are not there, or with another content."""
        unknown = Mark(None, None)
        marks = {name: self.files.get(name, unknown) for name in files}
        return [name for name, content in files.items() if not (marks[name].is_known and marks[name].fits(content))]

    def contradicts(self, files: Mapping[str, bytes | Path]) -> list[str]:
        """The names of those files that are missing, or are known to have another content."""
        return [n for n, content in files.items() if n not in self.files or not self.files[n].fits(content)]


def sha256_of(content: bytes | Path) -> str:
    """The sha256 (hex) of bytes or of a file."""
    return _digest(hashlib.sha256(), content)


def git_sha1_of(content: bytes | Path) -> str:
    """The sha1 (hex) by which git knows this content."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return _digest(hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), content)


def _digest(digest: Any, content: bytes | Path) -> str:
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return str(digest.hexdigest())


def look(api: HfApi, name: HubName, note: Note = silent) -> Remote:
    """The repository at the revision asked for, or else at the end of its main branch. HubRefusal when there is none.

    Offline, what the cache knows of it from an earlier pull.
    """
    if is_offline():
        return look_in_cache(name)
    info = asked(
        f"look at {name}", lambda: api.model_info(name.repo, revision=name.revision, files_metadata=True), note
    )
    files = {file.rfilename: _mark(file) for file in info.siblings or []}
    untold = [file for file, mark in files.items() if not mark.is_known]
    if untold and info.sha:
        files |= _marks_of_tree(api, name.repo, info.sha, untold, note)
    for file in OUR_FILES:
        if file in files and info.sha and not files[file].is_known:
            files[file] = asked(
                f"look at {file} of {name}", partial(_mark_of_head, api, name.repo, info.sha, file), note
            )
    # The client's own card object drops what it does not know, so the plain mapping is kept.
    card = info.card_data.to_dict() if info.card_data is not None else {}  # type: ignore[no-untyped-call]
    return Remote(name.repo, info.sha, files, info.private, card)


def look_if_there(api: HfApi, name: HubName, note: Note = silent) -> Remote | None:
    """The same, or None where the Hub has no such repository, or none that may be seen."""
    try:
        return look(api, name, note)
    except RepositoryMissing:
        return None


def _mark(file: Any) -> Mark:
    if file.lfs is not None:
        return Mark(str(file.lfs.sha256), None)
    blob = file.blob_id
    return Mark(None, blob if isinstance(blob, str) and _SHA1.fullmatch(blob) else None)


def _marks_of_tree(api: HfApi, repo: str, commit: str, wanted: list[str], note: Note) -> dict[str, Mark]:
    """How files are known where the repository's own description does not tell: from the list of its tree."""
    try:
        rows = asked(
            f"list {repo}", lambda: list(api.list_repo_tree(repo, revision=commit, recursive=True, expand=False)), note
        )
    except (RepositoryMissing, TypeError, KeyError):
        return {}  # a Hub without such a list
    return {row.path: _mark(row) for row in rows if row.path in wanted and hasattr(row, "blob_id")}


def _mark_of_head(api: HfApi, repo: str, commit: str, file: str) -> Mark:
    """How a file is known where the list of files does not tell: from the head of its download."""
    from huggingface_hub import hf_hub_url

    found = api.get_hf_file_metadata(url=hf_hub_url(repo, file, revision=commit, endpoint=api.endpoint)).etag or ""
    return Mark(
        found if _SHA256.fullmatch(found) else None,
        found if _SHA1.fullmatch(found) else None,
    )


# The cache's layout is documented: models--OWNER--NAME/{blobs/HASH, refs/REVISION, snapshots/COMMIT/FILE -> blob}.


def cache_folder(name: HubName) -> Path:
    """Where the Hub's cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}"


def remember(name: HubName, commit: str) -> None:
    """Notes in the cache which commit a branch or tag was, so that it is found offline too."""
    if name.is_commit:
        return
    try:
        write_whole(cache_folder(name) / "refs" / (name.revision or "main"), commit.encode())
    except OutputError:
        return  # a cache that may not be written still serves


def look_in_cache(name: HubName) -> Remote:
    """What the cache knows of a repository from an earlier pull, without asking the Hub. HubRefusal if nothing."""
    folder = cache_folder(name)
    reference = folder / "refs" / (name.revision or "main")
    if name.is_commit:
        commit = name.revision
    else:
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else None
        if commit is None and name.revision:
            commit = _only_start(folder / "snapshots", name.revision)
    snapshot = folder / "snapshots" / str(commit)
    if commit is None or not snapshot.is_dir():
        refs = sorted(p.relative_to(folder / "refs").as_posix() for p in (folder / "refs").rglob("*") if p.is_file())
        has = f" (it has {', '.join(refs)})" if refs else ""
        raise HubRefusal(
            f"could not look at {name}: HF_HUB_OFFLINE is set, and the cache at {folder.parent} does not have it{has}; "
            "pull it once without HF_HUB_OFFLINE"
        )
    files = {p.relative_to(snapshot).as_posix(): cached_mark(p) for p in sorted(snapshot.rglob("*")) if p.is_file()}
    return Remote(name.repo, commit, files)


def _only_start(snapshots: Path, start: str) -> str | None:
    found = [p.name for p in snapshots.glob("*") if p.name.startswith(start)] if len(start) >= 7 else []
    return found[0] if len(found) == 1 else None


def cached_mark(path: Path) -> Mark:
    """The cache keeps a blob under the name of its hash, where the file system has symbolic links."""
    blob = path.resolve().name
    if _SHA256.fullmatch(blob):
        return Mark(blob, None)
    return Mark(None, blob if _SHA1.fullmatch(blob) else None)


def read_json(path: Path | None) -> dict[str, Any]:
    """A JSON object from a file; empty for no file or what is not one."""
    if path is None:
        return {}
    try:
        found = parse_json(read_regular(path, MOST_JSON), MOST_JSON)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
