"""`finetune evaluate`: a checkpoint on the test images of a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.data.image_dataset import ImageSet
from finetune.errors import DataError, SettingError
from finetune.models.classifier import Classifier
from finetune.paths import data_root
from finetune.report.console import Console
from finetune.report.report import Result, result_values
from finetune.run.data import open_test
from finetune.run.finalize import score
from finetune.sources.resolve import Source, locate, open_source
from finetune.train.device import Runtime, choose_runtime
from finetune.train.inference import outputs


@dataclass(frozen=True)
class Evaluation:
    """A result on the classes that checkpoint and data set share, and what the checkpoint says it reaches there.

    `left_out` counts the test images of classes that the checkpoint does not know; `not_offered` are the checkpoint's
    classes that the data set does not have, among which it was not let choose. `claimed` is None when it says nothing.
    """

    checkpoint: str
    data: str
    classes: list[str]
    left_out: int
    not_offered: list[str]
    result: Result
    claimed: float | None

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as JSON values."""
        return {
            "checkpoint": self.checkpoint,
            "data": self.data,
            "classes": self.classes,
            "left_out": self.left_out,
            "not_offered": self.not_offered,
            **result_values(self.result),
            "claimed_accuracy": self.claimed,
        }


@dataclass(frozen=True)
class EvaluatedSet:
    """A result, the test images it is of, with classes in the checkpoint's order, and the data set's own order."""

    evaluation: Evaluation
    test: ImageSet
    order: tuple[str, ...]


def evaluate(
    checkpoint: str | Path,
    data: str,
    *,
    root: str | Path | None = None,
    device: str = "auto",
    on_bad_image: str = "fail",
    console: Console | None = None,
) -> Evaluation:
    """Measures a checkpoint on the test images of the classes that it shares by name with the data set.

    `data` is a registered name, a folder of pictures or a CSV file; `on_bad_image` (fail or skip) is for pictures that
    cannot be read. DataError when there is no class in common; other errors are those of `finetune.errors`.
    """
    console = console or Console(quiet=True, results=False)
    source = open_source(locate(checkpoint, note=console.note, bars=not console.quiet))
    runtime = choose_runtime(device, "float32")
    root = data_root(root)
    found = evaluate_classifier(
        source.classifier, str(checkpoint), data, root, runtime, console, on_bad_image=on_bad_image
    )
    return replace(found.evaluation, claimed=_claimed(source, found.test))


def evaluate_classifier(
    classifier: Classifier,
    checkpoint: str,
    data: str,
    root: Path,
    runtime: Runtime,
    console: Console,
    *,
    on_bad_image: str = "fail",
) -> EvaluatedSet:
    """The result of a classifier; nothing is claimed yet.

    `checkpoint` is what messages call it. The network is left on the runtime's device. Errors as for `evaluate`.
    """
    if not classifier.class_names:
        raise SettingError(f"{checkpoint}: these weights have no head, so they name no class; adapt makes one")
    data, test = open_test(data, root, classifier.input, console, on_bad_image=on_bad_image)
    shared = [name for name in classifier.class_names if name in test.class_names]
    if not any(test.counts()[name] for name in shared):
        raise DataError(
            f"{checkpoint} and {data} have no class in common: the checkpoint knows "
            f"{', '.join(classifier.class_names)}; {data} has {', '.join(test.class_names)}. "
            f"`finetune adapt --from {checkpoint} --target {data}` swaps the head"
        )
    whole, test = test, test.with_classes(shared, empty=True)
    runtime.place(classifier.network)
    normalize = classifier.input.normalizer(runtime.device)
    logits = outputs(classifier.network, test.images.to(runtime.device), normalize)
    rows = [classifier.class_names.index(name) for name in shared]
    result = score(test, logits[:, rows].argmax(1))
    not_offered = [name for name in classifier.class_names if name not in shared]
    found = Evaluation(checkpoint, data, shared, len(whole) - len(test), not_offered, result, None)
    return EvaluatedSet(found, test, tuple(name for name in whole.class_names if name in shared))


def _claimed(source: Source, test: ImageSet) -> float | None:
    """The accuracy in the checkpoint, if it was measured on the very same images."""
    same = source.metadata.data.get("test") if source.metadata is not None else None
    if isinstance(same, dict) and same.get("fingerprint") == test.fingerprint():
        return source.accuracy
    return None
