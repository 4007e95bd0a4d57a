"""`finetune pull`: weights from the Hub into a file, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.checkpoint.format import encode, has_metadata, read_metadata
from finetune.errors import HubError, OutputError, SettingError
from finetune.hub.bundle import headline
from finetune.hub.download import HubFile, fetch
from finetune.hub.repo_id import parse_name
from finetune.io.atomic import prepared_files, remove_file, write_atomic
from finetune.io.safe_open import sha256_of
from finetune.report.console import Console
from finetune.run.output_paths import SUFFIX, OutputPaths, move_aside
from finetune.sources.resolve import SourceRef, open_source
from finetune.sources.save import make_metadata


@dataclass(frozen=True)
class Pulled:
    """What a pull wrote: the file, where it came from (hub:OWNER/NAME@COMMIT), and the sha256 of its bytes.

    `converted`: they are other people's weights, which the file has as a checkpoint of ours.
    """

    path: str
    id: str
    repo: str
    commit: str
    sha256: str
    report: str | None
    converted: bool

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as JSON values."""
        return asdict(self)


def pull(repository: str, *, out: str | Path | None = None, console: Console | None = None) -> Pulled:
    """Writes the weights of OWNER/NAME[@REVISION] to `out`, by default checkpoints/NAME.safetensors, and its report.

    A checkpoint of ours is written byte for byte; the weights of somebody else's timm repository become one, with
    their lineage. A different file there is moved aside. Errors are those of `finetune.errors`; after one, no file is
    there that was not before.
    """
    console = console or Console(quiet=True, results=False)
    name = parse_name(repository)
    path = Path(out) if out is not None else Path("checkpoints") / f"{name.stem}{SUFFIX}"
    if path.suffix != SUFFIX:
        raise SettingError(f"--out {path}: expected a file name that ends in {SUFFIX}")
    outputs = OutputPaths(path, Path())
    for place in (outputs.checkpoint, outputs.report):
        if place.is_dir():
            raise OutputError(f"--out {path}: {place} is a folder; expected a file name that is free or a file")
    found = fetch(name, note=console.note, bars=not console.quiet)
    content, what = _content(found)
    converted = sha256_of(content) != found.sha256
    if outputs.digest() != sha256_of(content):
        with prepared_files({path: content}):
            move_aside(outputs, console)
            remove_file(outputs.report)  # the old file's; it has its other name
    report = _write_report(found, outputs) if has_metadata(found.path) else None
    console.say(f"wrote {path} (sha256 {sha256_of(content)[:12]}): {what}")
    console.say(f"from {found.id}")
    beside = None if report is None else str(report)
    return Pulled(str(path), found.id, found.repo, found.commit, sha256_of(content), beside, converted)


def _content(found: HubFile) -> tuple[bytes, str]:
    """The bytes to write, and what the weights are in a few words. CheckpointError for what cannot be used."""
    if has_metadata(found.path):
        return _as_it_is(found), headline(read_metadata(found.path))
    if found.config is None:
        use = "without finetune's metadata and timm's config.json; name their model where you use them, with --model"
        return _as_it_is(found), f"weights {use}"
    source = open_source(SourceRef(found.id, found.path, found))
    if source.sha256 != found.sha256:
        raise _changed(found)
    classifier = source.classifier
    if not classifier.class_names:
        use = f"--from {found.id} (or --from this file --model {found.config.model})"
        return _as_it_is(found), f"{found.config.model} without a head, as it is; adapt gives it one: {use}"
    metadata = make_metadata(classifier, lineage=source.lineage_of_child())
    return encode(classifier.network.state_dict(), metadata), f"{headline(metadata)}, made a checkpoint of finetune"


def _as_it_is(found: HubFile) -> bytes:
    content = found.path.read_bytes()
    if sha256_of(content) != found.sha256:
        raise _changed(found)
    return content


def _changed(found: HubFile) -> HubError:
    return HubError(f"{found.id}: the file changed in the cache while it was read; pull it again")


def _write_report(found: HubFile, outputs: OutputPaths) -> Path | None:
    """Puts the repository's report beside the file, unless another one lies there."""
    if found.report is None or outputs.report.exists():
        return outputs.report if outputs.report.exists() else None
    write_atomic(outputs.report, found.report.read_bytes())
    return outputs.report
