"""Weights that are not ours made into classifiers: timm's, a bare file's, and those of other people's repositories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.checkpoint import Weights, check_tensors, load_tensors, read_weights
from finetune.errors import CheckpointError, SettingError
from finetune.models.registry import InputSpec, find_model
from finetune.told import as_told, configured, size_that_fits

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.hub.config import HubConfig
    from finetune.models.classifier import Classifier
    from finetune.models.staged import StagedNetwork

_RESHAPING = ("img_size", "in_chans")  # arguments for whose sake timm changes the shapes of pretrained tensors


@dataclass(frozen=True)
class Opened:
    """A classifier from weights that are not ours, and the sha256 of their file."""

    classifier: Classifier
    sha256: str


def from_timm(source: str, name: str, arguments: Mapping[str, Any]) -> Opened:
    """Pretrained weights of timm/ARCH[.TAG] through timm: from the Hub, or from its cache."""
    from finetune.models.timm_files import pretrained_file
    from finetune.models.timm_weights import source_classes, timm_state
    from finetune.models.unfilled import build_unfilled

    spec = find_model(name, arguments).input
    weights = read_weights(pretrained_file(name))
    classes = source_classes(name, weights.tensors)
    network = build_unfilled(name, max(1, len(classes)), arguments)
    load_tensors(network, timm_state(name, arguments, weights.tensors, max(1, len(classes))), source)
    return Opened(classifier_of(network, name, arguments, classes, spec), weights.sha256)


def from_bare(path: Path, model: str, arguments: Mapping[str, Any]) -> Opened:
    """A bare file of weights of a model that the person named; its head, if it has one, knows classes "0", "1", ..."""
    weights = read_weights(path)
    spec = as_told(model, arguments, weights.texts)
    weights = replace(weights, tensors=_reshaped(weights.tensors, str(path), model, arguments))
    return _loaded(weights, str(path), model, arguments, spec, None)


def _reshaped(tensors: dict[str, Tensor], where: str, model: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors as timm fits them to a network of another size or other channels, where arguments ask for one."""
    plain = {key: value for key, value in arguments.items() if key not in _RESHAPING}
    try:
        _check(model, arguments, tensors, where)
        return tensors
    except CheckpointError:
        if plain == arguments:
            raise
    from finetune.models.timm_weights import timm_state

    rows = _check(model, plain, tensors, where)
    state = timm_state(model, arguments, tensors, max(1, rows))
    without = () if rows else _outline(model, 1, arguments).head_tensors()
    return {name: t for name, t in state.items() if name not in without}


def from_repository(path: Path, where: str, config: HubConfig) -> Opened:
    """The weights of somebody else's timm repository, as its config.json describes them."""
    weights = read_weights(path)
    model, arguments = config.model, config.model_args
    try:
        spec = configured(find_model(model, arguments).input, config, where)
        spec = replace(spec, size=size_that_fits(config, spec.size))
        state = _state_of(weights, where, config)
        return _loaded(
            replace(weights, tensors=state), where, model, arguments, spec, _class_names(state, where, config)
        )
    except SettingError as error:
        raise CheckpointError(f"{where}: its config.json does not hold: {error}") from None


def _state_of(weights: Weights, where: str, config: HubConfig) -> dict[str, Tensor]:
    """The tensors in float32, under the names of today's timm where the file has older ones."""
    from finetune.models.timm_weights import converted

    model, arguments = config.model, config.model_args
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in weights.tensors.items()}
    misfit = None
    if not config.label_offset:
        try:
            _check(model, arguments, tensors, where)
            return tensors
        except CheckpointError as error:
            misfit = error
    channels = find_model(model, arguments).input.channels
    classes = 1000 if config.num_classes is None else config.num_classes  # timm's default
    try:
        return converted(model, arguments, tensors, classes, channels, config.label_offset)
    except CheckpointError as error:
        raise misfit or error from None  # ours lists the tensors


def _class_names(state: Mapping[str, Tensor], where: str, config: HubConfig) -> Sequence[str] | None:
    """The names of the head's rows. CheckpointError when config.json speaks of another number of classes."""
    from finetune.models.timm_weights import imagenet_words

    rows = _rows(_outline(config.model, 1, config.model_args), state)
    if config.num_classes not in (None, rows):
        raise CheckpointError(
            f"{where}: config.json says num_classes {config.num_classes}, and the head in the file has {rows} rows; "
            "ask the owner of the repository which is right"
        )
    if config.label_names is None:
        return imagenet_words(rows, str(config.pretrained_cfg.get("tag") or "")) or None
    count = Counter(config.label_names)
    return [name if count[name] == 1 else f"{name} ({row})" for row, name in enumerate(config.label_names)]


def classifier_of(
    network: StagedNetwork, model: str, arguments: Mapping[str, Any], classes: Sequence[str], spec: InputSpec
) -> Classifier:
    """A classifier in evaluation mode. Without classes the head, which is random then, loses its rows."""
    from finetune.models.classifier import Classifier

    if not classes:
        head = network.head  # torch warns when a layer without rows is made, and not when one loses them
        head.weight.data, head.bias.data, head.out_features = head.weight.data[:0], head.bias.data[:0], 0
    classifier = Classifier(network, model, arguments, classes, spec)
    classifier.eval()
    return classifier


def _outline(model: str, classes: int, arguments: Mapping[str, Any]) -> StagedNetwork:
    """The network without numbers: a file that names a huge one has to have the tensors for it."""
    import torch

    from finetune.models.unfilled import build_unfilled

    with torch.device("meta"):
        return build_unfilled(model, classes, arguments)


def _rows(outline: StagedNetwork, tensors: Mapping[str, Tensor]) -> int:
    """The classes that the head in a file tells apart, 0 where there is none."""
    weight = tensors.get(outline.head_tensors()[0])
    return len(weight) if weight is not None and weight.dim() else 0


def _check(model: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> int:
    """The rows of the head. CheckpointError unless all else has the network's own names, shapes and types."""
    outline = _outline(model, 1, arguments)
    rows = _rows(outline, tensors)
    if rows > 1:
        outline = _outline(model, rows, arguments)
    state = outline.state_dict()
    missing = {} if rows else {name: state[name] for name in outline.head_tensors()}
    check_tensors(outline, {**missing, **tensors}, where)
    return rows


def _loaded(
    weights: Weights, where: str, model: str, arguments: Mapping[str, Any], spec: InputSpec, names: Sequence[str] | None
) -> Opened:
    """Tensors that have the network's own names and shapes, but for the head, which may be missing."""
    from finetune.models.unfilled import build_unfilled

    rows = _check(model, arguments, weights.tensors, where)
    network = build_unfilled(model, max(1, rows), arguments)
    state = network.state_dict()
    without_head = {} if rows else {name: state[name] for name in network.head_tensors()}
    load_tensors(network, {**without_head, **weights.tensors}, where)
    if names is not None and len(names) != rows:
        raise CheckpointError(f"{where}: {len(names)} class names, and {rows} rows in the head")
    classes = tuple(names) if names is not None else tuple(map(str, range(rows)))
    return Opened(classifier_of(network, model, arguments, classes, spec), weights.sha256)
