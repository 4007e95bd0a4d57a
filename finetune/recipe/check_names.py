"""Checks the names in a recipe: models, data sets, stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from finetune.errors import SettingError
from finetune.recipe.error_messages import near_keys
from finetune.recipe.problems import Place, Problem, found_text, unknown_value
from finetune.recipe.rules import Data, phase_list
from finetune.text import name_hint

_MAX_LISTED = 50  # unknown names reported per list; each costs a search for the near ones


@dataclass(frozen=True)
class KnownNames:
    """The names that a recipe may use; the mappings may compute their entries when asked."""

    models: Mapping[str, tuple[str, ...]]  # model: its stages from input to output, the last one 'head'; () not known
    datasets: Mapping[str, tuple[str, ...]]  # data set: its class names; () not known
    source_stages: tuple[str, ...] | None = None  # stages of the weights an adapt starts from; None not known yet
    source_model: str | None = None  # what those weights are of, where a recipe may add arguments to it
    model_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # a model that is absent: not checked
    # Models too many to list, by the start of their names: the stages of one, or a SettingError that says why not.
    families: Mapping[str, Callable[[str, Mapping[str, object]], tuple[str, ...]]] = field(default_factory=dict)
    is_image_path: Callable[[str], bool] = lambda name: False  # whether a data set's name is a folder or file instead


def name_problems(data: Data, kind: str, names: KnownNames) -> list[Problem]:
    """Returns a problem for every unknown model, argument, data set, class and stage that a recipe names."""
    stages: tuple[str, ...] = ()
    problem = None
    if kind == "pretrain" or data.get("model") is not None:
        stages, problem = _check_model(data, kind, names)
    if kind == "adapt":
        stages = stages or names.source_stages or ()
    found = [] if problem is None else [problem]
    return [*found, *_model_arguments(data, names), *_dataset(data, names), *_stage_names(data, stages)]


def _model_name(data: Data) -> str | None:
    model = data.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    return name if isinstance(name, str) and name else None


def _check_model(data: Data, kind: str, names: KnownNames) -> tuple[tuple[str, ...], Problem | None]:
    """Returns the stages of the recipe's model, () where they are not known, and the problem with its name."""
    name, model = _model_name(data) or names.source_model, data.get("model")
    settings: Mapping[str, object] = model if isinstance(model, Mapping) else {}
    misspelt = "name" not in settings and next((key for key in settings if near_keys(key, ["name"])), None)
    if misspelt:
        why = "A model needs its name" if kind == "pretrain" else "All other keys are arguments of the model"
        return (), Problem(("model", misspelt), f"unknown key; did you mean 'name'? {why}", meant=(("model", "name"),))
    place = ("model", "name") if "name" in settings else ("model",)
    if name is None:
        return (), None
    for start, stages_of in names.families.items():
        if name.startswith(start):
            plain = {k: v for k, v in settings.items() if k != "name" and isinstance(v, bool | int | float | str)}
            try:
                return stages_of(name, plain), None
            except SettingError as error:
                return (), Problem(place, str(error))
    if name in names.models:
        return names.models[name], None
    known = [*names.models, *(f"{start}NAME" for start in names.families)]
    return (), Problem(place, unknown_value("model", name, known, "models"))


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
    if name not in names.datasets:
        if not names.is_image_path(name):
            yield Problem(("data", "name"), unknown_value("data set", name, list(names.datasets), "data sets"))
        return
    known, classes = names.datasets[name], settings.get("classes")
    if known and isinstance(classes, list):
        given = [str(c) if isinstance(c, str | int) and not isinstance(c, bool) else "" for c in classes]
        yield from _unknown_items("class", given, known, f"classes of {name}", ("data", "classes"))


def _stage_names(data: Data, stages: tuple[str, ...]) -> Iterator[Problem]:
    for phase_place, phase in phase_list(data) if stages else ():
        train, place = phase.get("train"), (*phase_place, "train")
        last = train.get("last") if isinstance(train, Mapping) else None
        if isinstance(last, int) and not isinstance(last, bool) and last > len(stages):
            message = f"there are only {len(stages)} stages ({', '.join(stages)}), found {found_text(last)}"
            yield Problem((*place, "last"), message)
        if isinstance(train, list):
            yield from _unknown_items("stage", train, stages, "stages", place)


def _unknown_items(
    what: str, items: Sequence[object], known: Sequence[str], plural: str, place: Place
) -> Iterator[Problem]:
    """Yields a problem for each unknown text in a list; the schema reports other values and empty text."""
    unknown = ((i, item) for i, item in enumerate(items) if isinstance(item, str) and item and item not in known)
    for index, item in islice(unknown, _MAX_LISTED):
        yield Problem(place, unknown_value(what, item, known, plural), at=(*place, index))
