"""`finetune adapt --folds`: cross-validation, in which every image is tested once, and the verdict over its folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from finetune.checkpoint.confidence import Confidence
from finetune.commands.adapt import DEFAULT_RECIPE, check_kept, metadata_fields
from finetune.commands.auto_stages import with_answer
from finetune.data.folds import Fold, FoldedImages
from finetune.errors import SettingError
from finetune.recipe.schema import AdaptRecipe
from finetune.report.comparison import ACCURACY, Comparison, compare_folds
from finetune.report.cross_validation import accuracy_over_folds, measure_over_folds
from finetune.report.metrics import find_metric
from finetune.report.report import FoldScore, Report, Result
from finetune.report.rows import ADAPT_ROWS, INTERPOLATED, MIN_SEEDS
from finetune.run.confidence import HeldOut, check_max_error, fit_confidence
from finetune.run.finalize import (
    Grading,
    RowAnswers,
    build_report,
    check_metric,
    checkpoint_results,
    confidence_summary,
    metric_answers,
    open_test_set,
    row_predictions,
    save_run,
    score,
)
from finetune.run.loggers import log_outcome
from finetune.run.options import RunCall, RunOptions, start_run
from finetune.run.output_paths import check_outputs
from finetune.run.page_pictures import write_run_page
from finetune.run.setup import AdaptSetup, RecipeLike
from finetune.study.design import open_study_recipe, row_trials
from finetune.study.runner import StudyFolder, TrialOptions, completed, run_trials
from finetune.study.seeds import classifier_with, interpolation_over
from finetune.study.trial import Trial, TrialResult, TrialRunner

MAX_FOLDS = 1_000


def adapt_folds(
    source: str | Path,
    target: str | None = None,
    recipe: RecipeLike = DEFAULT_RECIPE,
    *,
    folds: int = 5,
    jobs: int = 1,
    engine: str | None = None,
    metric: str = ACCURACY,
    model: str | None = None,
    shots: int | None = None,
    max_error: float | None = None,
    compare: bool = True,
    keep: str | None = None,
    **options: Unpack[RunOptions],
) -> Report:
    """Fine-tunes `source` on `target` once for each fold, tests each image once, and once more on all images.

    All images of the target are divided into `folds` parts, its own test part with the others. The last training's
    weights are written: they have learnt from all images, and what the folds say is what to expect of them. jobs:
    trainings at once. engine: dask://HOST:PORT of a cluster that trains. metric: what the comparisons are about, by its
    name in `metrics.METRICS`. keep: "interpolated" writes that training's mix of source and fine-tuned weights. The
    rest, and errors, are as for `finetune.adapt`.
    """
    check_kept(keep)
    with start_run(options, source, target, recipe) as call:
        if type(folds) is not int or not 2 <= folds <= MAX_FOLDS:
            raise SettingError(f"--folds {folds}: expected a number of folds from 2 to {MAX_FOLDS:,}; 5 is a good one")
        find_metric(metric)
        check_max_error(max_error)
        own = {"data.name": target, "data.shots": shots, "max_error": max_error, "keep": keep}
        overrides = ({"model.name": model}, own)
        checked = open_study_recipe(source, recipe, overrides, call)
        checked = checked if compare else checked.without_rows(kept=True)
        return _adapt_folds(str(source), checked, folds, metric, TrialOptions(jobs, engine, call.logs), call)


def fold_trials(source: str, recipe: AdaptRecipe, rows: Sequence[str], folds: int) -> list[Trial]:
    """The trials of these rows in each fold, each with a seed of its own; and last that which learns from all images.

    With one seed for all folds, their spread would leave out the luck of it.
    """
    shots, found = recipe.data.shots, []
    for number in range(folds):
        own = row_trials(source, recipe, rows, (recipe.seed + number,), shots=shots, answers_only=True)
        found += [replace(trial, fold=Fold(number, folds)) for trial in own]
    last_rows = [row for row in rows if row in ("after", INTERPOLATED)]
    last = row_trials(source, recipe, last_rows, (recipe.seed,), shots=shots)
    return [*found, *(replace(trial, fold=Fold(None, folds)) for trial in last)]


def _adapt_folds(
    source: str, recipe: AdaptRecipe, folds: int, metric: str, options: TrialOptions, call: RunCall
) -> Report:
    rows, runner, console = recipe.rows, TrialRunner(call), call.console
    trials = fold_trials(source, recipe, rows, folds)
    last, folded = trials[-1], runner.folds(trials[-1])
    check_metric(metric, folded.images)
    for note in _notes(trials, runner):
        console.note(note)
    setup = runner.setup(last)
    outputs = check_outputs(
        call.out, f"{setup.source.name}-{setup.data.name}", inputs=(*call.reads, recipe.data.name, setup.source.path)
    )
    fields = metadata_fields(recipe, setup)
    fields["data"] = {**fields["data"], **_description(folded, folds)}
    fingerprint = {key: value for key, value in runner.fingerprint(last).items() if key != "rows"}
    fingerprint["data"] = fields["data"]
    design = {"study": "adapt --folds", "folds": folds, **fingerprint}
    with StudyFolder(outputs.run_folder, design, call) as folder:
        use = open_test_set(outputs.run_folder, "adapt", fingerprint)
        results = completed(run_trials(trials, folder, options, runner))
        setup = runner.setup(last)
        answers = {row: _joined(trials, results, row, folded) for row in rows}
        report = replace(_report(recipe, setup, folded, trials, results, answers, metric), test_set=use)
        fields["results"] = checkpoint_results(report.results)
        facts = results[last.name].facts
        confidence, notes = facts.confidence, facts.confidence_notes
        own = answers[recipe.keep or "after"]
        if confidence is None and own.probabilities is not None:
            confidence, notes = _calibrate(own, folded, recipe.max_error)
        fields["confidence"] = confidence
        report = replace(report, confidence=confidence_summary(confidence, notes, folded.images, None))
        fields["recipe"] = report.recipe
        predictions = row_predictions(
            folded.images, {(row, None): found for row, found in answers.items()}, folded.numbers
        )
        classifier = classifier_with(setup, results[last.name].weights)
        save_run(classifier, fields, report, predictions, outputs, console)
        log_outcome(call.logs, outputs.run_folder, report)
        if call.html:
            write_run_page(report, outputs, classifier, folded.images, console)
    return report


def _calibrate(
    answers: RowAnswers, folded: FoldedImages, max_error: float | None
) -> tuple[Confidence | None, list[str]]:
    """A record of confidence from the answers to every image of the training that had not learnt from it."""
    assert answers.probabilities is not None
    logits = answers.probabilities.double().clamp_min(torch.finfo(torch.float32).tiny).log()
    none = torch.zeros(len(logits), 0)  # distances to training images are not known
    return fit_confidence(HeldOut(logits, folded.images.labels.cpu(), none), (), "folds", max_error)


def _notes(trials: Sequence[Trial], runner: TrialRunner) -> list[str]:
    """What a person should know of images and folds, each once; finds what is wrong with any before all training."""
    found: dict[str, None] = {}
    for trial in {trial.fold: trial for trial in trials}.values():
        found |= dict.fromkeys(runner.setup(trial).data.notes)
    folds = len({trial.fold for trial in trials}) - 1
    if folds < MIN_SEEDS:
        found[
            f"{folds} folds say next to nothing of how much results differ between trainings, so that no verdict says "
            f"`helps` or `hurts`; at least {MIN_SEEDS}, better 5: --folds 5"
        ] = None
    return list(found)


def _description(folded: FoldedImages, folds: int) -> dict[str, Any]:
    """What a checkpoint says of its test images: all are, each in its fold, and all have been learnt from since."""
    test = {"images": len(folded.images), "fingerprint": folded.images.fingerprint()}
    return {"test": test, "folds": folds, "own_test": folded.own_test}


def _joined(trials: Sequence[Trial], results: Mapping[str, TrialResult], row: str, folded: FoldedImages) -> RowAnswers:
    """A row's answers to all images, each by the training that had it as a test image."""
    numbers, method = torch.from_numpy(folded.numbers), None
    joined: dict[str, Tensor] = {}
    for trial in trials:
        found = results[trial.name].answers.get(row)
        if found is not None and trial.fold is not None:
            tensors, method = found.tensors(), found.method
            if not Grading.of(folded.images).keeps_all:
                tensors.pop("probabilities", None)
            for name, own in tensors.items():
                whole = joined.setdefault(name, own.new_empty(len(folded.images), *own.shape[1:]))
                whole[numbers == trial.fold.number] = own
    return RowAnswers.of_tensors(joined, method)


def _report(
    recipe: AdaptRecipe,
    setup: AdaptSetup,
    folded: FoldedImages,
    trials: Sequence[Trial],
    results: Mapping[str, TrialResult],
    answers: Mapping[str, RowAnswers],
    metric: str,
) -> Report:
    facts, seconds = results[trials[-1].name].facts, sum(result.facts.seconds for result in results.values())
    seeds = {trial.fold.number: trial.seed for trial in trials if trial.fold is not None}
    mixed = {
        trial.fold.name: results[trial.name].facts
        for trial in (trials[-1], *trials)
        if trial.fold is not None and results[trial.name].facts.interpolation is not None
    }
    every: dict[str, Result | None] = dict.fromkeys(ADAPT_ROWS)
    every |= {row: result_over_folds(folded, found, row, seeds) for row, found in answers.items()}
    report = build_report(with_answer(recipe, facts.where), setup, seconds, facts.phases, every)
    return replace(
        report,
        target=replace(report.target, test=len(folded.images)),
        environment=facts.environment,
        source=facts.source,
        transplant=facts.transplant,
        comparisons=_comparisons(folded, answers, metric, shots_vary=recipe.data.shots is not None),
        retention=facts.retention,
        where=facts.where,
        interpolation=interpolation_over(mixed),
        folds=len(seeds) - 1,
    )


def result_over_folds(folded: FoldedImages, answers: RowAnswers, row: str, seeds: Mapping[int | None, int]) -> Result:
    """A row's result from its answers to all images; `seeds` has each fold's."""
    result, given = score(folded.images, answers, row=row), metric_answers(folded.images, answers)
    per_fold = []
    for number in range(int(folded.numbers.max()) + 1):
        right = given.right[folded.numbers == number]
        correct = int(right.sum())
        per_fold.append(FoldScore(number + 1, seeds[number], correct, len(right), correct / len(right)))
    return replace(
        result,
        ci95=accuracy_over_folds([(own.correct, own.total) for own in per_fold], result.ci95),
        per_fold=per_fold,
        metrics=measure_over_folds(given, folded.numbers, result.metrics or {}),
    )


def _comparisons(
    folded: FoldedImages, answers: Mapping[str, RowAnswers], metric: str, *, shots_vary: bool
) -> dict[str, Comparison | None]:
    given = {row: metric_answers(folded.images, found) for row, found in answers.items()}
    return {
        f"after_vs_{name}": compare_folds(given[name], given["after"], folded.numbers, metric, shots_vary=shots_vary)
        if name in given
        else None
        for name, row in ADAPT_ROWS.items()
        if row.compared
    }
