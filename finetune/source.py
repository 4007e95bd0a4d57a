"""What `--from` may name becomes one loaded source; and a classifier becomes a file again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finetune.checkpoint import (
    Checkpoint,
    InputMetadata,
    Metadata,
    load_tensors,
    read_checkpoint,
    read_metadata,
    write_checkpoint,
)
from finetune.errors import CheckpointError, SettingError
from finetune.hub.fetching import HubFile, fetch
from finetune.hub.names import is_hub_source
from finetune.models.registry import MODELS, InputSpec, build_model, model_row

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.models.classifier import Classifier


@dataclass(frozen=True)
class Source:
    """A loaded source: where it came from, what it says of itself, and the classifier.

    `hub` is hub:OWNER/NAME@COMMIT for one from the Hub, whose `path` is in the Hub's cache.
    """

    path: Path
    sha256: str
    metadata: Metadata
    classifier: Classifier
    hub: str | None = None

    @property
    def id(self) -> str:
        """What lineage calls it: its place on the Hub, or its file's name."""
        return self.hub or self.path.name

    @property
    def stem(self) -> str:
        """A short name, for the names of what is made from it."""
        return self.path.stem if self.hub is None else self.hub.partition("/")[2].partition("@")[0]

    @property
    def dataset(self) -> str | None:
        """The registered name of the data it was trained on, when it says so."""
        name = self.metadata.data.get("name")
        return name if isinstance(name, str) else None

    @property
    def accuracy(self) -> float | None:
        """The test accuracy it says it has, a fraction."""
        for name in ("after", "test"):
            result = self.metadata.results.get(name)
            if isinstance(result, dict) and isinstance(result.get("accuracy"), float):
                return float(result["accuracy"])
        return None

    def lineage_of_child(self) -> list[dict[str, Any]]:
        """The lineage of what is made from this source: the source itself, then its own parents."""
        return [{"id": self.id, "sha256": self.sha256, "task": self.dataset}, *self.metadata.lineage]


def peek(source: str | Path) -> Metadata:
    """What a source says of itself, without loading torch. CheckpointError when it cannot be read."""
    path, _ = _located(source)
    metadata = read_metadata(path)
    if metadata.model not in MODELS:
        raise CheckpointError(f"{source}: made with model {metadata.model!r}, which this version does not have")
    return metadata


def open_source(source: str | Path) -> Source:
    """Loads and checks a checkpoint: a file, or hub:OWNER/NAME[@REVISION], which is downloaded unless it is here.

    CheckpointError when it is not one, or when its tensors do not fit its model; HubError and HubRefusal from the Hub.
    """
    path, hub = _located(source)
    peek(path)
    checkpoint = read_checkpoint(path)
    opened = Source(path, checkpoint.sha256, checkpoint.metadata, _classifier(checkpoint), hub.id if hub else None)
    opened.classifier.origin = opened
    return opened


def _located(source: str | Path) -> tuple[Path, HubFile | None]:
    """The file of a source, and what the Hub said of it if it is from there."""
    if isinstance(source, str) and is_hub_source(source):
        found = fetch(source)
        return found.path, found
    return Path(source), None


def load(source: str | Path) -> Classifier:
    """The classifier in a checkpoint, in evaluation mode: `finetune.load("checkpoints/mnist.safetensors")`."""
    return open_source(source).classifier


def save(classifier: Classifier, path: str | Path) -> str:
    """Writes a classifier as a checkpoint, in place of any file of that name, and returns the new file's sha256.

    What the file it was loaded from says of recipe, data and results is kept only while weights, classes and input are
    the same. CheckpointError, and nothing is written, when the file could not be loaded again.
    """
    state, origin = classifier.network.state_dict(), classifier.origin
    rows, names = classifier.network.head.out_features, len(classifier.class_names)
    if rows != names:
        raise CheckpointError(f"{path}: not written: the head has {rows} rows, and there are {names} class names")
    if not isinstance(origin, Source):
        return write_checkpoint(Path(path), state, describe(classifier))
    if _unchanged(classifier, origin):
        return write_checkpoint(Path(path), state, origin.metadata)
    lineage = origin.lineage_of_child()
    return write_checkpoint(Path(path), state, describe(classifier, lineage=lineage))


def describe(
    classifier: Classifier,
    *,
    recipe: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    lineage: list[dict[str, Any]] | None = None,
) -> Metadata:
    """The metadata of a classifier as it is now. CheckpointError when no file could say that."""
    from finetune.training.runtime import versions

    try:
        return Metadata(
            model=classifier.model,
            arguments=classifier.arguments,
            classes=list(classifier.class_names),
            input=InputMetadata.model_validate(classifier.input.as_dict()),
            recipe=recipe or {},
            data=data or {},
            results=results or {},
            lineage=lineage or [],
            versions=versions(),
        )
    except ValidationError as error:
        raise CheckpointError(f"this classifier cannot be saved: {error.errors()[0]['msg'].lower()}") from None


def _unchanged(classifier: Classifier, origin: Source) -> bool:
    """Whether the file that it came from is still there and says the same: weights, model, classes and input."""
    now, then = describe(classifier), origin.metadata
    if (now.model, now.arguments, now.classes, now.input) != (then.model, then.arguments, then.classes, then.input):
        return False
    try:
        loaded = read_checkpoint(origin.path)
    except CheckpointError:
        return False
    return loaded.sha256 == origin.sha256 and _same(loaded.tensors, classifier.network.state_dict())


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and first[k].equal(second[k].cpu()) for k in first
    )


def _classifier(checkpoint: Checkpoint) -> Classifier:
    from finetune.models.classifier import Classifier

    metadata = checkpoint.metadata
    try:
        network = build_model(metadata.model, len(metadata.classes), metadata.arguments)
    except SettingError as error:
        raise CheckpointError(f"{checkpoint.path}: its metadata does not hold: {error}") from None
    load_tensors(network, checkpoint.tensors, str(checkpoint.path))
    given, takes = metadata.input, model_row(metadata.model).input
    if (given.channels, given.size) != (takes.channels, takes.size):
        raise CheckpointError(
            f"{checkpoint.path}: its metadata says images of {given.channels}×{given.size}×{given.size}, but model "
            f"{metadata.model!r} takes {takes.channels}×{takes.size}×{takes.size}"
        )
    spec = InputSpec(given.channels, given.size, tuple(given.mean), tuple(given.std), given.interpolation)
    classifier = Classifier(network, metadata.model, metadata.arguments, metadata.classes, spec)
    classifier.eval()
    return classifier
