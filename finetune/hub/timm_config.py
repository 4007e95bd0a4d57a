"""Reads and writes config.json as timm and transformers expect it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.checkpoint.format import Metadata
from finetune.checkpoint.limits import MAX_CLASSES, check_classes
from finetune.errors import CheckpointError, HubRefusal, SettingError
from finetune.hub.repo_id import REPO
from finetune.models.spec import TIMM

OURS = "finetune"
"""The key of config.json under which a push says more than timm asks for."""

# What a report says timm publishes of its architecture, and what each value has to be.
_PUBLISHED: dict[str, Callable[[Any], bool]] = {
    "hub": lambda value: isinstance(value, str) and REPO.fullmatch(value) is not None,
    "license": lambda value: isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9.-]{2,40}", value) is not None,
    "classifier": lambda value: _are_module_names(value),
    "first_conv": lambda value: _are_module_names(value),
    "fixed_input_size": lambda value: isinstance(value, bool),
    "pool_size": lambda value: value is None or _are_sizes(value),
    "input_size": lambda value: _are_sizes(value) and len(value) == 3,
    "min_input_size": lambda value: _are_sizes(value),
}
_NOT_WRITTEN = ("hub", "input_size")


@dataclass(frozen=True)
class HubConfig:
    """The config.json of somebody's timm repository, only its types checked.

    `architecture` is timm's name without a tag; `model_args` are the arguments for timm's create_model, without the
    number of classes; `num_classes` and `label_names` are None where the file has none (timm then takes 1000, or those
    of ImageNet); `pretrained_cfg` has input_size, mean, std, interpolation, crop_pct, crop_mode and more, as written.
    """

    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    label_names: tuple[str, ...] | None = None
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)

    @property
    def label_offset(self) -> int:
        """The number of rows of the head before the first class; they are left out."""
        return int(self.pretrained_cfg.get("label_offset") or 0)

    @property
    def model(self) -> str:
        """The model's name as a checkpoint has it: timm/ARCH."""
        return TIMM + self.architecture


def parse_config(values: Mapping[str, Any], where: str) -> HubConfig | None:
    """Reads timm's config.json, today's form and the older one without pretrained_cfg; None when it is not timm's.

    HubRefusal names the first key whose value timm would not write. `where` begins the message.
    """
    architecture = values.get("architecture")
    if not isinstance(architecture, str) or not architecture:
        return None
    nested = values.get("pretrained_cfg")
    inner = nested if isinstance(nested, dict) else {k: v for k, v in values.items() if k != OURS}
    args = values.get("model_args") or {}
    count = values.get("num_classes", inner.get("num_classes"))
    names = values.get("label_names", inner.get("label_names", inner.get("labels")))
    if isinstance(names, dict) and all(str(i) in names for i in range(len(names))):
        names = [names[str(i)] for i in range(len(names))]
    problems = {
        "model_args": not (isinstance(args, dict) and all(isinstance(key, str) for key in args)),
        "num_classes": not (count is None or (type(count) is int and 0 <= count <= MAX_CLASSES)),
        "label_names": isinstance(names, list) and not _are_class_names(names),
        "label_offset": inner.get("label_offset") not in (None, *range(100)),
    }
    wrong = [key for key, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise HubRefusal(f"{where}: {wrong[0]} in config.json is not what timm writes there; it cannot be loaded")
    labels = tuple(names) if isinstance(names, list) else None
    if labels is not None and count is not None and len(labels) != count:
        raise HubRefusal(f"{where}: config.json has {len(labels)} label_names for num_classes {count}")
    name, _, tag = architecture.partition(".")
    kept = dict(inner) | ({"tag": tag} if tag and "tag" not in inner else {})
    return HubConfig(name, _arguments(args, inner), count, labels, kept)


def _are_class_names(names: Sequence[object]) -> bool:
    texts = [name for name in names if isinstance(name, str)]
    try:
        check_classes(texts)
    except ValueError:
        return False
    return len(texts) == len(names)


def _arguments(given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that timm would use: without those it repeats, and with those it takes from `settings`."""
    found = {key: value for key, value in given.items() if key != "num_classes" and value is not None}
    size = found.get("img_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        found["img_size"] = size[0]
    shape = settings.get("input_size")
    if isinstance(shape, list) and len(shape) == 3:
        if shape[0] != 3:
            found.setdefault("in_chans", shape[0])
        if settings.get("fixed_input_size") is True and shape[1] == shape[2]:
            found.setdefault("img_size", shape[1])
    return found


def read_published(values: object) -> dict[str, Any] | None:
    """What a report says that timm publishes of its architecture; None unless every value is of its kind."""
    if not isinstance(values, Mapping) or not {"classifier", "input_size"} <= values.keys():
        return None
    holds = all(key in _PUBLISHED and _PUBLISHED[key](value) for key, value in values.items())
    return dict(values) if holds else None


def _are_module_names(value: object) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str) and re.fullmatch(r"[\w.]{1,200}", name) for name in names)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and len(value) < 5 and all(type(size) is int and size > 0 for size in value)


def make_config(
    metadata: Metadata, shapes: Mapping[str, list[int]], published: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json of a checkpoint. `shapes` are those of its tensors.

    For a timm architecture everything that timm.create_model("hf_hub:...") and transformers read, and our own key;
    otherwise our own key alone. `published` is what timm publishes of it (`published_settings`), asked of timm where it
    is None. CheckpointError when timm does not have the architecture.
    """
    ours = metadata.model_dump(include={"model", "arguments", "classes", "input", "results", "versions"})
    if not metadata.model.startswith(TIMM):
        return {"library_name": "finetune", "num_classes": len(metadata.classes), OURS: ours}
    pretrained, arguments = _pretrained_cfg(metadata, published)
    return {
        "architecture": metadata.model.removeprefix(TIMM).partition(".")[0],
        "num_classes": len(metadata.classes),
        "num_features": _features(pretrained.get("classifier"), shapes),
        "label_names": list(metadata.classes),
        "model_args": arguments,
        "pretrained_cfg": pretrained,
        OURS: ours,
    }


def _pretrained_cfg(metadata: Metadata, published: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """pretrained_cfg, timm's own with the input these weights were trained with, and the network's arguments.

    A vision transformer that takes any size is built for one size and may be used at another, which timm takes for the
    same unless img_size is given. There is no tag: it would name timm's weights, which these no longer are.
    """
    if published is None:
        from finetune.models.timm.names import published_settings

        published = published_settings(metadata.model)
    if not published:
        raise CheckpointError(f"made with {metadata.model!r}, which the installed timm does not have; upgrade timm")
    given = metadata.input
    own = {
        "num_classes": len(metadata.classes),
        "input_size": [given.channels, given.size, given.size],
        "mean": list(given.mean),
        "std": list(given.std),
        "interpolation": given.interpolation,
        "crop_pct": given.crop,
        "crop_mode": "squash" if given.resize == "squash" else "center",
    }
    kept = {key: value for key, value in published.items() if key not in _NOT_WRITTEN}
    arguments = dict(metadata.arguments)
    if kept.get("fixed_input_size"):
        built = arguments.get("img_size", published["input_size"][1])
        if built != given.size:
            kept["fixed_input_size"], arguments["img_size"] = False, built
    return kept | own, arguments


def _features(classifier: object, shapes: Mapping[str, list[int]]) -> int:
    """The number of features that go into the head: the second dimension of its weight."""
    first = classifier[0] if isinstance(classifier, list | tuple) and classifier else classifier
    shape = shapes.get(f"{first}.weight")
    if shape is None or len(shape) < 2:
        raise SettingError(f"this architecture has no head under timm's name {first!r}, so timm could not load it")
    return shape[1]
