"""`finetune verify`: whether what a checkpoint says of itself holds, claim by claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.evaluate import EvaluatedSet, Evaluation, evaluate_classifier
from finetune.paths import data_root
from finetune.report.console import Console
from finetune.report.report import result_values
from finetune.report.tables import percent
from finetune.sources.resolve import locate
from finetune.train.device import Runtime, choose_runtime, environment
from finetune.verification.checks import (
    Check,
    CheckpointUnderTest,
    open_for_checks,
    read_own_report,
    read_report,
    report_check,
    self_checks,
)
from finetune.verification.frozen import frozen_check
from finetune.verification.lineage import find_parents, lineage_check, parent_checks

TOLERANCE = 1000  # one image in so many may be told otherwise by another device or version of torch


@dataclass(frozen=True)
class Verification:
    """Every claim of a checkpoint that was looked at, and the result on the data that was named, if any was."""

    checkpoint: str
    sha256: str
    checks: list[Check]
    evaluation: Evaluation | None = None

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [check.check for check in self.checks if check.state == "failed"]

    @property
    def holds(self) -> bool:
        """Whether none of the checks failed. Some may not have been possible."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as JSON values."""
        found = self.evaluation
        return {
            "checkpoint": self.checkpoint,
            "sha256": self.sha256,
            "holds": self.holds,
            "checks": [check.to_dict() for check in self.checks],
            "evaluation": None if found is None else {"data": found.data, **result_values(found.result, brief=True)},
        }


def verify(
    checkpoint: str | Path,
    data: str | None = None,
    *,
    root: str | Path | None = None,
    device: str = "auto",
    fetch: bool = False,
    console: Console | None = None,
) -> Verification:
    """Checks a checkpoint, a file or hub:OWNER/NAME[@REVISION], against its own words, its report and its parents.

    With `data`, as for `evaluate`, its accuracy is measured again. `fetch` allows to ask the Hub for parents that are
    not here. CheckpointError when the file cannot be read at all; other errors are those of `evaluate`.
    """
    console = console or Console(quiet=True, results=False)
    runtime = choose_runtime(device, "float32")
    subject = open_for_checks(locate(checkpoint, note=console.note, bars=not console.quiet))
    path = read_own_report(subject)
    report = read_report(path)
    checks, lineage = self_checks(subject), lineage_check(subject)
    parents = find_parents(subject, report, may_fetch=fetch) if lineage.state == "ok" else []
    checks += [lineage, *parent_checks(subject, parents), frozen_check(subject, parents)]
    checks.append(report_check(subject, path, report))
    if data is None:
        checks.append(Check.skipped("accuracy", "no --data is named to measure it on"))
        return Verification(str(checkpoint), subject.checkpoint.sha256, checks)
    if subject.classifier is None:
        checks.append(Check.skipped("accuracy", "the tensors fit no network"))
        return Verification(str(checkpoint), subject.checkpoint.sha256, checks)
    found = evaluate_classifier(subject.classifier, str(checkpoint), data, data_root(root), runtime, console)
    same = _same_images(subject, found)
    checks += [_images(found.evaluation, subject, same), _accuracy(subject, report, runtime, found.evaluation, same)]
    return Verification(str(checkpoint), subject.checkpoint.sha256, checks, found.evaluation)


def _same_images(subject: CheckpointUnderTest, found: EvaluatedSet) -> bool:
    """Whether the images are those that the recorded accuracy is of, in whatever order the classes are.

    The fingerprint depends on that order, which somebody may have changed in the file.
    """
    recorded, classes = _test_of(subject).get("fingerprint"), subject.metadata.data.get("classes")
    if recorded is None:
        return False
    orders = [found.test.class_names, found.order]
    if isinstance(classes, list) and sorted(map(str, classes)) == sorted(found.order):
        orders.append(tuple(map(str, classes)))
    return any(found.test.with_classes(order, empty=True).fingerprint() == recorded for order in orders)


def _test_of(subject: CheckpointUnderTest) -> Mapping[str, Any]:
    test = subject.metadata.data.get("test")
    return test if isinstance(test, Mapping) else {}


def _images(found: Evaluation, subject: CheckpointUnderTest, same: bool) -> Check:
    if "fingerprint" not in _test_of(subject):
        return Check.skipped("images", "no fingerprint of the test images is recorded")
    if not same:
        return Check.skipped("images", f"other images: those of {found.data} are not the ones it was measured on")
    return Check(
        "images", "ok", f"the {found.result.total:,} test images of {found.data} have the recorded fingerprint"
    )


def _accuracy(
    subject: CheckpointUnderTest, report: Mapping[str, Any] | None, runtime: Runtime, found: Evaluation, same: bool
) -> Check:
    """The counts are the recorded ones: exactly, or nearly where another device or version of torch did the sums."""
    correct, total = found.result.correct, found.result.total
    here = f"{correct:,} of {total:,} right ({percent(found.result.accuracy)})"
    if not same:
        return Check.skipped("accuracy", f"{here} on these images, of which the checkpoint says nothing")
    results = subject.metadata.results
    claimed = next((results[name] for name in ("after", "test") if isinstance(results.get(name), Mapping)), None)
    if claimed is None:
        return Check.skipped("accuracy", f"{here}; no result is recorded")
    there = f"{claimed.get('correct')} of {claimed.get('total')}"
    if (claimed.get("correct"), claimed.get("total")) == (correct, total):
        return Check("accuracy", "ok", f"{here}, as recorded")
    allowed, other = max(1, total // TOLERANCE), _on_other_machine(subject, report, runtime)
    counted = type(claimed.get("correct")) is int and claimed.get("total") == total
    if other and counted and abs(claimed["correct"] - correct) <= allowed:
        return Check(
            "accuracy", "ok", f"{here}, recorded {there}: within {allowed}, which {', '.join(other)} may bring"
        )
    more = f"; {', '.join(other)} may bring {allowed} more or fewer, and no more" if other else ""
    return Check("accuracy", "failed", f"{here}, and {there} are recorded{more}")


def _on_other_machine(subject: CheckpointUnderTest, report: Mapping[str, Any] | None, runtime: Runtime) -> list[str]:
    """How the machine here differs from the one that measured the recorded accuracy, as far as that is known."""
    now, then = environment(runtime), (report or {}).get("environment")
    said: dict[str, Any] = dict(then) if isinstance(then, Mapping) else {}
    said |= {"torch": subject.metadata.versions.get("torch")}
    kinds = {"torch": "another version of torch", "processor": "another processor"}
    found = [text for key, text in kinds.items() if said.get(key) not in (None, now[key])]
    device = str((report or {}).get("device") or "cpu").partition(":")[0]
    return [*found, *(["another device"] if device != runtime.device.type else [])]
