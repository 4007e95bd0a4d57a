"""Standard streams that are closed, full or gone, and Ctrl-C before anything runs."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import ROOT, files_under, make_data, phase, pretrain_recipe

import finetune as toolkit
from finetune.io.screen import Screen, StandardStream
from finetune.report.console import Console

PROGRAM = f"{sys.executable} -m finetune"
WRITTEN = {f"checkpoints/small.{ending}" for ending in ("safetensors", "report.json", "predictions.csv")} | {
    f"runs/small/{name}" for name in ("recipe.yaml", "metrics.jsonl", "log.txt", "finished.json")
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_data(tmp_path / "data", "mnist")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("small.yaml").write_text(pretrain_recipe(phase(length="epochs: 1")))
    return tmp_path


def shell(line, **more):
    line = f"set -o pipefail; {line}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=120, **more)


def lost(log):
    return [line[20:] for line in log.read_text().splitlines() if "no longer be written" in line]


# A run goes on without its screen.


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_a_run_outlives_both_streams(kind, folder, monkeypatch):
    streams = [Path("/dev/full").open("w") for _ in range(2)]  # noqa: SIM115
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        if kind == "closed":
            stream.close()
        monkeypatch.setattr(sys, name, stream)
    report = toolkit.pretrain("small.yaml", data_root="data", quiet=False)
    for stream in streams:
        with contextlib.suppress(OSError):  # for what was still to be written
            stream.close()
    assert report.results["test"].total == 100
    assert files_under(folder) >= WRITTEN
    reason = "No space left on device" if kind == "full" else "I/O operation on closed file."
    assert lost(folder / "runs/small/log.txt") == [
        f"warning: standard {name} can no longer be written ({reason}); going on without it"
        for name in ("error", "output")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["2>&1 | head -1", "2>/dev/full", ">/dev/full", ">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_run_of_the_program_does_too_and_says_so_by_its_code(how, folder):
    done = shell(f"{PROGRAM} pretrain --recipe small.yaml --data-root data {how}")
    results_shown = how in ("2>/dev/full", "2>&-", "<&-")
    assert (done.returncode, bool(done.stdout)) == (1 - results_shown, results_shown or "head" in how)
    assert files_under(folder) >= WRITTEN and "Traceback" not in done.stdout + done.stderr
    assert how not in (">/dev/full", ">&-") or "finetune: standard output cannot be written (" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("program", ["-m finetune", "-m torch.distributed.run --nproc-per-node 2 -m finetune"])
def test_a_run_outlives_its_terminal(program, folder):
    """The terminal is closed, and SIGHUP is ignored, as under nohup."""
    words = [sys.executable, *program.split(), "pretrain", "--recipe", "small.yaml", "--data-root", "data"]
    ours, theirs = pty.openpty()
    ignored = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with subprocess.Popen(
        [*words, "--set", "phases[0].epochs=40"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=ignored,
    ) as process:
        os.close(theirs)
        shown = b""
        while b"phase all" not in shown:
            shown += os.read(ours, 65536)
        os.close(ours)
        assert process.wait(120) == 1, "the results could not be printed"
    assert files_under(folder) >= WRITTEN
    reasons = lost(Path("runs/small/log.txt"))
    assert len(reasons) == 2 and all("Input/output error" in line for line in reasons)


# Commands that only print


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("| true", 1, ""),
        ("2>/dev/full >/dev/full", 1, ""),
        (">/dev/full", 1, "finetune: standard output cannot be written (No space left on device); what a command"),
        (">&-", 1, "finetune: standard output cannot be written (Bad file descriptor); what a command"),
        ("<&- 2>&- | cat", 0, ""),
    ],
)
def test_what_cannot_be_printed_is_said_by_the_code(how, code, said, folder):
    done = shell(f"{PROGRAM} datasets {how}")
    assert done.returncode == code and done.stderr.startswith(said) and done.stderr.count("\n") == bool(said)
    assert ("kmnist-sample" in done.stdout) == (code == 0)


def test_what_an_encoding_lacks_is_escaped_and_names_keep_their_bytes(tmp_path):
    code = (
        "import sys; from finetune.io.screen import open_standard_streams as o; o();"
        "print('gr\\u00f6\\u00dfer', '\\u4e09', '\\udce9')"
    )
    env = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert done.stdout == b"gr\xf6\xdfer \\u4e09 \xe9\n"


def test_a_closed_descriptor_is_not_the_next_files(tmp_path):
    """A file that a run opens would get the number 2, and what C code prints as an error would be in it."""
    code = "from finetune.io.screen import open_standard_streams as o; o(); import os; print(os.open('x', os.O_CREAT))"
    done = shell(f'{sys.executable} -c "{code}" <&- 2>&-', cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert int(done.stdout) > 2


def test_the_first_failure_of_standard_output_raises_and_later_ones_are_dropped(monkeypatch):
    raw = StandardStream(1)
    full = os.open("/dev/full", os.O_WRONLY)
    kept = os.dup(1)
    try:
        os.dup2(full, 1)
        with pytest.raises(OSError, match="No space left"):
            raw.write(b"abc")
        assert raw.write(b"abc") == 3 and raw.error is not None
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(full)


def test_a_screen_that_is_lost_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    console = Console()
    console.log = tmp_path / "log.txt"
    with console.phase("phase all", 3) as view:
        view.row("one")
    assert [line[20:].split(" (")[0] for line in console.log.read_text().splitlines()] == [
        "phase all",
        "warning: standard error can no longer be written",
        "one",
    ]
    assert Screen("stderr").isatty() is False


# Ctrl-C


def interrupted_after(seconds, *words):
    with subprocess.Popen(
        [sys.executable, "-m", "finetune", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


CTRL_C = """
import os, signal, sys
sys.argv = ["finetune", "datasets"]
from finetune.cli import entry
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "{module}":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                import finetune.text
            except KeyboardInterrupt:
                pass
sys.meta_path.insert(0, Finder())
entry.main()
"""


@pytest.mark.parametrize("module", ["click", "finetune.commands.listing"])
def test_ctrl_c_ends_an_import_that_would_swallow_it(module, folder):
    code = CTRL_C.format(module=module)
    done = subprocess.run(  # a process in the background may have been started without Ctrl-C
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "finetune: stopped by Ctrl-C\n")


@pytest.mark.slow
def test_ctrl_c_at_any_moment_ends_in_one_message(folder):
    """But for the time that Python itself takes to start."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        began = time.monotonic()
        process.wait()
    start = 2 * (time.monotonic() - began)
    for step in range(40):
        code, err = interrupted_after(start + step * 0.05, "evaluate", "mnist", "--data", "digits")
        assert code == 0 or (code, err) == (130, "finetune: stopped by Ctrl-C\n"), (step, code, err)
