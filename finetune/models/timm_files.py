"""Fetches the file of a timm tag's pretrained weights from the Hub, once; safetensors only."""

from __future__ import annotations

import hashlib
from pathlib import Path

import timm

from finetune.errors import DownloadError, SettingError
from finetune.models.timm_names import parse_name, timm_tags

FILE = "model.safetensors"
_HASH_CHUNK = 1 << 20  # bytes


def pretrained_file(name: str) -> Path:
    """The weights of timm/ARCH[.TAG], without a tag the default one, in the Hub's cache; fetched when not there.

    The cache, HF_HUB_OFFLINE, HF_ENDPOINT and tokens are huggingface_hub's own. SettingError for a name or tag that
    timm does not have or has no safetensors weights of; DownloadError when the file cannot be had.
    """
    repository, revision, filename = _place(name)
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repository, filename, revision=revision))
    except hub.LocalEntryNotFoundError:
        raise DownloadError(
            f"{name}: {repository} is not in the Hub's cache and cannot be fetched: the Hub does not answer, or "
            "HF_HUB_OFFLINE is set; try again with a network"
        ) from None
    except hub.EntryNotFoundError:
        raise SettingError(
            f"{name}: {repository} has no {filename} on the Hub, and other formats are not read; {_other_tags(name)}"
        ) from None
    except hub.GatedRepoError:
        raise DownloadError(
            f"{name}: {repository} is gated: accept its conditions on the Hub and `hf auth login`"
        ) from None
    except hub.RepositoryNotFoundError:
        raise DownloadError(
            f"{name}: the Hub has no {repository}, or does not show it; `hf auth login` may help"
        ) from None
    except Exception as error:  # the client's own errors, httpx's and the file system's have no common base
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadError(f"{name}: {repository}/{filename} could not be fetched ({said}); try again") from None
    _check_hash(name, path)
    return path


def cached_file(name: str) -> Path | None:
    """The same file if the Hub's cache has it, without asking the Hub; else None."""
    from huggingface_hub import try_to_load_from_cache

    try:
        repository, revision, filename = _place(name)
    except SettingError:
        return None
    found = try_to_load_from_cache(repository, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _place(name: str) -> tuple[str, str | None, str]:
    """(repository, revision or None, file) of a tag's weights."""
    architecture, tag = parse_name(name)
    config = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    if config is None or not config.hf_hub_id:
        raise SettingError(f"{name}: timm has no weights on the Hub for it; {_other_tags(name)}")
    filename = config.hf_hub_filename or FILE
    if not filename.endswith(".safetensors"):
        raise SettingError(f"{name}: its weights are a {filename}; only safetensors are read; {_other_tags(name)}")
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None, filename


def _other_tags(name: str) -> str:
    architecture, tag = parse_name(name)
    others = [other for other in timm_tags(architecture) if other != tag and _on_the_hub(f"{architecture}.{other}")]
    return f"tags with weights are {', '.join(others)}" if others else "no other tag of it has weights"


def _on_the_hub(name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.hf_hub_id)


def _check_hash(name: str, path: Path) -> None:
    """Large files lie in the cache under their sha256; the client compares sizes alone."""
    stored = path.resolve()
    if len(stored.name) != 64:
        return
    found = hashlib.sha256()
    with stored.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            found.update(chunk)
    if found.hexdigest() != stored.name:
        path.unlink()
        stored.unlink(missing_ok=True)
        raise DownloadError(f"{name}: {path.name} did not arrive as the Hub has it (another sha256); fetch it again")
