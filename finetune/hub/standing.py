"""What a repository holds now, in words, for whoever is about to replace it: model, results, commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import HubError, OutputError
from finetune.hub.client import Note, asked, silent
from finetune.hub.config import OURS
from finetune.hub.names import CONFIG, WEIGHTS
from finetune.hub.remote import Remote, read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def describe_remote(api: HfApi, remote: Remote, note: Note = silent) -> str:
    """Some lines: which model, with which results, at which commit. What is not known is said to be so."""
    config = _config(api, remote, note)
    ours = config.get(OURS) if isinstance(config.get(OURS), dict) else {}
    assert isinstance(ours, dict)
    model = ours.get("model") or config.get("architecture") or config.get("model_type") or "unknown"
    classes = config.get("num_classes")
    what = f"{model}, {classes} classes" if isinstance(classes, int) else str(model)
    digest = remote.files[WEIGHTS].sha256
    lines = [
        f"{remote.repo} holds another model:",
        f"  model    {what}" + (f", sha256 {digest[:12]}" if digest else ""),
        f"  results  {_results(ours, remote.card) or 'none recorded'}",
        f"  commit   {remote.commit}",
    ]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)


def _config(api: HfApi, remote: Remote, note: Note) -> dict[str, Any]:
    if CONFIG not in remote.files:
        return {}
    try:
        path = asked(
            f"fetch {CONFIG} of {remote.repo}",
            lambda: api.hf_hub_download(remote.repo, CONFIG, revision=remote.commit),
            note,
        )
    except (HubError, OutputError):
        return {}  # only words are missing then
    return read_json(Path(path))


def _results(ours: Mapping[str, Any], card: Mapping[str, Any]) -> str:
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
