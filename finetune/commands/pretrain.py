"""`finetune pretrain`: from a recipe to a checkpoint and its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.data.normalize import Normalizer
from finetune.distributed.launch import distributed_context
from finetune.distributed.process_group import ProcessGroup
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.paths import data_root
from finetune.recipe.load import dump_recipe
from finetune.recipe.schema import PretrainRecipe
from finetune.report.console import Console
from finetune.report.report import Report
from finetune.run.context import make_context
from finetune.run.data import RunData
from finetune.run.finalize import build_report, public_recipe, run_fingerprint, save_run, score
from finetune.run.interrupt import InterruptCheckpoint
from finetune.run.output_paths import check_outputs
from finetune.run.phase_config import check_adapters
from finetune.run.phases import RunLogger, run_phases
from finetune.run.progress import TRAINED, NetworkProgress
from finetune.run.run_folder import RunFolder, RunIdentity
from finetune.run.setup import RecipeLike, check_kind, mute_non_leaders, open_pretrain_data, open_recipe, warn_sharding
from finetune.run.snapshot import ResumeOptions
from finetune.sources.save import make_metadata
from finetune.train.device import choose_runtime, environment, seeded
from finetune.train.inference import predictions


def pretrain(
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    resume: ResumeOptions | None = None,
    console: Console | None = None,
) -> Report:
    """Trains from scratch, writes `out` (by default checkpoints/NAME.safetensors) and its report, returns the report.

    `recipe` is a file, a dict or a recipe; `overrides` are KEY=VALUE texts as for --set; `root` is the data folder;
    `keeping` says whether to go on with an earlier attempt. Errors are those of `finetune.errors`. Where torchrun has
    started several processes, all train together, and the first one writes.
    """
    console = console or Console(quiet=True, results=False)
    with distributed_context(device) as group:
        return _pretrain(recipe, out, data_root(root), device, overrides, resume or ResumeOptions(), console, group)


def _pretrain(
    recipe: RecipeLike,
    out: str | Path | None,
    root: Path,
    device: str,
    overrides: Sequence[str],
    resume: ResumeOptions,
    console: Console,
    group: ProcessGroup,
) -> Report:
    mute_non_leaders(console, group)
    plan = open_recipe(recipe, overrides)
    check_kind(plan, "pretrain", recipe)
    assert isinstance(plan, PretrainRecipe)
    runtime = choose_runtime(device, plan.precision, group, plan.sharding)
    warn_sharding(runtime, console)
    with group.leader_first("images"):
        spec, arguments, data = open_pretrain_data(plan, root, console)
    name = Path(recipe).stem if isinstance(recipe, (str, Path)) else data.name
    described: dict[str, Any] = {"recipe": public_recipe(plan), "data": data.describe()}
    with seeded(plan.seed):
        network = build_model(plan.model.name, len(data.class_names), arguments)
        check_adapters(network, plan.phases)
        classifier = Classifier(network, plan.model.name, arguments, data.class_names, spec)
        outputs = check_outputs(out, name, writes=group.leader)
        run = run_fingerprint(plan, plan.model.name, described["data"], runtime)
        identity = RunIdentity(dump_recipe(plan), run, environment(runtime))
        context = make_context(plan, data, spec, runtime, console)
        with (
            RunFolder(outputs, identity, resume, console, group) as run_folder,
            context.cache,
            InterruptCheckpoint(
                outputs, lambda: make_metadata(classifier, **described), writes=group.leader
            ) as interrupt_checkpoint,
        ):
            if run_folder.finished is not None:
                return run_folder.finished
            runtime.place(network)
            normalize = context.normalize
            after_row = _article_line(data, normalize, console, group) if plan.test_each_epoch else None
            logger = RunLogger(console, outputs, interrupt_checkpoint, after_row)
            phases = run_phases(network, plan.phases, context, logger, NetworkProgress(run_folder, TRAINED, network))
            found = predictions(network, data.test.images.to(runtime.device), normalize, group=group)
            test = score(data.test, found)
            report = build_report(plan, data, runtime, run_folder.seconds(), phases, {"test": test})
            if group.leader:
                run_folder.finish(save_run(classifier, described, report, outputs, console))
    return report


def _article_line(
    data: RunData, normalize: Normalizer, console: Console, group: ProcessGroup
) -> Callable[[StagedNetwork, int, int], None]:
    """Prints the test accuracy after each epoch in the article's words; nothing is chosen by it."""

    def after_row(network: StagedNetwork, epoch: int, epochs: int) -> None:
        device: torch.device = next(network.parameters()).device
        found = predictions(network, data.test.images.to(device), normalize, group=group)
        right = int((found == data.test.labels).sum())
        console.say(f"Epoch [{epoch}/{epochs}], Accuracy: [{right}/{len(data.test)}]")

    return after_row
