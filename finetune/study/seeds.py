"""`finetune adapt --seeds`: the verdict over several trainings, about the procedure and not about one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.checkpoint.confidence import Confidence
from finetune.commands.adapt import DEFAULT_RECIPE, metadata_fields
from finetune.commands.auto_stages import has_auto, with_answer
from finetune.data.image_dataset import ImageSet
from finetune.errors import SettingError
from finetune.models.classifier import Classifier
from finetune.recipe.schema import AdaptRecipe
from finetune.report.comparison import ACCURACY
from finetune.report.metrics import find_metric
from finetune.report.predictions import ColumnKey
from finetune.report.report import Interpolation, Report, Result, WithoutTwins
from finetune.report.rows import ADAPT_ROWS, INTERPOLATED
from finetune.run.confidence import calibrate_on_validation, check_max_error
from finetune.run.finalize import (
    Grading,
    RowAnswers,
    build_report,
    check_metric,
    checkpoint_results,
    compare_rows,
    confidence_summary,
    open_test_set,
    row_predictions,
    save_run,
    score,
)
from finetune.run.loggers import log_outcome
from finetune.run.options import RunCall, RunOptions, start_run
from finetune.run.output_paths import check_outputs
from finetune.run.page_pictures import write_run_page
from finetune.run.quick_check import QuickCheck, quick_check, without_twins
from finetune.run.setup import AdaptSetup, RecipeLike
from finetune.study.analysis import result_over_seeds
from finetune.study.design import few_seeds_note, open_study_recipe, parse_seeds, refuse_seed, row_trials
from finetune.study.runner import StudyFolder, TrialOptions, completed, run_trials
from finetune.study.trial import TrialFacts, TrialResult, TrialRunner
from finetune.train.inference import outputs as network_outputs
from finetune.train.inference import predictions

FIRST, AVERAGE = "first", "average"


def adapt_seeds(
    source: str | Path,
    target: str | None = None,
    recipe: RecipeLike = DEFAULT_RECIPE,
    *,
    seeds: int | str | Sequence[int] = 5,
    same_shots: bool = False,
    keep: str = FIRST,
    jobs: int = 1,
    engine: str | None = None,
    metric: str = ACCURACY,
    model: str | None = None,
    shots: int | None = None,
    max_error: float | None = None,
    compare: bool = True,
    **options: Unpack[RunOptions],
) -> Report:
    """Fine-tunes `source` on `target` once for each seed, and compares over seeds and test images.

    seeds: a count, or the seeds themselves. same_shots: all seeds learn from the labelled images that the first one
    chooses, else each chooses its own. keep: "first" writes the first seed's checkpoint, which nobody chose by its
    result; "average" that of the seeds' averaged weights, if no worse on the validation images; "interpolated" the
    first seed's mix of source and fine-tuned weights. jobs: trainings at once. engine: dask://HOST:PORT of a cluster
    that trains. metric: what the comparisons are about, by its name in `metrics.METRICS`. The rest, and errors, are as
    for `finetune.adapt`.
    """
    with start_run(options, source, target, recipe) as call:
        chosen = parse_seeds(seeds)
        check_max_error(max_error)
        refuse_seed(call)
        find_metric(metric)
        if keep not in (FIRST, AVERAGE, INTERPOLATED):
            raise SettingError(f"--keep {keep}: expected {FIRST}, {AVERAGE} or {INTERPOLATED}")
        row = keep if keep == INTERPOLATED else None
        own = {"data.name": target, "data.shots": shots, "max_error": max_error, "keep": row}
        overrides = ({"model.name": model}, own)
        checked = open_study_recipe(source, recipe, overrides, call)
        checked = checked if compare else checked.without_rows(kept=True)
        _check_choice(checked, keep, same_shots=same_shots)
        return _adapt_seeds(
            str(source),
            checked,
            chosen,
            keep,
            TrialOptions(jobs, engine, call.logs),
            call,
            metric=metric,
            same_shots=same_shots,
        )


def _check_choice(recipe: AdaptRecipe, keep: str, *, same_shots: bool) -> None:
    """SettingError for a study of seeds whose options contradict each other or the recipe."""
    if keep == AVERAGE and has_auto(recipe):
        raise SettingError(
            "--keep average: with train: auto each seed may train other stages, which no recipe of the average "
            "could say; name the stages, as `finetune where` writes them"
        )
    if same_shots and recipe.data.shots is None:
        raise SettingError("--same-shots: without --shots all seeds learn from the same images anyway; leave it out")
    if keep == AVERAGE and recipe.keep is not None:
        raise SettingError(f"--keep {keep}: the recipe says keep: {recipe.keep}; leave one of the two out")
    if keep == AVERAGE and recipe.data.shots is not None and not same_shots:
        raise SettingError(
            "--keep average: with --shots each seed learns from other images, among them the validation images of "
            "the others, so nothing can tell whether the average is better; add --same-shots"
        )


def _adapt_seeds(
    source: str,
    recipe: AdaptRecipe,
    seeds: Sequence[int],
    keep: str,
    options: TrialOptions,
    call: RunCall,
    *,
    metric: str,
    same_shots: bool,
) -> Report:
    rows, runner, console = recipe.rows, TrialRunner(call), call.console
    shots = recipe.data.shots
    trials = row_trials(source, recipe, rows, seeds, shots=shots, same_shots=same_shots, keep_all=keep == AVERAGE)
    setup = runner.setup(trials[0])
    check_metric(metric, setup.data.test)
    pictures = quick_check(setup.data)
    for note in [*setup.data.notes, *pictures.notes, *([few] if (few := few_seeds_note(seeds)) else [])]:
        console.note(note)
    if keep == AVERAGE and not len(setup.data.validation):
        raise SettingError("--keep average: there are no validation images to measure it by; set data.validation")
    outputs = check_outputs(
        call.out, f"{setup.source.name}-{setup.data.name}", inputs=(*call.reads, recipe.data.name, setup.source.path)
    )
    fingerprint = {key: value for key, value in runner.fingerprint(trials[0]).items() if key != "rows"}
    design = {"study": "adapt --seeds", "same_shots": same_shots, "keep": keep, **fingerprint}
    with StudyFolder(outputs.run_folder, design, call) as folder:
        use = open_test_set(outputs.run_folder, "adapt", fingerprint)
        results = completed(run_trials(trials, folder, options, runner))
        setup = runner.setup(trials[0])
        answers: dict[str, list[RowAnswers]] = {row: [] for row in rows}
        for trained in results.values():
            for row, found in trained.answers.items():
                answers[row].append(found)
        first = next(result for result in results.values() if "after" in result.answers)
        shots_vary = shots is not None and not same_shots
        report = _report(recipe, setup, results, answers, seeds, metric=metric, shots_vary=shots_vary)
        report = _with_pictures(replace(report, test_set=use), pictures, setup.data.test, answers)
        classifier, own_row = classifier_with(setup, first.weights), recipe.keep or "after"
        confidence, notes, kept = first.facts.confidence, first.facts.confidence_notes, answers[own_row][0]
        fields = metadata_fields(with_answer(_seed_recipe(recipe, seeds[0]), first.facts.where), setup)
        if keep == AVERAGE and (averaged := _average(setup, results, call)) is not None:
            classifier, kept = averaged
            confidence, notes = _calibrate(classifier, setup, recipe.max_error)
            result = score(setup.data.test, kept, row="average")
            report = replace(report, results={**report.results, "average": result}, retention=None)
            fields["results"] = checkpoint_results({"average": result})
        else:
            own = {row: score(setup.data.test, found[0], row=row) for row, found in answers.items()}
            fields["results"] = checkpoint_results({**dict.fromkeys(ADAPT_ROWS), **own})
        report = replace(report, confidence=confidence_summary(confidence, notes, setup.data.test, kept))
        fields["confidence"] = confidence
        each: dict[ColumnKey, RowAnswers] = {}
        each |= {(row, seed): one for row, found in answers.items() for seed, one in zip(seeds, found, strict=True)}
        content = row_predictions(setup.data.test, each)
        save_run(classifier, fields, report, content, outputs, console)
        log_outcome(call.logs, outputs.run_folder, report)
        if call.html:
            write_run_page(report, outputs, classifier, setup.data.test, console)
    return report


def _calibrate(
    classifier: Classifier, setup: AdaptSetup, max_error: float | None
) -> tuple[Confidence | None, list[str]]:
    normalize = setup.spec.normalizer(setup.runtime.device)
    return calibrate_on_validation(classifier.network, setup.data, normalize, max_error=max_error)


def _with_pictures(
    report: Report, pictures: QuickCheck, test: ImageSet, answers: Mapping[str, Sequence[RowAnswers]]
) -> Report:
    """The report with what the short check of the pictures said, and each row's result without twins."""

    def apart(row: str) -> WithoutTwins | None:
        def measure(some: ImageSet, kept: npt.NDArray[np.int64]) -> Result:
            return result_over_seeds(some, [one.subset(kept) for one in answers[row]], report.seeds, row)

        return without_twins(pictures, test, measure)

    results = {
        row: result if result is None or row not in answers else replace(result, without_twins=apart(row))
        for row, result in report.results.items()
    }
    target = replace(report.target, notes=[*report.target.notes, *pictures.notes])
    return replace(report, target=target, results=results)


def _seed_recipe(recipe: AdaptRecipe, seed: int) -> AdaptRecipe:
    return recipe.model_copy(update={"seed": seed})


def _report(
    recipe: AdaptRecipe,
    setup: AdaptSetup,
    results: Mapping[str, TrialResult],
    answers: Mapping[str, Sequence[RowAnswers]],
    seeds: Sequence[int],
    *,
    metric: str,
    shots_vary: bool,
) -> Report:
    trained = [result.facts for result in results.values() if "after" in result.answers]
    test, facts = setup.data.test, trained[0]
    recipe = with_answer(_seed_recipe(recipe, seeds[0]), facts.where)
    mixed = [result.facts for result in results.values() if result.facts.interpolation is not None]
    every: dict[str, Result | None] = dict.fromkeys(ADAPT_ROWS)
    every |= {row: result_over_seeds(test, found, seeds, row) for row, found in answers.items()}
    seconds = sum(result.facts.seconds for result in results.values())
    return replace(
        build_report(recipe, setup, seconds, facts.phases, every),
        seeds=list(seeds),
        phases_per_seed={str(seed): own.phases for seed, own in zip(seeds, trained, strict=True)},
        environment=facts.environment,
        source=facts.source,
        transplant=facts.transplant,
        comparisons=compare_rows(test, answers, "after", ADAPT_ROWS, metric=metric, shots_vary=shots_vary),
        retention=facts.retention,
        where=facts.where,
        interpolation=interpolation_over({str(own.fingerprint["recipe"]["seed"]): own for own in mixed}),
    )


def interpolation_over(trainings: Mapping[str, TrialFacts]) -> Interpolation | None:
    """The first training's choice of a mix, with the weights of all by their names; None where none was made."""
    chosen = {name: facts.interpolation for name, facts in trainings.items() if facts.interpolation is not None}
    weights = {name: own.weight for name, own in chosen.items()}
    return replace(next(iter(chosen.values())), weights=weights) if chosen else None


def classifier_with(setup: AdaptSetup, weights: Mapping[str, Tensor]) -> Classifier:
    """The source's network for the target's classes, with these fine-tuned weights."""
    classifier = setup.classifier.with_classes(setup.data.class_names)
    classifier.network.set_head(torch.nn.Linear(classifier.network.head.in_features, len(setup.data.class_names)))
    classifier.network.load_state_dict(dict(weights))
    setup.runtime.place(classifier.network)
    return classifier


def average_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor over trainings; one that is the same in all, or of whole numbers, stays as it is."""
    found = {}
    for name, first in states[0].items():
        every = [state[name] for state in states]
        same = not first.is_floating_point() or all(torch.equal(first, other) for other in every)
        found[name] = first if same else torch.stack([tensor.double() for tensor in every]).mean(0).to(first.dtype)
    return found


def _average(
    setup: AdaptSetup, results: Mapping[str, TrialResult], call: RunCall
) -> tuple[Classifier, RowAnswers] | None:
    """The classifier of the seeds' averaged weights and its answers to the test images; None where it is worse.

    Worse than the first seed's on the validation images, by which alone that is decided.
    """
    states = [result.weights for result in results.values() if result.weights]
    validation = setup.data.validation
    classifier, first = classifier_with(setup, average_weights(states)), classifier_with(setup, states[0])
    normalize, device = setup.spec.normalizer(setup.runtime.device), setup.runtime.device

    def right(own: Classifier) -> int:
        found = predictions(own.network, validation.images.to(device), normalize)
        return int((found == validation.labels).sum())

    averaged, single, total = right(classifier), right(first), len(validation)
    said = f"averaged weights: {averaged:,} of {total:,} validation images right, the first seed's {single:,}"
    if averaged < single:
        call.console.note(f"{said}; the first seed's are kept")
        return None
    call.console.note(f"{said}; the average is kept")
    reduce = Grading.of(setup.data.test).reduce
    numbers = network_outputs(classifier.network, setup.data.test.images.to(device), normalize, reduce=reduce)
    return classifier, RowAnswers.of_numbers(numbers)
