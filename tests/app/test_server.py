"""Whom the page is served to, and what a port in use says."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from finetune.app.server import address_of, is_loopback, listen, private_gradio
from finetune.errors import SettingError


def test_a_port_in_use_is_one_message() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingError) as refusal:
            listen("127.0.0.1", port)
        assert str(refusal.value) == (f"--port {port}: in use on 127.0.0.1; name another, or --port 0 for any free one")
    listen("127.0.0.1", port).close()  # free again at once


def test_only_this_machine_can_reach_it() -> None:
    with listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1" and address_of(listener, host) == f"http://127.0.0.1:{port}"
        with socket.create_connection((host, port), timeout=5):
            pass


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("pc", False)],
)
def test_what_loopback_is(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1"])
def test_a_host_that_is_not_here_is_one_message(host: str) -> None:
    with pytest.raises(SettingError, match=rf"^--host {host}"):
        listen(host, 0)


def test_gradios_settings_last_as_long_as_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with private_gradio():
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and folder.parent == Path(tempfile.gettempdir())
        (folder / "picture.png").write_bytes(b"kept meanwhile")
    assert not folder.exists() and "GRADIO_TEMP_DIR" not in os.environ
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "True"
