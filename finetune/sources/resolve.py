"""Resolves and loads what `--from` may name: a file, `mnist`, `timm:NAME`, `hub:OWNER/NAME`, or `random:MODEL`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.checkpoint.format import (
    Checkpoint,
    Metadata,
    check_tensors,
    has_metadata,
    read_checkpoint,
    read_metadata,
)
from finetune.checkpoint.limits import MAX_LINEAGE, ancestor_text
from finetune.errors import CheckpointError, SettingError
from finetune.hub.download import HubFile, fetch
from finetune.hub.errors import LogFn, log_nothing
from finetune.hub.repo_id import is_hub_source
from finetune.io.safe_open import is_file
from finetune.io.text_path import to_path
from finetune.models.registry import check_size, find_model, is_model
from finetune.paths import shipped_checkpoint
from finetune.report.rows import own_row
from finetune.sources.third_party import (
    LoadedWeights,
    as_input_spec,
    build_classifier,
    from_bare,
    from_repository,
    from_timm,
    meta_network,
    random_weights,
)

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier

TIMM = "timm:"
RANDOM = "random:"


@dataclass(frozen=True)
class Source:
    """A loaded source: where it came from, its metadata, and the classifier.

    `path` is the file a person named; where there is none `id` is "timm:resnet18.a1_in1k" or "hub:OWNER/NAME@COMMIT",
    and `cached` is the file in the Hub's cache. Third-party weights have no metadata; a classifier that came without a
    head has no classes.
    """

    path: Path | None
    id: str | None
    sha256: str
    metadata: Metadata | None
    classifier: Classifier
    cached: Path | None = None

    @property
    def name(self) -> str:
        """A short name to call outputs by."""
        if self.path is not None:
            return self.path.stem
        return str(self.id).removeprefix(TIMM).rpartition("/")[2].partition("@")[0]

    @property
    def dataset(self) -> str | None:
        """The name of the data it was trained on, where its metadata has it."""
        name = self.metadata.data.get("name") if self.metadata is not None else None
        return name if isinstance(name, str) else None

    @property
    def accuracy(self) -> float | None:
        """The test accuracy in its metadata, a fraction."""
        return recorded_accuracy(self.metadata)

    def lineage_of_child(self) -> list[dict[str, Any]]:
        """The lineage of a checkpoint made from this source: the source itself, then its own parents, nearest first."""
        id = ancestor_text(self.id or str(self.path and self.path.name))
        itself = {"id": id, "sha256": self.sha256, "task": ancestor_text(self.dataset)}
        older = self.metadata.lineage if self.metadata is not None else []
        return [itself, *older][:MAX_LINEAGE]


@dataclass(frozen=True)
class Architecture:
    """The network of a source, known before any weights are loaded. `fixed`: a recipe may not add arguments."""

    model: str
    arguments: Mapping[str, Any]
    fixed: bool


@dataclass(frozen=True)
class SourceRef:
    """A source that was found, and fetched if it is on the Hub.

    `path` is None for timm's, fetched when opened, and for random weights.
    """

    text: str
    path: Path | None
    hub: HubFile | None = None

    @property
    def architecture(self) -> Architecture | None:
        """The architecture it names; None for a bare file of weights, whose architecture a recipe must name.

        CheckpointError when a config.json names one that does not exist, or that cannot be used here.
        """
        if self.text.startswith(RANDOM):
            return Architecture(self.text.removeprefix(RANDOM), {}, fixed=False)
        if self.path is None:
            return Architecture(f"timm/{self.text.removeprefix(TIMM)}", {}, fixed=False)
        if has_metadata(self.path):
            metadata = _metadata(self.path, self.text)
            return Architecture(metadata.model, metadata.arguments, fixed=True)
        if self.hub is not None and self.hub.config is not None:
            model, arguments = self.hub.config.model, self.hub.config.model_args
            try:
                find_model(model, arguments)
            except SettingError as error:
                raise CheckpointError(f"{self.text}: its config.json does not hold: {error}") from None
            return Architecture(model, arguments, fixed=True)
        return None


def recorded_accuracy(metadata: Metadata | None) -> float | None:
    """The test accuracy that a checkpoint's metadata records, a fraction."""
    row = own_row(metadata.results, metadata.recipe) if metadata is not None else None
    result = metadata.results[row] if metadata is not None and row is not None else None
    found = result.get("accuracy") if isinstance(result, dict) else None
    return found if isinstance(found, float) else None


def locate(source: str | Path, *, note: LogFn = log_nothing, bars: bool = False) -> SourceRef:
    """Finds a source: a file, `mnist`, `timm:NAME[.TAG]`, `random:MODEL`, or `hub:OWNER/NAME[@REVISION]`.

    `mnist` is the checkpoint that comes with finetune, unless there is a file of that very name; a folder is none.
    What is on the Hub is downloaded unless cached.

    `note` is called with remarks on transfers, and `bars` shows their progress. HubError and HubRefusal from the Hub;
    CheckpointError for a text that can be no path.
    """
    text = str(source)
    if text.startswith((TIMM, RANDOM)):
        return SourceRef(text, None)
    if is_hub_source(text):
        found = fetch(text, note=note, bars=bars)
        return SourceRef(found.id, found.path, found)
    shipped = None if is_file(text) else shipped_checkpoint(text)
    return SourceRef(text, shipped or to_path(source, CheckpointError))


def read_source_metadata(source: str | Path | SourceRef) -> Metadata:
    """Reads a checkpoint's metadata without loading torch. CheckpointError when it cannot be read."""
    found = source if isinstance(source, SourceRef) else locate(source)
    if found.text.startswith(RANDOM):
        raise CheckpointError(f"{found.text}: random weights say nothing of themselves")
    if found.path is None:
        model = f"timm/{found.text.removeprefix(TIMM)}"
        raise CheckpointError(f"{found.text}: timm's weights say nothing of themselves; see `finetune models {model}`")
    return _metadata(found.path, found.text)


def open_source(
    source: str | Path | SourceRef, model: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Source:
    """Loads and checks a source: a checkpoint of ours, or third-party weights.

    `model` and its `arguments` are needed where the source does not name its own. CheckpointError when a file is no
    such thing, or its tensors do not fit the model (both sides are listed); SettingError when a model is missing or
    contradicts the source.
    """
    found = source if isinstance(source, SourceRef) else locate(source)
    arguments, said = dict(arguments or {}), found.architecture
    _check_model_agrees(found, said, model, arguments)
    metadata = None
    if found.path is not None and has_metadata(found.path):
        checkpoint = read_checkpoint(found.path)
        metadata, opened = checkpoint.metadata, LoadedWeights(classifier_from_checkpoint(checkpoint), checkpoint.sha256)
    elif found.path is None:
        assert said is not None
        opener = random_weights if found.text.startswith(RANDOM) else from_timm
        opened = opener(found.text, said.model, arguments)
    elif found.hub is not None and found.hub.config is not None:
        opened = from_repository(found.path, found.text, found.hub.config)
    else:
        assert model is not None
        opened = from_bare(found.path, model, arguments)
    is_file = found.path is not None and found.hub is None
    path, id, cached = (found.path, None, None) if is_file else (None, found.text, found.path)
    result = Source(path, id, opened.sha256, metadata, opened.classifier, cached)
    opened.classifier.origin = result
    return result


def load(source: str | Path) -> Classifier:
    """Loads the classifier of a source, in evaluation mode: `finetune.load("checkpoints/mnist.safetensors")`."""
    return open_source(source).classifier


def _check_model_agrees(
    found: SourceRef, said: Architecture | None, model: str | None, arguments: Mapping[str, Any]
) -> None:
    """SettingError unless the architecture that a person names and that of the source agree."""
    if said is None and model is None:
        raise SettingError(
            f"{found.text}: a safetensors file without finetune's metadata, so its model is not known; expected a file "
            "written by `finetune pretrain` or `finetune adapt`, or the name of its model with --model, for example "
            "--model timm/resnet18"
        )
    if said is not None and said.fixed and (model is not None or arguments):
        raise SettingError(f"{found.text}: it says its own model, {said.model}; leave --model and model.* out")
    if said is not None and model not in (None, said.model):
        raise SettingError(f"{found.text}: is a {said.model}, and --model says {model}; leave --model out")


def _metadata(path: Path, text: str) -> Metadata:
    metadata = read_metadata(path)
    if not is_model(metadata.model):
        raise CheckpointError(f"{text}: made with model {metadata.model!r}, which this version does not have")
    return metadata


def classifier_from_checkpoint(checkpoint: Checkpoint) -> Classifier:
    """The classifier of a file that was read, in evaluation mode. CheckpointError unless it fits its own model."""
    metadata, where = checkpoint.metadata, str(checkpoint.path)
    model, arguments, given = metadata.model, metadata.arguments, metadata.input
    try:
        check_tensors(meta_network(model, len(metadata.classes), arguments), checkpoint.tensors, where)
        takes = find_model(model, arguments).input
        if given.size != takes.size:
            check_size(model, arguments, given.size)
    except SettingError as error:
        raise CheckpointError(f"{where}: its metadata does not hold: {error}") from None
    if given.channels != takes.channels:
        raise CheckpointError(
            f"{where}: its metadata says images of {given.channels} channels, but model {model!r} takes "
            f"{takes.channels}"
        )
    found = build_classifier(model, arguments, metadata.classes, as_input_spec(given), checkpoint.tensors, where)
    found.trust(metadata.confidence, where)
    return found
