"""`finetune adapt`: fine-tunes a source on a target and measures what that brought."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from finetune.commands.auto_stages import resolve_auto
from finetune.commands.baselines import (
    Adaptation,
    SharedWork,
    TrainedNetwork,
    answer_rows,
    needs_source_features,
    retention,
    train_rows,
)
from finetune.commands.out_of_fold import calibrate_training
from finetune.commands.report import html_report
from finetune.data.image_dataset import ImageSet
from finetune.errors import SettingError
from finetune.recipe.load import dump_recipe
from finetune.recipe.schema import AdaptRecipe
from finetune.report.comparison import ACCURACY, Comparison, Score
from finetune.report.confidence import ConfidenceSummary
from finetune.report.metrics import find_metric
from finetune.report.report import Report, Result, Retention, SourceSummary, TestSetUse
from finetune.report.rows import ADAPT_ROWS, INTERPOLATED
from finetune.run.confidence import check_max_error
from finetune.run.context import make_context
from finetune.run.finalize import (
    RowAnswers,
    build_report,
    check_metric,
    checkpoint_results,
    compare_rows,
    confidence_summary,
    correct_mask,
    open_test_set,
    public_recipe,
    row_predictions,
    run_fingerprint,
    save_run,
    score,
)
from finetune.run.interrupt import InterruptCheckpoint
from finetune.run.options import RunCall, RunOptions, start_run
from finetune.run.output_paths import OutputPaths, check_outputs
from finetune.run.page_pictures import write_run_page
from finetune.run.phases import RunLogger, check_adapters
from finetune.run.quick_check import QuickCheck, quick_check, without_twins
from finetune.run.run_folder import RunFolder, RunIdentity
from finetune.run.setup import AdaptSetup, RecipeLike, expect_kind, find_source, open_adapt, open_recipe
from finetune.sources.resolve import Source
from finetune.sources.save import make_metadata
from finetune.train.device import environment, seeded

DEFAULT_RECIPE = Path("recipes/adapt.yaml")


def adapt(
    source: str | Path,
    target: str | None = None,
    recipe: RecipeLike = DEFAULT_RECIPE,
    *,
    model: str | None = None,
    shots: int | None = None,
    max_error: float | None = None,
    compare: bool = True,
    metric: str = ACCURACY,
    keep: str | None = None,
    **options: Unpack[RunOptions],
) -> Report:
    """Fine-tunes `source` on `target` and compares; writes a checkpoint and its report, and returns the report.

    `source` is a checkpoint, `timm:NAME[.TAG]`, `hub:OWNER/NAME[@REVISION]`, or a bare file of weights of `model`.
    `target` is a data set's name, a folder of pictures or a CSV file, in place of the recipe's. `shots` is the number
    of labelled images per class to learn from. `max_error` is the share of wrong answers to be promised, instead of the
    recipe's. `compare=False` leaves out the rows that a recipe's `compare` names. `metric` is what the comparisons are
    about, by its name in `metrics.METRICS`. `keep="interpolated"` writes the mix of source and fine-tuned weights that
    is chosen on validation images, as the recipe's `keep` does. `recipe` and `options` are as for `pretrain`. Raises
    the errors of `finetune.errors`.
    """
    check_kept(keep)
    check_max_error(max_error)
    with start_run(options, source, target, recipe) as call:
        located = find_source(source, call)
        own = {"data.name": target, "data.shots": shots, "max_error": max_error, "keep": keep}
        overrides = call.overrides({"model.name": model}, own)
        checked = expect_kind(AdaptRecipe, open_recipe(recipe, overrides, located.architecture), recipe)
        checked = checked if compare else checked.without_rows(kept=True)
        find_metric(metric)
        setup = open_adapt(located, checked, call)
        check_metric(metric, setup.data.test)
        check_adapters(setup.classifier.network, checked.phases)
        return _adapt(checked, setup, metric, call)


def check_kept(keep: object) -> None:
    """SettingError for weights that an adapt cannot keep."""
    if keep not in (None, INTERPOLATED):
        raise SettingError(f"--keep {keep}: expected {INTERPOLATED}, or with --seeds also first or average")


def _adapt(recipe: AdaptRecipe, setup: AdaptSetup, metric: str, call: RunCall) -> Report:
    pictures = quick_check(setup.data)
    for note in pictures.notes:
        call.console.note(note)
    setup = replace(setup, data=replace(setup.data, notes=(*setup.data.notes, *pictures.notes)))
    inputs = (*call.reads, recipe.data.name, setup.source.path)
    name = f"{setup.source.name}-{setup.data.name}"
    outputs = check_outputs(call.out, name, writes=call.group.leader, inputs=inputs)
    rows = recipe.rows
    with open_adaptation(recipe, setup, outputs, call) as adaptation:
        run_folder = adaptation.run_folder
        if run_folder.finished is not None:
            finished = _with_metric(run_folder.finished, metric, outputs)
            if call.html and call.group.leader:
                html_report(outputs.report, data=recipe.data.name, data_root=call.data_root, console=call.console)
            return finished
        train_rows(adaptation, rows)
        confidence, notes = calibrate_training(adaptation)
        use = open_test_set(outputs.run_folder, "adapt", run_folder.identity.fingerprint) if call.group.leader else None
        answers = answer_rows(adaptation, rows)
        classifier = adaptation.written()
        report = adapt_report(
            adaptation,
            results={name: _score(setup.data.test, found, name, pictures) for name, found in answers.items()},
            comparisons=compare_rows(
                setup.data.test, {row: [found] for row, found in answers.items()}, "after", ADAPT_ROWS, metric=metric
            ),
            retention=retention(adaptation),
            test_set=use,
            confidence=confidence_summary(confidence, notes, setup.data.test, answers[recipe.keep or "after"]),
        )
        if call.group.leader:
            fields = metadata_fields(adaptation.recipe, setup) | {"results": checkpoint_results(report.results)}
            fields["confidence"] = confidence
            predictions = row_predictions(setup.data.test, {(row, None): found for row, found in answers.items()})
            digest = save_run(classifier, fields, report, predictions, outputs, call.console)
            run_folder.finish(digest, report)
            if call.html:
                write_run_page(report, outputs, classifier, setup.data.test, call.console)
    return report


def _score(test: ImageSet, answers: RowAnswers, row: str, pictures: QuickCheck) -> Result:
    """A row's result, with that on the images without twins."""
    right = correct_mask(test, answers.predicted)
    apart = without_twins(pictures, test, lambda some, kept: Score.of(right[kept], some.group_indices()))
    return replace(score(test, answers, row=row), without_twins=apart)


def _with_metric(report: Report, metric: str, outputs: OutputPaths) -> Report:
    """The report of a run that has finished. SettingError where its verdict is about another metric."""
    compared = {comparison.metric for comparison in report.comparisons.values() if comparison is not None}
    if compared - {metric}:
        raise SettingError(
            f"--resume: {outputs.run_folder} has finished, and its verdict is about {', '.join(sorted(compared))}; "
            f"finetune compare {outputs.predictions} --against scratch --metric {metric} compares by {metric}"
        )
    return report


def metadata_fields(recipe: AdaptRecipe, setup: AdaptSetup) -> dict[str, Any]:
    """What a checkpoint says of how it was made, but for its results."""
    return {
        "recipe": public_recipe(recipe),
        "data": setup.data.describe(),
        "lineage": setup.source.lineage_of_child(),
    }


def adapt_fingerprint(recipe: AdaptRecipe, setup: AdaptSetup) -> dict[str, Any]:
    """Everything that an adapt's bytes depend on, as JSON values."""
    fingerprint = run_fingerprint(recipe, setup.model, setup.data.describe(), setup.runtime)
    return {**fingerprint, "source": {"id": setup.source.id, "sha256": setup.source.sha256}}


@contextmanager
def open_adaptation(
    recipe: AdaptRecipe, setup: AdaptSetup, outputs: OutputPaths, call: RunCall, shared: SharedWork | None = None
) -> Iterator[Adaptation]:
    """Locks an adapt's run folder for the block, in which the rows of the verdict can be trained.

    Phases that say `train: auto` have the stages they stand for from here on.
    """
    shared = shared if shared is not None else SharedWork()
    recipe, shared.where = resolve_auto(recipe, setup, call, shared.where)
    classifier, data, runtime = setup.classifier, setup.data, setup.runtime
    adapted = classifier.with_classes(data.class_names)
    identity = RunIdentity(dump_recipe(recipe), adapt_fingerprint(recipe, setup), environment(runtime))
    needs_features = needs_source_features(recipe, classifier.class_names, data.class_names)
    make_metadata(adapted, **metadata_fields(recipe, setup))  # what cannot be saved is found now, not after training
    context = make_context(recipe, setup, call.console, needs_features=needs_features, shared=shared.cache)
    with (
        seeded(recipe.seed),
        RunFolder(outputs, identity, call.resume, call.console, call.group, call.logs) as run_folder,
        context.cache if shared.cache is None else nullcontext(),
        InterruptCheckpoint(
            outputs, lambda: make_metadata(adapted, **metadata_fields(recipe, setup)), writes=call.group.leader
        ) as interrupt_checkpoint,
    ):
        if run_folder.finished is None:
            runtime.place(classifier.network)
            runtime.place(adapted.network)
        logger = RunLogger(call.console, outputs, interrupt_checkpoint)
        yield Adaptation(recipe, setup, adapted, context, logger, run_folder, shared, call.data_root)


def adapt_report(
    adaptation: Adaptation,
    *,
    results: dict[str, Result],
    comparisons: dict[str, Comparison | None],
    retention: Retention | None,
    test_set: TestSetUse | None,
    confidence: ConfidenceSummary,
) -> Report:
    """The report of an adapt, with a result or None for each row there is."""
    trained: TrainedNetwork = adaptation.trained["after"]
    every: dict[str, Result | None] = dict.fromkeys(ADAPT_ROWS)
    seconds = adaptation.run_folder.seconds()
    return replace(
        build_report(adaptation.recipe, adaptation.setup, seconds, trained.phases, every | results),
        source=source_summary(adaptation.setup.source),
        transplant=trained.transplant,
        comparisons=comparisons,
        retention=retention,
        interpolation=adaptation.interpolation(),
        test_set=test_set,
        confidence=confidence,
        where=adaptation.shared.where,
    )


def source_summary(source: Source) -> SourceSummary:
    return SourceSummary(
        path=str(source.path) if source.path is not None else None,
        id=source.id,
        sha256=source.sha256,
        model=source.classifier.model,
        dataset=source.dataset,
        accuracy=source.accuracy,
    )
