"""Rules between the fields of a recipe.

They read plain data, whatever state it is in, and pass over what has not the right type: the schema reports that. So a
recipe with a wrong type in one place still hears of a broken rule in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from finetune.io.sanitize import quoted
from finetune.recipe.problems import Place, Problem

Data = Mapping[str, object]

# What only a phase of steps has, and the value that says nothing.
_STEPWISE: dict[str, object] = {
    "epochs": None,
    "steps": None,
    "min_steps": None,
    "max_steps": None,
    "optimizer": None,
    "lora": None,
    "schedule": {"name": "constant"},
    "label_smoothing": 0.0,
    "clip_norm": None,
    "ema": None,
    "layer_decay": 1.0,
    "keep": "last",
    "norms": "hold",
    "views": None,
}


def rule_problems(data: Data) -> list[Problem]:
    """Returns every broken rule of a recipe given as plain data."""
    return [problem for rule in _RULES for problem in rule(data)]


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


def _one_way_to_train(data: Data) -> Iterator[Problem]:
    for place, phase in phase_list(data):
        solver = phase.get("solver")
        if solver is None and phase.get("optimizer") is None:
            example = "for example optimizer: {name: sgd, lr: 0.05}"
            yield Problem(
                place, f"missing key 'optimizer', {example}", lacks=((*place, "optimizer"), (*place, "solver"))
            )
        if solver is None:
            continue
        for key in _STEPWISE:
            if phase.get(key) is not None and phase[key] != _STEPWISE[key]:
                yield Problem((*place, key), f"a solver computes the head at once, so it has no {key}: drop it")
        if phase.get("train") not in (None, "head", {"last": 1}, ["head"]):
            yield Problem((*place, "train"), "a solver computes the head alone: write train: head")


def _one_duration(data: Data) -> Iterator[Problem]:
    for place, phase in phase_list(data):
        if phase.get("solver") is not None:
            continue
        given = [key for key in phase if key in ("epochs", "steps") and phase[key] is not None]
        if len(given) == 2:
            message = "both epochs and steps are given; a phase lasts one or the other: drop one, or set it to null"
            yield Problem((*place, given[1]), message)
        elif not given:
            lacks = ((*place, "epochs"), (*place, "steps"), (*place, "solver"))
            yield Problem(place, "missing key 'epochs' or 'steps': say how long the phase lasts", lacks=lacks)


def _last_phase_has_an_optimizer(data: Data) -> Iterator[Problem]:
    """The run from random weights is trained as the last phase is."""
    phases, compare = data.get("phases"), data.get("compare", ["scratch"])
    last = phases[-1] if isinstance(phases, list) and phases else None
    wanted = data.get("kind") == "adapt" and isinstance(compare, Sequence) and "scratch" in compare
    scratch = data.get("scratch")
    given = isinstance(scratch, Mapping) and scratch.get("optimizer") is not None
    if wanted and not given and isinstance(phases, list) and isinstance(last, Mapping) and last.get("solver"):
        message = "the run from scratch is trained as the last phase is, and a solver cannot train a network: give "
        yield Problem(
            ("phases", len(phases) - 1, "solver"), f"{message}scratch an optimizer, or leave scratch out of compare"
        )


def _limits_go_with_epochs(data: Data) -> Iterator[Problem]:
    for place, phase in phase_list(data):
        least, most = phase.get("min_steps"), phase.get("max_steps")
        if phase.get("epochs") is None and phase.get("steps") is not None:
            for key in ("min_steps", "max_steps"):
                if phase.get(key) is not None:
                    yield Problem((*place, key), f"{key} bounds a length in epochs, and this one is in steps: drop it")
        if isinstance(least, int) and isinstance(most, int) and _is_number(least) and _is_number(most) and least > most:
            yield Problem((*place, "max_steps"), f"must not be below min_steps, which is {least}")


def _nesterov_has_momentum(data: Data) -> Iterator[Problem]:
    for place, training in training_nodes(data):
        optimizer = training.get("optimizer")
        if isinstance(optimizer, Mapping) and optimizer.get("name") == "sgd" and optimizer.get("nesterov") is True:
            momentum = optimizer.get("momentum", 0.9)
            if _is_number(momentum) and momentum == 0:
                yield Problem((*place, "optimizer", "nesterov"), "nesterov needs a momentum above 0")


def _steps_grow(data: Data) -> Iterator[Problem]:
    for place, training in training_nodes(data):
        schedule = training.get("schedule")
        at = schedule.get("at") if isinstance(schedule, Mapping) and schedule.get("name") == "step" else None
        numbers = [n for n in at if isinstance(n, int | float) and _is_number(n)] if isinstance(at, list) else []
        if any(later <= sooner for sooner, later in pairwise(numbers)):
            yield Problem((*place, "schedule", "at"), "the fractions must grow from one to the next")


def _best_can_be_known(data: Data) -> Iterator[Problem]:
    settings = data.get("data", {})
    validation = settings.get("validation", 0) if isinstance(settings, Mapping) else None
    if not _is_number(validation) or validation != 0:
        return
    for place, phase in phase_list(data):
        if phase.get("keep") == "best":
            message = "best is chosen by validation images, and data.validation is 0; set it, for example to 0.1"
            yield Problem((*place, "keep"), message, lacks=(("data", "validation"), ("data",)))


def _views_can_be_kept(data: Data) -> Iterator[Problem]:
    settings = data.get("data", {})
    if not isinstance(settings, Mapping):
        return
    augment = settings.get("augment")
    for place, phase in phase_list(data):
        if phase.get("views") is None or phase.get("solver") is not None:
            continue
        at = (*place, "views")
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
    for place, phase in phase_list(data):
        yield from _repeated((*place, "train"), phase.get("train"))


def _repeated(place: Place, items: object) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, item in enumerate(items if isinstance(items, Sequence) and not isinstance(items, str) else []):
        if isinstance(item, bool) or not isinstance(item, str | int):
            continue
        if str(item) in seen:  # 5 and "5" name the same class
            yield Problem(
                place, f"{quoted(item) if isinstance(item, str) else item} is listed twice", at=(*place, index)
            )
        seen.add(str(item))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_RULES: tuple[Callable[[Data], Iterator[Problem]], ...] = (
    _one_way_to_train,
    _one_duration,
    _last_phase_has_an_optimizer,
    _limits_go_with_epochs,
    _nesterov_has_momentum,
    _steps_grow,
    _best_can_be_known,
    _views_can_be_kept,
    _phase_names_differ,
    _entries_differ,
)
