"""Turns third-party weights and configurations into classifiers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.checkpoint.format import InputMetadata, check_tensors, load_tensors, read_weights
from finetune.checkpoint.limits import MAX_INPUT_SIZE, check_ranges
from finetune.checkpoint.tensor_hash import hash_tensors
from finetune.errors import CheckpointError, SettingError
from finetune.models.registry import check_size, find_model
from finetune.models.spec import InputSpec

if TYPE_CHECKING:
    from torch import Tensor

    from finetune.hub.timm_config import HubConfig
    from finetune.models.classifier import Classifier
    from finetune.models.staged import StagedNetwork

_RESHAPING = ("img_size", "in_chans")  # arguments for whose sake timm changes the shapes of pretrained tensors
_DEFAULT_CLASSES = 1000  # timm's, where a config.json says no number


@dataclass(frozen=True)
class LoadedWeights:
    """A classifier from weights that are not ours, and the sha256 of their file, or of tensors that are in none."""

    classifier: Classifier
    sha256: str


def from_timm(source: str, name: str, arguments: Mapping[str, Any]) -> LoadedWeights:
    """Loads the pretrained weights of timm/ARCH[.TAG], from the Hub or its cache."""
    from finetune.hub.timm_weights import download_weights
    from finetune.models.timm.weights import source_classes, to_timm_state_dict

    spec = find_model(name, arguments).input
    weights = read_weights(download_weights(name))
    classes = source_classes(name, weights.tensors)
    state = to_timm_state_dict(name, arguments, weights.tensors, max(1, len(classes)))
    return LoadedWeights(build_classifier(name, arguments, classes, spec, state, source), weights.sha256)


def random_weights(source: str, model: str, arguments: Mapping[str, Any]) -> LoadedWeights:
    """A network without classes that has learnt nothing: the same random weights each time."""
    import torch

    spec = find_model(model, arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = spec.build(1, arguments).state_dict()
    return LoadedWeights(build_classifier(model, arguments, (), spec.input, state, source), hash_tensors(state))


def from_bare(path: Path, model: str, arguments: Mapping[str, Any]) -> LoadedWeights:
    """Loads a bare file of weights of a given model; its head, if it has one, has the classes "0", "1", ..."""
    weights = read_weights(path)
    spec = input_spec_from_metadata(model, arguments, weights.texts)
    tensors = _reshaped(weights.tensors, str(path), model, arguments)
    return LoadedWeights(_load_network(tensors, str(path), model, arguments, spec), weights.sha256)


def from_repository(path: Path, where: str, config: HubConfig) -> LoadedWeights:
    """Loads the weights of somebody else's timm repository, as its config.json describes them."""
    weights = read_weights(path)
    model, arguments = config.model, config.model_args
    try:
        spec = input_spec_from_config(find_model(model, arguments).input, config, where)
        spec = replace(spec, size=_usable_size(config, spec.size))
        tensors = _renamed(weights.tensors, where, config)
        classifier = _load_network(tensors, where, model, arguments, spec, _class_names(tensors, where, config))
    except SettingError as error:
        raise CheckpointError(f"{where}: its config.json does not hold: {error}") from None
    return LoadedWeights(classifier, weights.sha256)


def input_spec_from_metadata(model: str, arguments: Mapping[str, Any], texts: Mapping[str, str]) -> InputSpec:
    """The model's input, changed by the texts in a file's own metadata: mean "0.5", std "0.4, 0.5, 0.6", input "224".

    Texts that are no such numbers, and sizes that the model does not take, are ignored.
    """
    spec = find_model(model, arguments).input
    for key in ("mean", "std"):
        with suppress(ValueError):
            values = tuple(float(part) for part in texts.get(key, "").strip("()[] ").split(",", 3))
            check_ranges(*((values, ()) if key == "mean" else ((), values)))
            if len(values) in (1, spec.channels):
                named: dict[str, Any] = {key: values * (spec.channels // len(values))}
                spec = replace(spec, **named)
    size = texts.get("input", "")
    if re.fullmatch("[0-9]{1,4}", size) and 0 < int(size) <= MAX_INPUT_SIZE:
        with suppress(SettingError):
            check_size(model, arguments, int(size))
            spec = replace(spec, size=int(size))
    return spec


def input_spec_from_config(spec: InputSpec, config: HubConfig, where: str) -> InputSpec:
    """The model's input as a config.json describes it. CheckpointError for a value that cannot be used."""
    from pydantic import ValidationError

    given, values = config.pretrained_cfg, spec.as_dict()
    try:
        if "input_size" in given:
            channels, height, width = given["input_size"]
            if height != width or channels != spec.channels:
                raise CheckpointError(
                    f"{where}: its input_size is {given['input_size']!r:.100}, which is not made here"
                )
            values["size"] = height
        renamed = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": "crop"}
        values |= {ours: given[theirs] for theirs, ours in renamed.items() if given.get(theirs) is not None}
        values |= {key: list(map(float, values[key])) for key in ("mean", "std")}
        values["resize"] = "squash" if given.get("crop_mode") == "squash" else "shorter_side"
        checked = InputMetadata.model_validate(values | {"crop": float(values["crop"])})
        check_ranges(checked.mean, checked.std)
    except (ValidationError, TypeError, ValueError):
        raise CheckpointError(f"{where}: pretrained_cfg in its config.json does not describe an input") from None
    return as_input_spec(checked)


def as_input_spec(stored: InputMetadata) -> InputSpec:
    """The input that a checkpoint's metadata, or a config.json brought to its form, describes."""
    return InputSpec(**stored.model_dump() | {"mean": tuple(stored.mean), "std": tuple(stored.std)})


def _usable_size(config: HubConfig, size: int) -> int:
    """The side of the input. timm's export leaves that of the source there when a network was built for another."""
    try:
        if size != find_model(config.model, config.model_args).input.size:
            check_size(config.model, config.model_args, size)
    except SettingError:
        if config.model_args.get("img_size") is None:
            raise
        return int(config.model_args["img_size"])
    return size


def _reshaped(tensors: dict[str, Tensor], where: str, model: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors as timm fits them to a network of another size or other channels, where arguments ask for one."""
    plain = {key: value for key, value in arguments.items() if key not in _RESHAPING}
    try:
        _check_shapes(model, arguments, tensors, where)
        return tensors
    except CheckpointError:
        if plain == arguments:
            raise
    from finetune.models.timm.weights import to_timm_state_dict

    rows = _check_shapes(model, plain, tensors, where)
    state = to_timm_state_dict(model, arguments, tensors, max(1, rows))
    without = () if rows else meta_network(model, 1, arguments).head_tensors()
    return {name: t for name, t in state.items() if name not in without}


def _renamed(tensors: Mapping[str, Tensor], where: str, config: HubConfig) -> dict[str, Tensor]:
    """The tensors in float32, under the names of today's timm where the file has older ones."""
    from finetune.models.timm.weights import from_timm_state_dict

    model, arguments = config.model, config.model_args
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    misfit = None
    if not config.label_offset:
        try:
            _check_shapes(model, arguments, floats, where)
            return floats
        except CheckpointError as error:
            misfit = error
    channels = find_model(model, arguments).input.channels
    classes = _DEFAULT_CLASSES if config.num_classes is None else config.num_classes
    try:
        return from_timm_state_dict(model, arguments, floats, classes, channels, config.label_offset)
    except CheckpointError as error:
        raise misfit or error from None  # ours lists the tensors


def _class_names(state: Mapping[str, Tensor], where: str, config: HubConfig) -> Sequence[str] | None:
    """The names of the head's rows. CheckpointError when config.json speaks of another number of classes."""
    from finetune.models.timm.weights import imagenet_class_names

    rows = _head_rows(meta_network(config.model, 1, config.model_args), state)
    if config.num_classes not in (None, rows):
        raise CheckpointError(
            f"{where}: config.json says num_classes {config.num_classes}, and the head in the file has {rows} rows; "
            "ask the owner of the repository which is right"
        )
    if config.label_names is None:
        return imagenet_class_names(rows, str(config.pretrained_cfg.get("tag") or "")) or None
    count = Counter(config.label_names)
    return [name if count[name] == 1 else f"{name} ({row})" for row, name in enumerate(config.label_names)]


def build_classifier(
    model: str,
    arguments: Mapping[str, Any],
    classes: Sequence[str],
    spec: InputSpec,
    tensors: Mapping[str, Tensor],
    where: str,
) -> Classifier:
    """A classifier of these tensors in evaluation mode. Without classes its head has no rows, and may be missing."""
    from finetune.models.classifier import Classifier
    from finetune.models.skip_init import build_without_init

    network = build_without_init(model, max(1, len(classes)), arguments)
    load_tensors(network, _with_head(network, tensors), where)
    if not classes:
        head = network.head  # torch warns when a layer without rows is made, and not when one loses them
        head.weight.data, head.bias.data, head.out_features = head.weight.data[:0], head.bias.data[:0], 0
    classifier = Classifier(network, model, arguments, classes, spec)
    classifier.eval()
    return classifier


def meta_network(model: str, classes: int, arguments: Mapping[str, Any]) -> StagedNetwork:
    """The network without numbers, to check a file against: one that names a huge network must have its tensors."""
    import torch

    from finetune.models.skip_init import build_without_init

    with torch.device("meta"):
        return build_without_init(model, classes, arguments)


def _head_rows(network: StagedNetwork, tensors: Mapping[str, Tensor]) -> int:
    """The number of classes of the head in a file, 0 where there is none."""
    weight = tensors.get(network.head_tensors()[0])
    return len(weight) if weight is not None and weight.dim() else 0


def _with_head(network: StagedNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with the network's own head where they have none."""
    state = {} if _head_rows(network, tensors) else network.state_dict()
    return {**{name: state[name] for name in network.head_tensors() if name in state}, **tensors}


def _check_shapes(model: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> int:
    """The rows of the head, which may be missing. CheckpointError unless names, shapes and types are the network's."""
    network = meta_network(model, 1, arguments)
    rows = _head_rows(network, tensors)
    if rows > 1:
        network = meta_network(model, rows, arguments)
    check_tensors(network, _with_head(network, tensors), where)
    return rows


def _load_network(
    tensors: Mapping[str, Tensor],
    where: str,
    model: str,
    arguments: Mapping[str, Any],
    spec: InputSpec,
    names: Sequence[str] | None = None,
) -> Classifier:
    """A classifier of tensors that have the network's own names and shapes, but for the head, which may be missing."""
    rows = _check_shapes(model, arguments, tensors, where)
    if names is not None and len(names) != rows:
        raise CheckpointError(f"{where}: {len(names)} class names, and {rows} rows in the head")
    classes = tuple(names) if names is not None else tuple(map(str, range(rows)))
    return build_classifier(model, arguments, classes, spec, tensors, where)
