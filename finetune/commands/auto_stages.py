"""Answers which stages to train, and puts the answer into a recipe: for `finetune where` and for `train: auto`.

Everything that trains by a recipe, or plans to, gets it from `resolve_auto` first.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import Tensor

from finetune.commands.baselines import start_head
from finetune.data.image_dataset import ImageSet
from finetune.distributed.sync import broadcast_state
from finetune.errors import SettingError, TrainingError
from finetune.models.head import class_means
from finetune.recipe.load import check_recipe, resolve_recipe
from finetune.recipe.schema import AUTO, AdaptRecipe, Phase, default_phase_name
from finetune.report.comparison import Score
from finetune.report.stage_answer import StageAnswer, StageRow
from finetune.run.memory import check_memory
from finetune.run.options import RunCall
from finetune.run.phases import check_adapters
from finetune.run.setup import AdaptSetup
from finetune.train.device import seeded
from finetune.train.stage_scores import boundary_features, choose_stages, relative_gradients
from finetune.train.transfer_scores import probe_rights, sample_to_score


def has_auto(recipe: AdaptRecipe) -> bool:
    return any(phase.train == AUTO for phase in recipe.phases)


def resolve_auto(
    recipe: AdaptRecipe, setup: AdaptSetup, call: RunCall, known: StageAnswer | None = None
) -> tuple[AdaptRecipe, StageAnswer | None]:
    """The recipe with the stages that `train: auto` stands for in its phases, and why; as it is, and None, without any.

    known: the answer for the same source, images and head where there is one already. SettingError for adapters that
    the stages cannot have, and for what then does not fit the memory.
    """
    if not has_auto(recipe):
        return recipe, None
    answer = known if known is not None else answer_stages(recipe, setup)
    resolved = with_answer(recipe, answer)
    check_adapters(setup.classifier.network, resolved.phases)
    if not call.force:
        about = (setup.model, setup.arguments, setup.spec, len(setup.data.class_names), len(setup.data.train))
        check_memory(resolved, *about, setup.runtime)
    return resolved, answer


def answer_stages(recipe: AdaptRecipe, setup: AdaptSetup) -> StageAnswer:
    """Which stages to train, from the source as it is and the images to learn from alone.

    Of several processes that train together all compute it, and the first one's answer counts.
    """
    train, classes = sample_to_score(setup.data.train), len(setup.data.class_names)
    network, device = copy.deepcopy(setup.classifier.network), setup.runtime.device
    setup.runtime.place(network)
    images, normalize = train.images.to(device), setup.spec.normalizer(device)
    features = boundary_features(network, images, normalize)
    if broken := [cut for cut, found in features.items() if not bool(found.isfinite().all())]:
        stage = network.stages[broken[0] - 1]
        raise TrainingError(f"where: the outputs of {stage} for the training images are not finite numbers")
    last = len(network.stages) - 1
    probes = {cut: _probe(found, train, classes) for cut, found in features.items()}
    with seeded(0):  # random rows are drawn the same way, so that the answer hangs on the images alone
        means = class_means(features[last], train.labels, classes)
        kept = start_head(network, recipe, means, setup).head_rows_reused
    gradients = relative_gradients(network, images, train.labels, normalize)
    at_head = probes[last]
    rows = (len(kept), classes)
    choices = choose_stages(gradients, at_head.accuracy if at_head is not None else None, rows)
    stages = []
    for place, (stage, choice) in enumerate(zip(network.stages, choices, strict=True), 1):
        probe = probes.get(place)
        accuracy, interval = (probe.accuracy, probe.ci95) if probe is not None else (None, None)
        parameters = sum(p.numel() for p in network.stage_parameters(stage))
        stages.append(StageRow(stage, accuracy, interval, gradients[stage], parameters, choice.trains, choice.why))
    group = setup.runtime.group
    if group.size > 1:
        values, _ = broadcast_state({"stages": [vars(row) for row in stages]}, {}, group)
        stages = [StageRow(**row) for row in values["stages"]]
    return StageAnswer(stages, len(train), rows)


def _probe(features: Tensor, train: ImageSet, classes: int) -> Score | None:
    right = probe_rights(features.double(), train.labels, classes)
    return None if right is None else Score.of(right.numpy(), train.group_indices())


def train_value(answer: StageAnswer) -> str | tuple[str, ...]:
    """The stages as a phase's `train` has them."""
    if len(answer.trains) == len(answer.stages):
        return "all"
    return "head" if answer.trains == [answer.stages[-1].stage] else tuple(answer.trains)


def with_answer(recipe: AdaptRecipe, answer: StageAnswer | None) -> AdaptRecipe:
    """The recipe whose phases train the answer's stages where they say `auto`; as it is without an answer."""
    if answer is None:
        return recipe
    train = train_value(answer)
    changed: dict[str, Any] = {"train": train}
    if train == "head":
        changed["lora"] = None  # the head trains as usual in any case, and nothing else could have an adapter
    elif train == "all":
        changed["views"] = None  # nothing is frozen
    phases = tuple(phase.model_copy(update=changed) if phase.train == AUTO else phase for phase in recipe.phases)
    return recipe.model_copy(update={"phases": phases})


def _trains_head_alone(phase: Phase, head: str) -> bool:
    stages = phase.train if isinstance(phase.train, tuple) else ()
    return phase.train == "head" or getattr(phase.train, "last", None) == 1 or stages == (head,)


def check_answerable(recipe: AdaptRecipe, head: str) -> None:
    """SettingError for a recipe that no answer but `head` would fit."""
    if all(_trains_head_alone(phase, head) for phase in recipe.phases):
        raise SettingError(
            "where: every phase of this recipe trains the head alone, so none could train other stages; give one that "
            "trains more, such as recipes/adapt.yaml"
        )


def recipe_for(recipe: AdaptRecipe, answer: StageAnswer) -> AdaptRecipe:
    """The recipe with the answer in all phases that train more than the head.

    Where all stages are to train and one of its phases does that, it stays as it is. Where the head is to be frozen,
    phases that train it alone go. Where it alone is to train, a solved one is all there is to do; without one the last
    phase trains it, on images as they are, so that the frozen part is run only once.
    """
    values, train, stages = resolve_recipe(recipe), train_value(answer), tuple(row.stage for row in answer.stages)
    head = stages[-1]
    raw = values["phases"]
    assert isinstance(raw, list)
    pairs = [(phase, dict(own), _trains_head_alone(phase, head)) for phase, own in zip(recipe.phases, raw, strict=True)]
    if train == "head":
        if any(phase.solver is not None for phase, _, alone in pairs):
            chosen = [own for _, own, alone in pairs if alone]
        else:
            more = next((phase, own) for phase, own, alone in reversed(pairs) if not alone)
            chosen = [*(own for _, own, alone in pairs if alone), _retrained(*more, train) | {"augment": False}]
            for key in ("lora", "views"):
                chosen[-1].pop(key, None)
        values["phases"] = chosen
    elif train == "all":
        if not any(phase.trained_stages(stages) == stages for phase in recipe.phases):
            last = max(place for place, (*_, alone) in enumerate(pairs) if not alone)
            raw[last] = _retrained(recipe.phases[last], raw[last], train)
    else:
        kept = [pair for pair in pairs if not pair[2] or answer.stages[-1].trains]
        values["phases"] = [own if alone else _retrained(phase, own, train) for phase, own, alone in kept]
    if recipe.scratch is None and "scratch" in recipe.compare and recipe.phases[-1].optimizer is not None:
        values["scratch"] = {key: raw[-1][key] for key in ("optimizer", "schedule")}
    found = check_recipe(values)
    assert isinstance(found, AdaptRecipe)
    return found


def _retrained(phase: Phase, values: dict[str, Any], train: str | tuple[str, ...]) -> dict[str, Any]:
    """The phase as plain data with other stages; a name that says what it trained before is derived anew."""
    before = re.escape(default_phase_name({"train": phase.train}))
    dropped = {"name"} if re.fullmatch(rf"{before}(-\d+)?", phase.name) else set()
    dropped |= {"views"} if train == "all" else set()
    kept = {key: value for key, value in values.items() if key not in dropped}
    return kept | {"train": train if isinstance(train, str) else list(train)}
