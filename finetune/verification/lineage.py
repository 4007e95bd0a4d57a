"""Checks a checkpoint's parents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.checkpoint.format import has_metadata, read_metadata
from finetune.checkpoint.limits import MAX_LINEAGE, ancestor_text
from finetune.errors import CheckpointError, FinetuneError
from finetune.hub.download import cached_file, fetch
from finetune.hub.errors import LogFn, log_nothing
from finetune.hub.repo_id import PREFIX, is_hub_source
from finetune.io.safe_open import is_file, sha256_of
from finetune.sources.resolve import TIMM, SourceRef
from finetune.system import available_memory
from finetune.text import amount, listed
from finetune.verification.checks import Check, CheckpointUnderTest

SHA256 = re.compile(r"[0-9a-f]{64}")
CHECKPOINTS = Path("checkpoints")
LARGE = 500_000_000  # bytes, which take a second or more to read


@dataclass(frozen=True)
class Parent:
    """An entry of the lineage, and its file with the sha256 that it has; or the reason why there is none."""

    id: str
    sha256: str
    task: str | None
    located: SourceRef | None = None
    digest: str = ""
    reason: str = ""

    @property
    def file(self) -> SourceRef | None:
        """The file, if it is the recorded one."""
        return self.located if self.digest == self.sha256 else None


def lineage_check(subject: CheckpointUnderTest) -> Check:
    """Whether the lineage is well-formed, whatever files are at hand."""
    entries, kind = subject.metadata.lineage, subject.metadata.recipe.get("kind")
    faults = [f"parent {number}: {fault}" for number, one in enumerate(entries, 1) for fault in _entry_faults(one)]
    if kind == "adapt" and not entries:
        faults.append("an adapt starts from weights, and no parent is recorded")
    if kind == "pretrain" and entries:
        faults.append("a pretrain starts from random weights, and a parent is recorded")
    names = listed(str(entry.get("id")) for entry in entries)
    return Check.of("lineage", faults, f"it starts from {names}" if entries else "no parents are recorded")


def _entry_faults(entry: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(entry.get("id"), str) or not entry["id"]:
        yield f"expected an id, found {entry.get('id')!r}"
    if not isinstance(entry.get("sha256"), str) or not SHA256.fullmatch(entry["sha256"]):
        yield f"expected a sha256 of 64 digits, found {entry.get('sha256')!r}"
    if not isinstance(entry.get("task"), str | None):
        yield f"expected a task or none, found {entry['task']!r}"


def find_parents(
    subject: CheckpointUnderTest, report: Mapping[str, Any] | None, *, may_fetch: bool, note: LogFn = log_nothing
) -> list[Parent]:
    """Searches the parents of a well-formed lineage, nearest first; asks the Hub only if it may.

    `note` is called before a large file is read.
    """
    search = ParentSearch(subject, report, note)
    return [_find_parent(entry, search, may_fetch) for entry in subject.metadata.lineage]


class ParentSearch:
    """Searches the files that may be a parent: where the report says, beside the checkpoint, and in checkpoints/.

    Files are recognized by their sha256; a name only says where to look first. Files whose metadata names another model
    are left out.
    """

    def __init__(self, subject: CheckpointUnderTest, report: Mapping[str, Any] | None, note: LogFn) -> None:
        self.subject, self.note = subject, note
        self.known: dict[Path, str] = {}
        source = report.get("source") if report is not None else None
        path = source.get("path") if isinstance(source, Mapping) else None
        self.reported = [Path(path)] if isinstance(path, str) else []

    def find(self, id: str, sha256: str) -> tuple[Path | None, list[Path]]:
        """The file with this sha256, if any; else the files of the right name that have another."""
        others = []
        for path in self._candidates(id):
            if self._sha256(path) == sha256:
                return path, []
            if path.name == Path(id).name and path.resolve() != self.subject.path.resolve():
                others.append(path)
        return None, others

    def _candidates(self, id: str) -> Iterator[Path]:
        folders, seen = (self.subject.path.parent, CHECKPOINTS), set()
        named = [folder / Path(id).name for folder in folders]
        rest = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
        for path in [*self.reported, *named, *rest]:
            if is_file(path) and path.resolve() not in seen:
                seen.add(path.resolve())
                yield path

    def _sha256(self, path: Path) -> str:
        """The file's sha256; "" for one that cannot be a parent."""
        if path not in self.known:
            try:
                size = path.stat().st_size
                possible = size <= available_memory()  # nobody could have loaded it
                possible &= not has_metadata(path) or read_metadata(path).model == self.subject.metadata.model
                if possible and size >= LARGE:
                    self.note(f"reading {path} ({amount(size)}), which may be a parent")
                self.known[path] = sha256_of(path) if possible else ""
            except (CheckpointError, OSError):
                self.known[path] = ""
        return self.known[path]


def _find_parent(entry: Mapping[str, Any], search: ParentSearch, may_fetch: bool) -> Parent:
    parent = Parent(entry["id"], entry["sha256"], entry.get("task"))
    path, others = search.find(parent.id, parent.sha256)
    if path is not None:
        return replace(parent, located=SourceRef(str(path), path), digest=parent.sha256)
    try:
        found = _find_on_hub(parent.id, may_fetch)
    except FinetuneError as error:
        return replace(parent, reason=f"it could not be fetched: {error}")
    if found is not None:
        assert found.path is not None
        return replace(parent, located=found, digest=sha256_of(found.path))
    if others:
        return replace(parent, reason=f"{listed(map(str, others))} has another sha256")
    hint = ", nor has the Hub's cache; --fetch asks the Hub" if parent.id.startswith((PREFIX, TIMM)) else ""
    return replace(parent, reason=f"no file beside the checkpoint or in checkpoints/ has its sha256{hint}")


def _find_on_hub(id: str, may_fetch: bool) -> SourceRef | None:
    """A parent on the Hub, from the Hub's cache or, if it may be, fetched; None where it is not at hand."""
    if is_hub_source(id):
        file = cached_file(id) or (fetch(id) if may_fetch else None)
        return None if file is None else SourceRef(file.id, file.path, file)
    if id.startswith(TIMM):
        from finetune.hub.timm_weights import cached_weights, download_weights

        name = f"timm/{id.removeprefix(TIMM)}"
        path = cached_weights(name) or (download_weights(name) if may_fetch else None)
        return None if path is None else SourceRef(id, path)
    return None


def parent_checks(subject: CheckpointUnderTest, parents: Sequence[Parent]) -> list[Check]:
    """Each parent against what the checkpoint says of it."""
    return [_check_parent(subject, number, parent) for number, parent in enumerate(parents, 1)]


def _check_parent(subject: CheckpointUnderTest, number: int, parent: Parent) -> Check:
    name, found = f"parent {number}", parent.located
    if found is None:
        return Check.skipped(name, f"{parent.id} is not at hand: {parent.reason}")
    if parent.file is None:
        if parent.id.startswith(TIMM):  # the weights of a tag may be replaced
            return Check.skipped(name, f"{parent.id} is not at hand: in the Hub's cache it has another sha256")
        here = f"{parent.digest[:12]}…, and {parent.sha256[:12]}… is recorded"
        return Check(name, "failed", f"{parent.id} has the sha256 {here}")
    assert found.path is not None
    faults = _parent_faults(subject, parent, found.path, subject.metadata.lineage[number:])
    return Check.of(name, faults, f"{found.text} has the recorded sha256")


def _parent_faults(
    subject: CheckpointUnderTest, parent: Parent, path: Path, ancestors: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    try:
        own = read_metadata(path) if has_metadata(path) else None
    except CheckpointError as error:
        yield str(error)
        return
    task = own.data.get("name") if own is not None else None
    if (ancestor_text(task) if isinstance(task, str) else task) != parent.task:
        yield f"{parent.id} was trained on {task}, and {parent.task} is recorded"
    older = own.lineage if own is not None else []
    if ancestors != older[: MAX_LINEAGE - len(subject.metadata.lineage) + len(ancestors)]:  # the oldest are not kept
        yield f"{parent.id} has other parents than those recorded after it"
    if own is not None and subject.recipe is not None and own.model != subject.metadata.model:
        yield f"{parent.id} is a {own.model}, and what was made of it a {subject.metadata.model}"
