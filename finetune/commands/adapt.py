"""`finetune adapt`: fine-tunes a source on a target and measures what that brought."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from finetune.commands.baselines import (
    Adaptation,
    extract_source_features,
    measure_rows,
    needs_source_features,
    retention,
    train_rows,
)
from finetune.models.head import ClassMeans, swap_head
from finetune.models.staged import StagedNetwork
from finetune.recipe.load import dump_recipe
from finetune.recipe.schema import AdaptRecipe
from finetune.report.console import Console
from finetune.report.report import Report, SourceSummary, Transplant
from finetune.run.cache_plan import CacheManager
from finetune.run.context import make_context
from finetune.run.finalize import build_report, public_recipe, run_fingerprint, save_run
from finetune.run.interrupt import InterruptCheckpoint
from finetune.run.options import RunCall, RunOptions, start_run
from finetune.run.output_paths import check_outputs
from finetune.run.phases import RunLogger, check_adapters, run_phases
from finetune.run.progress import TRAINED, NetworkProgress, completed_phases
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
    compare: bool = True,
    **options: Unpack[RunOptions],
) -> Report:
    """Fine-tunes `source` on `target` and compares; writes a checkpoint and its report, and returns the report.

    `source` is a checkpoint, `timm:NAME[.TAG]`, `hub:OWNER/NAME[@REVISION]`, or a bare file of weights of `model`.
    `target` is a data set's name, a folder of pictures or a CSV file, in place of the recipe's. `shots` is the number
    of labelled images per class to learn from. `compare=False` leaves out the rows that a recipe's `compare` names.
    `recipe` and `options` are as for `pretrain`. Raises the errors of `finetune.errors`.
    """
    with start_run(options) as call:
        located = find_source(source, call)
        overrides = call.overrides({"model.name": model}, {"data.name": target, "data.shots": shots})
        checked = expect_kind(AdaptRecipe, open_recipe(recipe, overrides, located.architecture), recipe)
        checked = checked if compare else checked.model_copy(update={"compare": ()})
        return _adapt(checked, open_adapt(located, checked, call), call)


def _adapt(recipe: AdaptRecipe, setup: AdaptSetup, call: RunCall) -> Report:
    source, classifier, data, runtime = setup.source, setup.classifier, setup.data, setup.runtime
    console, group = call.console, call.group
    check_adapters(classifier.network, recipe.phases)
    outputs = check_outputs(call.out, f"{source.name}-{data.name}", writes=group.leader)
    metadata_fields: dict[str, Any] = {"recipe": public_recipe(recipe), "data": data.describe()}
    metadata_fields["lineage"] = source.lineage_of_child()
    adapted = classifier.with_classes(data.class_names)
    network = adapted.network
    fingerprint = run_fingerprint(recipe, classifier.model, metadata_fields["data"], runtime)
    fingerprint["source"] = {"id": source.id, "sha256": source.sha256}
    identity = RunIdentity(dump_recipe(recipe), fingerprint, environment(runtime))
    needs_features = needs_source_features(recipe, classifier.class_names, data.class_names)
    context = make_context(recipe, setup, console, needs_features=needs_features)
    with (
        seeded(recipe.seed),
        RunFolder(outputs, identity, call.resume, console, group) as run_folder,
        context.cache,
        InterruptCheckpoint(
            outputs, lambda: make_metadata(adapted, **metadata_fields), writes=group.leader
        ) as interrupt_checkpoint,
    ):
        if run_folder.finished is not None:
            return run_folder.finished
        runtime.place(classifier.network)
        runtime.place(network)
        logger, caches = (
            RunLogger(console, outputs, interrupt_checkpoint),
            CacheManager(network, recipe.phases, context),
        )
        features = extract_source_features(classifier.network, caches, completed_phases(run_folder, TRAINED), recipe)
        transplant = _swap_head(network, recipe, features.means, setup)
        _log_head_rows(transplant, recipe, data.class_names, console)
        progress = NetworkProgress(run_folder, TRAINED, network)
        phases = run_phases(network, recipe.phases, context, logger, progress)
        adaptation = Adaptation(recipe, classifier, features, caches, logger, progress)
        train_rows(adaptation)
        results, comparisons = measure_rows(adaptation)
        report = replace(
            build_report(recipe, setup, run_folder.seconds(), phases, results),
            source=_source_summary(source),
            transplant=transplant,
            comparisons=comparisons,
            retention=retention(source, adaptation, call.data_root),
        )
        if group.leader:
            run_folder.finish(save_run(adapted, metadata_fields, report, outputs, console))
    return report


def _source_summary(source: Source) -> SourceSummary:
    return SourceSummary(
        path=str(source.path) if source.path is not None else None,
        id=source.id,
        sha256=source.sha256,
        model=source.classifier.model,
        dataset=source.dataset,
        accuracy=source.accuracy,
    )


def _swap_head(network: StagedNetwork, recipe: AdaptRecipe, means: ClassMeans | None, setup: AdaptSetup) -> Transplant:
    """Gives the network a head for the target's classes; returns which tensors were kept and which are new."""
    wanted = setup.data.class_names
    head, reused = swap_head(
        network.head,
        setup.classifier.class_names,
        wanted,
        means=None if recipe.head == "random" else means,
        keep_rows=recipe.head == "auto",
    )
    network.set_head(head)
    setup.runtime.place(network)
    new = [] if len(reused) == len(wanted) else list(network.head_tensors())
    return Transplant([name for name in network.state_dict() if name not in new], new, reused)


def _log_head_rows(transplant: Transplant, recipe: AdaptRecipe, classes: tuple[str, ...], console: Console) -> None:
    fresh = [name for name in classes if name not in transplant.head_rows_reused]
    if transplant.head_rows_reused:
        console.note(f"head: rows kept for {', '.join(transplant.head_rows_reused)}")
    if fresh:
        start = "random weights" if recipe.head == "random" else "their class means"
        console.note(f"head: new rows from {start} for {', '.join(fresh)}")
