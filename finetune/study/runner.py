"""Runs the trials of a study: in this process, in several, or on a cluster; what is finished is never run again."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune.commands.adapt import source_summary
from finetune.errors import Interrupted, SettingError
from finetune.io.atomic import write_atomic
from finetune.io.safe_open import read_regular
from finetune.report.tables import percent
from finetune.run.interrupt import StopRequests, StopSignal
from finetune.run.lock import RunLock
from finetune.run.options import RunCall
from finetune.run.output_paths import LOG, clear_run_folder
from finetune.run.snapshot import SnapshotStore
from finetune.study.cluster import cluster_address
from finetune.study.design import TRAINED_ROWS
from finetune.study.task import MAX_LISTED, FailedTrial, Outcome, TrialTask, run_or_fail
from finetune.study.trial import Trial, TrialResult, TrialRunner
from finetune.text import first_line, json_diff

DESIGN = "study.json"  # what the study in a folder is about
TRIALS = "trials"
STOP = "stop"  # a file that asks the processes of --jobs to stop
MAX_DESIGN_BYTES = 10_000_000


@dataclass(frozen=True)
class TrialOptions:
    """How a study's trials are run: `jobs` at once, and where: None is this machine, else the address of a cluster.

    logs: that each training writes.
    """

    jobs: int = 1
    engine: str | None = None
    logs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise SettingError(f"--jobs {self.jobs}: expected at least 1, the number of trainings at once")
        if self.engine is not None:
            cluster_address(self.engine)
            if self.logs:
                raise SettingError(
                    "--log: a cluster's workers train in folders of their own, where the logs would be lost: expected "
                    "--log or --engine"
                )
            if self.jobs > 1:
                raise SettingError(
                    "--jobs is for this machine, and a cluster has as many trainings at once as it has workers: "
                    "expected --jobs or --engine"
                )


class StudyFolder:
    """Locks a study's folder while a block runs, and keeps two studies from mixing in it.

    design: JSON values that say which study it is. Without --resume an earlier study is moved aside; with it, a study
    of another design is refused. OutputError where another process holds the folder.
    """

    def __init__(self, folder: Path, design: Mapping[str, Any], call: RunCall) -> None:
        self.folder, self.call = folder, call
        self.design: dict[str, Any] = json.loads(json.dumps(design))
        self.stack, self.requests = ExitStack(), StopRequests()

    def __enter__(self) -> StudyFolder:
        folder, console = self.folder, self.call.console
        with self.stack:
            self.stack.enter_context(RunLock(folder))
            if self.call.resume.resume and (found := self._found()) is not None:
                self._refuse_other_study(found)
            elif clear_run_folder(folder, console):
                self.stack.enter_context(RunLock(folder))
            write_atomic(folder / DESIGN, (json.dumps(self.design, indent=1, sort_keys=True) + "\n").encode())
            console.log = folder / LOG
            self.stack.enter_context(self.requests)
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stack.close()
        kept = f"finished trials are kept; resume with: {self.call.resume.resume_command}"
        if isinstance(error, KeyboardInterrupt):
            stop = error if isinstance(error, StopSignal) else StopSignal(signal.SIGINT)
            raise Interrupted(f"stopped by {stop}; {kept}", stop.exit_code) from None
        if isinstance(error, Interrupted) and self.call.resume.resume_command not in str(error):
            error.args = (f"{error}\n{kept}",)

    def trial_folder(self, trial: Trial) -> Path:
        return self.folder / TRIALS / trial.name

    def _found(self) -> Any:
        """The design of the study that is there; None where there is none."""
        try:
            return json.loads(read_regular(self.folder / DESIGN, MAX_DESIGN_BYTES))
        except (OSError, ValueError, RecursionError):
            return None

    def _refuse_other_study(self, found: object) -> None:
        if differences := json_diff(found, self.design):
            more = [f"and {len(differences) - MAX_LISTED} more"] if len(differences) > MAX_LISTED else []
            shown = "".join(f"  {line}\n" for line in [*differences[:MAX_LISTED], *more])
            raise SettingError(
                f"--resume: {self.folder} holds another study, which cannot be resumed:\n{shown}"
                "put that back to resume it, or start anew without --resume, which moves the other study aside"
            )


def run_trials(
    trials: Sequence[Trial], folder: StudyFolder, options: TrialOptions, runner: TrialRunner
) -> dict[str, Outcome]:
    """The outcome of every trial by its name, in order; those that an earlier attempt finished are read.

    `runner` is this process's. Interrupted where a person stops the study; what is finished is kept.
    """
    assert len({trial.name for trial in trials}) == len(trials), "two trials would share a folder"
    console = folder.call.console
    found: dict[str, Outcome] = {}
    for trial in trials:
        if (result := runner.finished(trial, folder.trial_folder(trial))) is not None:
            SnapshotStore(folder.trial_folder(trial) / "snapshots").clear()  # it may have been killed before it did
            found[trial.name] = result
    if found:
        console.note(f"{len(found)} of {len(trials)} trials have finished already")
    waiting = [trial for trial in trials if trial.name not in found]
    outcomes: Iterator[tuple[Trial, Outcome]]
    if not waiting:
        outcomes = iter(())
    elif options.engine is not None:
        outcomes = _run_on_cluster(waiting, folder, options.engine, runner)
    elif options.jobs > 1:
        outcomes = _run_in_processes(waiting, folder, options.jobs, runner)
    else:
        outcomes = ((trial, run_or_fail(runner, trial, folder.trial_folder(trial))) for trial in waiting)
    for trial, outcome in outcomes:
        found[trial.name] = outcome
        console.note(f"{len(found)}/{len(trials)} {trial.name}: {_outcome_text(trial, outcome, runner)}")
    return {trial.name: found[trial.name] for trial in trials}


def completed(outcomes: Mapping[str, Outcome]) -> dict[str, TrialResult]:
    """The results, where every trial has one. FinetuneError with the first failure otherwise."""
    for name, outcome in outcomes.items():
        if isinstance(outcome, FailedTrial):
            raise FailedTrial(f"trial {name}: {outcome.message}", outcome.exit_code).error()
    return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, TrialResult)}


def _outcome_text(trial: Trial, outcome: Outcome, runner: TrialRunner) -> str:
    if isinstance(outcome, FailedTrial):
        return f"failed: {first_line(outcome.message)}"
    labels = runner.setup(trial).data.test.labels
    rows = (
        f"{row.replace('_', ' ')} {percent(float((found.predicted == labels).double().mean()))}"
        for row, found in outcome.answers.items()
    )
    return f"{', '.join(rows) or 'trained'}, {outcome.facts.seconds:.1f} s"


def _tasks(trials: Sequence[Trial], folder: StudyFolder, runner: TrialRunner) -> list[TrialTask]:
    """Orders the trials for other processes: those that train come first, so that all end at about one time."""
    call = folder.call
    longest_first = sorted(trials, key=lambda trial: not set(trial.rows) & set(TRAINED_ROWS))
    return [
        TrialTask(
            trial,
            runner.fingerprint(trial),
            folder.trial_folder(trial).absolute(),
            call.data_root.absolute(),
            call.device,
            call.resume,
            call.logs,
            call.force,
        )
        for trial in longest_first
    ]


def _run_in_processes(
    trials: Sequence[Trial], folder: StudyFolder, jobs: int, runner: TrialRunner
) -> Iterator[tuple[Trial, Outcome]]:
    """Runs `jobs` trials at once in processes of this machine, which share its threads."""
    from finetune.study.pool import run_in_processes

    by_name = {trial.name: trial for trial in trials}
    stop = folder.folder.absolute() / STOP
    tasks = _tasks(trials, folder, runner)
    for name, outcome in run_in_processes(tasks, jobs, folder.requests, stop, folder.call.resume.resume_command):
        yield by_name[name], outcome


def _run_on_cluster(
    trials: Sequence[Trial], folder: StudyFolder, engine: str, runner: TrialRunner
) -> Iterator[tuple[Trial, Outcome]]:
    """Runs trials on the workers of a Dask cluster; results come back here and are written into the study's folder."""
    from finetune.study.cluster import run_on_cluster

    by_name = {trial.name: trial for trial in trials}
    tasks = [replace(task, trial=runner.portable(task.trial)) for task in _tasks(trials, folder, runner)]
    for name, outcome in run_on_cluster(tasks, engine, folder.call.resume.resume_command):
        trial = by_name[name]
        if isinstance(outcome, TrialResult):
            own = source_summary(runner.setup(trial).source)  # its path is this machine's
            outcome = replace(outcome, facts=outcome.facts.model_copy(update={"source": own}))
            outcome.store(folder.trial_folder(trial))
        yield trial, outcome
