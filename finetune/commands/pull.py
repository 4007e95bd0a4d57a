"""`finetune pull`: weights from the Hub into a file, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.checkpoint.format import encode, has_metadata, read_metadata
from finetune.errors import HubError
from finetune.hub.bundle import headline
from finetune.hub.download import HubFile, fetch
from finetune.hub.repo_id import parse_name
from finetune.io.atomic import prepared_files, remove_file, write_atomic
from finetune.io.safe_open import sha256_of
from finetune.report.console import Console
from finetune.run.output_paths import check_outputs, move_aside


@dataclass(frozen=True)
class Pulled:
    """The outcome of a pull: the file, where it came from (`id`: hub:OWNER/NAME@COMMIT), and the sha256 of its bytes.

    `converted`: other people's weights were made a checkpoint of ours.
    """

    path: str
    id: str
    repo: str
    commit: str
    sha256: str
    report: str | None
    converted: bool

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return asdict(self)


def pull(
    repository: str, *, out: str | Path | None = None, quiet: bool = True, console: Console | None = None
) -> Pulled:
    """Downloads the weights of OWNER/NAME[@REVISION], hash compared, to `out`, by default checkpoints/NAME.safetensors.

    A checkpoint of ours is written byte for byte, with its report beside it; the weights of somebody else's timm
    repository become one, with their lineage. A different file there is moved aside. `quiet=False` shows progress and
    results on the terminal; `console` is where to show them. Raises the errors of `finetune.errors`; after one, no file
    is there that was not before.
    """
    console = console or Console(quiet=quiet, results=not quiet)
    name = parse_name(repository)
    outputs = check_outputs(out, name.stem, runs=False)
    path = outputs.checkpoint
    found = fetch(name, note=console.note, bars=not console.quiet)
    content, what = _content(found)
    digest = sha256_of(content)
    if outputs.digest() != digest:
        with prepared_files({path: content}):
            move_aside(outputs, console)
            remove_file(outputs.report)  # the old file's; it has its other name
    is_ours, report = has_metadata(found.path), outputs.report
    if is_ours and found.report is not None and not report.exists():
        write_atomic(report, found.report.read_bytes())
    console.say(f"wrote {path} (sha256 {digest[:12]}): {what}")
    console.say(f"from {found.id}")
    beside = str(report) if is_ours and report.exists() else None
    return Pulled(str(path), found.id, found.repo, found.commit, digest, beside, digest != found.sha256)


def _content(found: HubFile) -> tuple[bytes, str]:
    """The bytes to write, and what the weights are in a few words. CheckpointError for what cannot be used."""
    changed = HubError(f"{found.id}: the file changed in the cache while it was read; pull it again")
    if has_metadata(found.path):
        what = headline(read_metadata(found.path))
    elif found.config is None:
        use = "without finetune's metadata and timm's config.json; name their model where you use them, with --model"
        what = f"weights {use}"
    else:
        from finetune.sources.resolve import SourceRef, open_source
        from finetune.sources.save import make_metadata

        source = open_source(SourceRef(found.id, found.path, found))
        if source.sha256 != found.sha256:
            raise changed
        if source.classifier.class_names:
            metadata = make_metadata(source.classifier, lineage=source.lineage_of_child())
            what = f"{headline(metadata)}, made a checkpoint of finetune"
            return encode(source.classifier.network.state_dict(), metadata), what
        use = f"--from {found.id} (or --from this file --model {found.config.model})"
        what = f"{found.config.model} without a head, as it is; adapt gives it one: {use}"
    content = found.path.read_bytes()
    if sha256_of(content) != found.sha256:
        raise changed
    return content, what
