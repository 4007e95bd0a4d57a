"""The one way to huggingface_hub: its client set up, its retries bounded, and the token kept out of every text.

The client is imported at the first use. Tokens come from HF_TOKEN or the Hub's own store; nothing here takes one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from finetune.errors import FinetuneError, HubRefusal

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
Note = Callable[[str], None]

STALLED = 120.0  # seconds without a byte in either direction before a connection is given up
PATIENCE = 20.0  # seconds after which no further try is begun
WAITS = (1.0, 2.0, 4.0)  # seconds before each further try
_TOKEN_LIKE = re.compile(r"hf_[A-Za-z0-9]{16,}")
_SIGNATURE = re.compile(r"(https?://[^\s?]+)\?[^\s)]+")
_LOGIN_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")


def silent(_: str) -> None:
    """A Note for nobody."""


def open_api(*, bars: bool = False) -> HfApi:
    """The client, for the Hub that HF_ENDPOINT names. `bars`: progress bars on standard error, if it is a terminal."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        (enable_progress_bars if bars and sys.stderr.isatty() else disable_progress_bars)()
    with contextlib.suppress(AttributeError):
        get_session().timeout = STALLED
    return HfApi(library_name="finetune")


def endpoint() -> str:
    """The address of the Hub that is asked, without any name and password in it."""
    from huggingface_hub import constants

    return redact(constants.ENDPOINT)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def token() -> str | None:
    """The token that requests carry, for checks that it is nowhere else."""
    from huggingface_hub import get_token

    return get_token()


def token_origin() -> str:
    """Where the token comes from, for a message."""
    named = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)]
    return f"the token in {named[0]}" if named else "the stored token"


def redact(text: str) -> str:
    """The text without the token, anything that looks like one, and logins and signatures within addresses."""
    secret = _secret()
    if secret:
        text = text.replace(secret, "(token)")
    text = _LOGIN_IN_ADDRESS.sub("", _TOKEN_LIKE.sub("(token)", text))
    return _SIGNATURE.sub(r"\1", text)


def holds_token(content: bytes) -> bool:
    """Whether bytes that are about to leave hold the token."""
    secret = _secret()
    return secret is not None and secret.encode() in content


def _secret() -> str | None:
    """The token, unless it is too short to be one: such a text would be found by chance."""
    found = token()
    return found if found and len(found) >= 8 else None


def asked(what: str, call: Callable[[], T], note: Note = silent) -> T:
    """Calls the Hub, and again while it fails in a way that may pass. HubError or HubRefusal says what came of it.

    `what` completes 'could not ...'. The client itself retries some requests for about 20 s; together with that no new
    try begins later than PATIENCE after the first. `call` must do no harm when it is done twice.
    """
    from finetune.hub.faults import passing, reason, translated

    started = time.monotonic()
    for wait in (*WAITS, None):
        try:
            with _calm(note):
                return call()
        except FinetuneError:
            raise
        except Exception as error:
            pause = passing(error, wait)
            if pause is None or time.monotonic() - started > PATIENCE:
                raise translated(error, what) from None
            note(f"could not {what} yet ({reason(error)}); trying again in {pause:.0f} s")
        time.sleep(pause)
    raise AssertionError("the last try either returns or raises")


def transferred(what: str, call: Callable[[], T], note: Note = silent) -> T:
    """The same for large files, and once more over plain HTTP where hf-xet is in the way.

    The client uses hf-xet for uploads whenever it is installed, also with a Hub that has no such storage.
    """
    from finetune.hub.faults import TransferBroken

    try:
        return asked(what, call, note)
    except TransferBroken as error:
        if not _without_xet():
            raise
        note(f"{error}; now over plain HTTP, without hf-xet")
    return asked(what, call, note)


def _without_xet() -> bool:
    """Switches hf-xet off for the rest of this process, as HF_HUB_DISABLE_XET does; False when it was not on."""
    from importlib.util import find_spec

    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
        return False
    constants.HF_HUB_DISABLE_XET = True
    return True


def logged_in(api: HfApi, note: Note = silent) -> str:
    """The name of the account that pushes. HubRefusal without a token, or with one that the Hub does not know."""
    if token() is None:
        raise HubRefusal(f"no token for {endpoint()}: log in with `hf auth login`, or set HF_TOKEN")
    # Explicitly, as HF_HUB_DISABLE_IMPLICIT_TOKEN is about reading.
    api.token = token()
    found: dict[str, Any] = asked("learn whose token this is", lambda: api.whoami(), note)
    return str(found.get("name", "?"))


@contextlib.contextmanager
def _calm(note: Note) -> Iterator[None]:
    """For the block, the client's warnings and log lines, full of addresses, are not shown; errors say what matters."""
    logger = logging.getLogger("huggingface_hub")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Remarks(note)], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _Remarks(logging.Handler):
    """Lets through what the client says about waiting, which has no address in it, and nothing else."""

    def __init__(self, note: Note) -> None:
        super().__init__(logging.WARNING)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(("Retrying in", "Rate limited")):
            self.note(f"the Hub is not answering well: {redact(text)}")
