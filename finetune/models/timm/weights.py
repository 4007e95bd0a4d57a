"""Converts between timm's tensor names and a classifier's."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from finetune.errors import CheckpointError, SettingError
from finetune.models.registry import build_model, find_model
from finetune.models.spec import TIMM
from finetune.models.timm.build import PROBE, headless_model
from finetune.models.timm.names import check_values, parse_name
from finetune.models.timm.stages import head_path
from finetune.text import first_line

# timm's conversions make some tensors larger, position embeddings above all, but not the whole.
MAX_GROWTH = 4
GROWTH_ALLOWED = 10_000_000

# What a tag says of the images, by the number of classes: only where both agree are the class names known.
_TAG_OF_CLASSES = {1000: "in1k", 11821: "in12k", 21841: "in22k", 21842: "in22k", 21843: "in21k", 11221: "in21k"}


def to_timm_state_dict(
    name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: int
) -> dict[str, Tensor]:
    """Converts the tensors of timm's own file for timm/ARCH[.TAG] to our network's state with these arguments.

    timm's own conversions apply: names of older files, position embeddings for another `img_size`; channels are
    adapted where `in_chans` asks for it. The file's head is kept where it has `classes` rows; else the head is random,
    from torch's current generator. CheckpointError when the tensors are not that network's.
    """
    channels = find_model(name, arguments).input.channels
    rows = _classifier_rows(name, tensors)
    loaded = _load_with_timm(name, {k: v for k, v in arguments.items() if k != "in_chans"}, tensors, rows)
    if channels != _config(name).input_size[0]:
        loaded = adapt_channels(name, arguments, loaded, channels)
    state: dict[str, Tensor] = build_model(name, classes, arguments).state_dict()
    head = head_path(headless_model(name, PROBE, arguments), PROBE)
    ours = {key: t for key, t in loaded.items() if rows == classes or not key.startswith(f"{head}.")}
    wrong = sorted(key for key, t in ours.items() if key not in state or state[key].shape != t.shape)
    missing = sorted(key for key in state.keys() - ours.keys() if not key.startswith(f"{head}."))
    if wrong or missing:
        raise CheckpointError(f"the tensors do not fit model {name!r}: {', '.join([*wrong, *missing][:10])}")
    return {**state, **ours}


def from_timm_state_dict(
    name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: int, channels: int, offset: int
) -> dict[str, Tensor]:
    """Converts the tensors of anybody's file of timm/ARCH, with `classes` classes, to our network's state.

    timm's own conversions apply: names of older files, and the first `offset` rows of the head left out.
    CheckpointError when the tensors are not that network's.
    """
    size = find_model(name, arguments).input.size
    has = sum(t.numel() for t in tensors.values())
    needs = sum(t.numel() for t in headless_model(name, classes, arguments).state_dict().values())
    if needs > MAX_GROWTH * has + GROWTH_ALLOWED:
        raise CheckpointError(f"the tensors do not fit model {name!r}: it has {needs:,} numbers, the file {has:,}")
    return _load_with_timm(name, arguments, tensors, classes, label_offset=offset, input_size=(channels, size, size))


def _load_with_timm(
    name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], rows: int, **config: Any
) -> dict[str, Tensor]:
    """The state of timm's network with `rows` classes after timm's strict loading; `config` is for its pretrained_cfg.

    CheckpointError, with timm's reason, when the tensors are not that network's.
    """
    if arguments:
        find_model(name, arguments)
    if not tensors:
        raise CheckpointError(f"no tensors for model {name!r}; timm would go and fetch some")
    overlay = {"state_dict": dict(tensors), "num_classes": rows, **config}
    overlay |= dict.fromkeys(("source", "file", "url", "hf_hub_id"))  # so that nothing is fetched
    architecture = name.removeprefix(TIMM)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            body: nn.Module = timm.create_model(
                architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=rows, **arguments
            )
    except Exception as error:  # timm's conversions index what they expect; what they raise has no common base
        said = first_line(" ".join(str(error).split()) or type(error).__name__, 500)
        raise CheckpointError(f"the tensors do not fit model {name!r}: {said}") from None
    state: dict[str, Tensor] = body.state_dict()
    return state


def adapt_channels(
    name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor], channels: int
) -> dict[str, Tensor]:
    """Converts the state of a network of 3 channels to 1 channel, or of 1 to 3; a copy where it has `channels`.

    As timm does it: the weights of the first convolution are summed over the colours, so that a grey picture gives
    what it gave as three equal channels; and from 1 to 3 each colour gets a third. SettingError where the first layer
    is no convolution. `arguments` are the network's; their `in_chans` is ignored.
    """
    arguments = {**arguments, "in_chans": channels}
    check_values(name, arguments)
    body: Any = headless_model(name, PROBE, arguments)
    wanted, adapted = body.state_dict(), dict(state)
    first = body.pretrained_cfg.get("first_conv") or ()
    for layer in (first,) if isinstance(first, str) else first:
        key = f"{layer}.weight"
        if key not in adapted or key not in wanted:
            raise SettingError(f"model {name!r}: no tensor {key} to adapt to {channels} channels")
        weight = adapted[key]
        if weight.shape == wanted[key].shape:
            continue
        if weight.dim() != 4 or (channels == 1 and weight.shape[1] % 3):
            raise SettingError(f"model {name!r}: {key} is no convolution that can be adapted; leave in_chans out")
        adapted[key] = adapt_input_conv(1, weight) if channels == 1 else weight.repeat_interleave(3, dim=1) / 3
        if adapted[key].shape != wanted[key].shape:
            raise SettingError(f"model {name!r}: {key} cannot be adapted to {channels} channels; leave in_chans out")
    return adapted


def source_classes(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The class names of the classifier in a file of timm/ARCH[.TAG]: ImageNet's words where the tag says ImageNet.

    Words that two classes share get their WordNet number behind. "0" to "N-1" where the names are not known; () when
    the file has no classifier.
    """
    rows = _classifier_rows(name, tensors)
    return imagenet_class_names(rows, _config(name).tag or "") or tuple(map(str, range(rows)))


def imagenet_class_names(rows: int, tag: str) -> tuple[str, ...]:
    """ImageNet's words for its classes where the tag of weights says ImageNet and the number of rows fits; or ()."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": rows})
    if subset is None or _TAG_OF_CLASSES.get(rows, "?") not in tag:
        return ()
    info: Any = ImageNetInfo(subset)
    words = [info.index_to_description(index) for index in range(rows)]
    count = Counter(words)
    return tuple(w if count[w] == 1 else f"{w} ({info.index_to_label_name(i)})" for i, w in enumerate(words))


def _config(name: str) -> Any:
    """timm's configuration of the weights of a tag, or of the default one."""
    architecture, tag = parse_name(name)
    return timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)


def _classifier_rows(name: str, tensors: Mapping[str, Tensor]) -> int:
    """The classes of the classifier in a file of this tag; 0 when there is none."""
    config = _config(name)
    first = config.classifier if isinstance(config.classifier, str) else next(iter(config.classifier or ()), "")
    weight = tensors.get(f"{first}.weight")
    return len(weight) - (config.label_offset or 0) if weight is not None and weight.dim() else 0
