"""The names a recipe may use: models, their stages, data sets, their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from finetune.errors import name_hint
from finetune.recipe.faults import Fault, found, unknown
from finetune.recipe.rules import Data, phases_of

_MOST = 50  # unknown names reported per list; each costs a search for the near ones


@dataclass(frozen=True)
class KnownNames:
    """What is registered, as the reader needs it; the mappings may work their entries out when asked."""

    models: Mapping[str, tuple[str, ...]]  # model: its stages from input to output, the last one 'head'; () not known
    datasets: Mapping[str, tuple[str, ...]]  # data set: its class names; () not known
    source_stages: tuple[str, ...] | None = None  # stages of the weights an adapt starts from; None not known yet
    model_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # a model that is absent: not checked


def name_faults(data: Data, kind: str, names: KnownNames) -> list[Fault]:
    """Returns a fault for every name in a recipe, given as plain data, that stands for nothing."""
    faults = [*_model(data, names), *_model_arguments(data, names)] if kind == "pretrain" else []
    stages = _stages(data, names) if kind == "pretrain" else names.source_stages
    return [*faults, *_dataset(data, names), *_stage_names(data, stages or ())]


def _model_name(data: Data) -> str | None:
    model = data.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    return name if isinstance(name, str) and name else None


def _model(data: Data, names: KnownNames) -> Iterator[Fault]:
    name = _model_name(data)
    if name is not None and name not in names.models:
        place = ("model",) if isinstance(data["model"], str) else ("model", "name")
        yield Fault(place, unknown("model", name, list(names.models), "models"))


def _model_arguments(data: Data, names: KnownNames) -> Iterator[Fault]:
    name, model = _model_name(data), data.get("model")
    if not isinstance(model, Mapping) or name is None or name not in names.model_arguments:
        return
    takes = names.model_arguments[name]
    for key in islice((key for key in model if key != "name" and key not in takes), _MOST):
        hint = name_hint(key, takes, f"arguments of {name}") if takes else f"; {name} takes no arguments"
        yield Fault(("model", key), f"unknown argument{hint}")


def _stages(data: Data, names: KnownNames) -> tuple[str, ...]:
    name = _model_name(data)
    return names.models[name] if name is not None and name in names.models else ()


def _dataset(data: Data, names: KnownNames) -> Iterator[Fault]:
    settings = data.get("data")
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if not isinstance(settings, Mapping) or not isinstance(name, str) or not name:
        return
    if name not in names.datasets:
        yield Fault(("data", "name"), unknown("data set", name, list(names.datasets), "data sets"))
        return
    classes = settings.get("classes")
    known = names.datasets[name]
    given = enumerate(classes if isinstance(classes, list) and known else [])
    wrong = (
        (index, str(item))
        for index, item in given
        if isinstance(item, str | int) and not isinstance(item, bool) and item != "" and str(item) not in known
    )
    for index, item in islice(wrong, _MOST):
        message = unknown("class", item, known, f"classes of {name}")
        yield Fault(("data", "classes"), message, at=("data", "classes", index))


def _stage_names(data: Data, stages: tuple[str, ...]) -> Iterator[Fault]:
    if not stages:
        return
    for phase_place, phase in phases_of(data):
        train, place = phase.get("train"), (*phase_place, "train")
        if isinstance(train, Mapping):
            last = train.get("last")
            if isinstance(last, int) and not isinstance(last, bool) and last > len(stages):
                message = f"there are only {len(stages)} stages ({', '.join(stages)}), found {found(last)}"
                yield Fault((*place, "last"), message)
        wrong = (
            (index, item)
            for index, item in enumerate(train if isinstance(train, list) else [])
            if isinstance(item, str) and item and item not in stages
        )
        for index, item in islice(wrong, _MOST):
            yield Fault(place, unknown("stage", item, stages, "stages"), at=(*place, index))
