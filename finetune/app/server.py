"""Serves the page from this machine, and keeps the browser from asking any other for anything."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune.errors import SettingError

if TYPE_CHECKING:
    import gradio as gr

MAX_UPLOAD = 50_000_000  # bytes of a picture's file

# Scripts and styles of the page itself only: with this a browser refuses to fetch anything from elsewhere, or to send
# anything there.
_POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; base-uri 'self'"
_LOOPBACK = ["127.0.0.1", "localhost", "::1", "[::1]"]

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]
_Application = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


def listen(host: str, port: int) -> socket.socket:
    """Takes a port of this machine; 0 is any free one. SettingError when it is in use, or the host is another one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingError(f"--host {host}: {error.strerror}; leave it out for this machine only") from None
    try:
        if os.name == "posix":  # elsewhere it would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingError(f"--port {port}: in use on {host}; name another, or --port 0 for any free one") from None
        raise SettingError(f"--host {host} --port {port}: {error.strerror}") from None
    return listener


def address_of(listener: socket.socket, host: str) -> str:
    """The page's address for a browser on this machine."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def private_gradio() -> Iterator[None]:
    """Gradio's settings while a page is built and served: it calls nobody, and keeps pictures in a folder that is
    removed at the end. Enter it before gradio is imported."""
    with tempfile.TemporaryDirectory(prefix="finetune-app-") as folder:
        own = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": folder}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def serve(page: gr.Blocks, theme: gr.themes.Base, css: str, listener: socket.socket, host: str) -> None:
    """Serves the page until a signal ends it; Ctrl-C raises KeyboardInterrupt then."""
    import uvicorn

    config = uvicorn.Config(
        _application(page, theme, css, host), log_level="error", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    end = server.handle_exit

    def end_quietly(number: int, frame: Any) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # pages that are open are cut off: no error
        end(number, frame)

    server.handle_exit = end_quietly
    server.run(sockets=[listener])


def _application(page: gr.Blocks, theme: gr.themes.Base, css: str, host: str) -> _Application:
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    application = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        theme=theme,
        css=css,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        run_history=False,  # which would keep the pictures in the browser
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
    if is_loopback(host):  # so that no other site's name can be pointed here
        application.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK)
    return _with_policy(application)


def _with_policy(application: _Application) -> _Application:
    """Adds the content security policy to every answer."""

    async def serve_with_policy(scope: _Scope, receive: _Receive, send: _Send) -> None:
        async def send_with_policy(message: _Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", _POLICY)]
            await send(message)

        await application(scope, receive, send_with_policy)

    return serve_with_policy
