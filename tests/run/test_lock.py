"""One run at a time works in a run folder, and a run that died does not keep the next one out."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from finetune.errors import OutputError
from finetune.io.atomic import write_atomic
from finetune.run import lock as lock_file
from finetune.run.lock import Holder, RunLock


def start(code, *arguments):
    """Another Python process, in which `code` has the arguments in sys.argv; it prints when it is ready."""
    head = "import os, sys, time\nfrom pathlib import Path\nfrom finetune.run.lock import RunLock\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


HOLD = "with RunLock(Path(sys.argv[1]), 'finetune pretrain'): print('ready', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path."""
    with start(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_the_lock_says_who_holds_it_and_is_gone_afterwards(tmp_path):
    folder = tmp_path / "runs" / "mnist"
    with RunLock(folder, "finetune pretrain --recipe 'größe.yaml'") as lock:
        assert lock.recovered is None
        note = json.loads((folder / "lock").read_bytes())
        started = time.mktime(time.strptime(note.pop("started"), "%Y-%m-%d %H:%M:%S"))
        assert abs(started - time.time()) < 10
        command = "finetune pretrain --recipe 'größe.yaml'"
        assert note == {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
    assert list(folder.iterdir()) == []
    with RunLock(folder) as lock:
        assert lock.recovered is None
        assert json.loads((folder / "lock").read_bytes())["command"]


def test_a_second_run_is_told_who_is_there_since_when_and_what_to_do(tmp_path, holder):
    with pytest.raises(OutputError) as caught, RunLock(tmp_path):
        raise AssertionError
    started = json.loads((tmp_path / "lock").read_bytes())["started"]
    assert str(caught.value) == (
        f"{tmp_path}: another run works there: `finetune pretrain`, process {holder.pid} on {socket.gethostname()}, "
        f"since {started}; wait until it has ended, stop it (kill {holder.pid}), or name another --out"
    )
    assert caught.value.exit_code == 2


def test_within_one_process_there_is_one_too(tmp_path):
    with RunLock(tmp_path), pytest.raises(OutputError, match=f"process {os.getpid()}"), RunLock(tmp_path):
        raise AssertionError
    with RunLock(tmp_path):
        pass


def test_a_killed_holder_is_followed_and_named(tmp_path, holder):
    note = json.loads((tmp_path / "lock").read_bytes())
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path) as lock:
        assert lock.recovered == Holder(**note) and lock.recovered.pid == holder.pid
        assert f"process {holder.pid} on" in str(lock.recovered)
    with RunLock(tmp_path) as lock:
        assert lock.recovered is None


def test_a_worker_that_outlives_its_killed_run_does_not_keep_the_lock(tmp_path):
    code = (
        "lock = RunLock(Path(sys.argv[1])).__enter__()\n"
        "worker = os.fork()\n"
        "if not worker:\n"
        "    lock.__exit__(None, None, None)  # nor does it give the lock away\n"
        "    time.sleep(60); os._exit(0)\n"
        "print(worker, flush=True); time.sleep(60)"
    )
    with start(code, tmp_path) as process:
        worker = int(process.stdout.readline())
        time.sleep(0.1)
        with pytest.raises(OutputError, match="another run works there"), RunLock(tmp_path):
            raise AssertionError
        process.kill()
        process.wait()
        os.kill(worker, 0)
        with RunLock(tmp_path) as lock:
            assert lock.recovered.pid == process.pid
        os.kill(worker, signal.SIGKILL)


NOTES = [
    b"",
    b"\x00\xff" * 4000,
    b"{",
    b"[]",
    b"[" * 100_000,
    b'{"pid": "1", "host": "h", "command": "c", "started": "s"}',
    b'{"pid": 1, "host": null, "command": "c", "started": "s"}',
    b'{"pid": %s, "host": "h", "command": "c", "started": "s"}' % (b"9" * 30),
    b'{"pid": -1, "host": "h", "command": "c", "started": "s"}',
    b'{"pid": 1, "host": "h", "command": "%s", "started": "s"}' % (b"c" * 5000),
]


@pytest.mark.parametrize("note", NOTES, ids=range(len(NOTES)))
def test_the_file_may_hold_anything(tmp_path, note):
    (tmp_path / "lock").write_bytes(note)
    with RunLock(tmp_path) as lock:
        assert lock.recovered is None
        (tmp_path / "lock").write_bytes(note)
        with pytest.raises(OutputError, match=r"another run works there \(its lock does not say which\)"):
            RunLock(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_what_the_file_says_is_shown_harmlessly(tmp_path):
    note = {"pid": 7, "host": "elsewhere", "command": "\x1b[31m" + "c" * 2000, "started": "\n\u202e"}
    with RunLock(tmp_path):
        (tmp_path / "lock").write_text(json.dumps(note))
        with pytest.raises(OutputError) as caught:
            RunLock(tmp_path).__enter__()
    text = str(caught.value)
    assert text.isprintable() and len(text) < len(str(tmp_path)) + 400 and "stop it on elsewhere" in text


def test_where_files_have_no_locks_runs_go_on_without(tmp_path, monkeypatch):
    """Some network file systems have none. Then nobody can tell a dead holder from a living one."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(tmp_path, "first") as first, RunLock(tmp_path, "second") as second:
        assert first.recovered is None and second.recovered is None
        write_atomic(tmp_path / "file", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_no_lock_is_refused_and_untouched(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "lock").symlink_to(tmp_path / "precious")
    (tmp_path / "folder" / "lock").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "lock")
    (tmp_path / "file").write_text("")
    said = {"link": "cannot be written", "folder": "cannot be written", "pipe": "no plain file", "file": "cannot be"}
    for name, text in said.items():
        with pytest.raises(OutputError, match=rf"^{tmp_path / name}.*{text}"):
            RunLock(tmp_path / name).__enter__()
    assert (tmp_path / "precious").read_text() == "mine"


def test_an_end_by_an_error_gives_the_lock_back(tmp_path):
    for error in (ValueError(), KeyboardInterrupt()):
        with pytest.raises(type(error)), RunLock(tmp_path):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_the_folder_may_be_renamed_while_it_is_held(tmp_path):
    """The old folder stays locked under its new name; whoever comes under the old name gets a folder of its own."""
    folder, aside = tmp_path / "mnist", tmp_path / "mnist.was"
    with RunLock(folder, "first"):
        folder.rename(aside)
        with RunLock(folder, "second") as lock:
            assert lock.recovered is None
            with pytest.raises(OutputError, match="`first`"):
                RunLock(aside).__enter__()
            with pytest.raises(OutputError, match="`second`"):
                RunLock(folder).__enter__()
        assert list(folder.iterdir()) == [] and [path.name for path in aside.iterdir()] == ["lock"]
    assert list(aside.iterdir()) == []


def test_the_folder_may_be_deleted_while_it_is_held(tmp_path):
    folder = tmp_path / "mnist"
    with RunLock(folder):
        (folder / "lock").unlink()
        folder.rmdir()
    assert not folder.exists()


@pytest.mark.parametrize("change", ["given back", "folder renamed", "given back and taken"])
def test_what_happens_between_opening_and_locking_is_noticed(tmp_path, monkeypatch, change):
    """A lock on a file that has lost its name would keep nobody out."""
    folder, real, others = tmp_path / "mnist", lock_file.lock_file, []

    def late(descriptor):
        monkeypatch.setattr(lock_file, "lock_file", real)
        if change == "folder renamed":
            folder.rename(tmp_path / "mnist.was")
        else:
            (folder / "lock").unlink()
        if change == "given back and taken":
            others.append(RunLock(folder, "other").__enter__())
        return real(descriptor)

    monkeypatch.setattr(lock_file, "lock_file", late)
    lock = RunLock(folder, "mine")
    if change == "given back and taken":
        with pytest.raises(OutputError, match="`other`"):
            lock.__enter__()
        others.pop().__exit__(None, None, None)
        return
    with lock, pytest.raises(OutputError, match="`mine`"):
        RunLock(folder).__enter__()


def test_a_folder_renamed_just_before_is_made_again(tmp_path, monkeypatch):
    folder, real = tmp_path / "mnist", lock_file.make_folder

    def late(made):
        monkeypatch.setattr(lock_file, "make_folder", real)
        real(made)
        made.rename(tmp_path / "mnist.was")

    monkeypatch.setattr(lock_file, "make_folder", late)
    with RunLock(folder):
        assert (folder / "lock").exists() and list((tmp_path / "mnist.was").iterdir()) == []


def test_a_lock_that_ends_leaves_anothers_alone(tmp_path):
    """The first folder is renamed, and the second run starts where it was, before the first one ends."""
    folder = tmp_path / "mnist"
    with RunLock(folder, "first"):
        folder.rename(tmp_path / "mnist.was")
        second = RunLock(folder, "second").__enter__()
    assert json.loads((folder / "lock").read_bytes())["command"] == "second"
    with pytest.raises(OutputError, match="`second`"):
        RunLock(folder).__enter__()
    second.__exit__(None, None, None)


RACE = """
def contend(folder):
    os.read(gate, 1)  # returns for all at the same moment: when the other end is closed
    try:
        lock = RunLock(folder).__enter__()
    except Exception as error:
        os._exit(1 if "another run works there" in str(error) else 2)
    os.read(end, 1)
    os._exit(0)

for attempt in range(40):
    folder = Path(sys.argv[1]) / str(attempt)
    if attempt % 2:  # a lock that a dead run has left
        folder.mkdir()
        (folder / "lock").write_text('{"pid": 1, "host": "h", "command": "c", "started": "s"}')
    gate, open_gate = os.pipe()
    end, open_end = os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            os.close(open_gate), os.close(open_end)
            contend(folder)
        children.append(child)
    os.close(open_gate)
    ended = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(7)]  # all but the one that has it
    os.close(open_end)
    ended.append(os.waitstatus_to_exitcode(os.wait()[1]))
    os.close(gate), os.close(end)
    assert sorted(ended) == [0] + [1] * 7, ended
print("good")
"""


def test_of_many_that_start_at_one_moment_exactly_one_gets_it(tmp_path):
    with start(RACE, tmp_path) as process:
        assert process.communicate(timeout=60)[0] == "good\n"


CHURN = """
from finetune.errors import OutputError
folder, children = Path(sys.argv[1]), []
until = time.monotonic() + 1.5
for _ in range(5):
    child = os.fork()
    if not child:
        children = []
        break
    children.append(child)
while time.monotonic() < until:
    try:
        with RunLock(folder) as lock:
            assert lock.recovered is None, lock.recovered
            inside = os.open(folder.with_name("inside"), os.O_CREAT | os.O_EXCL)  # fails when two are
            os.close(inside)
            os.unlink(folder.with_name("inside"))
    except OutputError as error:
        assert "another run works there" in str(error), error
if children:
    assert [os.waitstatus_to_exitcode(os.wait()[1]) for _ in children] == [0] * len(children)
    print("good", flush=True)
os._exit(0)
"""


def test_runs_that_come_and_go_never_meet(tmp_path):
    with start(CHURN, tmp_path / "run") as process:
        assert process.communicate(timeout=60)[0] == "good\n"
        assert process.returncode == 0
    assert list((tmp_path / "run").iterdir()) == []
