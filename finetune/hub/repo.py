"""The state of a Hub repository: its commit and the hashes of its files, online or from the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from finetune.errors import HubError, HubRefusal, OutputError
from finetune.hub.client import endpoint, is_offline, redact
from finetune.hub.errors import FileMissing, LogFn, RepositoryMissing, log_nothing, with_retry
from finetune.hub.file_facts import FileFacts
from finetune.hub.repo_id import (
    CONFIG,
    EXAMPLES,
    ONNX_FOLDER,
    OUR_FILES,
    PREPROCESSOR,
    WEIGHTS,
    HubName,
    RepoKind,
    fullest_id,
    is_commit_id,
    same_commit,
)
from finetune.hub.timm_config import OURS
from finetune.io.atomic import write_atomic
from finetune.io.safe_open import read_regular
from finetune.io.strict_json import parse_json

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, HfApi, HfFileMetadata, ModelInfo

MAX_JSON = 5_000_000  # bytes of a config.json, whose largest part are class names


@dataclass(frozen=True)
class Remote:
    """A repository at one commit: its files, and the metadata of its card. `commit` is None where there is none yet.

    `private` is None where the Hub does not say. `paths` has the files of a repository that was read from the cache.
    """

    repo: str
    commit: str | None
    files: Mapping[str, FileFacts]
    private: bool | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    kind: RepoKind = "model"
    paths: Mapping[str, Path] = field(default_factory=dict)

    def changed(self, files: Mapping[str, bytes | Path]) -> list[str]:
        """The names of those files that are not known to be there with the same content."""
        known = {name: facts for name, facts in self.files.items() if facts.has_hash}
        return replace(self, files=known).conflicts(files)

    def conflicts(self, files: Mapping[str, bytes | Path]) -> list[str]:
        """The names of those files that are missing, or are known to have another content."""
        return [n for n, content in files.items() if n not in self.files or not self.files[n].fits(content)]


def get_repo(api: HfApi, name: HubName, note: LogFn = log_nothing) -> Remote:
    """The repository at the revision asked for, or else at the end of its main branch. HubRefusal when there is none.

    Offline, what the cache knows of it from an earlier pull.
    """
    if is_offline():
        return repo_from_cache(name)
    look = partial(api.repo_info, name.repo, repo_type=name.kind, revision=name.revision, files_metadata=True)
    info = cast("ModelInfo | DatasetInfo", with_retry(f"look at {name}", look, note))
    if info.sha and not is_commit_id(info.sha):
        raise HubError(f"could not look at {name}: {endpoint()} calls its commit {redact(info.sha)[:99]!r}")
    commit = fullest_id(info.sha, [name.revision]) if info.sha else None
    files = {file.rfilename: _listed_facts(file) for file in info.siblings or []}
    unknown = [file for file, known in files.items() if not known.has_hash]
    if unknown and commit:
        rows = _tree_facts(api, name, commit, unknown, note)
        files |= {file: found.with_size_of(files[file]) for file, found in rows.items()}
        for file in files:
            ours = file in (*OUR_FILES, PREPROCESSOR) or file.startswith((EXAMPLES, ONNX_FOLDER))
            if ours and not files[file].has_hash:
                files[file] = _head_facts(api, name, commit, file, note).with_size_of(files[file])
    # The client's own card object drops what it does not know, so the plain mapping is kept.
    card_data = getattr(info, "card_data", None)
    card = card_data.to_dict() if card_data is not None else {}
    return Remote(name.repo, commit, files, info.private, card, name.kind)


def find_repo(api: HfApi, name: HubName, note: LogFn = log_nothing) -> Remote | None:
    """The repository as `get_repo` has it; None where the Hub has no such repository, or none that may be seen."""
    try:
        return get_repo(api, name, note)
    except RepositoryMissing:
        return None


def _listed_facts(file: Any) -> FileFacts:
    """Size and hash of a file as a Hub lists it, in the description of a repository or in its tree."""
    if file.lfs is not None:
        return FileFacts.of_large(file.lfs.sha256, file.lfs.size)  # the other size may be that of a pointer
    return FileFacts.parse(file.blob_id, file.size)


def _tree_facts(api: HfApi, name: HubName, commit: str, wanted: list[str], note: LogFn) -> dict[str, FileFacts]:
    """The facts from the list of the repository's tree, for a Hub whose description of it has no hashes."""

    def call() -> list[Any]:
        tree = api.list_repo_tree(name.repo, repo_type=name.kind, revision=commit, recursive=True, expand=False)
        with contextlib.suppress(KeyError, TypeError):  # a Hub with another list
            return list(tree)
        return []

    try:
        rows = with_retry(f"list {name.repo}", call, note)
    except RepositoryMissing:
        return {}  # a Hub without such a list
    return {row.path: _listed_facts(row) for row in rows if row.path in wanted and hasattr(row, "blob_id")}


def _head_facts(api: HfApi, name: HubName, commit: str, file: str, note: LogFn) -> FileFacts:
    """The hash in the head of a file's download, for a Hub whose lists have none; nothing where that is no help."""
    try:
        head = look_at_file(api, name, commit, file, note)
    except FileMissing:
        return FileFacts(listed=False)  # an upload that was never committed
    if head.commit_hash is not None and not same_commit(head.commit_hash, commit):
        return FileFacts(listed=False)  # another revision's
    return replace(FileFacts.parse(head.etag), listed=False)


def look_at_file(api: HfApi, name: HubName, commit: str, file: str, note: LogFn = log_nothing) -> HfFileMetadata:
    """The head of a file's download. FileMissing where the Hub does not serve it, whatever its lists say."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(name.repo, file, repo_type=name.kind, revision=commit, endpoint=api.endpoint)
    return with_retry(f"look at {file} of {name}", lambda: api.get_hf_file_metadata(url=url), note)


def cache_folder(name: HubName) -> Path:
    """The folder of a repository in the Hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{name.kind}s--{name.repo.replace('/', '--')}"


def remember_commit(name: HubName, commit: str) -> None:
    """Notes in the cache which commit a branch, a tag or a shorter id was, so that it is found offline too."""
    if name.revision == commit:
        return
    try:
        write_atomic(cache_folder(name) / "refs" / (name.revision or "main"), commit.encode())
    except OutputError:
        return  # a cache that may not be written still serves


def repo_from_cache(name: HubName, *, commits_only: bool = False) -> Remote:
    """What the cache knows of a repository from an earlier pull, without asking the Hub. HubRefusal if nothing.

    `commits_only`: the revision is a commit, and not the name of a branch or tag.
    """
    folder = cache_folder(name)
    snapshots = {path.name: path for path in (folder / "snapshots").glob("*") if path.is_dir()}
    refs = {
        path.relative_to(folder / "refs").as_posix(): path.read_text(encoding="utf-8").strip()
        for path in sorted((folder / "refs").rglob("*"))
        if path.is_file()
    }
    asked = name.revision or "main"
    commit = asked if commits_only else refs.get(asked, asked)
    same = sorted((n for n in snapshots if same_commit(n, commit)), key=len)
    if not same or not all(same_commit(one, same[-1]) for one in same):
        has = f" (it has {', '.join(refs)})" if refs else ""
        raise HubRefusal(
            f"could not look at {name}: HF_HUB_OFFLINE is set, and the cache at {folder.parent} does not have it{has}; "
            "fetch it once without HF_HUB_OFFLINE"
        )
    # A Hub may name one commit by ids of several lengths, and the client has a folder for each.
    commit = fullest_id(same[-1], [commit, asked, *refs.values()])
    paths = {
        path.relative_to(snapshots[one]).as_posix(): path
        for one in same
        for path in sorted(snapshots[one].rglob("*"))
        if path.is_file()
    }
    files = {file: cached_facts(path) for file, path in paths.items()}
    return Remote(name.repo, commit, files, kind=name.kind, paths=paths)


def snapshot_commit(path: Path, file: str) -> str:
    """The commit in whose folder of the cache a file lies: the one that the Hub named when it sent it."""
    return path.parents[len(PurePosixPath(file).parts) - 1].name


def cached_facts(path: Path) -> FileFacts:
    """The hash after which the cache named a blob; unknown where the file system has no symbolic links."""
    return replace(FileFacts.parse(path.resolve().name), listed=False)


def discard_cached(path: Path) -> None:
    """Takes a wrong file out of the cache: its name in the commit, and the blob unless it is another commit's too."""
    blob = path.resolve()
    is_whole = cached_facts(path).has_hash and cached_facts(path).fits(path)
    path.unlink(missing_ok=True)
    others = (blob.parent.parent / "snapshots").rglob("*") if is_whole else ()
    if not any(other.is_symlink() and other.resolve() == blob for other in others):
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
