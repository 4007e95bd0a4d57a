"""Trials one after the other, in processes and on a cluster: the same bytes, what stops them, and what is kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import ROOT, Impatient, adapt_recipe, phase, refused, report_of, worked

from finetune.errors import Interrupted, SettingError
from finetune.report.console import Console
from finetune.report.report import SourceSummary
from finetune.run.finalize import RowAnswers
from finetune.run.interrupt import StopRequests, StopSignal
from finetune.study.cluster import cluster_address
from finetune.study.seeds import adapt_seeds
from finetune.study.task import FailedTrial
from finetune.study.trial import TrialFacts, TrialResult, TrialRunner

RECIPE = adapt_recipe(phase("all", "steps: 6", 10))
LONG = adapt_recipe(phase("all", "steps: 400", 10))
LIMIT = 240.0  # seconds, for a machine with other work
TIMES = ("seconds", "images_per_second")


def typed(source: Path, out: str, *words: object, recipe: str = RECIPE) -> list[str]:
    Path("adapt.yaml").write_text(recipe)
    given = ("--from", source, "--target", "kmnist", "--recipe", "adapt.yaml", "--out", out, *words)
    return ["adapt", *map(str, given)]


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def timeless(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: timeless(value) for key, value in values.items() if key not in TIMES}
    return [timeless(value) for value in values] if isinstance(values, list) else values


def left(out: str) -> tuple[str, Any]:
    """What a study ends with: the checkpoint's sha256, and the report without times."""
    return sha256(out), timeless(report_of(out))


def trained(name: str, *, row: str = "after") -> dict[str, float]:
    """When the result of each trial of a row was written."""
    found = Path("runs", name, "trials").glob(f"{row}-*/result/*/manifest.json")
    return {path.parts[3]: path.stat().st_mtime_ns for path in found}


# One after the other


class Quiet(Console):
    def __init__(self) -> None:
        super().__init__(quiet=True, results=False)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_an_interrupted_study_repeats_nothing(folder, pretrained):
    worked(*typed(pretrained, "whole.safetensors", "--seeds", 2, "--quiet"))
    Path("stopped.yaml").write_text(RECIPE)
    with pytest.raises(Interrupted, match="finished trials are kept; resume with"):
        adapt_seeds(pretrained, "kmnist", "stopped.yaml", seeds=2, out="stopped.safetensors", console=Impatient("2/4"))
    before = trained("stopped")
    assert list(before) == ["after-seed-0"] and not Path("stopped.safetensors").exists()
    console = Quiet()
    adapt_seeds(pretrained, "kmnist", "stopped.yaml", seeds=2, out="stopped.safetensors", resume=True, console=console)
    assert console.notes[-3:-1] != [] and "2 of 4 trials have finished already" in console.notes
    assert trained("stopped")["after-seed-0"] == before["after-seed-0"]
    assert left("stopped.safetensors") == left("whole.safetensors")


@pytest.mark.slow
def test_what_resume_does_to_a_finished_study(folder, pretrained):
    words = typed(pretrained, "study.safetensors", "--seeds", 2, "--quiet")
    worked(*words)
    first, before = left("study.safetensors"), trained("study")
    files = {path: path.read_bytes() for path in Path().glob("study.*")}

    done = worked(*words[:-1], "--resume")  # nothing to do
    assert "4 of 4 trials have finished already" in done.err and "over 2 seeds" in done.out
    assert "the same bytes as the run before" in done.err and trained("study") == before
    assert {path: path.read_bytes() for path in Path().glob("study.*")} == files, "times too: they are the trials'"

    worked(*typed(pretrained, "study.safetensors", "--seeds", 3, "--quiet", "--resume"))  # one seed more
    after = trained("study")
    assert before.items() < after.items() and set(after) - set(before) == {"after-seed-2"}
    assert report_of("study.safetensors")["seeds"] == [0, 1, 2] and sha256("study.safetensors") == first[0]

    other = refused(*words, "--resume", "--set", "phases[0].steps=7")  # another study
    assert "holds another study" in other and "recipe.phases[0].steps: 6 there, 7 here" in other
    assert trained("study") == after

    worked(*words)  # anew
    assert len(list(Path("runs").glob("study.was-*"))) == 1
    assert left("study.safetensors") == first


def test_a_trial_of_other_data_is_not_taken_for_finished(folder, pretrained):
    worked(*typed(pretrained, "study.safetensors", "--seeds", 1, "--quiet"))
    facts = next(Path("runs/study/trials/after-seed-0/result").rglob("facts.json"))
    assert json.loads(facts.read_text())["fingerprint"]["rows"] == ["after"]
    state = facts.with_name("state.safetensors")
    state.write_bytes(state.read_bytes()[:-1])  # damaged: trained again
    sha = sha256("study.safetensors")
    done = worked(*typed(pretrained, "study.safetensors", "--seeds", 1, "--resume"))
    assert "1 of 2 trials have finished already" in done.err and sha256("study.safetensors") == sha


VIEWS = phase("head", "epochs: 3", 10, more="views: 2")


def test_a_study_that_is_moved_aside_is_named(tmp_path):
    from finetune.run.output_paths import clear_run_folder

    (tmp_path / "study" / "trials" / "after-seed-0" / "result").mkdir(parents=True)
    (tmp_path / "study" / "trials" / "after-seed-1").mkdir()
    console = Quiet()
    assert clear_run_folder(tmp_path / "study", console)
    [said] = console.notes
    assert "it is a study with 1 finished trial, which its own command with --resume would have gone on with" in said


def test_a_path_that_is_not_utf8_is_kept(tmp_path):
    path = os.fsdecode(b"\xff.safetensors")
    source = SourceSummary(path=path, sha256="0", model="cnn", dataset=None, accuracy=None)
    options = {"methods": {}, "seconds": 0.0, "environment": {}, "phases": [], "transplant": None, "retention": None}
    facts = TrialFacts(fingerprint={"source": path}, source=source, **options).as_read()
    TrialResult(facts, {}).store(tmp_path)
    found = TrialResult.load(tmp_path)
    assert found is not None and found.facts == facts and found.facts.source.path == path


SHARED = {  # recipes whose trainings find something of each other's in their cache
    "views": adapt_recipe(VIEWS, "{augment: digits, validation: 0}", more="head: random\n"),
    "plain": adapt_recipe(phase("head", "epochs: 2", 10) + phase("[fc1, head]", "epochs: 2", 10)),
}


@pytest.mark.parametrize("recipe", SHARED)
def test_a_trial_does_not_depend_on_those_before_it(folder, pretrained, recipe):
    from finetune.report.rows import wanted_rows
    from finetune.run.options import start_run
    from finetune.study.design import open_study_recipe, row_trials

    Path("adapt.yaml").write_text(SHARED[recipe])
    with start_run({}) as call:
        given = open_study_recipe(pretrained, "adapt.yaml", ({}, {"data.name": "kmnist"}), call)
        rows = wanted_rows(given.compare)
        trials = row_trials(str(pretrained), given, rows, [0, 1], shots=5, same_shots=True, keep_all=True)
        together = TrialRunner(call)
        for trial in trials:
            found = together.run(trial, folder / "together" / trial.name)
            alone = TrialRunner(call).run(trial, folder / "alone" / trial.name)
            for name in ("answers", "weights"):
                assert_equal(getattr(found, name), getattr(alone, name))


def assert_equal(found: Any, expected: Any) -> None:
    """Tensors of the same bytes, in mappings and answers of the same keys."""
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(found, RowAnswers):
        assert_equal(found.tensors(), expected.tensors())
    else:
        mappings = isinstance(found, dict)
        for own, other in zip(*((x.values() if mappings else x) for x in (found, expected)), strict=True):
            assert_equal(own, other)


def test_the_innermost_block_handles_a_request():
    with StopRequests(), StopRequests() as inner:
        inner.hold()
        signal.raise_signal(signal.SIGTERM)  # SIGINT is ignored in a shell's background
        assert inner.asked == signal.SIGTERM
        with pytest.raises(StopSignal):
            inner.release()


def test_a_request_that_is_held_is_told_once():
    said: list[str] = []
    with StopRequests() as requests:
        requests.hold(lambda: said.append("asked"))
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert said == ["asked"]


# In processes of this machine


@pytest.mark.slow
def test_processes_give_the_same_bytes(folder, pretrained):
    worked(*typed(pretrained, "one.safetensors", "--seeds", 2, "--quiet"))
    done = worked(*typed(pretrained, "two.safetensors", "--seeds", 2, "--jobs", 2))
    assert left("two.safetensors") == left("one.safetensors")
    assert "4/4 " in done.err and not workers_of(os.getpid())
    assert {path.name for path in Path("runs/two").iterdir()} == {"log.txt", "study.json", "trials"}


@contextlib.contextmanager
def started(words: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own; when the block ends, so do all of the group."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=own,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """What comes true within LIMIT, while the process lives."""
    began = time.monotonic()
    while not (found := what()):
        assert time.monotonic() - began < LIMIT, "it took too long"
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.02)
    return found


def workers_of(pid: int) -> list[int]:
    """The processes that loky has started for a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            command = path.with_name("cmdline").read_bytes()
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid and b"popen_loky" in command:
                found.append(int(path.parts[2]))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def snapshots(name: str) -> set[str]:
    """The trials that are under way, with a snapshot to go on from."""
    return {path.parts[3] for path in Path("runs", name, "trials").glob("after-*/snapshots/[0-9]*")}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, data: Path, pretrained: Path) -> tuple[str, Any]:
    """What the study LONG ends with when nobody disturbs it."""
    with contextlib.chdir(tmp_path_factory.mktemp("long")):
        worked(*typed(pretrained, "study.safetensors", "--seeds", 2, "--data-root", data, recipe=LONG))
        return left("study.safetensors")


ENDS = {
    "ctrl-c": (lambda leader, workers: os.killpg(leader, signal.SIGINT), 130, "stopped by Ctrl-C"),
    "sigterm": (lambda leader, workers: os.kill(leader, signal.SIGTERM), 143, "stopped by SIGTERM"),
    "a worker killed": (lambda leader, workers: os.kill(workers[0], signal.SIGKILL), 1, "was killed"),
    "a worker stopped": (lambda leader, workers: os.kill(workers[0], signal.SIGTERM), 1, "was killed"),
    "the leader killed": (lambda leader, workers: os.kill(leader, signal.SIGKILL), -9, ""),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", ENDS)
def test_processes_that_end_early(folder, pretrained, long, end):
    stop, code, said = ENDS[end]
    words = typed(pretrained, "study.safetensors", "--seeds", 2, "--jobs", 2, "--snapshot-every", 0.2, recipe=LONG)
    with started(["finetune", *words]) as job:
        wait_for(lambda: len(snapshots("study")) == 2, job)
        workers = workers_of(job.pid)
        stop(job.pid, workers)
        _, err = job.communicate(timeout=LIMIT)
        assert job.returncode == code and said in err and "Traceback" not in err
        if code != -9:
            message = err.split("finetune: ")[1]
            assert "finished trials are kept" in message and "--resume" in message
            assert "resource_tracker" not in err
        again = worked(*words, "--resume", "--quiet")  # at once
        assert not any(map(alive, workers))
    assert "trials have finished" in again.err or snapshots("study") == set()
    assert left("study.safetensors") == long


@pytest.mark.slow
def test_no_warning_comes_with_processes(folder, pretrained):
    words = typed(pretrained, "study.safetensors", "--seeds", 2, "--jobs", 2, "--quiet", "--json")
    with started(["finetune", *words], PYTHONWARNINGS="error") as job:
        out, err = job.communicate(timeout=LIMIT)
    assert (job.returncode, err) == (0, "") and json.loads(out)["seeds"] == [0, 1]


@pytest.mark.slow
def test_a_study_that_stops_between_trials_leaves_no_process(folder, pretrained, long):
    Path("adapt.yaml").write_text(LONG)
    given = {"seeds": 2, "out": "study.safetensors", "jobs": 2}
    with pytest.raises(Interrupted, match="finished trials are kept"):
        adapt_seeds(pretrained, "kmnist", "adapt.yaml", **given, console=Impatient("1/4"))
    assert not workers_of(os.getpid()) and trained("study")
    adapt_seeds(pretrained, "kmnist", "adapt.yaml", **given, resume=True)
    assert left("study.safetensors") == long


@pytest.mark.slow
def test_the_last_trial_is_run_in_a_process_too(folder, pretrained):
    words = typed(pretrained, "study.safetensors", "--seeds", 2, "--jobs", 2)
    worked(*words)
    before = left("study.safetensors")
    shutil.rmtree("runs/study/trials/after-seed-1")
    assert "3 of 4 trials have finished already" in worked(*words, "--resume").err
    assert left("study.safetensors") == before


# On a Dask cluster


@pytest.mark.parametrize("engine", ["dask://", "dask://host", "tcp://host:1", "dask://host:port", "dask://a:1/b"])
def test_other_addresses_are_refused(engine):
    with pytest.raises(SettingError, match="expected dask://HOST:PORT"):
        cluster_address(engine)


def test_the_address_of_a_cluster():
    assert cluster_address("dask://a.b:8786") == "a.b:8786"


def test_a_source_on_its_way_has_its_whole_path(folder, pretrained, monkeypatch):
    from finetune.run.options import start_run
    from finetune.study.design import open_study_recipe, row_trials

    Path("adapt.yaml").write_text(RECIPE)
    monkeypatch.chdir(pretrained.parent)
    with start_run({}) as call:
        recipe = open_study_recipe(pretrained.name, folder / "adapt.yaml", ({}, {"data.name": "kmnist"}), call)
        trial = row_trials(pretrained.name, recipe, ["after"], [0], shots=None)[0]
        trial = replace(trial, chooser=pretrained.name)
        runner = TrialRunner(call)
        sent = runner.portable(trial)
        assert sent.source == sent.chooser == str(pretrained) and sent.name == trial.name
        assert runner.fingerprint(sent) == runner.fingerprint(trial)


class Scripted:
    """A client of a cluster on which the submissions of a trial end as `ends` say, one after the other."""

    status = "running"

    def __init__(self, *ends: Any) -> None:
        self.ends, self.keys = list(ends), []

    def submit(self, _run: Any, _task: Any, _study: str, *, key: str, pure: bool) -> Any:
        self.keys.append(key)
        return ScriptedFuture(self.ends.pop(0))

    def cancel(self, futures: list[Any]) -> None:
        assert not futures


class ScriptedFuture:
    def __init__(self, end: Any) -> None:
        self.end, self.status = end, "error" if isinstance(end, Exception) else "finished"

    def done(self) -> bool:
        return True

    def result(self, timeout: float) -> Any:
        if isinstance(self.end, list):  # of a worker that does not answer
            raise self.end.pop(0) if len(self.end) > 1 else self.end[0]
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


@pytest.mark.slow
def test_a_trial_on_a_cluster_comes_to_an_end(monkeypatch):
    pytest.importorskip("distributed")
    from concurrent.futures import CancelledError

    from finetune.study import cluster

    def run(*ends: Any) -> tuple[str, int]:
        client = Scripted(*ends)
        monkeypatch.setattr(cluster, "_connected", lambda *_: contextlib.nullcontext(client))
        task = SimpleNamespace(trial=SimpleNamespace(name="after"))
        [(name, outcome)] = cluster.run_on_cluster([task], "dask://a:1", "finetune --resume")
        assert name == "after" and isinstance(outcome, FailedTrial) and len(set(client.keys)) == len(client.keys)
        return outcome.message, len(client.keys)

    done = FailedTrial("done", 1)
    assert run(done) == ("done", 1)
    assert "PermissionError: no" in run(PermissionError("no"))[0]
    assert "ValueError: odd" in run(ValueError("odd"))[0]
    assert run(CancelledError(), None, done) == ("done", 3)
    assert run(*[CancelledError()] * 4) == ("the cluster cancelled it, 4 times in all", 4)
    assert "could not be fetched (lost), 4 times" in run([OSError("lost")])[0]


def test_a_worker_without_room_fails_the_trial(monkeypatch):
    from finetune.study import task as module

    state = SimpleNamespace(nthreads=1, tasks={})
    worker = SimpleNamespace(state=state, local_directory="/proc/none", get_current_task=lambda: "key")
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(get_worker=lambda: worker))
    found = module.run_on_worker(
        SimpleNamespace(data_root=Path(), device="cpu", resume=None, logs=(), force=False), "study"
    )
    assert isinstance(found, FailedTrial) and "/proc/none: No such file or directory" in found.message


PORT = 18_000 + os.getpid() % 2_000
ENGINE = f"dask://127.0.0.1:{PORT}"


@contextlib.contextmanager
def scheduler() -> Iterator[subprocess.Popen[str]]:
    pytest.importorskip("distributed")
    words = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(PORT), "--no-dashboard"]
    with started(words) as process:
        yield process


@contextlib.contextmanager
def worker(space: Path, count: int = 1, threads: int = 1, **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Workers, each with its nanny in a process group of its own."""
    words = ["distributed.cli.dask_worker", f"127.0.0.1:{PORT}", "--nthreads", str(threads), "--no-dashboard"]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(started([*words, "--local-directory", str(space / str(number))], **environment))
            for number in range(count)
        ]


def under_way(space: Path) -> list[Path]:
    """Snapshots of trials that workers have under way."""
    return list(space.glob("**/snapshots/[0-9]*"))


@pytest.mark.slow
def test_a_lost_worker_changes_nothing(folder, pretrained, long, tmp_path):
    words = typed(pretrained, "study.safetensors", "--seeds", 2, "--engine", ENGINE, recipe=LONG)
    space = tmp_path / "space"
    with scheduler(), worker(space, 2) as (first, _), started(["finetune", *words]) as job:
        wait_for(lambda: under_way(space / "0"), job)
        os.killpg(first.pid, signal.SIGKILL)
        _, err = job.communicate(timeout=LIMIT)
        assert job.returncode == 0, err
    assert "4/4" in err and left("study.safetensors") == long


@pytest.mark.slow
def test_a_lost_scheduler_and_ctrl_c(folder, pretrained, long, tmp_path):
    words = typed(pretrained, "study.safetensors", "--seeds", 2, "--engine", ENGINE, recipe=LONG)
    space = tmp_path / "space"
    with scheduler() as lost, worker(space), started(["finetune", *words]) as job:
        wait_for(lambda: under_way(space), job)
        os.killpg(lost.pid, signal.SIGKILL)
        _, err = job.communicate(timeout=LIMIT)
    said = err.split("finetune: ")[1]
    assert job.returncode == 1 and "no longer answers" in said and "--resume" in said and "Traceback" not in err
    space = tmp_path / "other"
    with scheduler(), worker(space), started(["finetune", *words, "--resume"]) as job:
        wait_for(lambda: under_way(space), job)
        os.killpg(job.pid, signal.SIGINT)
        _, err = job.communicate(timeout=LIMIT)
        assert job.returncode == 130 and "finished trials are kept; resume with" in err and "Traceback" not in err
        wait_for(lambda: not under_way(space))  # the worker gives the trial up
    with scheduler(), worker(tmp_path / "third"):
        worked(*words, "--resume", "--quiet")
    assert left("study.safetensors") == long


@pytest.mark.slow
def test_a_cluster_that_cannot_be_used(folder, pretrained, tmp_path, data):
    words = typed(pretrained, "study.safetensors", "--seeds", 2, "--engine", ENGINE, "--quiet")
    pytest.importorskip("distributed")
    assert "no Dask scheduler answers there" in refused(*words)
    with scheduler():
        assert "the cluster has no workers" in refused(*words, "--resume")
        with worker(tmp_path / "threads", threads=2):
            said = refused(*words, "--resume")
        assert "a worker has 2 threads" in said and "--nthreads 1 --nworkers 2" in said
        with worker(tmp_path / "data", FINETUNE_DATA_ROOT=str(tmp_path / "empty")):
            said = refused(*words, "--resume")
        assert "cannot open what the trial needs" in said and str(tmp_path / "empty") in said


def test_without_distributed(folder, pretrained, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    words = typed(pretrained, "study.safetensors", "--seeds", 2, "--engine", "dask://127.0.0.1:1", "--quiet")
    assert "pip install 'finetune-images[cluster]'" in refused(*words)
