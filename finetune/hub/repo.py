"""The state of a Hub repository: its commit and the hashes of its files, online or from the cache."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finetune.errors import HubError, HubRefusal, OutputError
from finetune.hub.client import is_offline
from finetune.hub.errors import LogFn, RepositoryMissing, log_nothing, with_retry
from finetune.hub.repo_id import CONFIG, EXAMPLES, OUR_FILES, WEIGHTS, HubName, RepoKind
from finetune.hub.timm_config import OURS
from finetune.io.atomic import write_atomic
from finetune.io.safe_open import read_regular, sha256_of
from finetune.io.strict_json import parse_json

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, HfApi, ModelInfo

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
MAX_JSON = 5_000_000  # bytes of a config.json, whose largest part are class names


@dataclass(frozen=True)
class FileHash:
    """The hash by which the Hub knows a file: sha256 of a large one, git's sha1 of a small one, or neither."""

    sha256: str | None = None
    git_sha1: str | None = None

    @classmethod
    def parse(cls, text: object) -> FileHash:
        """The hash that a text is: 64 hex digits are a sha256, 40 git's sha1; unknown for anything else."""
        found = str(text)
        return cls(found if _SHA256.fullmatch(found) else None, found if _SHA1.fullmatch(found) else None)

    @property
    def is_known(self) -> bool:
        return self.sha256 is not None or self.git_sha1 is not None

    def fits(self, content: bytes | Path) -> bool:
        """Whether the content has this hash; True when the hash is unknown."""
        if self.sha256 is not None:
            return sha256_of(content) == self.sha256
        return self.git_sha1 is None or git_sha1_of(content) == self.git_sha1


@dataclass(frozen=True)
class Remote:
    """A repository at one commit: its files, and the metadata of its card. `commit` is None where there is none yet."""

    repo: str
    commit: str | None
    files: Mapping[str, FileHash]
    private: bool | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    kind: RepoKind = "model"

    def changed(self, files: Mapping[str, bytes | Path]) -> list[str]:
        """The names of those files that are not known to be there with the same content."""
        known = {name: hash for name, hash in self.files.items() if hash.is_known}
        return replace(self, files=known).conflicts(files)

    def conflicts(self, files: Mapping[str, bytes | Path]) -> list[str]:
        """The names of those files that are missing, or are known to have another content."""
        return [n for n, content in files.items() if n not in self.files or not self.files[n].fits(content)]


def git_sha1_of(content: bytes | Path) -> str:
    """The sha1 (hex) by which git knows this content."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        header = b"blob %d\0" % file.seek(0, os.SEEK_END)
        file.seek(0)
        return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()


def get_repo(api: HfApi, name: HubName, note: LogFn = log_nothing) -> Remote:
    """The repository at the revision asked for, or else at the end of its main branch. HubRefusal when there is none.

    Offline, what the cache knows of it from an earlier pull.
    """
    if is_offline():
        return repo_from_cache(name)
    look = partial(api.repo_info, name.repo, repo_type=name.kind, revision=name.revision, files_metadata=True)
    info = cast("ModelInfo | DatasetInfo", with_retry(f"look at {name}", look, note))
    files = {file.rfilename: _listed_hash(file) for file in info.siblings or []}
    unknown = [file for file, known in files.items() if not known.is_known]
    if unknown and info.sha:
        files |= _tree_hashes(api, name, info.sha, unknown, note)
        for file in [name for name in files if name in OUR_FILES or name.startswith(EXAMPLES)]:
            if not files[file].is_known:
                call = partial(_head_hash, api, name, info.sha, file)
                files[file] = with_retry(f"look at {file} of {name}", call, note)
    # The client's own card object drops what it does not know, so the plain mapping is kept.
    card_data = getattr(info, "card_data", None)
    card = card_data.to_dict() if card_data is not None else {}
    return Remote(name.repo, info.sha, files, info.private, card, name.kind)


def find_repo(api: HfApi, name: HubName, note: LogFn = log_nothing) -> Remote | None:
    """The repository as `get_repo` has it; None where the Hub has no such repository, or none that may be seen."""
    try:
        return get_repo(api, name, note)
    except RepositoryMissing:
        return None


def _listed_hash(file: Any) -> FileHash:
    return FileHash(str(file.lfs.sha256)) if file.lfs is not None else FileHash.parse(file.blob_id)


def _tree_hashes(api: HfApi, name: HubName, commit: str, wanted: list[str], note: LogFn) -> dict[str, FileHash]:
    """The hashes from the list of the repository's tree, for a Hub whose description of it has none."""
    tree = partial(api.list_repo_tree, name.repo, repo_type=name.kind, revision=commit, recursive=True, expand=False)
    try:
        rows = with_retry(f"list {name.repo}", lambda: list(tree()), note)
    except (RepositoryMissing, TypeError, KeyError):
        return {}  # a Hub without such a list
    return {row.path: _listed_hash(row) for row in rows if row.path in wanted and hasattr(row, "blob_id")}


def _head_hash(api: HfApi, name: HubName, commit: str, file: str) -> FileHash:
    """The hash in the head of a file's download, for a Hub whose lists have none."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(name.repo, file, repo_type=name.kind, revision=commit, endpoint=api.endpoint)
    return FileHash.parse(api.get_hf_file_metadata(url=url).etag)


def cache_folder(name: HubName) -> Path:
    """The folder of a repository in the Hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{name.kind}s--{name.repo.replace('/', '--')}"


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
    elif reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    else:
        is_start = re.fullmatch("[0-9a-f]{7,}", name.revision or "")
        found = [p.name for p in (folder / "snapshots").glob(f"{name.revision}*")] if is_start else []
        commit = found[0] if len(found) == 1 else None
    snapshot = folder / "snapshots" / str(commit)
    if commit is None or not snapshot.is_dir():
        refs = sorted(p.relative_to(folder / "refs").as_posix() for p in (folder / "refs").rglob("*") if p.is_file())
        has = f" (it has {', '.join(refs)})" if refs else ""
        raise HubRefusal(
            f"could not look at {name}: HF_HUB_OFFLINE is set, and the cache at {folder.parent} does not have it{has}; "
            "fetch it once without HF_HUB_OFFLINE"
        )
    files = {p.relative_to(snapshot).as_posix(): cached_hash(p) for p in sorted(snapshot.rglob("*")) if p.is_file()}
    return Remote(name.repo, commit, files, kind=name.kind)


def cached_hash(path: Path) -> FileHash:
    """The hash after which the cache named a blob; unknown where the file system has no symbolic links."""
    return FileHash.parse(path.resolve().name)


def discard_cached(path: Path) -> None:
    """Takes a damaged file out of the cache, so that nothing finds it there: the name in the commit and the blob."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def read_json(path: Path | None) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file, or no JSON object in it."""
    if path is None:
        return {}
    try:
        found = parse_json(read_regular(path, MAX_JSON), MAX_JSON)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe(api: HfApi, remote: Remote, note: LogFn = log_nothing) -> str:
    """Describes the model in a repository in four lines: architecture, classes, results and commit, as far as known."""
    config = _remote_config(api, remote, note)
    ours = config[OURS] if isinstance(config.get(OURS), dict) else {}
    model = ours.get("model") or config.get("architecture") or config.get("model_type") or "unknown"
    classes = config.get("num_classes")
    digest = remote.files[WEIGHTS].sha256
    lines = [
        f"{remote.repo} holds another model:",
        f"  model    {model}"
        + (f", {classes} classes" if isinstance(classes, int) else "")
        + (f", sha256 {digest[:12]}" if digest else ""),
        f"  results  {', '.join(_recorded_results(ours, remote.card)[:6])[:300] or 'none recorded'}",
        f"  commit   {remote.commit}",
    ]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)


def _remote_config(api: HfApi, remote: Remote, note: LogFn) -> dict[str, Any]:
    """The values of a repository's config.json; empty where it cannot be read, as only the description needs them."""
    if CONFIG not in remote.files:
        return {}
    fetch = partial(api.hf_hub_download, remote.repo, CONFIG, revision=remote.commit)
    try:
        return read_json(Path(with_retry(f"fetch {CONFIG} of {remote.repo}", fetch, note)))
    except (HubError, OutputError):
        return {}


def _recorded_results(ours: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """The results in our key of config.json, or else those in the card's metadata, in words."""
    results = ours.get("results")
    found = [
        f"{name} {100 * r['accuracy']:.2f} %"
        for name, r in (results.items() if isinstance(results, dict) else ())
        if isinstance(r, dict) and isinstance(r.get("accuracy"), float)
    ]
    for entry in [] if found else card.get("model-index") or []:
        for result in entry.get("results", []) if isinstance(entry, dict) else []:
            data = (result.get("dataset") or {}).get("name", "?")
            found += [f"{m.get('type')} {m.get('value')} on {data}" for m in result.get("metrics") or []]
    return found
