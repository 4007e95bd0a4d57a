"""The state of a Hub repository: its commit and the hashes of its files, online or from the cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import HubError, HubRefusal, OutputError
from finetune.hub.client import LogFn, log_nothing, with_retry
from finetune.hub.credentials import is_offline
from finetune.hub.errors import RepositoryMissing
from finetune.hub.repo_id import CONFIG, OUR_FILES, WEIGHTS, HubName
from finetune.hub.timm_config import OURS
from finetune.io.atomic import write_atomic
from finetune.io.safe_open import read_regular, sha256_of
from finetune.io.strict_json import parse_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi


_SHA256 = re.compile(r"[0-9a-f]{64}")

_SHA1 = re.compile(r"[0-9a-f]{40}")

_CHUNK = 1 << 20

MAX_JSON = 5_000_000  # bytes of a config.json, whose largest part are class names


@dataclass(frozen=True)
class FileHash:
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
    files: Mapping[str, FileHash]
    private: bool | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, files: Mapping[str, bytes | Path]) -> bool:
        """Whether all these files are there with the same content."""
        return not self.changed(files)

    def changed(self, files: Mapping[str, bytes | Path]) -> list[str]:
        """The names of those files that are not there, or with another content."""
        unknown = FileHash(None, None)
        marks = {name: self.files.get(name, unknown) for name in files}
        return [name for name, content in files.items() if not (marks[name].is_known and marks[name].fits(content))]

    def conflicts(self, files: Mapping[str, bytes | Path]) -> list[str]:
        """The names of those files that are missing, or are known to have another content."""
        return [n for n, content in files.items() if n not in self.files or not self.files[n].fits(content)]


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


def get_repo(api: HfApi, name: HubName, note: LogFn = log_nothing) -> Remote:
    """The repository at the revision asked for, or else at the end of its main branch. HubRefusal when there is none.

    Offline, what the cache knows of it from an earlier pull.
    """
    if is_offline():
        return repo_from_cache(name)
    info = with_retry(
        f"look at {name}", lambda: api.model_info(name.repo, revision=name.revision, files_metadata=True), note
    )
    files = {file.rfilename: _file_hash(file) for file in info.siblings or []}
    untold = [file for file, mark in files.items() if not mark.is_known]
    if untold and info.sha:
        files |= _tree_hashes(api, name.repo, info.sha, untold, note)
    for file in OUR_FILES:
        if file in files and info.sha and not files[file].is_known:
            files[file] = with_retry(
                f"look at {file} of {name}", partial(_head_hash, api, name.repo, info.sha, file), note
            )
    # The client's own card object drops what it does not know, so the plain mapping is kept.
    card = info.card_data.to_dict() if info.card_data is not None else {}  # type: ignore[no-untyped-call]
    return Remote(name.repo, info.sha, files, info.private, card)


def find_repo(api: HfApi, name: HubName, note: LogFn = log_nothing) -> Remote | None:
    """The same, or None where the Hub has no such repository, or none that may be seen."""
    try:
        return get_repo(api, name, note)
    except RepositoryMissing:
        return None


def _file_hash(file: Any) -> FileHash:
    if file.lfs is not None:
        return FileHash(str(file.lfs.sha256), None)
    blob = file.blob_id
    return FileHash(None, blob if isinstance(blob, str) and _SHA1.fullmatch(blob) else None)


def _tree_hashes(api: HfApi, repo: str, commit: str, wanted: list[str], note: LogFn) -> dict[str, FileHash]:
    """How files are known where the repository's own description does not tell: from the list of its tree."""
    try:
        rows = with_retry(
            f"list {repo}", lambda: list(api.list_repo_tree(repo, revision=commit, recursive=True, expand=False)), note
        )
    except (RepositoryMissing, TypeError, KeyError):
        return {}  # a Hub without such a list
    return {row.path: _file_hash(row) for row in rows if row.path in wanted and hasattr(row, "blob_id")}


def _head_hash(api: HfApi, repo: str, commit: str, file: str) -> FileHash:
    """How a file is known where the list of files does not tell: from the head of its download."""
    from huggingface_hub import hf_hub_url

    found = api.get_hf_file_metadata(url=hf_hub_url(repo, file, revision=commit, endpoint=api.endpoint)).etag or ""
    return FileHash(
        found if _SHA256.fullmatch(found) else None,
        found if _SHA1.fullmatch(found) else None,
    )


def cache_folder(name: HubName) -> Path:
    """Where the Hub's cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}"


def remember_commit(name: HubName, commit: str) -> None:
    """Notes in the cache which commit a branch or tag was, so that it is found offline too."""
    if name.is_commit:
        return
    try:
        write_atomic(cache_folder(name) / "refs" / (name.revision or "main"), commit.encode())
    except OutputError:
        return  # a cache that may not be written still serves


def repo_from_cache(name: HubName) -> Remote:
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
    files = {p.relative_to(snapshot).as_posix(): cached_hash(p) for p in sorted(snapshot.rglob("*")) if p.is_file()}
    return Remote(name.repo, commit, files)


def _only_start(snapshots: Path, start: str) -> str | None:
    found = [p.name for p in snapshots.glob("*") if p.name.startswith(start)] if len(start) >= 7 else []
    return found[0] if len(found) == 1 else None


def cached_hash(path: Path) -> FileHash:
    """The cache keeps a blob under the name of its hash, where the file system has symbolic links."""
    blob = path.resolve().name
    if _SHA256.fullmatch(blob):
        return FileHash(blob, None)
    return FileHash(None, blob if _SHA1.fullmatch(blob) else None)


def read_json(path: Path | None) -> dict[str, Any]:
    """A JSON object from a file; empty for no file or what is not one."""
    if path is None:
        return {}
    try:
        found = parse_json(read_regular(path, MAX_JSON), MAX_JSON)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe(api: HfApi, remote: Remote, note: LogFn = log_nothing) -> str:
    """Some lines: which model, with which results, at which commit. What is not known is said to be so."""
    config = _remote_config(api, remote, note)
    ours = config.get(OURS) if isinstance(config.get(OURS), dict) else {}
    assert isinstance(ours, dict)
    model = ours.get("model") or config.get("architecture") or config.get("model_type") or "unknown"
    classes = config.get("num_classes")
    what = f"{model}, {classes} classes" if isinstance(classes, int) else str(model)
    digest = remote.files[WEIGHTS].sha256
    lines = [
        f"{remote.repo} holds another model:",
        f"  model    {what}" + (f", sha256 {digest[:12]}" if digest else ""),
        f"  results  {_card_results(ours, remote.card) or 'none recorded'}",
        f"  commit   {remote.commit}",
    ]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)


def _remote_config(api: HfApi, remote: Remote, note: LogFn) -> dict[str, Any]:
    if CONFIG not in remote.files:
        return {}
    try:
        path = with_retry(
            f"fetch {CONFIG} of {remote.repo}",
            lambda: api.hf_hub_download(remote.repo, CONFIG, revision=remote.commit),
            note,
        )
    except (HubError, OutputError):
        return {}  # only words are missing then
    return read_json(Path(path))


def _card_results(ours: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    results = ours.get("results")
    found = []
    if isinstance(results, dict):
        found = [
            f"{name} {100 * r['accuracy']:.2f} %"
            for name, r in results.items()
            if isinstance(r, dict) and isinstance(r.get("accuracy"), float)
        ]
    for entry in [] if found else card.get("model-index") or []:
        for result in entry.get("results", []) if isinstance(entry, dict) else []:
            data = (result.get("dataset") or {}).get("name", "?")
            found += [f"{m.get('type')} {m.get('value')} on {data}" for m in result.get("metrics") or []]
    return ", ".join(found[:6])[:300]
