"""Turns third-party weights and configurations into classifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.checkpoint.format import Weights, check_tensors, load_tensors, read_weights
from finetune.checkpoint.limits import MAX_INPUT_SIZE, check_ranges
from finetune.errors import CheckpointError, SettingError
from finetune.models.registry import check_size, find_model
from finetune.models.spec import InputSpec

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.hub.timm_config import HubConfig
    from finetune.models.classifier import Classifier
    from finetune.models.staged import StagedNetwork


_RESIZES = {"center": "shorter_side", "border": "shorter_side", "squash": "squash"}  # timm's crop_mode, and ours


def input_spec_from_metadata(model: str, arguments: Mapping[str, Any], texts: Mapping[str, str]) -> InputSpec:
    """The input as the file's own metadata has it, where it has: texts such as mean 0.5, std 0.5, input 224.

    What is no such number, or a size that the model does not take, is as if it were not said.
    """
    spec = find_model(model, arguments).input
    told: dict[str, Any] = {}
    for key in ("mean", "std"):
        values = _decimals(texts.get(key, ""))
        if len(values) in (1, spec.channels) and _in_range(key, values):
            told[key] = values * spec.channels if len(values) == 1 else values
    size = texts.get("input", "")
    if (
        size.isascii()
        and size.isdecimal()
        and len(size) < 5
        and int(size) <= MAX_INPUT_SIZE
        and _accepts(model, arguments, int(size))
    ):
        told["size"] = int(size)
    return replace(spec, **told)


def _accepts(model: str, arguments: Mapping[str, Any], size: int) -> bool:
    try:
        check_size(model, arguments, size)
    except SettingError:
        return False
    return size > 0


def _decimals(text: str) -> tuple[float, ...]:
    """The numbers of a text such as "0.5" or "0.485, 0.456, 0.406"; none where it is something else."""
    try:
        return tuple(float(part) for part in text.strip("()[] ").split(",", 3))
    except ValueError:
        return ()


def _in_range(key: str, values: Sequence[float]) -> bool:
    try:
        check_ranges(*((values, ()) if key == "mean" else ((), values)))
    except ValueError:
        return False
    return True


def input_spec_from_config(spec: InputSpec, config: HubConfig, where: str) -> InputSpec:
    """The input as a config.json has it. CheckpointError for a value that is of no use."""
    from pydantic import ValidationError

    from finetune.checkpoint.format import InputMetadata

    said = config.pretrained_cfg
    values = spec.as_dict()
    try:
        if "input_size" in said:
            channels, height, width = said["input_size"]
            if height != width or channels != spec.channels:
                raise CheckpointError(f"{where}: its input_size is {said['input_size']!r:.100}, which is not made here")
            values["size"] = height
        renamed = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": "crop"}
        values |= {ours: said[theirs] for theirs, ours in renamed.items() if said.get(theirs) is not None}
        values |= {key: list(map(float, values[key])) for key in ("mean", "std")}
        values["resize"] = _RESIZES.get(said.get("crop_mode") or "center", "shorter_side")
        checked = InputMetadata.model_validate(values | {"crop": float(values["crop"])})
        check_ranges(checked.mean, checked.std)
    except (ValidationError, TypeError, ValueError):
        raise CheckpointError(f"{where}: pretrained_cfg in its config.json does not describe an input") from None
    return InputSpec(**checked.model_dump() | {"mean": tuple(checked.mean), "std": tuple(checked.std)})


def size_that_fits(config: HubConfig, size: int) -> int:
    """The side of the input. timm's export leaves that of the source there when a network was built for another."""
    built = config.model_args.get("img_size")
    try:
        if size != find_model(config.model, config.model_args).input.size:
            check_size(config.model, config.model_args, size)
    except SettingError:
        if built is None:
            raise
        return int(built)
    return size


_RESHAPING = ("img_size", "in_chans")  # arguments for whose sake timm changes the shapes of pretrained tensors


@dataclass(frozen=True)
class LoadedWeights:
    """A classifier from weights that are not ours, and the sha256 of their file."""

    classifier: Classifier
    sha256: str


def from_timm(source: str, name: str, arguments: Mapping[str, Any]) -> LoadedWeights:
    """Pretrained weights of timm/ARCH[.TAG] through timm: from the Hub, or from its cache."""
    from finetune.hub.timm_weights import download_weights
    from finetune.models.skip_init import build_without_init
    from finetune.models.timm.weights import source_classes, to_timm_state_dict

    spec = find_model(name, arguments).input
    weights = read_weights(download_weights(name))
    classes = source_classes(name, weights.tensors)
    network = build_without_init(name, max(1, len(classes)), arguments)
    load_tensors(network, to_timm_state_dict(name, arguments, weights.tensors, max(1, len(classes))), source)
    return LoadedWeights(classifier_of(network, name, arguments, classes, spec), weights.sha256)


def from_bare(path: Path, model: str, arguments: Mapping[str, Any]) -> LoadedWeights:
    """A bare file of weights of a model that the person named; its head, if it has one, knows classes "0", "1", ..."""
    weights = read_weights(path)
    spec = input_spec_from_metadata(model, arguments, weights.texts)
    weights = replace(weights, tensors=_reshaped(weights.tensors, str(path), model, arguments))
    return _load_weights(weights, str(path), model, arguments, spec, None)


def _reshaped(tensors: dict[str, Tensor], where: str, model: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors as timm fits them to a network of another size or other channels, where arguments ask for one."""
    plain = {key: value for key, value in arguments.items() if key not in _RESHAPING}
    try:
        _check_tensors(model, arguments, tensors, where)
        return tensors
    except CheckpointError:
        if plain == arguments:
            raise
    from finetune.models.timm.weights import to_timm_state_dict

    rows = _check_tensors(model, plain, tensors, where)
    state = to_timm_state_dict(model, arguments, tensors, max(1, rows))
    without = () if rows else _meta_network(model, 1, arguments).head_tensors()
    return {name: t for name, t in state.items() if name not in without}


def from_repository(path: Path, where: str, config: HubConfig) -> LoadedWeights:
    """The weights of somebody else's timm repository, as its config.json describes them."""
    weights = read_weights(path)
    model, arguments = config.model, config.model_args
    try:
        spec = input_spec_from_config(find_model(model, arguments).input, config, where)
        spec = replace(spec, size=size_that_fits(config, spec.size))
        state = _state_of(weights, where, config)
        return _load_weights(
            replace(weights, tensors=state), where, model, arguments, spec, _class_names(state, where, config)
        )
    except SettingError as error:
        raise CheckpointError(f"{where}: its config.json does not hold: {error}") from None


def _state_of(weights: Weights, where: str, config: HubConfig) -> dict[str, Tensor]:
    """The tensors in float32, under the names of today's timm where the file has older ones."""
    from finetune.models.timm.weights import from_timm_state_dict

    model, arguments = config.model, config.model_args
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in weights.tensors.items()}
    misfit = None
    if not config.label_offset:
        try:
            _check_tensors(model, arguments, tensors, where)
            return tensors
        except CheckpointError as error:
            misfit = error
    channels = find_model(model, arguments).input.channels
    classes = 1000 if config.num_classes is None else config.num_classes  # timm's default
    try:
        return from_timm_state_dict(model, arguments, tensors, classes, channels, config.label_offset)
    except CheckpointError as error:
        raise misfit or error from None  # ours lists the tensors


def _class_names(state: Mapping[str, Tensor], where: str, config: HubConfig) -> Sequence[str] | None:
    """The names of the head's rows. CheckpointError when config.json speaks of another number of classes."""
    from finetune.models.timm.weights import imagenet_class_names

    rows = _head_rows(_meta_network(config.model, 1, config.model_args), state)
    if config.num_classes not in (None, rows):
        raise CheckpointError(
            f"{where}: config.json says num_classes {config.num_classes}, and the head in the file has {rows} rows; "
            "ask the owner of the repository which is right"
        )
    if config.label_names is None:
        return imagenet_class_names(rows, str(config.pretrained_cfg.get("tag") or "")) or None
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


def _meta_network(model: str, classes: int, arguments: Mapping[str, Any]) -> StagedNetwork:
    """The network without numbers: a file that names a huge one has to have the tensors for it."""
    import torch

    from finetune.models.skip_init import build_without_init

    with torch.device("meta"):
        return build_without_init(model, classes, arguments)


def _head_rows(outline: StagedNetwork, tensors: Mapping[str, Tensor]) -> int:
    """The classes that the head in a file tells apart, 0 where there is none."""
    weight = tensors.get(outline.head_tensors()[0])
    return len(weight) if weight is not None and weight.dim() else 0


def _check_tensors(model: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> int:
    """The rows of the head. CheckpointError unless all else has the network's own names, shapes and types."""
    outline = _meta_network(model, 1, arguments)
    rows = _head_rows(outline, tensors)
    if rows > 1:
        outline = _meta_network(model, rows, arguments)
    state = outline.state_dict()
    missing = {} if rows else {name: state[name] for name in outline.head_tensors()}
    check_tensors(outline, {**missing, **tensors}, where)
    return rows


def _load_weights(
    weights: Weights, where: str, model: str, arguments: Mapping[str, Any], spec: InputSpec, names: Sequence[str] | None
) -> LoadedWeights:
    """Tensors that have the network's own names and shapes, but for the head, which may be missing."""
    from finetune.models.skip_init import build_without_init

    rows = _check_tensors(model, arguments, weights.tensors, where)
    network = build_without_init(model, max(1, rows), arguments)
    state = network.state_dict()
    without_head = {} if rows else {name: state[name] for name in network.head_tensors()}
    load_tensors(network, {**without_head, **weights.tensors}, where)
    if names is not None and len(names) != rows:
        raise CheckpointError(f"{where}: {len(names)} class names, and {rows} rows in the head")
    classes = tuple(names) if names is not None else tuple(map(str, range(rows)))
    return LoadedWeights(classifier_of(network, model, arguments, classes, spec), weights.sha256)
