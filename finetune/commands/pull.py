"""`finetune pull`: weights from the Hub into a file, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.checkpoint import read_metadata, write_whole
from finetune.commands.bundle import headline
from finetune.commands.outputs import SUFFIX, Outputs, set_aside
from finetune.errors import CheckpointError, HubError, OutputError, SettingError
from finetune.hub.fetching import HubFile, fetch
from finetune.hub.names import parse_name
from finetune.hub.remote import sha256_of
from finetune.reporting.console import Console


@dataclass(frozen=True)
class Pulled:
    """What a pull wrote: the file, where it came from (hub:OWNER/NAME@COMMIT), and the sha256 of its bytes."""

    path: str
    id: str
    repo: str
    commit: str
    sha256: str
    report: str | None

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as JSON values."""
        return asdict(self)


def pull(repository: str, *, out: str | Path | None = None, console: Console | None = None) -> Pulled:
    """Writes the weights of OWNER/NAME[@REVISION] to `out`, by default checkpoints/NAME.safetensors, and its report.

    A different file there is moved aside. Errors are those of `finetune.errors`; after one, no file is there that was
    not before.
    """
    console = console or Console(quiet=True, results=False)
    name = parse_name(repository)
    path = Path(out) if out is not None else Path("checkpoints") / f"{name.stem}{SUFFIX}"
    if path.suffix != SUFFIX:
        raise SettingError(f"--out {path}: expected a file name that ends in {SUFFIX}")
    outputs = Outputs(path, Path())
    for place in (outputs.checkpoint, outputs.report):
        if place.is_dir():
            raise OutputError(f"--out {path}: {place} is a folder; expected a file name that is free or a file")
    found = fetch(name, note=console.note, bars=not console.quiet)
    what = _what(found)
    content = found.path.read_bytes()
    if sha256_of(content) != found.sha256:
        raise HubError(f"{found.id}: the file changed in the cache while it was read; pull it again")
    if outputs.digest() != found.sha256:
        set_aside(outputs, console)
        write_whole(path, content)
    report = _write_report(found, outputs)
    console.say(f"wrote {path} (sha256 {found.sha256[:12]}): {what}")
    console.say(f"from {found.id}")
    return Pulled(str(path), found.id, found.repo, found.commit, found.sha256, None if report is None else str(report))


def _what(found: HubFile) -> str:
    """What the weights are, in a few words. CheckpointError for a file of ours that is damaged."""
    if found.config is not None and not _is_ours(found):
        return f"timm's {found.config.architecture}, of other people: use it as --from {found.id}"
    return headline(read_metadata(found.path))


def _is_ours(found: HubFile) -> bool:
    try:
        read_metadata(found.path)
    except CheckpointError:
        return False
    return True


def _write_report(found: HubFile, outputs: Outputs) -> Path | None:
    """Puts the repository's report beside the file, unless another one lies there."""
    if found.report is None or outputs.report.exists():
        return outputs.report if outputs.report.exists() else None
    write_whole(outputs.report, found.report.read_bytes())
    return outputs.report
