"""Downloads weights and configuration from the Hub and compares their hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.checkpoint.format import read_shapes
from finetune.errors import HubError, HubRefusal
from finetune.hub.client import is_offline, open_api
from finetune.hub.errors import LogFn, log_nothing, with_retry_no_xet
from finetune.hub.repo import (
    Remote,
    cache_folder,
    cached_hash,
    discard_cached,
    get_repo,
    read_json,
    remember_commit,
    repo_from_cache,
)
from finetune.hub.repo_id import CONFIG, PREFIX, REPORT, WEIGHTS, HubName, parse_name
from finetune.hub.timm_config import HubConfig, parse_config
from finetune.io.safe_open import sha256_of
from finetune.text import listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar", ".joblib")


@dataclass(frozen=True)
class HubFile:
    """Weights that were downloaded and checked, as a file in the Hub's cache, which must not be changed.

    `commit` is the full commit that the revision was at the time; `config` is what timm's config.json says, None where
    there is none or it is not timm's; `report` is our report.json, if the repository has one.
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
        remember_commit(name, remote.commit)
    return _hub_file(remote, weights, {weights: path, **others})


def cached_file(spec: str) -> HubFile | None:
    """The weights of a full commit, hub:OWNER/NAME@COMMIT, if the cache has all its files; the Hub is not asked."""
    name = parse_name(spec)
    if not name.is_commit:
        return None
    folder = cache_folder(name) / "snapshots" / str(name.revision)
    try:
        remote = repo_from_cache(name)
        weights = _find_weights(remote, name)
        paths = {file: folder / file for file in (weights, CONFIG, REPORT) if file in remote.files}
        if not all(remote.files[file].fits(path) for file, path in paths.items()):
            return None
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
    """One file of the commit, in the cache, with the content that the Hub says it has; fetched again once if not."""
    expected, what = remote.files[name], f"fetch {name} of {remote.repo}@{str(remote.commit)[:12]}"
    for again in (False, True):
        # Plain HTTP compares sizes only, and what is in the cache is not looked at at all.
        fetch = partial(api.hf_hub_download, remote.repo, name, repo_type=remote.kind, revision=remote.commit)
        call = partial(fetch, force_download=again)
        path = Path(with_retry_no_xet(what, call, note))
        expected = expected if expected.is_known else cached_hash(path)  # the client names a blob after its hash
        if expected.fits(path):
            return path
        discard_cached(path)
        if is_offline():
            break
        if not again:
            note(f"{name} does not have the hash that the Hub says; fetching it again")
    cure = "Something on the way changes it twice: try another network, or ask the repository's owner"
    if is_offline():
        cure = "It was damaged in the cache; unset HF_HUB_OFFLINE to fetch it again"
    digest = f"sha256 {expected.sha256[:12]}" if expected.sha256 else f"git sha1 {str(expected.git_sha1)[:12]}"
    raise HubError(
        f"could not {what}: its content does not have the {digest} that the Hub says; nothing was kept. {cure}"
    )
