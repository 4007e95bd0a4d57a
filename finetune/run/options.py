"""The options that all commands that train have in common, and what they come to for one call."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from finetune.distributed.launch import distributed_context
from finetune.distributed.process_group import ProcessGroup
from finetune.errors import SettingError
from finetune.paths import data_root
from finetune.report.console import Console
from finetune.run.loggers import check_logs
from finetune.run.snapshot import ResumeOptions


class RunOptions(TypedDict, total=False):
    """Keyword options of `finetune.pretrain` and `finetune.adapt`; all may be left out.

    out: the checkpoint to write, by default checkpoints/NAME.safetensors; its report is written beside it.
    data_root: the folder of the data sets, by default $FINETUNE_DATA_ROOT, else ./data.
    device: "auto", "cpu", "cuda[:N]" or "mps".
    seed: instead of the recipe's.
    settings: changes of single values of the recipe, as --set has them: {"phases[0].epochs": 3} or ["seed=1"].
    resume: continue the run of that name that was stopped, from its newest snapshot.
    snapshot_every: seconds between two snapshots within an epoch, by default 60.
    log: logs beside metrics.jsonl, "tensorboard" and "trackio"; each needs the package of that name.
    resume_command: what messages tell a person to type to resume.
    html: also write the report as a page, NAME.report.html.
    force: train even where the memory seems too small.
    quiet: False shows progress and results on the terminal; `console` is where to show them.
    """

    out: str | Path | None
    data_root: str | Path | None
    device: str
    seed: int | None
    settings: Mapping[str, Any] | Sequence[str] | None
    resume: bool
    snapshot_every: float
    log: Sequence[str]
    resume_command: str
    html: bool
    force: bool
    quiet: bool
    console: Console | None


@dataclass(frozen=True)
class RunCall:
    """One call of a command that trains: its options with defaults filled in, and the processes that train together."""

    group: ProcessGroup
    console: Console
    out: str | Path | None
    data_root: Path
    device: str
    settings: tuple[str, ...]
    resume: ResumeOptions
    html: bool = False
    logs: tuple[str, ...] = ()
    force: bool = False
    reads: tuple[str | Path, ...] = ()

    def overrides(self, before: Mapping[str, Any] | None = None, after: Mapping[str, Any] | None = None) -> list[str]:
        """All KEY=VALUE changes of the recipe: `before`, settings, `after`. None in the outer two is no change."""
        return [*_as_settings(_given(before)), *self.settings, *_as_settings(_given(after))]


def _given(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (values or {}).items() if value is not None}


def _as_settings(values: Mapping[str, Any]) -> list[str]:
    """{"seed": 1} as ["seed=1"]; None is null."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


@contextmanager
def start_run(options: RunOptions, *reads: object) -> Iterator[RunCall]:
    """Joins the processes that torchrun started, if it did, and fills in defaults; all but the leader are silent.

    reads: what the call was given to read; texts and paths among it are never written over.
    """
    quiet, device = options.get("quiet", True), options.get("device", "auto")
    console = options.get("console") or Console(quiet=quiet, results=not quiet)
    given = options.get("settings") or ()
    settings = _as_settings(given) if isinstance(given, Mapping) else given
    snapshot_every = options.get("snapshot_every", 60.0)
    if not 0 <= snapshot_every < math.inf:
        raise SettingError(f"snapshot_every: expected seconds, 0 or more, found {snapshot_every}")
    resume = ResumeOptions(
        options.get("resume", False),
        snapshot_every,
        options.get("resume_command", "the same call with resume=True"),
    )
    logs = check_logs(options.get("log", ()))
    with distributed_context(device) as group:
        if not group.leader:
            console.hush()
        root = data_root(options.get("data_root"))
        html = options.get("html", False)
        seed = _as_settings(_given({"seed": options.get("seed")}))
        force = options.get("force", False)
        given_paths = tuple(own for own in reads if isinstance(own, (str, Path)))
        yield RunCall(
            group, console, options.get("out"), root, device, (*settings, *seed), resume, html, logs, force, given_paths
        )
