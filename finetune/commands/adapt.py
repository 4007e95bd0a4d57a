"""`finetune adapt`: a source, a target, and the truth about the difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.commands.baselines import (
    SourceFeatures,
    before_predictions,
    extract_source_features,
    linear_probe,
    needs_source_features,
    retention,
    train_scratch,
)
from finetune.distributed.launch import distributed_context
from finetune.distributed.process_group import ProcessGroup
from finetune.models.classifier import Classifier
from finetune.models.head import swap_head
from finetune.models.staged import StagedNetwork
from finetune.paths import data_root
from finetune.recipe.load import dump_recipe
from finetune.recipe.schema import AdaptRecipe
from finetune.report import comparison as verdict
from finetune.report.console import Console
from finetune.report.report import PhaseSummary, Report, Result, Retention, SourceSummary, Transplant
from finetune.run.cache_plan import CachePlan
from finetune.run.context import TrainContext, make_context
from finetune.run.finalize import (
    build_report,
    correct_mask,
    public_recipe,
    run_fingerprint,
    save_run,
    score,
)
from finetune.run.interrupt import InterruptCheckpoint
from finetune.run.output_paths import check_outputs
from finetune.run.phase_config import check_adapters
from finetune.run.phases import RunLogger, run_phases
from finetune.run.progress import TRAINED, NetworkProgress, completed_phases
from finetune.run.run_folder import RunFolder, RunIdentity
from finetune.run.setup import (
    RecipeLike,
    check_kind,
    mute_non_leaders,
    open_recipe,
    open_source_and_data,
    warn_sharding,
)
from finetune.run.snapshot import ResumeOptions
from finetune.sources.resolve import Source, locate
from finetune.sources.save import make_metadata
from finetune.train.activation_cache import TEST, ActivationKey
from finetune.train.device import choose_runtime, environment, seeded

DEFAULT_RECIPE = Path("recipes/adapt.yaml")

Names = tuple[str, ...]

Tested = tuple[dict[str, Result | None], dict[str, verdict.Comparison | None]]


def adapt(
    source: str | Path,
    recipe: RecipeLike = DEFAULT_RECIPE,
    *,
    compare: bool = True,
    out: str | Path | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    resume: ResumeOptions | None = None,
    console: Console | None = None,
) -> Report:
    """Fine-tunes a checkpoint on the recipe's data and compares; writes `out`, its report, and returns the report.

    `compare=False` leaves out the linear probe and the run from scratch, whatever the recipe says. `overrides` are
    KEY=VALUE texts as for --set; `root` is the data folder; `keeping` says whether to go on with an earlier attempt.
    Errors are those of `finetune.errors`. Where torchrun has started several processes, all train together, and the
    first one writes.
    """
    console = console or Console(quiet=True, results=False)
    with distributed_context(device) as group:
        resume = resume or ResumeOptions()
        return _adapt(source, recipe, compare, out, data_root(root), device, overrides, resume, console, group)


def _adapt(
    source: str | Path,
    recipe: RecipeLike,
    compare: bool,
    out: str | Path | None,
    root: Path,
    device: str,
    overrides: Sequence[str],
    resume: ResumeOptions,
    console: Console,
    group: ProcessGroup,
) -> Report:
    mute_non_leaders(console, group)
    with group.leader_first("source"):
        found = locate(source, note=console.note, bars=not console.quiet)
    plan = open_recipe(recipe, overrides, source=found.architecture)
    check_kind(plan, "adapt", recipe)
    assert isinstance(plan, AdaptRecipe)
    plan = plan if compare else plan.model_copy(update={"compare": ()})
    runtime = choose_runtime(device, plan.precision, group, plan.sharding)
    warn_sharding(runtime, console)
    with group.leader_first("images"):
        origin, classifier, data = open_source_and_data(found, plan, root, console)
    check_adapters(classifier.network, plan.phases)
    outputs = check_outputs(out, f"{origin.name}-{data.name}", writes=group.leader)
    described: dict[str, Any] = {"recipe": public_recipe(plan), "data": data.describe()}
    described["lineage"] = origin.lineage_of_child()
    adapted = classifier.with_classes(data.class_names)
    run = {
        **run_fingerprint(plan, classifier.model, described["data"], runtime),
        "source": {"id": origin.id, "sha256": origin.sha256},
    }
    identity = RunIdentity(dump_recipe(plan), run, environment(runtime))
    needs_features = needs_source_features(plan, classifier.class_names, data.class_names)
    context = make_context(plan, data, classifier.input, runtime, console, needs_features=needs_features)
    with (
        seeded(plan.seed),
        RunFolder(outputs, identity, resume, console, group) as run_folder,
        context.cache,
        InterruptCheckpoint(
            outputs, lambda: make_metadata(adapted, **described), writes=group.leader
        ) as interrupt_checkpoint,
    ):
        if run_folder.finished is not None:
            return run_folder.finished
        for network in (classifier.network, adapted.network):
            runtime.place(network)
        logger, cache_plan = (
            RunLogger(console, outputs, interrupt_checkpoint),
            CachePlan(adapted.network, plan.phases, context),
        )
        frozen = extract_source_features(classifier.network, cache_plan, completed_phases(run_folder, TRAINED), plan)
        transplant = _swap_head(adapted.network, plan, frozen, context, classifier.class_names)
        _log_head_rows(transplant, plan, data.class_names, console)
        progress = NetworkProgress(run_folder, TRAINED, adapted.network)
        phases = run_phases(adapted.network, plan.phases, context, logger, progress)
        scratch = train_scratch(plan, classifier, context, logger, progress) if "scratch" in plan.compare else None
        tested = _test(classifier, frozen, cache_plan, scratch, plan)
        kept = retention(origin, classifier, adapted.network, context, root, cache_plan.frozen_depth())
        report = _report(plan, origin, context, run_folder.seconds(), phases, transplant, tested, kept)
        if group.leader:
            run_folder.finish(save_run(adapted, described, report, outputs, console))
    return report


def _report(
    plan: AdaptRecipe,
    source: Source,
    context: TrainContext,
    seconds: float,
    phases: list[PhaseSummary],
    transplant: Transplant,
    tested: Tested,
    kept: Retention | None,
) -> Report:
    results, comparisons = tested
    return build_report(
        plan,
        context.data,
        context.runtime,
        seconds,
        phases,
        results,
        source=_source_summary(source),
        transplant=transplant,
        comparisons=comparisons,
        retention=kept,
    )


def _source_summary(source: Source) -> SourceSummary:
    return SourceSummary(
        path=str(source.path) if source.path is not None else None,
        id=source.id,
        sha256=source.sha256,
        model=source.classifier.model,
        dataset=source.dataset,
        accuracy=source.accuracy,
    )


def _swap_head(
    network: StagedNetwork, plan: AdaptRecipe, frozen: SourceFeatures, context: TrainContext, known: Names
) -> Transplant:
    """Gives the network a head for the target's classes, and returns what was taken over and what started new."""
    wanted = context.data.class_names
    head, reused = swap_head(
        network.head,
        known,
        wanted,
        means=None if plan.head == "random" else frozen.means,
        keep_rows=plan.head == "auto",
    )
    network.set_head(head)
    context.runtime.place(network)
    tensors = list(network.state_dict())
    new = [] if len(reused) == len(wanted) else list(network.head_tensors())
    return Transplant([name for name in tensors if name not in new], new, reused)


def _log_head_rows(transplant: Transplant, plan: AdaptRecipe, classes: Names, console: Console) -> None:
    fresh = [name for name in classes if name not in transplant.head_rows_reused]
    if transplant.head_rows_reused:
        console.note(f"head: rows kept for {', '.join(transplant.head_rows_reused)}")
    if fresh:
        start = "random weights" if plan.head == "random" else "their class means"
        console.note(f"head: new rows from {start} for {', '.join(fresh)}")


def _test(
    source: Classifier,
    frozen: SourceFeatures,
    cache_plan: CachePlan,
    scratch: StagedNetwork | None,
    plan: AdaptRecipe,
) -> Tested:
    """Opens the test set, once: every row of the verdict is measured on the same images."""
    data, cache = cache_plan.context.data, cache_plan.cache
    test = data.test
    cache.keep_in_memory(source.network, ActivationKey(TEST, cache_plan.frozen_depth()))
    seen = cache.outputs(source.network, TEST, -1)
    found_before, method = before_predictions(
        source.network.head, source.class_names, data.class_names, seen, frozen.means
    )
    found_after = cache.outputs(cache_plan.network, TEST).argmax(1).cpu()
    results: dict[str, Result | None] = {
        "before": score(test, found_before, method=method, detailed=False),
        "linear_probe": None,
        "after": score(test, found_after),
        "scratch": None,
    }
    right_after = correct_mask(test, found_after)
    comparisons: dict[str, verdict.Comparison | None] = {
        "after_vs_before": verdict.compare(correct_mask(test, found_before), right_after),
        "after_vs_scratch": None,
    }
    if "linear_probe" in plan.compare:
        with torch.no_grad():
            found = linear_probe(frozen, data)(seen.cpu()).argmax(1)
        results["linear_probe"] = score(test, found, detailed=False)
    if scratch is not None:
        found = cache.outputs(scratch, TEST).argmax(1).cpu()
        results["scratch"] = score(test, found, detailed=False)
        comparisons["after_vs_scratch"] = verdict.compare(correct_mask(test, found), right_after)
    return results, comparisons
