"""Downloads weights and configuration from the Hub and compares their hashes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.checkpoint.format import read_shapes
from finetune.errors import HubError, HubRefusal
from finetune.hub.client import LogFn, log_nothing, open_api, with_retry_no_xet
from finetune.hub.credentials import is_offline
from finetune.hub.repo import (
    FileHash,
    Remote,
    cache_folder,
    cached_hash,
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


SAFETENSORS_NAMES = ".safetensors"

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar", ".joblib")


@dataclass(frozen=True)
class HubFile:
    """Weights from the Hub, checked, in the Hub's cache: read them, never write there.

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
    weights = _weights_of(remote, name)
    path = _file(api, remote, weights, note)
    read_shapes(path)  # CheckpointError for a pickle under a good name
    digest = remote.files[weights].sha256 or sha256_of(path)
    config, report = (_file(api, remote, n, note) if n in remote.files else None for n in (CONFIG, REPORT))
    if not is_offline():
        remember_commit(name, remote.commit)
    where = f"{remote.repo}@{remote.commit[:12]}"
    return HubFile(path, remote.repo, remote.commit, digest, parse_config(read_json(config), where), report)


def cached_file(spec: str) -> HubFile | None:
    """The same for a full commit, hub:OWNER/NAME@COMMIT, if the Hub's cache has it whole; the Hub is not asked."""
    name = parse_name(spec)
    if not name.is_commit:
        return None
    folder = cache_folder(name) / "snapshots" / str(name.revision)
    try:
        remote = repo_from_cache(name)
        weights = _weights_of(remote, name)
        if not all(
            remote.files[file].fits(folder / file) for file in (weights, CONFIG, REPORT) if file in remote.files
        ):
            return None
        config = parse_config(read_json(folder / CONFIG if CONFIG in remote.files else None), str(name))
    except HubRefusal:
        return None
    report = folder / REPORT if REPORT in remote.files else None
    path = folder / weights
    return HubFile(path, name.repo, str(name.revision), sha256_of(path), config, report)


def _weights_of(remote: Remote, name: HubName) -> str:
    """The name of the one weights file; pickles are never fetched, whatever the repository says of them."""
    safe = sorted(n for n in remote.files if n.endswith(SAFETENSORS_NAMES) and "/" not in n)
    if WEIGHTS in safe:
        return WEIGHTS
    if len(safe) == 1:
        return safe[0]
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


def _file(api: HfApi, remote: Remote, name: str, note: LogFn) -> Path:
    """One file of the commit, in the cache, with the content that the Hub says it has; fetched again once if not."""
    mark, what = remote.files[name], f"fetch {name} of {remote.repo}@{str(remote.commit)[:12]}"
    for download in (_download, _download_again):
        # Plain HTTP compares sizes only, and what is in the cache is not looked at at all.
        path = Path(with_retry_no_xet(what, partial(download, api, remote, name), note))
        mark = mark if mark.is_known else cached_hash(path)  # the client names a blob by what the Hub said of it
        if mark.fits(path):
            return path
        _discard(path)
        if is_offline():
            break
        if download is _download:
            note(f"{name} does not have the hash that the Hub says; fetching it again")
    raise HubError(f"could not {what}: {_wrong_hash(mark)}; nothing was kept. {_cure()}")


def _download(api: HfApi, remote: Remote, name: str) -> str:
    return api.hf_hub_download(remote.repo, name, revision=remote.commit)


def _download_again(api: HfApi, remote: Remote, name: str) -> str:
    return api.hf_hub_download(remote.repo, name, revision=remote.commit, force_download=True)


def _wrong_hash(mark: FileHash) -> str:
    kind, wanted = ("sha256", mark.sha256) if mark.sha256 else ("git sha1", mark.git_sha1)
    return f"its content does not have the {kind} {str(wanted)[:12]} that the Hub says"


def _cure() -> str:
    if is_offline():
        return "It was damaged in the cache; unset HF_HUB_OFFLINE to fetch it again"
    return "Something on the way changes it twice: try another network, or ask the repository's owner"


def _discard(path: Path) -> None:
    """Takes a bad file out of the cache, so that nothing finds it there: the name in the commit and the blob."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
