"""Downloads timm's pretrained weights from the Hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import timm

from finetune.errors import DownloadError, HubError, OutputError, SettingError
from finetune.hub.client import CLIENT
from finetune.hub.errors import AccessGated, FileMissing, Offline, RepositoryMissing, with_retry_no_xet
from finetune.hub.repo import cached_facts, discard_cached
from finetune.hub.repo_id import WEIGHTS
from finetune.models.timm.names import parse_name, timm_tags

_REASONS: dict[type[HubError | OutputError], str] = {
    Offline: "{repository} is not in the Hub's cache, and HF_HUB_OFFLINE is set; try again with a network",
    AccessGated: "{repository} is gated: accept its conditions on the Hub and `hf auth login`",
    RepositoryMissing: "the Hub has no {repository}, or does not show it; `hf auth login` may help",
}


def download_weights(name: str) -> Path:
    """The weights of timm/ARCH[.TAG], without a tag the default one, in the Hub's cache; fetched when not there.

    The cache, HF_HUB_OFFLINE, HF_ENDPOINT and tokens are huggingface_hub's own. SettingError for a name or tag that
    timm does not have or has no safetensors weights of; DownloadError when the file cannot be had.
    """
    from huggingface_hub import hf_hub_download

    repository, revision, file = _hub_location(name)
    try:
        fetch = partial(hf_hub_download, repository, file, revision=revision, **CLIENT)
        path = Path(with_retry_no_xet("fetch it", fetch))
    except FileMissing:
        raise SettingError(
            f"{name}: {repository} has no {file} on the Hub, and other formats are not read; {_other_tags(name)}"
        ) from None
    except (HubError, OutputError) as error:
        said = _REASONS.get(type(error), "{repository}/{file}: {error}")
        raise DownloadError(f"{name}: {said.format(repository=repository, file=file, error=error)}") from None
    # Large files lie in the cache under their sha256; the client compares sizes alone.
    if not cached_facts(path).fits(path):
        discard_cached(path)
        raise DownloadError(f"{name}: {path.name} did not arrive as the Hub has it (another sha256); fetch it again")
    return path


def cached_weights(name: str) -> Path | None:
    """The weights of timm/ARCH[.TAG] if the Hub's cache has them, else None; the Hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        repository, revision, file = _hub_location(name)
    except SettingError:
        return None
    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _hub_location(name: str) -> tuple[str, str | None, str]:
    """(repository, revision or None, file) of a tag's weights."""
    architecture, tag = parse_name(name)
    config = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    if config is None or not config.hf_hub_id:
        raise SettingError(f"{name}: timm has no weights on the Hub for it; {_other_tags(name)}")
    file = config.hf_hub_filename or WEIGHTS
    if not file.endswith(".safetensors"):
        raise SettingError(f"{name}: its weights are a {file}; only safetensors are read; {_other_tags(name)}")
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None, file


def _other_tags(name: str) -> str:
    architecture, tag = parse_name(name)
    configs = {other: timm.get_pretrained_cfg(f"{architecture}.{other}") for other in timm_tags(architecture)}
    others = [other for other, config in configs.items() if other != tag and config is not None and config.hf_hub_id]
    return f"tags with weights are {', '.join(others)}" if others else "no other tag of it has weights"
