"""A trial: one training with everything fixed, what it leaves behind, and how a process runs one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from finetune.checkpoint.confidence import Confidence
from finetune.commands.adapt import adapt_fingerprint, open_adaptation, source_summary
from finetune.commands.baselines import SharedWork, answer_rows, retention, train_rows
from finetune.commands.out_of_fold import calibrate_training
from finetune.data.folds import Fold, FoldedImages
from finetune.distributed.process_group import SINGLE_PROCESS
from finetune.recipe.load import dump_recipe
from finetune.recipe.schema import AdaptRecipe
from finetune.report.console import Console
from finetune.report.report import Interpolation, PhaseSummary, Retention, SourceSummary, Transplant
from finetune.report.stage_answer import StageAnswer
from finetune.run.context import make_context
from finetune.run.data import RunData, advise, choose_run_data, same_choice
from finetune.run.finalize import RowAnswers
from finetune.run.options import RunCall
from finetune.run.output_paths import OutputPaths
from finetune.run.phases import check_adapters
from finetune.run.setup import AdaptSetup, expect_kind, find_source, open_adapt, open_recipe
from finetune.run.snapshot import Snapshot, SnapshotStore
from finetune.sources.resolve import SourceRef
from finetune.text import json_diff

RESULT = "result"  # the folder, in a trial's folder, of what it left behind


@dataclass(frozen=True)
class Trial:
    """One training with everything fixed.

    rows: the rows of the verdict that it makes: one that is trained, or several that are not. recipe: the resolved
    recipe of an adapt, with target, shots and seed. shots_seed: chooses the labelled images. source_label: tells apart
    the sources of one study. keeps_weights: the weights that the recipe keeps are left behind too. measures_retention:
    what was forgotten of the source's task is measured. fold: of a cross-validation; None keeps to the data set's own
    parts.
    """

    source: str
    recipe: Mapping[str, Any]
    rows: tuple[str, ...]
    shots_seed: int
    source_label: str = ""
    keeps_weights: bool = False
    measures_retention: bool = False
    chooser: str | None = None
    fold: Fold | None = None

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])

    @property
    def shots(self) -> int | None:
        """Labelled images a class; None: all there are."""
        found: int | None = self.recipe["data"]["shots"]
        return found

    @property
    def name(self) -> str:
        """The name of its folder, as in after-shots-10-seed-0."""
        label = [self.source_label] if self.source_label else []
        shots = [] if self.shots is None else [f"shots-{self.shots}"]
        fold = [] if self.fold is None else [self.fold.name]
        return "-".join([*label, "+".join(self.rows), *shots, *fold, f"seed-{self.seed}"])


class TrialFacts(BaseModel):
    """What a trial leaves behind beside tensors, as JSON values.

    fingerprint: all that its bytes depend on. methods: by row. seconds: of training and answering. confidence: of the
    weights that are kept, and what to tell of it. where: what `train: auto` came to.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprint: dict[str, Any]
    source: SourceSummary
    methods: dict[str, str | None]
    seconds: float
    environment: dict[str, Any]
    phases: list[PhaseSummary]
    transplant: Transplant | None
    retention: Retention | None
    confidence: Confidence | None = None
    confidence_notes: list[str] = []
    where: StageAnswer | None = None
    interpolation: Interpolation | None = None

    def as_read(self) -> TrialFacts:
        """The same with keys in the order in which they are read back, so that reports are the same either way."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return TrialFacts.model_validate(json.loads(text))  # not as JSON: a path may hold bytes that are not UTF-8


@dataclass(frozen=True)
class TrialResult:
    """What a trial leaves behind: answers by row, and the fine-tuned weights where they are kept."""

    facts: TrialFacts
    answers: dict[str, RowAnswers]
    weights: dict[str, Tensor] = field(default_factory=dict)

    def store(self, folder: Path) -> None:
        """Writes it into the trial's folder, whole or not at all. OutputError."""
        tensors = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        for row, found in self.answers.items():
            tensors |= {f"{row}/{name}": part.contiguous() for name, part in found.tensors().items()}
        SnapshotStore(folder / RESULT, keep=1).save(Snapshot(tensors, self.facts.model_dump(mode="json")))

    @classmethod
    def load(cls, folder: Path) -> TrialResult | None:
        """What a finished trial left in its folder; None where there is nothing, or nothing whole."""
        found, _ = SnapshotStore(folder / RESULT, keep=1).newest()
        if found is None:
            return None
        try:
            facts = TrialFacts.model_validate(found.facts)
            rows = {
                row: RowAnswers.of_tensors(_below(f"{row}/", found.tensors), method)
                for row, method in facts.methods.items()
            }
        except (ValidationError, KeyError):
            return None
        return cls(facts, rows, _below("weights/", found.tensors))


def _below(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names have this start, under the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


class TrialRunner:
    """Runs trials one after the other in this process; what they share is opened and computed once.

    call: device, data and times between snapshots are those of it.
    """

    def __init__(self, call: RunCall) -> None:
        quiet = Console(quiet=True, results=False)
        self.call = replace(call, group=SINGLE_PROCESS, settings=(), console=quiet)
        self.sources: dict[str, SourceRef] = {}
        self.opened: dict[str, AdaptSetup] = {}  # with all images there are to learn from
        self.folded: dict[str, FoldedImages] = {}
        self.newest: tuple[str, AdaptSetup, SharedWork] | None = None

    def setup(self, trial: Trial) -> AdaptSetup:
        """The source and the images of a trial."""
        return self._open(trial)[1]

    def folds(self, trial: Trial) -> FoldedImages:
        """All images of a cross-validation, and the fold of each. DataError where they cannot be divided."""
        assert trial.fold is not None
        _, key, base = self._open_all(trial.source, trial.recipe)
        if (found := f"{key} {trial.fold.of}") not in self.folded:
            assert base.data.splits is not None
            self.folded[found] = folded = FoldedImages.of(base.data.splits, trial.fold.of)
            whole = folded.splits(Fold(None, trial.fold.of))  # in place of the parts, whose pixels need not stay
            data = replace(base.data, train=whole.train, validation=whole.test, test=whole.test, splits=whole)
            self.opened[key] = replace(base, data=data)
        return self.folded[found]

    def run(self, trial: Trial, folder: Path) -> TrialResult:
        """Trains in `folder`, from the snapshot that an earlier attempt left there, if any. FinetuneError."""
        recipe, setup, shared = self._open(trial)
        call = replace(self.call, resume=replace(self.call.resume, resume=True))
        with open_adaptation(
            recipe, setup, OutputPaths(folder / "trial.safetensors", folder), call, shared
        ) as adaptation:
            train_rows(adaptation, trial.rows)
            confidence, notes = calibrate_training(adaptation) if trial.keeps_weights else (None, [])
            answers = answer_rows(adaptation, trial.rows) if len(setup.data.test) else {}
            trained = adaptation.trained.get("after")
            facts = TrialFacts(
                fingerprint=self.fingerprint(trial),
                source=source_summary(setup.source),
                methods={row: found.method for row, found in answers.items()},
                seconds=adaptation.run_folder.seconds(),
                environment=adaptation.run_folder.identity.environment,
                phases=trained.phases if trained is not None else [],
                transplant=trained.transplant if trained is not None else None,
                retention=retention(adaptation) if trial.measures_retention else None,
                interpolation=adaptation.interpolation(),
                confidence=confidence,
                confidence_notes=notes,
                where=shared.where,
            )
            kept_network = adaptation.written().network if trained is not None and trial.keeps_weights else None
            weights = kept_network.state_dict() if kept_network is not None else {}
            kept = {name: t.detach().cpu() for name, t in weights.items()}
            result = TrialResult(facts.as_read(), answers, kept)
            result.store(folder)
            adaptation.run_folder.delete_unfinished()
        return result

    def fingerprint(self, trial: Trial) -> dict[str, Any]:
        """All that a trial's result depends on, as JSON values."""
        recipe, setup, _ = self._open(trial)
        return {
            **adapt_fingerprint(recipe, setup),
            "rows": list(trial.rows),
            "keeps_weights": trial.keeps_weights,
            "measures_retention": trial.measures_retention,
        }

    def finished(self, trial: Trial, folder: Path) -> TrialResult | None:
        """The result of an earlier attempt at the same trial; None where it has not finished, or was another's."""
        found = TrialResult.load(folder)
        return found if found is not None and not json_diff(found.facts.fingerprint, self.fingerprint(trial)) else None

    def portable(self, trial: Trial) -> Trial:
        """The same trial for another machine: paths of sources absolute, the Hub's revisions commits."""
        chooser = None if trial.chooser is None else self._portable_source(trial.chooser)
        return replace(trial, source=self._portable_source(trial.source), chooser=chooser)

    def _open(self, trial: Trial) -> tuple[AdaptRecipe, AdaptSetup, SharedWork]:
        """Recipe, source and images, and what earlier trials computed of these."""
        recipe, key, base = self._open_all(trial.source, trial.recipe)
        chosen = f"{key} {recipe.data.shots} {trial.shots_seed} {trial.chooser} {trial.fold}"
        if self.newest is None or self.newest[0] != chosen:
            data = advise(self._choose_data(trial, recipe, base), recipe)
            setup, shared = replace(base, data=data), SharedWork()
            if self.newest is not None and self.newest[1].source is setup.source:
                _, before, earlier = self.newest
                shared.test = earlier.test if before.data.test is setup.data.test else None
                shared.cache = earlier.cache
            self.newest = chosen, setup, shared
        _, setup, shared = self.newest
        if shared.cache is None:
            shared.cache = make_context(recipe, setup, self.call.console).cache
        return recipe, setup, shared

    def _portable_source(self, source: str) -> str:
        located = self._locate(source)
        return located.text if located.hub is not None or located.path is None else str(located.path.absolute())

    def _locate(self, source: str) -> SourceRef:
        if source not in self.sources:
            self.sources[source] = find_source(source, self.call)
        return self.sources[source]

    def _open_all(self, source: str, recipe: Mapping[str, Any]) -> tuple[AdaptRecipe, str, AdaptSetup]:
        """The checked recipe; and, under a key of their own, source and all images there are to learn from."""
        located = self._locate(source)
        checked = expect_kind(AdaptRecipe, open_recipe(recipe, (), located.architecture), recipe)
        everything = checked.model_copy(update={"seed": 0, "data": checked.data.model_copy(update={"shots": None})})
        key = f"{source} {dump_recipe(everything)}"
        if key not in self.opened:
            self.opened[key] = open_adapt(located, everything, self.call)
            check_adapters(self.opened[key].classifier.network, everything.phases)
        return checked, key, self.opened[key]

    def _choose_data(self, trial: Trial, recipe: AdaptRecipe, base: AdaptSetup) -> RunData:
        """The images that a trial learns from."""
        if trial.fold is not None:
            return choose_run_data(base.data.name, self.folds(trial).splits(trial.fold), recipe.data, trial.shots_seed)
        assert base.data.splits is not None
        if trial.chooser in (None, trial.source) or not base.data.splits.train.files:
            return choose_run_data(base.data.name, base.data.splits, recipe.data, trial.shots_seed)
        *_, other = self._open_all(str(trial.chooser), trial.recipe)
        assert other.data.splits is not None
        chosen = choose_run_data(other.data.name, other.data.splits, recipe.data, trial.shots_seed)
        return same_choice(chosen, base.data.splits)
