"""timm's model names and arguments, checked before anything is built."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from finetune.checkpoint.limits import MAX_INPUT_SIZE
from finetune.errors import SettingError
from finetune.io.sanitize import is_printable, quoted
from finetune.models.spec import TIMM
from finetune.text import did_you_mean, listed, name_hint

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_-]+)*")  # no ':', '/' or '\': timm reads the Hub or the disk for those
_MAX_LEN = 100  # characters of a name, or of a text among the arguments
# What of timm's own settings still holds for weights that were trained further: not where they came from, other test
# sizes, or special loaders. Nor the tag, which names timm's weights.
_PUBLISHED = ("pool_size", "first_conv", "classifier", "license", "fixed_input_size", "input_size", "min_input_size")
_MAX_NUMBER = 16_384  # for any whole number among the arguments; larger ones only fill the memory

# What timm's factory takes besides the architecture's own arguments, and why it is not for recipes.
REFUSED = {
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "checkpoint_path"),
        "weights come from --from, for example --from timm:resnet18",
    ),
    **dict.fromkeys(("cache_dir", "custom_load", "file", "url"), "a recipe may not name files"),
    **dict.fromkeys(
        ("features_only", "out_indices", "feature_cls", "feature_cfg"), "only whole classifiers can be trained here"
    ),
    "num_classes": "the data's classes decide the head",
    **dict.fromkeys(
        ("scriptable", "exportable", "no_jit", "device", "dtype", "grad_checkpointing"),
        "finetune decides how the network runs",
    ),
    **dict.fromkeys(("pruned", "cfg", "model_cfg", "kwargs_filter", "variant"), "it is part of the architecture"),
}


def timm_names(pattern: str) -> list[str]:
    """timm's architectures that `pattern` (with * and ?) matches, as timm/NAME; with tags where it has a dot."""
    return [f"{TIMM}{name}" for name in timm.list_models(pattern, include_tags="." in pattern)]


def parse_name(name: str) -> tuple[str, str]:
    """(architecture, tag or "") of timm/ARCH[.TAG]. SettingError for one that timm does not have, with near names."""
    wanted = name.removeprefix(TIMM)
    if len(wanted) > _MAX_LEN or not _NAME.fullmatch(wanted):
        raise SettingError(
            f"model {quoted(name)}: expected timm/NAME or timm/NAME.TAG of timm's own models, without paths"
        )
    architecture, _, tag = wanted.partition(".")
    known = timm.list_models()
    if architecture not in known:
        near = did_you_mean(name, (TIMM + there for there in known), 3, 0.6)
        raise SettingError(f"unknown model {name!r}{near or ';'} `finetune models 'timm/*net*'` lists those like *net*")
    tags = timm_tags(architecture)
    if tag and tag not in tags:
        there = name_hint(tag, tags, "tags") if tags else f"; {TIMM}{architecture} has none"
        raise SettingError(f"model {name!r}: unknown tag {tag!r}{there}")
    return architecture, tag


def timm_tags(architecture: str) -> list[str]:
    """The tags, each a set of pretrained weights, that timm knows of an architecture; the default one first."""
    names = [name.split(".", 1) for name in timm.list_models(f"{architecture}.*", include_tags=True)]
    first = getattr(timm.get_pretrained_cfg(architecture), "tag", None)
    return sorted((tag for name, tag in names if name == architecture), key=lambda tag: tag != first)


def check_values(name: str, arguments: Mapping[str, Any]) -> None:
    """SettingError for an argument that is not for recipes, or whose value is not a plain one in range."""
    for key, value in arguments.items():
        if key in REFUSED:
            raise SettingError(f"model {name!r}: argument {key!r:.100} cannot be set: {REFUSED[key]}")
        if wanted := _value_fault(key, value):
            raise SettingError(f"model {name!r}: argument {key!r:.100}: expected {wanted}")


def _value_fault(key: str, value: Any) -> str:
    """What an argument's value should be and is; "" when it is that."""
    if not isinstance(value, (bool, int, float, str)):
        return f"a number, true, false or a text, found {value!r:.100}"
    if isinstance(value, str) and (len(value) > _MAX_LEN or not is_printable(value)):
        return f"at most {_MAX_LEN} characters that can be shown, found {quoted(value)}"
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        return f"at most {_MAX_NUMBER:,}, found {value:,}"
    whole = type(value) is int  # True is an int to Python
    if key == "in_chans" and (not whole or value not in (1, 3)):
        return f"1 or 3, found {value!r:.100}"
    if key == "img_size" and (not whole or not 1 <= int(value) <= MAX_INPUT_SIZE):
        return f"the side in whole pixels, found {value!r:.100}; at most {MAX_INPUT_SIZE:,} are taken"
    return ""


def accepted_arguments(body: nn.Module) -> tuple[str, ...]:
    """The arguments that a recipe may set for a built network: those that its class names, less the refused ones."""
    names: dict[str, None] = {}
    for kind in type(body).__mro__:
        if kind is nn.Module or "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(kind).parameters.values()
        names |= {p.name: None for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break  # it hands nothing on to its base class
    return tuple(sorted(names.keys() - REFUSED.keys()))


def check_accepted(name: str, body: nn.Module, arguments: Mapping[str, Any]) -> None:
    """SettingError for an argument that the network's class does not name, with the near names and the whole list."""
    takes = accepted_arguments(body)
    if unknown := [key for key in arguments if key not in takes]:
        near = did_you_mean(unknown[0], takes, 3, 0.6) or ";"
        raise SettingError(f"model {name!r}: unknown argument {unknown[0]!r:.100}{near} it takes {listed(takes)}")


def published_settings(name: str) -> dict[str, Any]:
    """What timm publishes of timm/ARCH[.TAG], as JSON values; `hub` is the repository of its weights.

    Empty for an architecture that the installed timm does not have.
    """
    wanted = name.removeprefix(TIMM)
    architecture = wanted.partition(".")[0]
    if not timm.is_model(architecture):
        return {}
    config = timm.get_pretrained_cfg(wanted, allow_unregistered=True) or timm.get_pretrained_cfg(architecture)
    values: dict[str, Any] = config.to_dict() if config is not None else {}  # type: ignore[no-untyped-call]
    hub = values.get("hf_hub_id")
    found = {"hub": hub.partition("@")[0] if isinstance(hub, str) else None}
    found |= {key: values.get(key) for key in _PUBLISHED}
    plain: dict[str, Any] = json.loads(json.dumps({key: value for key, value in found.items() if value is not None}))
    return plain
