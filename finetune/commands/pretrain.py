"""`finetune pretrain`: from a recipe to a checkpoint and its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.commands.facts import AFRESH, Keeping
from finetune.commands.keeper import Keeper
from finetune.commands.legs import TRAINED, Leg
from finetune.commands.material import Material
from finetune.commands.opening import open_images
from finetune.commands.outputs import place_outputs
from finetune.commands.phase_values import check_adapters
from finetune.commands.phases import Watch, run_phases
from finetune.commands.recipes import RecipeLike, check_kind, open_recipe
from finetune.commands.results import measure, recorded, run_report, save_run, what_decides
from finetune.commands.session import Session
from finetune.commands.setting import open_setting
from finetune.commands.together import one_speaks, sharding_told
from finetune.data.batches import Normaliser
from finetune.data.root import data_root
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.recipe.reader import dump_recipe
from finetune.recipe.schema import PretrainRecipe
from finetune.reporting.console import Console
from finetune.reporting.report import Report
from finetune.saving import describe
from finetune.training.evaluation import predictions
from finetune.training.group import Group
from finetune.training.joining import joined
from finetune.training.runtime import choose_runtime, environment, seeded


def pretrain(
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    root: str | Path | None = None,
    device: str = "auto",
    overrides: Sequence[str] = (),
    keeping: Keeping = AFRESH,
    console: Console | None = None,
) -> Report:
    """Trains from scratch, writes `out` (by default checkpoints/NAME.safetensors) and its report, returns the report.

    `recipe` is a file, a dict or a recipe; `overrides` are KEY=VALUE texts as for --set; `root` is the data folder;
    `keeping` says whether to go on with an earlier attempt. Errors are those of `finetune.errors`. Where torchrun has
    started several processes, all train together, and the first one writes.
    """
    console = console or Console(quiet=True, results=False)
    with joined(device) as group:
        return _pretrain(recipe, out, data_root(root), device, overrides, keeping, console, group)


def _pretrain(
    recipe: RecipeLike,
    out: str | Path | None,
    root: Path,
    device: str,
    overrides: Sequence[str],
    keeping: Keeping,
    console: Console,
    group: Group,
) -> Report:
    one_speaks(console, group)
    plan = open_recipe(recipe, overrides)
    check_kind(plan, "pretrain", recipe)
    assert isinstance(plan, PretrainRecipe)
    runtime = choose_runtime(device, plan.precision, group, plan.sharding)
    sharding_told(runtime, console)
    with group.first_here("images"):
        spec, arguments, material = open_images(plan, root, console)
    name = Path(recipe).stem if isinstance(recipe, (str, Path)) else material.name
    described: dict[str, Any] = {"recipe": recorded(plan), "data": material.describe()}
    with seeded(plan.seed):
        network = build_model(plan.model.name, len(material.class_names), arguments)
        check_adapters(network, plan.phases)
        classifier = Classifier(network, plan.model.name, arguments, material.class_names, spec)
        outputs = place_outputs(out, name, writes=group.leader)
        run = what_decides(plan, plan.model.name, described["data"], runtime)
        setting = open_setting(plan, material, spec, runtime, console)
        with (
            Session(outputs, dump_recipe(plan), run, environment(runtime), keeping, console, group) as session,
            setting.cache,
            Keeper(outputs, lambda: describe(classifier, **described), writes=group.leader) as keeper,
        ):
            if session.finished is not None:
                return session.finished
            runtime.place(network)
            normalise = setting.normalise
            after_row = _article_line(material, normalise, console, group) if plan.test_each_epoch else None
            watch = Watch(console, outputs, keeper, after_row)
            phases = run_phases(network, plan.phases, setting, watch, Leg(session, TRAINED, network))
            found = predictions(network, material.test.images.to(runtime.device), normalise, group=group)
            test = measure(material.test, found)
            report = run_report(plan, material, runtime, session.seconds(), phases, {"test": test})
            if group.leader:
                session.finish(save_run(classifier, described, report, outputs, console))
    return report


def _article_line(
    material: Material, normalise: Normaliser, console: Console, group: Group
) -> Callable[[StagedNetwork, int, int], None]:
    """Prints the test accuracy after each epoch in the article's words; nothing is chosen by it."""

    def after_row(network: StagedNetwork, epoch: int, epochs: int) -> None:
        device: torch.device = next(network.parameters()).device
        found = predictions(network, material.test.images.to(device), normalise, group=group)
        right = int((found == material.test.labels).sum())
        console.say(f"Epoch [{epoch}/{epochs}], Accuracy: [{right}/{len(material.test)}]")

    return after_row
