"""The sources of a ranking: their names, and opening each on the target."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from finetune.errors import DataError, DownloadError, FinetuneError, Interrupted, SettingError
from finetune.io.text_path import to_path
from finetune.recipe.schema import AdaptRecipe
from finetune.report.ranking import CheapScores
from finetune.run.finalize import public_recipe
from finetune.run.options import RunCall
from finetune.run.setup import AdaptSetup, find_source
from finetune.sources.resolve import RANDOM as RANDOM_MODEL
from finetune.study.design import row_trials
from finetune.study.trial import Trial, TrialRunner
from finetune.text import first_line

RANDOM = "random"
MAX_LABEL = 60  # characters of a source's name in the names of its trials


@dataclass(frozen=True)
class RankDesign:
    """What is ranked, and how."""

    sources: tuple[str, ...]
    recipe: AdaptRecipe
    seeds: tuple[int, ...]
    same_shots: bool
    top: int

    @property
    def shots_vary(self) -> bool:
        return self.recipe.data.shots is not None and not self.same_shots

    def as_json(self) -> dict[str, Any]:
        """What --resume requires to be the same; more seeds and a larger `top` go on with what there is."""
        recipe = {key: value for key, value in public_recipe(self.recipe).items() if key != "seed"}
        return {"study": "rank", "sources": list(self.sources), "recipe": recipe, "same_shots": self.same_shots}

    def choice(self) -> dict[str, Any]:
        """The choices that the ledger of test sets counts, as JSON values: recipe and sources, not the shots."""
        found = self.as_json()
        data = {key: value for key, value in found["recipe"]["data"].items() if key != "shots"}
        return {"sources": sorted(self.sources), "recipe": {**found["recipe"], "data": data}}


@dataclass
class Contender:
    """A source in the ranking, as far as it has come; `error` says why it goes no further."""

    source: str
    name: str
    label: str
    trials: list[Trial] = field(default_factory=list)
    model: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    scores: CheapScores | None = None
    error: FinetuneError | None = None

    @property
    def random(self) -> bool:
        return self.source == RANDOM or self.source.startswith(RANDOM_MODEL)


def name_contenders(sources: Sequence[str]) -> list[Contender]:
    """The sources by short names. SettingError for fewer than two, and for one that is given twice."""
    if len(sources) < 2:
        raise SettingError(f"rank: {len(sources)} source, expected at least two to choose from")
    places = [source if _is_name(source) else str(to_path(source).resolve()) for source in sources]
    for first, second in combinations(range(len(sources)), 2):
        if places[first] == places[second]:
            raise SettingError(f"rank: {sources[second]} is given twice")
    short = [source if _is_name(source) else Path(source).stem for source in sources]
    names = [own if short.count(own) == 1 else source for own, source in zip(short, sources, strict=True)]
    found: list[Contender] = []
    for number, (source, name) in enumerate(zip(sources, names, strict=True), 1):
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:MAX_LABEL].strip(".-")
        taken = any(other.label == label for other in found)
        found.append(Contender(source, name, f"{label}-{number}" if taken or not label else label))
    return found


def _is_name(source: str) -> bool:
    return source == RANDOM or source.startswith((RANDOM_MODEL, "timm:", "hub:"))


def open_contenders(
    contenders: Sequence[Contender], design: RankDesign, runner: TrialRunner, call: RunCall
) -> list[Contender]:
    """Opens all sources; returns those that could be. SettingError where these are fewer than two.

    DataError and DownloadError of the target, which is the same for all of them, end it at once.
    """
    if design.recipe.data.name is None:
        raise SettingError("rank: no target: name a data set or a folder of pictures with --target")
    opened: list[Contender] = []
    for contender in sorted(contenders, key=lambda own: own.source == RANDOM):  # which needs another one's network
        try:
            _open(contender, opened, design, runner)
            opened.append(contender)
        except (DataError, DownloadError, Interrupted):
            raise
        except FinetuneError as error:
            contender.error = error
            call.console.warn(f"{contender.name}: {first_line(error)}; the others go on")
    _refuse_same(opened, runner)
    if len(opened) < 2:
        lost = [contender for contender in contenders if contender.error is not None]
        reasons = "".join(f"\n  {contender.source}: {contender.error}" for contender in lost)
        found = SettingError(f"rank: expected at least two sources that can be used, found {len(opened)}{reasons}")
        codes = [contender.error.exit_code for contender in lost if contender.error is not None]
        found.exit_code = min(codes, default=2)
        raise found
    return [contender for contender in contenders if contender.error is None]


def _open(contender: Contender, opened: Sequence[Contender], design: RankDesign, runner: TrialRunner) -> None:
    """Opens one source on the target, as its trials will, and measures its size."""
    source, recipe = contender.source, design.recipe
    if source == RANDOM:
        others = [own for own in opened if not own.random]
        if not others:
            raise SettingError("no other source whose network could get random weights; random:MODEL names one")
        source = others[0].source
    row = "scratch" if contender.random else "after"
    shots, same_shots = recipe.data.shots, design.same_shots
    trials = row_trials(
        source,
        recipe,
        (row,),
        design.seeds,
        shots=shots,
        same_shots=same_shots,
        answers_only=True,
        label=contender.label,
    )
    _refuse_unnamed(source, recipe, runner)
    chooser = opened[0].trials[0].source if opened else None
    contender.trials = [replace(trial, chooser=chooser) for trial in trials]
    setup = runner.setup(contender.trials[0])
    if opened:
        _check_same_pictures(setup, runner.setup(opened[0].trials[0]), contender.name)
    network = setup.classifier.network
    head = network.head.weight, network.head.bias
    body = [t for name, t in network.state_dict().items() if name not in network.head_tensors()]
    own_head = (network.head.in_features + 1) * len(setup.data.class_names)
    trained = (t.numel() for t in network.parameters() if not any(t is own for own in head))
    contender.model = setup.model
    contender.parameters = sum(trained) + own_head
    contender.bytes = sum(t.numel() * t.element_size() for t in body) + 4 * own_head


def _refuse_unnamed(source: str, recipe: AdaptRecipe, runner: TrialRunner) -> None:
    """SettingError for a bare file of weights whose architecture the recipe does not name."""
    if source not in runner.sources:
        runner.sources[source] = find_source(source, runner.call)
    named = recipe.model is not None and recipe.model.name is not None
    if runner.sources[source].architecture is None and not named:
        raise SettingError(
            f"{source}: a safetensors file without finetune's metadata, so its model is not known; where all sources "
            "are such files of one model, name it with --set model.name=NAME, for example timm/resnet18; else rank "
            "checkpoints that finetune wrote of them"
        )


def _check_same_pictures(setup: AdaptSetup, first: AdaptSetup, name: str) -> None:
    """DataError unless two sources learn from, and are tested on, the same pictures, however each decodes them."""
    same = setup.data.class_names == first.data.class_names
    for part in ("train", "validation", "test"):
        own, other = getattr(setup.data, part), getattr(first.data, part)
        same = same and own.files == other.files and torch.equal(own.labels, other.labels)
    if not same:
        raise DataError(f"{first.data.name}: {name} does not see the same pictures as the other sources")


def _refuse_same(opened: Sequence[Contender], runner: TrialRunner) -> None:
    """SettingError for two sources of the same weights under two names."""
    seen: dict[object, str] = {}
    for contender in opened:
        setup = runner.setup(contender.trials[0])
        network = (setup.model, json.dumps(dict(setup.arguments), sort_keys=True), setup.spec)
        key: object = network if contender.random else setup.source.sha256
        if key in seen:
            raise SettingError(f"rank: {seen[key]} and {contender.source} are the same weights under two names")
        seen[key] = contender.source
