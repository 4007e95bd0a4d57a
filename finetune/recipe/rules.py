"""Rules between the fields of a recipe.

They read plain data of any kind and ignore values of the wrong type, which the schema reports. So a wrong type in one
place does not hide a broken rule in another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeGuard

from finetune.io.sanitize import quoted
from finetune.recipe.problems import Place, Problem

Data = Mapping[str, object]

# Keys that only a phase with an optimizer has, and their defaults.
_STEPWISE: dict[str, object] = {
    **dict.fromkeys(
        ("epochs", "steps", "min_steps", "max_steps", "optimizer", "lora", "l2_sp", "clip_norm", "ema", "views")
    ),
    "schedule": {"name": "constant"},
    "label_smoothing": 0.0,
    "layer_decay": 1.0,
    "keep": "last",
    "norms": "hold",
}


def rule_problems(data: Data) -> list[Problem]:
    """Returns every broken rule of a recipe given as plain data."""
    problems = [p for rule in _PHASE_RULES for place, phase in phase_list(data) for p in rule(place, phase, data)]
    problems += [p for rule in _TRAINING_RULES for place, node in training_nodes(data) for p in rule(place, node)]
    return problems + [p for rule in _RECIPE_RULES for p in rule(data)]


def phase_list(data: Data) -> Iterator[tuple[Place, Data]]:
    """Yields place and data of every phase that is a mapping."""
    phases = data.get("phases")
    for index, phase in enumerate(phases if isinstance(phases, list) else []):
        if isinstance(phase, Mapping):
            yield ("phases", index), phase


def training_nodes(data: Data) -> Iterator[tuple[Place, Data]]:
    """Yields place and data of everything that has an optimizer and a schedule: the phases, and `scratch`."""
    yield from phase_list(data)
    scratch = data.get("scratch")
    if isinstance(scratch, Mapping):
        yield ("scratch",), scratch


# --- rules of a phase -------------------------------------------------------------------------------------------------


def _optimizer_or_solver(place: Place, phase: Data, data: Data) -> Iterator[Problem]:
    if phase.get("solver") is None:
        if phase.get("optimizer") is None:
            lacks = ((*place, "optimizer"), (*place, "solver"))
            yield Problem(place, "missing key 'optimizer', for example optimizer: {name: sgd, lr: 0.05}", lacks=lacks)
        return
    for key in _STEPWISE:
        if phase.get(key) is not None and phase[key] != _STEPWISE[key]:
            yield Problem((*place, key), f"a solver computes the head at once, so it has no {key}: drop it")
    if phase.get("train") not in (None, "head", {"last": 1}, ["head"]):
        yield Problem((*place, "train"), "a solver computes the head alone: write train: head")


def _epochs_or_steps(place: Place, phase: Data, data: Data) -> Iterator[Problem]:
    if phase.get("solver") is not None:
        return
    given = [key for key in phase if key in ("epochs", "steps") and phase[key] is not None]
    if len(given) == 2:
        message = "both epochs and steps are given; a phase lasts one or the other: drop one, or set it to null"
        yield Problem((*place, given[1]), message)
    elif not given:
        lacks = ((*place, "epochs"), (*place, "steps"), (*place, "solver"))
        yield Problem(place, "missing key 'epochs' or 'steps': say how long the phase lasts", lacks=lacks)


def _step_limits(place: Place, phase: Data, data: Data) -> Iterator[Problem]:
    least, most = phase.get("min_steps"), phase.get("max_steps")
    if phase.get("epochs") is None and phase.get("steps") is not None:
        for key in ("min_steps", "max_steps"):
            if phase.get(key) is not None:
                yield Problem((*place, key), f"{key} bounds a length in epochs, and this one is in steps: drop it")
    if _is_number(least) and _is_number(most) and isinstance(least, int) and isinstance(most, int) and least > most:
        yield Problem((*place, "max_steps"), f"must not be below min_steps, which is {least}")


def _best_needs_validation(place: Place, phase: Data, data: Data) -> Iterator[Problem]:
    settings = data.get("data", {})
    validation = settings.get("validation", 0) if isinstance(settings, Mapping) else None
    if phase.get("keep") == "best" and _is_number(validation) and validation == 0:
        message = "best is chosen by validation images, and data.validation is 0; set it, for example to 0.1"
        yield Problem((*place, "keep"), message, lacks=(("data", "validation"), ("data",)))


def _views_can_be_kept(place: Place, phase: Data, data: Data) -> Iterator[Problem]:
    settings, at = data.get("data", {}), (*place, "views")
    if phase.get("views") is None or phase.get("solver") is not None or not isinstance(settings, Mapping):
        return
    augment = settings.get("augment")
    if augment in (None, "none"):
        message = "no image is augmented, so there is one view of each: drop it, or set data.augment"
        yield Problem(at, message, lacks=(("data", "augment"), ("data",)))
    elif phase.get("augment") is False:
        yield Problem(at, "no image of this phase is augmented, so there is one view of each: drop it")
    elif isinstance(augment, Mapping) and (augment.get("mixup") or augment.get("cutmix")):
        yield Problem(at, "an image that is mixed with others has no views to keep: drop it, or mixup and cutmix")
    if phase.get("train") == "all":
        yield Problem(at, "nothing is frozen in this phase, so nothing can be kept of the views: drop it")
    elif phase.get("norms") == "update":
        yield Problem(at, "norms: update moves frozen layers, so no views can be kept: drop one of the two")


def _auto_has_a_source(place: Place, phase: Data, data: Data) -> Iterator[Problem]:
    if phase.get("train") == "auto" and data.get("kind") == "pretrain" and phase.get("solver") is None:
        message = "auto goes by what weights that exist make of the images, and a pretrain recipe starts from random "
        yield Problem((*place, "train"), message + "ones: write all, or a list of stage names")


def _pull_has_a_source(place: Place, phase: Data, data: Data) -> Iterator[Problem]:
    if phase.get("l2_sp") is None or phase.get("solver") is not None:
        return
    if data.get("kind") == "pretrain":
        yield Problem((*place, "l2_sp"), "it pulls weights towards a source, and a pretrain recipe has none: drop it")
    elif phase.get("lora") is not None:
        message = "lora trains adapters and leaves the source's weights as they are: drop one of the two"
        yield Problem((*place, "l2_sp"), message)
    elif phase.get("train") in ("head", {"last": 1}, ["head"]):
        yield Problem((*place, "l2_sp"), "only the head trains, which has no weights of the source's: drop it")


def _stages_differ(place: Place, phase: Data, data: Data) -> Iterator[Problem]:
    yield from _repeated((*place, "train"), phase.get("train"))


# --- rules of what has an optimizer and a schedule --------------------------------------------------------------------


def _nesterov_has_momentum(place: Place, training: Data) -> Iterator[Problem]:
    optimizer = training.get("optimizer")
    if isinstance(optimizer, Mapping) and optimizer.get("name") == "sgd" and optimizer.get("nesterov") is True:
        momentum = optimizer.get("momentum", 0.9)
        if _is_number(momentum) and momentum == 0:
            yield Problem((*place, "optimizer", "nesterov"), "nesterov needs a momentum above 0")


def _step_fractions_grow(place: Place, training: Data) -> Iterator[Problem]:
    schedule = training.get("schedule")
    at = schedule.get("at") if isinstance(schedule, Mapping) and schedule.get("name") == "step" else None
    numbers = [n for n in at if _is_number(n)] if isinstance(at, list) else []
    if any(later <= sooner for sooner, later in pairwise(numbers)):
        yield Problem((*place, "schedule", "at"), "the fractions must grow from one to the next")


# --- rules of the whole recipe ----------------------------------------------------------------------------------------


def _last_phase_has_an_optimizer(data: Data) -> Iterator[Problem]:
    """The run from random weights is trained as the last phase is."""
    phases, compare, scratch = data.get("phases"), data.get("compare", ["scratch"]), data.get("scratch")
    last = phases[-1] if isinstance(phases, list) and phases else None
    wanted = data.get("kind") == "adapt" and isinstance(compare, Sequence) and "scratch" in compare
    given = isinstance(scratch, Mapping) and scratch.get("optimizer") is not None
    if wanted and not given and isinstance(phases, list) and isinstance(last, Mapping) and last.get("solver"):
        message = "the run from scratch is trained as the last phase is, and a solver cannot train a network: give "
        message += "scratch an optimizer, or leave scratch out of compare"
        yield Problem(("phases", len(phases) - 1, "solver"), message)


def _retain_has_a_mix(data: Data) -> Iterator[Problem]:
    compare = data.get("compare", ())
    named = isinstance(compare, Sequence) and "interpolated" in compare
    if data.get("kind") == "adapt" and data.get("retain") is not None and not named and data.get("keep") is None:
        message = "it is about the row interpolated, which is not asked for: add interpolated to compare, or "
        yield Problem(("retain",), message + "write keep: interpolated (--keep interpolated)")


def _phase_names_differ(data: Data) -> Iterator[Problem]:
    first: dict[str, Place] = {}
    for place, phase in phase_list(data):
        name = phase.get("name")
        if isinstance(name, str) and first.setdefault(name, place) != place:
            message = f"the name {quoted(name)} is taken by phases[{first[name][1]}]; give each phase its own"
            yield Problem((*place, "name"), message)


def _entries_differ(data: Data) -> Iterator[Problem]:
    settings = data.get("data")
    if isinstance(settings, Mapping):
        yield from _repeated(("data", "classes"), settings.get("classes"))
    yield from _repeated(("compare",), data.get("compare"))


def _repeated(place: Place, items: object) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, item in enumerate(items if isinstance(items, Sequence) and not isinstance(items, str) else []):
        if isinstance(item, bool) or not isinstance(item, str | int):
            continue
        if str(item) in seen:  # 5 and "5" name the same class
            text = quoted(item) if isinstance(item, str) else item
            yield Problem(place, f"{text} is listed twice", at=(*place, index))
        seen.add(str(item))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


_PHASE_RULES = (
    _optimizer_or_solver,
    _epochs_or_steps,
    _step_limits,
    _best_needs_validation,
    _views_can_be_kept,
    _auto_has_a_source,
    _pull_has_a_source,
    _stages_differ,
)
_TRAINING_RULES = (_nesterov_has_momentum, _step_fractions_grow)
_RECIPE_RULES = (_last_phase_has_an_optimizer, _retain_has_a_mix, _phase_names_differ, _entries_differ)
