"""Checks the names in a recipe: models, data sets, stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from finetune.errors import SettingError
from finetune.recipe.error_messages import near_keys
from finetune.recipe.problems import Problem, found_text, unknown_value
from finetune.recipe.rules import Data, phase_list
from finetune.text import name_hint

_MAX_LISTED = 50  # unknown names reported per list; each costs a search for the near ones


@dataclass(frozen=True)
class KnownNames:
    """What is registered, as the reader needs it; the mappings may work their entries out when asked."""

    models: Mapping[str, tuple[str, ...]]  # model: its stages from input to output, the last one 'head'; () not known
    datasets: Mapping[str, tuple[str, ...]]  # data set: its class names; () not known
    source_stages: tuple[str, ...] | None = None  # stages of the weights an adapt starts from; None not known yet
    source_model: str | None = None  # what those weights are of, where a recipe may add arguments to it
    model_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # a model that is absent: not checked
    # Models too many to list, by the start of their names: the stages of one, or a SettingError that says why not.
    families: Mapping[str, Callable[[str, Mapping[str, object]], tuple[str, ...]]] = field(default_factory=dict)
    is_pictures: Callable[[str], bool] = lambda name: False  # whether a data set's name is a folder or file instead


@dataclass(frozen=True)
class _Named:
    """The model a recipe speaks of: its stages as far as they are known, and what is wrong with its name."""

    stages: tuple[str, ...]
    problems: tuple[Problem, ...] = ()


def name_problems(data: Data, kind: str, names: KnownNames) -> list[Problem]:
    """Returns a problem for every name in a recipe, given as plain data, that stands for nothing."""
    model = _model(data, kind, names) if kind == "pretrain" or data.get("model") is not None else _Named(())
    stages = model.stages or (names.source_stages or () if kind == "adapt" else ())
    return [*model.problems, *_model_arguments(data, names), *_dataset(data, names), *_stage_names(data, stages)]


def _model_name(data: Data) -> str | None:
    model = data.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    return name if isinstance(name, str) and name else None


def _model(data: Data, kind: str, names: KnownNames) -> _Named:
    name, model = _model_name(data) or names.source_model, data.get("model")
    if kind == "adapt" and isinstance(model, Mapping) and "name" not in model:
        for key in islice((key for key in model if near_keys(key, ["name"])), 1):
            message = "unknown key; did you mean 'name'? All other keys are arguments of the model"
            return _Named((), (Problem(("model", key), message, meant=(("model", "name"),)),))
    if name is None:
        return _Named(())
    place = ("model", "name") if isinstance(model, Mapping) and "name" in model else ("model",)
    for start, stages_of in names.families.items():
        if name.startswith(start):
            given = model if isinstance(model, Mapping) else {}
            plain = (bool, int, float, str)
            arguments = {key: item for key, item in given.items() if key != "name" and isinstance(item, plain)}
            try:
                return _Named(stages_of(name, arguments))
            except SettingError as error:
                return _Named((), (Problem(place, str(error)),))
    if name not in names.models:
        return _Named((), (Problem(place, unknown_value("model", name, [*names.models, *_examples(names)], "models")),))
    return _Named(names.models[name])


def _examples(names: KnownNames) -> list[str]:
    return [f"{start}NAME" for start in names.families]


def _model_arguments(data: Data, names: KnownNames) -> Iterator[Problem]:
    name, model = _model_name(data), data.get("model")
    if not isinstance(model, Mapping) or name is None or name not in names.model_arguments:
        return
    takes = names.model_arguments[name]
    for key in islice((key for key in model if key != "name" and key not in takes), _MAX_LISTED):
        hint = name_hint(key, takes, f"arguments of {name}") if takes else f"; {name} takes no arguments"
        yield Problem(("model", key), f"unknown argument{hint}")


def _dataset(data: Data, names: KnownNames) -> Iterator[Problem]:
    settings = data.get("data")
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if not isinstance(settings, Mapping) or not isinstance(name, str) or not name:
        return
    if name not in names.datasets and names.is_pictures(name):
        return
    if name not in names.datasets:
        yield Problem(("data", "name"), unknown_value("data set", name, list(names.datasets), "data sets"))
        return
    classes = settings.get("classes")
    known = names.datasets[name]
    given = enumerate(classes if isinstance(classes, list) and known else [])
    wrong = (
        (index, str(item))
        for index, item in given
        if isinstance(item, str | int) and not isinstance(item, bool) and item != "" and str(item) not in known
    )
    for index, item in islice(wrong, _MAX_LISTED):
        message = unknown_value("class", item, known, f"classes of {name}")
        yield Problem(("data", "classes"), message, at=("data", "classes", index))


def _stage_names(data: Data, stages: tuple[str, ...]) -> Iterator[Problem]:
    if not stages:
        return
    for phase_place, phase in phase_list(data):
        train, place = phase.get("train"), (*phase_place, "train")
        if isinstance(train, Mapping):
            last = train.get("last")
            if isinstance(last, int) and not isinstance(last, bool) and last > len(stages):
                message = f"there are only {len(stages)} stages ({', '.join(stages)}), found {found_text(last)}"
                yield Problem((*place, "last"), message)
        wrong = (
            (index, item)
            for index, item in enumerate(train if isinstance(train, list) else [])
            if isinstance(item, str) and item and item not in stages
        )
        for index, item in islice(wrong, _MAX_LISTED):
            yield Problem(place, unknown_value("stage", item, stages, "stages"), at=(*place, index))
