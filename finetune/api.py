"""The verbs from Python, typed; `import finetune` offers them without importing torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.commands.adapt import DEFAULT_RECIPE
from finetune.commands.adapt import adapt as _adapt
from finetune.commands.evaluate import Evaluation
from finetune.commands.evaluate import evaluate as _evaluate
from finetune.commands.pretrain import pretrain as _pretrain
from finetune.commands.pull import Pulled
from finetune.commands.pull import pull as _pull
from finetune.commands.push import Pushed
from finetune.commands.push import push as _push
from finetune.commands.verify import Verification
from finetune.commands.verify import verify as _verify
from finetune.report.console import Console
from finetune.report.report import Report
from finetune.run.setup import RecipeLike
from finetune.run.snapshot import ResumeOptions

Settings = Mapping[str, Any]


def pretrain(
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    resume: bool = False,
    snapshot_every: float = 60.0,
    quiet: bool = True,
) -> Report:
    """Trains from scratch. Writes `out` (by default checkpoints/NAME.safetensors) and its report; returns the report.

    `recipe` is a file's path or a dict of the same keys. `settings` changes single values of it, as --set does:
    {"phases[0].epochs": 3, "seed": 1}. `resume` goes on with the run of that name that was stopped, from the newest
    of its snapshots, which are `snapshot_every` seconds apart. Errors are those of `finetune.errors`.
    """
    return _pretrain(
        recipe,
        out=out,
        root=data_root,
        device=device,
        overrides=_overrides(settings),
        resume=ResumeOptions(resume, snapshot_every),
        console=_console(quiet),
    )


def adapt(
    source: str | Path,
    target: str | None = None,
    recipe: RecipeLike | None = None,
    *,
    model: str | None = None,
    shots: int | None = None,
    compare: bool = True,
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    resume: bool = False,
    snapshot_every: float = 60.0,
    quiet: bool = True,
) -> Report:
    """Fine-tunes `source` on `target` and compares; returns the report.

    `source` is a checkpoint, `timm:NAME[.TAG]`, `hub:OWNER/NAME[@REVISION]`, or a bare file of weights of `model`;
    `target` a data set's name, a folder of pictures, or a CSV file. `recipe` is by default the shipped
    recipes/adapt.yaml. `shots` is the number of labelled images per class to learn from; `compare=False` leaves out the
    linear probe and the run from scratch. The rest is as for `pretrain`.
    """
    named = {"model.name": model, "data.name": target, "data.shots": shots}
    given = {key: value for key, value in named.items() if value is not None}
    overrides = [*_overrides(given), *_overrides(settings)]
    chosen = DEFAULT_RECIPE if recipe is None else recipe
    return _adapt(
        source,
        chosen,
        compare=compare,
        out=out,
        root=data_root,
        device=device,
        overrides=overrides,
        resume=ResumeOptions(resume, snapshot_every),
        console=_console(quiet),
    )


def evaluate(
    checkpoint: str | Path,
    data: str,
    *,
    data_root: str | Path | None = None,
    device: str = "auto",
    on_bad_image: str = "fail",
) -> Evaluation:
    """Measures a checkpoint on the test images of `data`, for the classes they share by name.

    `data` is a data set's name, a folder of pictures or a CSV file; pictures that cannot be read stop it ("fail") or
    are left out ("skip").
    """
    return _evaluate(checkpoint, data, data_root=data_root, device=device, on_bad_image=on_bad_image)


def verify(
    checkpoint: str | Path,
    data: str | None = None,
    *,
    data_root: str | Path | None = None,
    device: str = "auto",
    fetch: bool = False,
) -> Verification:
    """Whether what a checkpoint says of itself holds; the result's `holds` and `checks` say so. It raises nothing then.

    With `data`, its accuracy there is measured again. `fetch` allows to ask the Hub for parents that are not here.
    """
    return _verify(checkpoint, data, data_root=data_root, device=device, fetch=fetch)


def push(
    checkpoint: str | Path,
    repository: str,
    *,
    private: bool = False,
    tag: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    licence: str | None = None,
    replace: bool = False,
    quiet: bool = True,
) -> Pushed:
    """Puts a checkpoint, its configuration, recipe, report and model card into OWNER/NAME on the Hub, in one commit.

    Nothing is sent that is there already. Another model there is replaced only with `replace`. `licence` is one of the
    Hub's identifiers, such as "mit". The token is HF_TOKEN's or the one that `hf auth login` stored.
    """
    return _push(
        checkpoint,
        repository,
        private=private,
        tag=tag,
        message=message,
        create_pr=create_pr,
        licence=licence,
        yes=replace,
        console=_console(quiet),
    )


def pull(repository: str, *, out: str | Path | None = None, quiet: bool = True) -> Pulled:
    """Writes the weights of OWNER/NAME[@REVISION] to `out`, by default checkpoints/NAME.safetensors, hash compared.

    Those of somebody else's timm repository become a checkpoint with their lineage.
    """
    return _pull(repository, out=out, console=_console(quiet))


def _console(quiet: bool) -> Console:
    return Console(quiet=quiet, results=not quiet)


def _overrides(settings: Settings | None) -> list[str]:
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in (settings or {}).items()]
