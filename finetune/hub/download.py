"""Downloads weights and configuration from the Hub and compares their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.checkpoint.format import read_shapes
from finetune.errors import HubError, HubRefusal
from finetune.hub.client import endpoint, is_offline, open_api
from finetune.hub.errors import FileMissing, LogFn, log_nothing, with_retry_no_xet
from finetune.hub.repo import (
    Remote,
    cached_facts,
    discard_cached,
    get_repo,
    read_json,
    remember_commit,
    repo_from_cache,
    snapshot_commit,
)
from finetune.hub.repo_id import CONFIG, PREFIX, REPORT, WEIGHTS, HubName, fullest_id, parse_name, same_commit
from finetune.hub.timm_config import HubConfig, parse_config
from finetune.io.safe_open import sha256_of
from finetune.text import listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar", ".joblib")


@dataclass(frozen=True)
class HubFile:
    """Weights that were downloaded and checked, as a file in the Hub's cache, which must not be changed.

    `commit` is the commit that the revision was at the time, by its longest id; `config` is what timm's config.json
    says, None where there is none or it is not timm's; `report` is our report.json, if the repository has one.
    """

    path: Path
    repo: str
    commit: str
    sha256: str
    config: HubConfig | None
    report: Path | None = None

    @property
    def id(self) -> str:
        """For lineage: hub:OWNER/NAME@COMMIT, which is also a source that can be opened again."""
        return f"{PREFIX}{self.repo}@{self.commit}"


def fetch(spec: str | HubName, *, note: LogFn = log_nothing, bars: bool = False) -> HubFile:
    """The weights of OWNER/NAME[@REVISION], with or without `hub:`, downloaded unless the cache has them.

    HubRefusal for what the Hub does not have or give, or for a repository without safetensors; HubError when a
    transfer fails; CheckpointError for what is no safetensors file; OutputError for a full disk; SettingError for a
    name that is none.
    """
    name = spec if isinstance(spec, HubName) else parse_name(spec)
    api = open_api(bars=bars)
    remote = get_repo(api, name, note)
    if remote.commit is None:
        raise HubRefusal(f"{name}: the repository is empty")
    weights = _find_weights(remote, name)
    path = fetch_file(api, remote, weights, note)
    read_shapes(path)  # CheckpointError for a pickle under a good name
    others = {file: fetch_file(api, remote, file, note) for file in (CONFIG, REPORT) if file in remote.files}
    if not is_offline():
        remote = replace(remote, commit=fullest_id(remote.commit, [snapshot_commit(path, weights)]))
        remember_commit(name, str(remote.commit))
    return _hub_file(remote, weights, {weights: path, **others})


def cached_file(spec: str) -> HubFile | None:
    """The weights of a commit, hub:OWNER/NAME@COMMIT, if the cache has all its files; the Hub is not asked."""
    name = parse_name(spec)
    if name.revision is None:
        return None
    try:
        remote = repo_from_cache(name, commits_only=True)
        weights = _find_weights(remote, name)
    except HubRefusal:
        return None
    paths = {file: remote.paths[file] for file in (weights, CONFIG, REPORT) if file in remote.files}
    if not all(remote.files[file].fits(path) for file, path in paths.items()):
        return None
    try:
        return _hub_file(remote, weights, paths)
    except HubRefusal:
        return None


def _hub_file(remote: Remote, weights: str, paths: Mapping[str, Path]) -> HubFile:
    commit, path = str(remote.commit), paths[weights]
    config = parse_config(read_json(paths.get(CONFIG)), f"{remote.repo}@{commit[:12]}")
    digest = remote.files[weights].sha256 or sha256_of(path)
    return HubFile(path, remote.repo, commit, digest, config, paths.get(REPORT))


def _find_weights(remote: Remote, name: HubName) -> str:
    """The name of the one weights file; pickles are never fetched, whatever the repository says of them."""
    safe = sorted(n for n in remote.files if n.endswith(".safetensors") and "/" not in n)
    if WEIGHTS in safe or len(safe) == 1:
        return WEIGHTS if WEIGHTS in safe else safe[0]
    if safe:
        raise HubRefusal(f"{name}: expected {WEIGHTS}, found {listed(safe)}: weights in parts are not read")
    pickles = sorted(n for n in remote.files if n.endswith(PICKLES))
    if pickles:
        raise HubRefusal(
            f"{name}: only pickles ({listed(pickles)}), which can run code when they are opened; finetune reads "
            f"safetensors only. Ask its owner for {WEIGHTS}"
        )
    there = listed(sorted(remote.files)) or "nothing"
    raise HubRefusal(f"{name}: no weights in it; expected {WEIGHTS}, found {there}")


def fetch_file(api: HfApi, remote: Remote, name: str, note: LogFn) -> Path:
    """One file of the commit, in the cache, with the size and hash that the Hub lists; fetched again once if not.

    HubError when it has others; what the Hub does not list cannot be checked, and is noted.
    """
    if is_offline():
        return _cached_file(remote, name)
    what = f"fetch {name} of {remote.repo}@{str(remote.commit)[:12]}"
    faults = ["", ""]
    for again in (False, True):
        fetch = partial(api.hf_hub_download, remote.repo, name, repo_type=remote.kind, revision=remote.commit)
        try:
            path = Path(with_retry_no_xet(what, partial(fetch, force_download=again), note))
        except FileMissing as error:
            raise FileMissing(
                f"{error}, though the Hub lists it: an upload that was never committed, as after a push that was "
                "stopped. Push it again, or ask the repository's owner to; an older commit can be named after @"
            ) from None
        faults[again] = _fault(remote, name, path) or ""
        if not faults[again]:
            _note_unchecked(remote, name, note)
            return path
        discard_cached(path)
        if not again:
            note(f"{name}: it {faults[again]}; fetching it again")
    cure = "Something on the way changes it twice: try another network, or ask the repository's owner"
    if faults[0] == faults[1] and "another revision" in faults[1]:
        cure = "Ask whoever runs that Hub, or set HF_ENDPOINT to another"
    raise HubError(f"could not {what}: its content {faults[1]}; nothing was kept. {cure}")


def _fault(remote: Remote, name: str, path: Path) -> str | None:
    """What is wrong with a file that was fetched, as the end of 'its content ...'."""
    listed, sent, commit = remote.files[name], cached_facts(path), snapshot_commit(path, name)
    fault = listed.mismatch(path)
    is_whole = sent.has_hash and sent.fits(path)
    if fault is not None and is_whole:  # plain HTTP does not compare hashes: it is not what the Hub itself announced
        return f"{fault}, and is whole: it is served from another revision"
    if fault is None and not listed.has_hash and not sent.fits(path):
        return sent.mismatch(path)
    if fault is None and not (listed.has_hash and listed.listed) and not same_commit(commit, remote.commit):
        return f"comes from another revision, {commit[:12]}"
    return fault


def _note_unchecked(remote: Remote, name: str, note: LogFn) -> None:
    """Says what could not be compared with the commit's list of files."""
    listed = remote.files[name]
    if listed.has_hash and listed.listed:
        return
    lacks, compared = ("hash", "its size") if listed.size is not None else ("size or hash", "nothing")
    note(
        f"{name} of {remote.repo}: {endpoint()} lists no {lacks} of it for this commit; {compared} was compared with "
        "the list, and its hash only with the one that came with it"
    )


def _cached_file(remote: Remote, name: str) -> Path:
    """The file in the cache, whose content has the hash that it lies under."""
    path = remote.paths[name]
    fault = remote.files[name].mismatch(path)
    if fault is not None:
        discard_cached(path)
        raise HubError(
            f"could not read {name} of {remote.repo}@{str(remote.commit)[:12]}: its content {fault}; nothing was kept. "
            "It was damaged in the cache; unset HF_HUB_OFFLINE to fetch it again"
        )
    return path
