"""`finetune verify`: whether what a checkpoint says of itself holds, claim by claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.commands.evaluate import EvaluatedSet, Evaluation, evaluate_classifier, learnt_note
from finetune.errors import SettingError
from finetune.paths import data_root as resolve_data_root
from finetune.report.console import Console
from finetune.report.report import read_report_beside, result_values
from finetune.report.rows import own_row
from finetune.report.tables import percent
from finetune.run.measured import LearntFrom
from finetune.sources.resolve import locate
from finetune.train.device import Runtime, choose_runtime, environment
from finetune.verification.checks import (
    Check,
    CheckpointUnderTest,
    as_mapping,
    open_for_checks,
    report_check,
    self_checks,
)
from finetune.verification.frozen import frozen_check
from finetune.verification.lineage import find_parents, lineage_check, parent_checks

TOLERANCE = 1000  # another device or version of torch may change the class of one image in so many


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`: every check, and the result on the data that was named, if any was."""

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
        """Whether no check failed. Some may not have been possible."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values."""
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
    data_root: str | Path | None = None,
    device: str = "auto",
    fetch: bool = False,
    console: Console | None = None,
) -> Verification:
    """Checks what a checkpoint says of itself: its tensors, recipe, results, parents and report.

    checkpoint: a file, or hub:OWNER/NAME[@REVISION]. data: as in `evaluate`; the accuracy there is measured again.
    fetch: ask the Hub for parents that are not here. console: where progress is shown, by default nowhere.

    A failed check raises nothing; the result's `holds` and `checks` say so. CheckpointError when the file cannot be
    read at all; other errors are those of `evaluate`.
    """
    console = console or Console(quiet=True, results=False)
    runtime, root = choose_runtime(device, "float32"), resolve_data_root(data_root)
    subject = open_for_checks(locate(checkpoint, note=console.note, bars=not console.quiet))
    report, unreadable = _read_report(subject)
    lineage = lineage_check(subject)
    parents = find_parents(subject, report, may_fetch=fetch, note=console.note) if lineage.state == "ok" else []
    checks = [*self_checks(subject), lineage, *parent_checks(subject, parents), frozen_check(subject, parents)]
    checks.append(unreadable or report_check(subject, report))
    evaluation = None
    if data is None:
        checks.append(Check.skipped("accuracy", "no --data is named to measure it on"))
    elif subject.classifier is None:
        checks.append(Check.skipped("accuracy", "the tensors fit no network"))
    else:
        learnt = LearntFrom.of(subject.metadata)
        found = evaluate_classifier(subject.classifier, str(checkpoint), data, root, runtime, console, learnt)
        evaluation, same = found.evaluation, _same_images(subject, found)
        unfair = learnt_note(subject.metadata, found)
        checks.append(_check_images(subject, evaluation, same) if unfair is None else Check.skipped("images", unfair))
        checks.append(_check_accuracy(subject, evaluation, same, _machine_differences(subject, report or {}, runtime)))
    return Verification(str(checkpoint), subject.checkpoint.sha256, checks, evaluation)


def _read_report(subject: CheckpointUnderTest) -> tuple[dict[str, Any] | None, Check | None]:
    """The values of the checkpoint's report, None where there are none, and the check that a damaged one fails."""
    try:
        return read_report_beside(subject.report_path), None
    except SettingError as error:
        return None, Check("report", "failed", f"{error}; put it right, or move it away")


def _same_images(subject: CheckpointUnderTest, found: EvaluatedSet) -> bool:
    """Whether the images are those of the recorded accuracy, in whatever order the classes are.

    The fingerprint depends on that order, which somebody may have changed in the file.
    """
    data = subject.metadata.data
    recorded, classes = as_mapping(data.get("test")).get("fingerprint"), data.get("classes")
    if recorded is None:
        return False
    orders = [found.test.class_names, found.order]
    if isinstance(classes, list) and sorted(map(str, classes)) == sorted(found.order):
        orders.append(tuple(map(str, classes)))
    return any(found.test.with_classes(order, empty=True).fingerprint() == recorded for order in orders)


def _check_images(subject: CheckpointUnderTest, found: Evaluation, same: bool) -> Check:
    if "fingerprint" not in as_mapping(subject.metadata.data.get("test")):
        return Check.skipped("images", "no fingerprint of the test images is recorded")
    if not same:
        return Check.skipped("images", f"other images: those of {found.data} are not the ones it was measured on")
    message = f"the {found.result.total:,} test images of {found.data} have the recorded fingerprint"
    return Check("images", "ok", message)


def _check_accuracy(subject: CheckpointUnderTest, found: Evaluation, same: bool, differences: list[str]) -> Check:
    """Whether the counts are those recorded: exactly, or nearly where the machine differs from the recorded one."""
    correct, total = found.result.correct, found.result.total
    here = f"{correct:,} of {total:,} right ({percent(found.result.accuracy)})"
    if "folds" in subject.metadata.data:
        return Check.skipped(
            "accuracy", f"{here} of images that it may have learnt from; the recorded one is of others"
        )
    if not same:
        return Check.skipped("accuracy", f"{here} on these images, of which the checkpoint says nothing")
    results = subject.metadata.results
    claimed = results.get(own_row(results, subject.metadata.recipe) or "")
    if not isinstance(claimed, Mapping):
        return Check.skipped("accuracy", f"{here}; no result is recorded")
    there = f"{claimed.get('correct')} of {claimed.get('total')}"
    if (claimed.get("correct"), claimed.get("total")) == (correct, total):
        return Check("accuracy", "ok", f"{here}, as recorded")
    allowed, causes = max(1, total // TOLERANCE), ", ".join(differences)
    counted = type(claimed.get("correct")) is int and claimed.get("total") == total
    if causes and counted and abs(claimed["correct"] - correct) <= allowed:
        return Check("accuracy", "ok", f"{here}, recorded {there}: within {allowed}, which {causes} may bring")
    more = f"; {causes} may bring {allowed} more or fewer, and no more" if causes else ""
    return Check("accuracy", "failed", f"{here}, and {there} are recorded{more}")


def _machine_differences(subject: CheckpointUnderTest, report: Mapping[str, Any], runtime: Runtime) -> list[str]:
    """How this machine differs from the one that measured the recorded accuracy, as far as that is known."""
    here = environment(runtime)
    there = {**as_mapping(report.get("environment")), "torch": subject.metadata.versions.get("torch")}
    kinds = {"torch": "another version of torch", "processor": "another processor"}
    found = [text for key, text in kinds.items() if there.get(key) not in (None, here[key])]
    device = str(report.get("device") or "cpu").partition(":")[0]
    return [*found, *(["another device"] if device != runtime.device.type else [])]
