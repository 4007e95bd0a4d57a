"""`finetune pretrain`: from a recipe to a checkpoint and its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from finetune.commands.report import html_report
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.recipe.load import dump_recipe
from finetune.recipe.schema import PretrainRecipe
from finetune.report.report import Report
from finetune.report.rows import PRETRAIN_ROWS
from finetune.run.confidence import calibrate_on_validation
from finetune.run.context import TrainContext, make_context
from finetune.run.finalize import (
    Grading,
    RowAnswers,
    build_report,
    checkpoint_results,
    compare_rows,
    confidence_summary,
    open_test_set,
    public_recipe,
    row_predictions,
    run_fingerprint,
    save_run,
    score,
)
from finetune.run.interrupt import InterruptCheckpoint
from finetune.run.options import RunCall, RunOptions, start_run
from finetune.run.output_paths import check_outputs
from finetune.run.page_pictures import write_run_page
from finetune.run.phases import RunLogger, check_adapters, run_phases
from finetune.run.progress import TRAINED, NetworkProgress
from finetune.run.run_folder import RunFolder, RunIdentity
from finetune.run.setup import RecipeLike, expect_kind, open_pretrain, open_recipe
from finetune.sources.save import make_metadata
from finetune.train.device import environment, seeded
from finetune.train.inference import outputs as test_outputs
from finetune.train.inference import predictions


def pretrain(recipe: RecipeLike, **options: Unpack[RunOptions]) -> Report:
    """Trains from scratch; writes a checkpoint and its report, and returns the report.

    `recipe` is a file's path, the name of a shipped recipe as recipes/NAME.yaml, or a dict of the same keys. `options`
    are those of RunOptions. Raises the errors of `finetune.errors`. Where torchrun has started several processes, all
    train together and the first one writes.
    """
    with start_run(options, recipe) as call:
        return _pretrain(recipe, call)


def _pretrain(given: RecipeLike, call: RunCall) -> Report:
    console, group = call.console, call.group
    recipe = expect_kind(PretrainRecipe, open_recipe(given, call.overrides()), given)
    setup = open_pretrain(recipe, call)
    data, runtime = setup.data, setup.runtime
    name = Path(given).stem if isinstance(given, (str, Path)) else data.name
    metadata_fields: dict[str, Any] = {"recipe": public_recipe(recipe), "data": data.describe()}
    with seeded(recipe.seed):
        network = build_model(setup.model, len(data.class_names), setup.arguments)
        check_adapters(network, recipe.phases)
        classifier = Classifier(network, setup.model, dict(setup.arguments), data.class_names, setup.spec)
        make_metadata(classifier, **metadata_fields)  # what cannot be saved is found now, not after training
        outputs = check_outputs(call.out, name, writes=group.leader, inputs=(*call.reads, recipe.data.name))
        fingerprint = run_fingerprint(recipe, setup.model, metadata_fields["data"], runtime)
        identity = RunIdentity(dump_recipe(recipe), fingerprint, environment(runtime))
        context = make_context(recipe, setup, console)
        with (
            RunFolder(outputs, identity, call.resume, console, group, call.logs) as run_folder,
            context.cache,
            InterruptCheckpoint(
                outputs, lambda: make_metadata(classifier, **metadata_fields), writes=group.leader
            ) as interrupt_checkpoint,
        ):
            if run_folder.finished is not None:
                if call.html and group.leader:
                    html_report(outputs.report, data=recipe.data.name, data_root=call.data_root, console=console)
                return run_folder.finished
            runtime.place(network)
            logger = RunLogger(
                console, outputs, interrupt_checkpoint, _article_line(context, call) if recipe.test_each_epoch else None
            )
            phases = run_phases(network, recipe.phases, context, logger, NetworkProgress(run_folder, TRAINED, network))
            confidence, notes = calibrate_on_validation(network, data, context.normalize, group)
            use = open_test_set(outputs.run_folder, "pretrain", identity.fingerprint) if group.leader else None
            images = data.test.images.to(runtime.device)
            grading = Grading.of(data.test)
            numbers = test_outputs(network, images, context.normalize, group=group, reduce=grading.reduce)
            answers = {"majority": grading.majority(data.train), "test": RowAnswers.of_numbers(numbers)}
            results = {name: score(data.test, found, row=name) for name, found in answers.items()}
            each = {row: [found] for row, found in answers.items()}
            comparisons = compare_rows(data.test, each, "test", PRETRAIN_ROWS)
            report = replace(
                build_report(recipe, setup, run_folder.seconds(), phases, results),
                comparisons=comparisons,
                test_set=use,
                confidence=confidence_summary(confidence, notes, data.test, answers["test"]),
            )
            if group.leader:
                fields = metadata_fields | {"results": checkpoint_results(results), "confidence": confidence}
                found = row_predictions(data.test, {(row, None): one for row, one in answers.items()})
                run_folder.finish(save_run(classifier, fields, report, found, outputs, console), report)
                if call.html:
                    write_run_page(report, outputs, classifier, data.test, console)
    return report


def _article_line(context: TrainContext, call: RunCall) -> Callable[[StagedNetwork, int, int], None]:
    """Prints the test accuracy after each epoch in the article's words; nothing is chosen by it."""
    test = context.data.test

    def after_row(network: StagedNetwork, epoch: int, epochs: int) -> None:
        images = test.images.to(next(network.parameters()).device)
        right = int((predictions(network, images, context.normalize, group=call.group) == test.labels).sum())
        call.console.say(f"Epoch [{epoch}/{epochs}], Accuracy: [{right}/{len(test)}]")

    return after_row
