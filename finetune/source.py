"""What `--from` may name becomes one loaded source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.checkpoint import (
    Checkpoint,
    Metadata,
    check_tensors,
    has_metadata,
    load_tensors,
    read_checkpoint,
    read_metadata,
    read_weights,
)
from finetune.errors import CheckpointError, SettingError
from finetune.models.registry import InputSpec, build_model, check_size, find_model, is_model

if TYPE_CHECKING:
    from finetune.models.classifier import Classifier
    from finetune.models.staged import StagedNetwork

TIMM = "timm:"


@dataclass(frozen=True)
class Source:
    """A loaded source: where it came from, what it says of itself, and the classifier.

    `path` is the file a person named; `id` stands for it where there is none, such as "timm:resnet18.a1_in1k". Bare
    weights have no metadata; a classifier whose weights came without a head has no classes.
    """

    path: Path | None
    id: str | None
    sha256: str
    metadata: Metadata | None
    classifier: Classifier

    @property
    def name(self) -> str:
        """A short name to call outputs by."""
        if self.path is not None:
            return self.path.stem
        return str(self.id).removeprefix(TIMM)

    @property
    def dataset(self) -> str | None:
        """The name of the data it was trained on, when it says so."""
        name = self.metadata.data.get("name") if self.metadata is not None else None
        return name if isinstance(name, str) else None

    @property
    def accuracy(self) -> float | None:
        """The test accuracy it says it has, a fraction."""
        for name in ("after", "test"):
            result = self.metadata.results.get(name) if self.metadata is not None else None
            if isinstance(result, dict) and isinstance(result.get("accuracy"), float):
                return float(result["accuracy"])
        return None

    def lineage_of_child(self) -> list[dict[str, Any]]:
        """The lineage of what is made from this source: the source itself, then its own parents."""
        itself = {"id": self.id or str(self.path and self.path.name), "sha256": self.sha256, "task": self.dataset}
        return [itself, *(self.metadata.lineage if self.metadata is not None else [])]


@dataclass(frozen=True)
class Architecture:
    """What a source says of its network before any weights are loaded. `fixed`: a recipe may not add arguments."""

    model: str
    arguments: Mapping[str, Any]
    fixed: bool


def peek(source: str | Path) -> Metadata:
    """What a checkpoint says of itself, without loading torch. CheckpointError when it cannot be read."""
    metadata = read_metadata(Path(source))
    if not is_model(metadata.model):
        raise CheckpointError(f"{source}: made with model {metadata.model!r}, which this version does not have")
    return metadata


def architecture(source: str | Path) -> Architecture | None:
    """The architecture a source names; None for a bare file of weights, whose architecture a recipe must name."""
    if str(source).startswith(TIMM):
        return Architecture(_timm_name(str(source)), {}, fixed=False)
    if not has_metadata(Path(source)):
        return None
    metadata = peek(source)
    return Architecture(metadata.model, metadata.arguments, fixed=True)


def open_source(source: str | Path, model: str | None = None, arguments: Mapping[str, Any] | None = None) -> Source:
    """Loads and checks a source: a checkpoint, `timm:NAME[.TAG]`, or a bare file of weights of `model`.

    `arguments` are the model's, for the last two. CheckpointError when a file is no such thing or its tensors do not
    fit the model (both sides are listed); SettingError when a model is missing, unknown, or at odds with the source.
    """
    text, arguments = str(source), dict(arguments or {})
    if text.startswith(TIMM):
        opened = _open_timm(text, model, arguments)
    elif architecture(source) is None:
        opened = _open_bare(Path(source), model, arguments)
    else:
        if model is not None or arguments:
            raise SettingError(f"{source}: the checkpoint says its own model and arguments; leave --model out")
        checkpoint = read_checkpoint(Path(source))
        opened = Source(checkpoint.path, None, checkpoint.sha256, checkpoint.metadata, _classifier(checkpoint))
    opened.classifier.origin = opened
    return opened


def load(source: str | Path) -> Classifier:
    """The classifier in a source, in evaluation mode: `finetune.load("checkpoints/mnist.safetensors")`."""
    return open_source(source).classifier


def _classifier(checkpoint: Checkpoint) -> Classifier:
    import torch

    metadata = checkpoint.metadata
    given = metadata.input
    try:
        with torch.device("meta"):  # a file that names a huge network has to have the tensors for it
            outline = build_model(metadata.model, len(metadata.classes), metadata.arguments)
        check_tensors(outline, checkpoint.tensors, str(checkpoint.path))
        network = build_model(metadata.model, len(metadata.classes), metadata.arguments)
        takes = find_model(metadata.model, metadata.arguments).input
        if given.size != takes.size:
            check_size(metadata.model, metadata.arguments, given.size)
    except SettingError as error:
        raise CheckpointError(f"{checkpoint.path}: its metadata does not hold: {error}") from None
    if given.channels != takes.channels:
        raise CheckpointError(
            f"{checkpoint.path}: its metadata says images of {given.channels} channels, but model "
            f"{metadata.model!r} takes {takes.channels}"
        )
    load_tensors(network, checkpoint.tensors, str(checkpoint.path))
    spec = InputSpec(**given.model_dump(exclude={"mean", "std"}), mean=tuple(given.mean), std=tuple(given.std))
    return _ready(network, metadata.model, metadata.arguments, metadata.classes, spec)


def _ready(
    network: StagedNetwork, model: str, arguments: Mapping[str, Any], classes: Sequence[str], spec: InputSpec
) -> Classifier:
    from finetune.models.classifier import Classifier

    classifier = Classifier(network, model, arguments, classes, spec)
    classifier.eval()
    return classifier


def _timm_name(source: str) -> str:
    return f"timm/{source.removeprefix(TIMM)}"


def _open_timm(source: str, model: str | None, arguments: dict[str, Any]) -> Source:
    """Pretrained weights through timm: from the Hub, or from its cache."""
    from finetune.models.timm_files import pretrained_file
    from finetune.models.timm_weights import source_classes, timm_state

    name = _timm_name(source)
    if model not in (None, name):
        raise SettingError(f"{source}: is a {name}, and --model says {model}; leave out --model")
    find_model(name, arguments)
    path = pretrained_file(name)
    weights = read_weights(path)
    classes = source_classes(name, weights.tensors)
    network = build_model(name, max(1, len(classes)), arguments)
    load_tensors(network, timm_state(name, arguments, weights.tensors, max(1, len(classes))), source)
    if not classes:
        _behead(network)
    spec = find_model(name, arguments).input
    return Source(None, source, weights.sha256, None, _ready(network, name, arguments, classes, spec))


def _open_bare(path: Path, model: str | None, arguments: dict[str, Any]) -> Source:
    """A file of weights that is not ours, as a model that the person named."""
    if model is None:
        raise SettingError(
            f"{path}: a safetensors file without finetune's metadata, so its model is not known; expected a file "
            "written by `finetune pretrain` or `finetune adapt`, or the name of its model with --model, for example "
            "--model timm/resnet18"
        )
    weights = read_weights(path)
    spec = find_model(model, arguments).input
    network = build_model(model, 1, arguments)
    head = network.head_tensors()
    rows = len(weights.tensors[head[0]]) if head[0] in weights.tensors else 0
    if rows > 1:
        network = build_model(model, rows, arguments)
    state = network.state_dict()
    without_head = {} if rows else {name: state[name] for name in head}
    load_tensors(network, {**without_head, **weights.tensors}, str(path))
    if not rows:
        _behead(network)
    classes, spec = tuple(map(str, range(rows))), _as_told(spec, weights.texts)
    return Source(path, None, weights.sha256, None, _ready(network, model, arguments, classes, spec))


def _as_told(spec: InputSpec, texts: Mapping[str, str]) -> InputSpec:
    """The input as the file's own metadata has it, where it has: texts such as mean 0.5, std 0.5, input 224."""
    told: dict[str, Any] = {}
    for key in ("mean", "std"):
        values = _decimals(texts.get(key, ""))
        if len(values) in (1, spec.channels) and (key == "mean" or min(values) > 0):
            told[key] = values * spec.channels if len(values) == 1 else values
    size = texts.get("input", "")
    if size.isascii() and size.isdecimal() and 1 <= int(size) <= 4096:
        told["size"] = int(size)
    return replace(spec, **told)


def _decimals(text: str) -> tuple[float, ...]:
    """The numbers of a text such as "0.5" or "0.485, 0.456, 0.406"; none where it is something else."""
    try:
        found = tuple(float(part) for part in text.strip("()[] ").split(","))
    except ValueError:
        return ()
    return found if all(-10 < value < 10 for value in found) else ()


def _behead(network: StagedNetwork) -> None:
    """Takes all rows off the head: these weights name no class."""
    head = network.head  # torch warns when a layer without rows is made, and not when one loses them
    head.weight.data, head.bias.data, head.out_features = head.weight.data[:0], head.bias.data[:0], 0
