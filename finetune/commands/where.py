"""`finetune where`: which stages of a source to train for a target, as a recipe; trains nothing."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Unpack

from finetune.commands.adapt import DEFAULT_RECIPE, source_summary
from finetune.commands.auto_stages import answer_stages, check_answerable, recipe_for
from finetune.io.outputs import check_output, replace_file
from finetune.io.sanitize import printable
from finetune.recipe.load import dump_recipe
from finetune.recipe.schema import AdaptRecipe
from finetune.report.report import TargetSummary
from finetune.report.stage_answer import stage_parts
from finetune.report.where_report import WhereReport
from finetune.run.finalize import public_recipe
from finetune.run.options import RunOptions, start_run
from finetune.run.setup import RecipeLike, expect_kind, find_source, open_adapt, open_recipe


def where(
    source: str | Path,
    target: str | None = None,
    recipe: RecipeLike = DEFAULT_RECIPE,
    *,
    model: str | None = None,
    shots: int | None = None,
    **options: Unpack[RunOptions],
) -> WhereReport:
    """Scores each stage of `source` on the images of `target` to learn from, and writes a recipe with the answer.

    The recipe is the one that is given, with other stages to train; `out` names its file, by default
    recipes/where-NAME.yaml. Test images are never looked at. The rest, and errors, are as for `finetune.adapt`.
    """
    with start_run(options, source, target, recipe) as call:
        located = find_source(source, call)
        overrides = call.overrides({"model.name": model}, {"data.name": target, "data.shots": shots})
        checked = expect_kind(AdaptRecipe, open_recipe(recipe, overrides, located.architecture), recipe)
        setup = open_adapt(located, checked, call)
        check_answerable(checked, setup.classifier.network.stages[-1])
        data, console = setup.data, call.console
        named = call.out or Path("recipes") / f"where-{setup.source.name}-{data.name}.yaml"
        out = check_output(named, "--out", [".yaml"], inputs=(*call.reads, checked.data.name, setup.source.path))
        for note in data.notes:
            console.note(note)
        began = time.perf_counter()
        answer = answer_stages(checked, setup)
        written = recipe_for(checked, answer)
        report = WhereReport(
            source=source_summary(setup.source),
            target=TargetSummary(
                data.name,
                list(data.class_names),
                len(data.train),
                len(data.validation),
                len(data.test),
                list(data.notes),
            ),
            where=answer,
            recipe=public_recipe(written),
            out=str(out),
            seconds=time.perf_counter() - began,
        )
        if call.group.leader:
            replace_file(out, _recipe_text(written, report, setup.source.name).encode(), console.note)
        for part in stage_parts(report.to_dict()["where"]):
            console.show(part)
        console.say(f"wrote {out}; finetune adapt --recipe {out} trains by it, with the same --from and --target")
    return report


def _recipe_text(recipe: AdaptRecipe, report: WhereReport, source: str) -> str:
    """The recipe as YAML, below a comment that says where its stages come from."""
    rows = [f"{row.stage}: {'trains' if row.trains else 'frozen'}: {row.why}" for row in report.where.stages]
    about = f"What finetune where answered for {source} on {report.target.name}: {report.conclusion}"
    lines = [part for text in (about, *rows) for part in textwrap.wrap(printable(text), 118)]
    return "".join(f"# {line}\n" for line in lines) + dump_recipe(recipe)
