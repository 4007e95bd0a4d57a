"""`finetune app`: what keeps the page from being served is one message."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny import refused

from finetune.app.server import listen
from finetune.text import install_hint


def needs_gradio() -> None:
    """Skips where it is absent. It is never imported here: it leaves event loops open, of which pytest warns."""
    if find_spec("gradio") is None:
        pytest.skip("needs the extra `app`")


def test_without_gradio_it_says_what_to_install(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    refusal = f"the page needs gradio, which is not installed: {install_hint('app')}\n"
    assert refused("app", pretrained) == refusal


def test_a_port_in_use_is_one_message(pretrained: Path) -> None:
    needs_gradio()
    with listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        assert f"--port {port}: in use on 127.0.0.1" in refused("app", pretrained, "--port", port)


def test_one_checkpoint_or_two(pretrained: Path) -> None:
    assert "expected one checkpoint or two, found 3" in refused("app", *[pretrained] * 3)


def test_a_file_that_is_no_checkpoint_is_one_message(tmp_path: Path) -> None:
    needs_gradio()
    missing = tmp_path / "none.safetensors"
    assert str(missing) in refused("app", missing, "--port", 0)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_it_cleanly(pretrained: Path, number: int, code: int) -> None:
    needs_gradio()
    words = [sys.executable, "-m", "finetune", "app", str(pretrained), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line.startswith("the page is at http://127.0.0.1:") and line.endswith(" until Ctrl-C\n")
        program.send_signal(number)
        rest, errors = program.communicate(timeout=30)
    assert program.returncode == code and rest == ""
    assert errors == ("" if code == 0 else "finetune: stopped by SIGTERM\n")
