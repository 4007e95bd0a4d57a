"""Runs the trials of a study: in this process, in several, or on a cluster; what is finished is never run again."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from finetune.distributed.process_group import SINGLE_PROCESS
from finetune.errors import FinetuneError, Interrupted, SettingError, TrainingError
from finetune.io.atomic import write_atomic
from finetune.io.safe_open import read_regular
from finetune.report.console import Console
from finetune.report.tables import percent
from finetune.run.interrupt import StopRequests, StopSignal
from finetune.run.lock import RunLock
from finetune.run.options import RunCall
from finetune.run.output_paths import LOG, clear_run_folder
from finetune.run.snapshot import ResumeOptions, SnapshotStore
from finetune.study.trial import Trial, TrialResult, TrialRunner
from finetune.text import first_line, json_diff

DESIGN = "study.json"  # what the study in a folder is about
TRIALS = "trials"
MAX_DESIGN_BYTES = 10_000_000
MAX_LISTED = 8  # differences in one message


@dataclass(frozen=True)
class TrialOptions:
    """How a study's trials are run: `jobs` at once, and where: None is this machine, else the address of a cluster."""

    jobs: int = 1
    engine: str | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise SettingError(f"--jobs {self.jobs}: expected at least 1, the number of trainings at once")


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
        if isinstance(error, StopSignal):
            hint = f"resume with: {self.call.resume.resume_command}"
            raise Interrupted(f"stopped by {error}; finished trials are kept; {hint}", error.exit_code) from None

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


@dataclass(frozen=True)
class FailedTrial:
    """Why a trial came to no result: an error's message and exit code, which a process hands to another."""

    message: str
    exit_code: int

    def error(self) -> FinetuneError:
        """The error again, of the process that runs the study."""
        found = FinetuneError(self.message)
        found.exit_code = self.exit_code
        return found


Outcome = TrialResult | FailedTrial


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
    if options.engine is not None:
        outcomes = _run_on_cluster(waiting, folder, options.engine, runner)
    elif options.jobs > 1 and len(waiting) > 1:
        outcomes = _run_in_processes(waiting, folder, min(options.jobs, len(waiting)), runner)
    else:
        outcomes = ((trial, _run(runner, trial, folder.trial_folder(trial))) for trial in waiting)
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
    return f"{', '.join(rows)}, {outcome.facts.seconds:.1f} s"


def _run(runner: TrialRunner, trial: Trial, folder: Path) -> Outcome:
    try:
        return runner.run(trial, folder)
    except Interrupted:
        raise
    except FinetuneError as error:
        return FailedTrial(str(error), error.exit_code)


@dataclass(frozen=True)
class TrialTask:
    """A trial as another process gets it, in plain values; `folder` None: that process has none of ours.

    expected: the fingerprint that the trial has in the process that asks for it. threads: for torch.
    """

    trial: Trial
    expected: dict[str, Any]
    folder: Path | None
    data_root: Path
    device: str
    resume: ResumeOptions
    threads: int


_RUNNERS: dict[tuple[Path, str], TrialRunner] = {}  # of this process, so that its trials share what they can


def run_task(task: TrialTask) -> Outcome:
    """Runs a trial in a process of a pool or a cluster, where its source, data and versions are the same there."""
    torch.set_num_threads(task.threads)
    call = RunCall(
        SINGLE_PROCESS, Console(quiet=True, results=False), None, task.data_root, task.device, (), task.resume
    )
    runner = _RUNNERS.setdefault((task.data_root, task.device), TrialRunner(call))
    try:
        if differences := json_diff(task.expected, runner.fingerprint(task.trial)):
            shown = "; ".join(differences[:MAX_LISTED])
            return FailedTrial(f"{socket.gethostname()}: other source, data or versions than here: {shown}", 2)
        if task.folder is not None:
            return _run(runner, task.trial, task.folder)
        with tempfile.TemporaryDirectory() as folder:
            return _run(runner, task.trial, Path(folder))
    except Interrupted:
        raise
    except FinetuneError as error:
        return FailedTrial(f"{socket.gethostname()}: {error}", error.exit_code)


def _tasks(trials: Sequence[Trial], folder: StudyFolder, runner: TrialRunner, threads: int, *, here: bool) -> Any:
    """Calls of `run_task` for joblib; `here`: on this machine, which has the study's folder."""
    from joblib import delayed

    call = folder.call
    for trial in trials:
        place = folder.trial_folder(trial).absolute() if here else None
        expected = runner.fingerprint(trial)
        task = TrialTask(trial, expected, place, call.data_root, call.device, call.resume, threads)
        yield delayed(_named)(trial.name, task)


def _named(name: str, task: TrialTask) -> tuple[str, Outcome]:
    return name, run_task(task)


def _run_in_processes(
    trials: Sequence[Trial], folder: StudyFolder, jobs: int, runner: TrialRunner
) -> Iterator[tuple[Trial, Outcome]]:
    """Runs `jobs` trials at once in processes of this machine, which share its threads."""
    from joblib import Parallel
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    threads = max(1, torch.get_num_threads() // jobs)
    by_name = {trial.name: trial for trial in trials}
    pool = Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)
    try:
        for name, outcome in pool(_tasks(trials, folder, runner, threads, here=True)):
            yield by_name[name], outcome
    except TerminatedWorkerError:
        raise TrainingError(
            f"a process of --jobs {jobs} was killed; if nobody killed it, memory may have run out: try fewer jobs; "
            f"finished trials are kept; resume with: {folder.call.resume.resume_command}"
        ) from None


def _run_on_cluster(
    trials: Sequence[Trial], folder: StudyFolder, engine: str, runner: TrialRunner
) -> Iterator[tuple[Trial, Outcome]]:
    """Runs trials on the workers of a Dask cluster; results come back here and are written into the study's folder."""
    raise NotImplementedError
