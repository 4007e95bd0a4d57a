"""`finetune adapt`: a source, a target, and the truth about the difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.commands.caching import CachePlan
from finetune.commands.compare import before_predictions, retention, train_scratch
from finetune.commands.facts import AFRESH, Keeping
from finetune.commands.keeper import Keeper
from finetune.commands.legs import TRAINED, Leg, phases_over
from finetune.commands.opening import open_both
from finetune.commands.outputs import place_outputs
from finetune.commands.phase_values import check_adapters
from finetune.commands.phases import Watch, run_phases
from finetune.commands.recipes import RecipeLike, check_kind, open_recipe
from finetune.commands.results import measure, recorded, right_answers, run_report, save_run, what_decides
from finetune.commands.session import Session
from finetune.commands.setting import Setting, open_setting
from finetune.commands.target import Frozen, look_at_target, looks_at_target, solved_probe
from finetune.commands.together import one_speaks, sharding_told
from finetune.data.root import data_root
from finetune.models.classifier import Classifier
from finetune.models.head import swap_head
from finetune.models.staged import StagedNetwork
from finetune.recipe.reader import dump_recipe
from finetune.recipe.schema import AdaptRecipe
from finetune.reporting import verdict
from finetune.reporting.console import Console
from finetune.reporting.report import PhaseSummary, Report, Result, Retention, SourceSummary, Transplant
from finetune.saving import describe
from finetune.source import Source, locate
from finetune.training.activations import TEST, Key
from finetune.training.group import Group
from finetune.training.joining import joined
from finetune.training.runtime import choose_runtime, environment, seeded

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
    keeping: Keeping = AFRESH,
    console: Console | None = None,
) -> Report:
    """Fine-tunes a checkpoint on the recipe's data and compares; writes `out`, its report, and returns the report.

    `compare=False` leaves out the linear probe and the run from scratch, whatever the recipe says. `overrides` are
    KEY=VALUE texts as for --set; `root` is the data folder; `keeping` says whether to go on with an earlier attempt.
    Errors are those of `finetune.errors`. Where torchrun has started several processes, all train together, and the
    first one writes.
    """
    console = console or Console(quiet=True, results=False)
    with joined(device) as group:
        return _adapt(source, recipe, compare, out, data_root(root), device, overrides, keeping, console, group)


def _adapt(
    source: str | Path,
    recipe: RecipeLike,
    compare: bool,
    out: str | Path | None,
    root: Path,
    device: str,
    overrides: Sequence[str],
    keeping: Keeping,
    console: Console,
    group: Group,
) -> Report:
    one_speaks(console, group)
    with group.first_here("source"):
        found = locate(source, note=console.note, bars=not console.quiet)
    plan = open_recipe(recipe, overrides, source=found.architecture)
    check_kind(plan, "adapt", recipe)
    assert isinstance(plan, AdaptRecipe)
    plan = plan if compare else plan.model_copy(update={"compare": ()})
    runtime = choose_runtime(device, plan.precision, group, plan.sharding)
    sharding_told(runtime, console)
    with group.first_here("images"):
        origin, classifier, material = open_both(found, plan, root, console)
    check_adapters(classifier.network, plan.phases)
    outputs = place_outputs(out, f"{origin.name}-{material.name}", writes=group.leader)
    described: dict[str, Any] = {"recipe": recorded(plan), "data": material.describe()}
    described["lineage"] = origin.lineage_of_child()
    adapted = classifier.with_classes(material.class_names)
    run = {
        **what_decides(plan, classifier.model, described["data"], runtime),
        "source": {"id": origin.id, "sha256": origin.sha256},
    }
    looked = looks_at_target(plan, classifier.class_names, material.class_names)
    setting = open_setting(plan, material, classifier.input, runtime, console, looked=looked)
    with (
        seeded(plan.seed),
        Session(outputs, dump_recipe(plan), run, environment(runtime), keeping, console, group) as session,
        setting.cache,
        Keeper(outputs, lambda: describe(adapted, **described), writes=group.leader) as keeper,
    ):
        if session.finished is not None:
            return session.finished
        for network in (classifier.network, adapted.network):
            runtime.place(network)
        watch, caches = Watch(console, outputs, keeper), CachePlan(adapted.network, plan.phases, setting)
        frozen = look_at_target(classifier.network, caches, phases_over(session, TRAINED), plan)
        transplant = _swap_head(adapted.network, plan, frozen, setting, classifier.class_names)
        _say_map(transplant, plan, material.class_names, console)
        leg = Leg(session, TRAINED, adapted.network)
        phases = run_phases(adapted.network, plan.phases, setting, watch, leg)
        scratch = train_scratch(plan, classifier, setting, watch, leg) if "scratch" in plan.compare else None
        tested = _test(classifier, frozen, caches, scratch, plan)
        kept = retention(origin, classifier, adapted.network, setting, root, caches.untouched())
        report = _report(plan, origin, setting, session.seconds(), phases, transplant, tested, kept)
        if group.leader:
            session.finish(save_run(adapted, described, report, outputs, console))
    return report


def _report(
    plan: AdaptRecipe,
    source: Source,
    setting: Setting,
    seconds: float,
    phases: list[PhaseSummary],
    transplant: Transplant,
    tested: Tested,
    kept: Retention | None,
) -> Report:
    results, comparisons = tested
    return run_report(
        plan,
        setting.material,
        setting.runtime,
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


def _swap_head(network: StagedNetwork, plan: AdaptRecipe, frozen: Frozen, setting: Setting, known: Names) -> Transplant:
    """Gives the network a head for the target's classes, and returns what was taken over and what started new."""
    wanted = setting.material.class_names
    head, reused = swap_head(
        network.head,
        known,
        wanted,
        means=None if plan.head == "random" else frozen.means,
        keep_rows=plan.head == "auto",
    )
    network.set_head(head)
    setting.runtime.place(network)
    tensors = list(network.state_dict())
    new = [] if len(reused) == len(wanted) else list(network.head_tensors())
    return Transplant([name for name in tensors if name not in new], new, reused)


def _say_map(transplant: Transplant, plan: AdaptRecipe, classes: Names, console: Console) -> None:
    fresh = [name for name in classes if name not in transplant.head_rows_reused]
    if transplant.head_rows_reused:
        console.note(f"head: rows kept for {', '.join(transplant.head_rows_reused)}")
    if fresh:
        start = "random weights" if plan.head == "random" else "their class means"
        console.note(f"head: new rows from {start} for {', '.join(fresh)}")


def _test(
    source: Classifier,
    frozen: Frozen,
    caches: CachePlan,
    scratch: StagedNetwork | None,
    plan: AdaptRecipe,
) -> Tested:
    """Opens the test set, once: every row of the verdict is measured on the same images."""
    material, cache = caches.setting.material, caches.cache
    test = material.test
    cache.keep_in_memory(source.network, Key(TEST, caches.untouched()))
    seen = cache.outputs(source.network, TEST, -1)
    found_before, method = before_predictions(
        source.network.head, source.class_names, material.class_names, seen, frozen.means
    )
    found_after = cache.outputs(caches.network, TEST).argmax(1).cpu()
    results: dict[str, Result | None] = {
        "before": measure(test, found_before, method=method, detailed=False),
        "linear_probe": None,
        "after": measure(test, found_after),
        "scratch": None,
    }
    right_after = right_answers(test, found_after)
    comparisons: dict[str, verdict.Comparison | None] = {
        "after_vs_before": verdict.compare(right_answers(test, found_before), right_after),
        "after_vs_scratch": None,
    }
    if "linear_probe" in plan.compare:
        with torch.no_grad():
            found = solved_probe(frozen, material)(seen.cpu()).argmax(1)
        results["linear_probe"] = measure(test, found, detailed=False)
    if scratch is not None:
        found = cache.outputs(scratch, TEST).argmax(1).cpu()
        results["scratch"] = measure(test, found, detailed=False)
        comparisons["after_vs_scratch"] = verdict.compare(right_answers(test, found), right_after)
    return results, comparisons
