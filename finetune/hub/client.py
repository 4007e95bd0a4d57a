"""The huggingface_hub client with bounded retries."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from finetune.errors import FinetuneError, HubRefusal
from finetune.hub.credentials import endpoint, redact, token

if TYPE_CHECKING:
    from huggingface_hub import HfApi


T = TypeVar("T")

LogFn = Callable[[str], None]

STALL_TIMEOUT = 120.0  # seconds without a byte in either direction before a connection is given up

RETRY_TIMEOUT = 20.0  # seconds after which no further try is begun

BACKOFF = (1.0, 2.0, 4.0)  # seconds before each further try


def log_nothing(_: str) -> None:
    """A Note for nobody."""


def open_api(*, bars: bool = False) -> HfApi:
    """The client, for the Hub that HF_ENDPOINT names. `bars`: progress bars on standard error, if it is a terminal."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        (enable_progress_bars if bars and sys.stderr.isatty() else disable_progress_bars)()
    with contextlib.suppress(AttributeError):
        get_session().timeout = STALL_TIMEOUT
    return HfApi(library_name="finetune")


def with_retry(what: str, call: Callable[[], T], note: LogFn = log_nothing) -> T:
    """Calls the Hub, and again while it fails in a way that may pass. HubError or HubRefusal says what came of it.

    `what` completes 'could not ...'. The client itself retries some requests for about 20 s; together with that no new
    try begins later than PATIENCE after the first. `call` must do no harm when it is done twice.
    """
    from finetune.hub.errors import retry_delay, short_reason, translate_error

    started = time.monotonic()
    for wait in (*BACKOFF, None):
        try:
            with _quiet_logging(note):
                return call()
        except FinetuneError:
            raise
        except Exception as error:
            pause = retry_delay(error, wait)
            if pause is None or time.monotonic() - started > RETRY_TIMEOUT:
                raise translate_error(error, what) from None
            note(f"could not {what} yet ({short_reason(error)}); trying again in {pause:.0f} s")
        time.sleep(pause)
    raise AssertionError("the last try either returns or raises")


def with_retry_no_xet(what: str, call: Callable[[], T], note: LogFn = log_nothing) -> T:
    """The same for large files, and once more over plain HTTP where hf-xet is in the way.

    The client uses hf-xet for uploads whenever it is installed, also with a Hub that has no such storage.
    """
    from finetune.hub.errors import TransferBroken

    try:
        return with_retry(what, call, note)
    except TransferBroken as error:
        if not _without_xet():
            raise
        note(f"{error}; now over plain HTTP, without hf-xet")
    return with_retry(what, call, note)


def _without_xet() -> bool:
    """Switches hf-xet off for the rest of this process, as HF_HUB_DISABLE_XET does; False when it was not on."""
    from importlib.util import find_spec

    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
        return False
    constants.HF_HUB_DISABLE_XET = True
    return True


def logged_in(api: HfApi, note: LogFn = log_nothing) -> str:
    """The name of the account that pushes. HubRefusal without a token, or with one that the Hub does not know."""
    if token() is None:
        raise HubRefusal(f"no token for {endpoint()}: log in with `hf auth login`, or set HF_TOKEN")
    # Explicitly, as HF_HUB_DISABLE_IMPLICIT_TOKEN is about reading.
    api.token = token()
    found: dict[str, Any] = with_retry("learn whose token this is", lambda: api.whoami(), note)
    return str(found.get("name", "?"))


@contextlib.contextmanager
def _quiet_logging(note: LogFn) -> Iterator[None]:
    """For the block, the client's warnings and log lines, full of addresses, are not shown; errors say what matters."""
    logger = logging.getLogger("huggingface_hub")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_RetryLog(note)], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _RetryLog(logging.Handler):
    """Lets through what the client says about waiting, which has no address in it, and nothing else."""

    def __init__(self, note: LogFn) -> None:
        super().__init__(logging.WARNING)
        self.note = note

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(("Retrying in", "Rate limited")):
            self.note(f"the Hub is not answering well: {redact(text)}")
