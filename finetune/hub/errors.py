"""Retries calls of the Hub's client, and translates its exceptions into finetune errors: the one place for both."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from finetune.errors import FinetuneError, HubError, HubRefusal, OutputError
from finetune.hub.client import endpoint, redact, token, token_origin
from finetune.text import first_line

T = TypeVar("T")
LogFn = Callable[[str], None]
RETRY_STATUS = (408, 429, 500, 502, 503, 504)
RETRY_TIMEOUT = 20.0  # seconds after which no further try is begun
BACKOFF = (1.0, 2.0, 4.0)  # seconds before each further try
REFUSED_BACKOFF = (0.5, 1.0, 1.5, 2.0, 1.0)  # seconds before each further try where nobody listens: a restart
PROMPT = 1.0  # seconds within which a refusal comes, unless the client has tried again itself
MAX_WAIT = 30  # seconds that a Hub may ask to wait before a person is told instead
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "InvalidURL")
_CONNECTION_LOST = (
    *("ReadError", "WriteError", "CloseError", "RemoteProtocolError", "ReadTimeout", "WriteTimeout", "PoolTimeout"),
    *("DecodingError", "LocalProtocolError", "StreamError", "IncompleteRead"),
)


class RepositoryMissing(HubRefusal):
    """There is no such repository, or none that this token may see: the Hub does not tell which."""


class FileMissing(HubRefusal):
    """The repository has no such file."""


class AccessGated(HubRefusal):
    """The repository's owner has to grant access first."""


class Offline(HubRefusal):
    """The cache does not have the file, and HF_HUB_OFFLINE forbids to fetch it."""


class NotSupported(HubRefusal):
    """This Hub does not have what was asked of it."""


class TransferBroken(HubError):
    """A transfer ended without an answer of the Hub: cut off, or failed within the client."""


# By the name of the client's exception or the HTTP status: the error to raise, and what completes 'could not ...: '.
_ANSWERS: dict[str | int, tuple[type[HubError], str]] = {
    "GatedRepoError": (
        AccessGated,
        "access is gated by its owner{said}; open its page on {hub}, ask for access, and log in with `hf auth login`",
    ),
    "DisabledRepoError": (HubRefusal, "the Hub has disabled this repository{said}"),
    "RevisionNotFoundError": (HubRefusal, "the repository has no such revision{said}; check the name after @"),
    "EntryNotFoundError": (FileMissing, "the repository has no such file{said}"),
    "RemoteEntryNotFoundError": (FileMissing, "the repository has no such file{said}"),
    "RepositoryNotFoundError": (
        RepositoryMissing,
        "{hub} has no such repository{said}; check OWNER/NAME, {private}",
    ),
    404: (RepositoryMissing, "not found (404){said}; check OWNER/NAME, what is after @, and HF_ENDPOINT"),
    401: (HubRefusal, "{hub} {rejects} (401){said}; set a valid one, or log in again with `hf auth login`"),
    403: (
        HubRefusal,
        "{who} does not permit it (403){said}; a push needs write access, and its owner may have to give leave to "
        "read: see {hub}",
    ),
    405: (NotSupported, "{hub} does not support it (405){said}"),
    501: (NotSupported, "{hub} does not support it (501){said}"),
    412: (HubError, "somebody changed the repository meanwhile (412); look at it and push again"),
    409: (HubError, "it conflicts with what is there (409){said}; look at the repository and try again"),
    429: (HubError, "too many requests for now (429); try again {when}"),
}


def log_nothing(_: str) -> None:
    """The LogFn that shows nothing."""


def with_retry(what: str, call: Callable[[], T], note: LogFn = log_nothing) -> T:
    """Calls the Hub, and again while it fails in a way that may pass. Raises what `translate_error` makes of a failure.

    `what` completes 'could not ...'. The client itself retries some requests for about 20 s; together with that no new
    try begins later than RETRY_TIMEOUT after the first. A host that refuses connections may be restarting, and is tried
    for the sum of REFUSED_BACKOFF. `call` must do no harm when it is done twice.
    """
    started = time.monotonic()
    waits, refused_waits = iter(BACKOFF), iter(REFUSED_BACKOFF)
    is_said = False
    while True:
        begun = time.monotonic()
        try:
            with _quiet_logging(note):
                return call()
        except FinetuneError:
            raise
        except Exception as error:
            if is_refused := _is_refused(error):
                pause = next(refused_waits, None) if time.monotonic() - begun < PROMPT else None
            else:
                pause = _retry_delay(error, next(waits, None))
            if pause is None or time.monotonic() - started > RETRY_TIMEOUT:
                raise translate_error(error, what) from None
            reason = _status_of(error) or ("a wrong size" if _wrong_size(error) else "cut off")
            if not is_refused:
                note(f"could not {what} yet ({reason}); trying again in {pause:.0f} s")
            elif not is_said:
                is_said = True
                refusing = _storage_host(error) or endpoint()
                note(f"{refusing} refuses connections; trying again for {sum(REFUSED_BACKOFF):.0f} s")
        time.sleep(pause)


def with_retry_no_xet(what: str, call: Callable[[], T], note: LogFn = log_nothing) -> T:
    """As `with_retry`, for large files: tries once more over plain HTTP where hf-xet fails.

    The client uses hf-xet for uploads whenever it is installed, also with a Hub that has no such storage. Plain HTTP
    then stays on for the rest of this process, as with HF_HUB_DISABLE_XET.
    """
    from importlib.util import find_spec

    from huggingface_hub import constants

    try:
        return with_retry(what, call, note)
    except TransferBroken as error:
        if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None:
            raise
        constants.HF_HUB_DISABLE_XET = True
        why = "this Hub has no such storage" if "404" in str(error) else str(error)
        note(f"without hf-xet, over plain HTTP ({why}); HF_HUB_DISABLE_XET=1 does so from the start")
    return with_retry(what, call, note)


def translate_error(error: Exception, what: str) -> HubError | OutputError:
    """The error to show for one of the client's; `what` completes 'could not ...'. Its message has no token in it."""
    failed, root = f"could not {what}", _root_cause(error)
    kind = type(root).__name__
    said = first_line(redact(str(root))) or kind
    if (full := _disk_full(error)) is not None:
        place = f" at {full.filename}" if full.filename else ""
        return OutputError(f"{failed}: no room on the disk{place} ({full.strerror}); make room, or move HF_HOME")
    storage = _storage_host(error)
    if storage is not None and (found := _storage_fault(error, storage)) is not None:
        return found[0](f"{failed}: {found[1]}")
    if (status := _status_of(error)) is not None:
        raises, text = _ANSWERS.get(kind) or _ANSWERS.get(status) or _unexpected(status)
        return raises(f"{failed}: {text.format_map(_words(root))}")
    if kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
        return Offline(f"{failed}: HF_HUB_OFFLINE is set; unset it to go online")
    if _wrong_size(error):
        return TransferBroken(f"{failed}: it arrived with another size than the Hub says; run it again")
    if kind in _UNREACHABLE:
        return HubError(
            f"{failed}: no connection to {endpoint()} ({said}); check the network, HF_ENDPOINT and proxy settings. "
            "What was pulled before works with HF_HUB_OFFLINE=1"
        )
    if kind in _CONNECTION_LOST:
        return TransferBroken(f"{failed}: the connection to {endpoint()} broke off ({said}); run it again")
    return TransferBroken(f"{failed}: {kind}: {said}; run it again")


def _storage_host(error: Exception) -> str | None:
    """The host of the failed request where that is not the Hub: large files lie elsewhere, in a storage of its own."""
    root = _root_cause(error)
    # The attribute `request` raises where there is none.
    request = getattr(root, "_request", None) or getattr(getattr(root, "response", None), "_request", None)
    asked, hub = (urlsplit(address) for address in (str(getattr(request, "url", "")), endpoint()))
    if not asked.hostname or (asked.hostname, _port(asked)) == (hub.hostname, _port(hub)):
        return None
    return asked.netloc.rpartition("@")[2]


def _port(address: SplitResult) -> int | None:
    return address.port or {"http": 80, "https": 443}.get(address.scheme)


def _storage_fault(error: Exception, host: str) -> tuple[type[HubError], str] | None:
    """The error to raise for one of the storage host, and what completes 'could not ...: '."""
    root, status = _root_cause(error), _status_of(error)
    kind, where = type(root).__name__, f"the storage host {host}, where {endpoint()} keeps large files"
    why = first_line(redact(str(root))) or kind
    if kind in _UNREACHABLE:
        return HubError, (
            f"no connection to {where} ({why}); the Hub itself answers. Try again later; if it stays so, check that "
            "proxy and firewall let this host through"
        )
    if kind in _CONNECTION_LOST:
        return TransferBroken, f"the connection to {where}, broke off ({why}); run it again"
    if status is None or status == 429:
        return None
    said = first_line(redact(str(getattr(root, "server_message", None) or "")))
    meaning = {404: "not found", 401: "not permitted", 403: "not permitted"}.get(status, "a fault of its own")
    return HubError, f"{where}, answered: {meaning} ({status}){f': {said}' if said else ''}; run it again later"


def _unexpected(status: int) -> tuple[type[HubError], str]:
    fault = f"a fault of the Hub ({status}){{said}}; try again later"
    return HubError, fault if status >= 500 else f"the Hub answered {status}{{said}}"


def _words(root: BaseException) -> dict[str, str]:
    """The values of the placeholders in _ANSWERS."""
    said = first_line(redact(str(getattr(root, "server_message", None) or "")))
    logged_in, wait = token() is not None, _retry_after(root)
    return {
        "said": f": {said}" if said else "",
        "hub": endpoint(),
        "private": "or the token may not see it" if logged_in else "log in with `hf auth login` if it is private",
        "rejects": f"does not accept {token_origin()}" if logged_in else "wants a token",
        "who": token_origin() if logged_in else "being logged out",
        "when": f"in {wait} s" if wait else "in a few minutes",
    }


def _retry_delay(error: Exception, wait: float | None) -> float | None:
    """The seconds to wait before another try, or None when that would not help or `wait` is None: no tries left."""
    status, root = _status_of(error), _root_cause(error)
    if wait is None:
        return None
    if status is not None:
        asked = _retry_after(root) or wait
        return asked if status in RETRY_STATUS and asked <= MAX_WAIT else None
    may_pass = type(root).__name__ in _CONNECTION_LOST or _wrong_size(error)
    return wait if may_pass and _disk_full(error) is None else None


def _is_refused(error: Exception) -> bool:
    """Whether nobody listens at the address, as while a server restarts."""
    return any(isinstance(e, ConnectionRefusedError) or "refused" in str(e).lower() for e in _causes(error)) and (
        type(_root_cause(error)).__name__ in _UNREACHABLE
    )


def _wrong_size(error: Exception) -> bool:
    return "Consistency check failed" in str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: the client wraps the fault of a connection in up to three others."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _root_cause(error: BaseException) -> BaseException:
    """The exception that says most: the Hub's answer or the connection's fault inside the client's wrappers."""
    wrappers = (RuntimeError, FileNotFoundError)  # 'Error while uploading', LocalEntryNotFoundError
    return next((e for e in _causes(error) if not isinstance(e, wrappers) or e.__cause__ is None), error)


def _status_of(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer, if the error is about one."""
    status = getattr(getattr(_root_cause(error), "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _disk_full(error: BaseException) -> OSError | None:
    return next((e for e in _causes(error) if isinstance(e, OSError) and e.errno in DISK_FULL_ERRNOS), None)


def _retry_after(root: BaseException) -> int | None:
    value = getattr(getattr(root, "response", None), "headers", {}).get("Retry-After", "")
    return int(value) if value.isdigit() else None


@contextlib.contextmanager
def _quiet_logging(note: LogFn) -> Iterator[None]:
    """Hides the client's warnings and log lines, full of addresses, for the block; errors say what matters."""
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
    """Lets through what the client says first about waiting, which has no address in it, and nothing else."""

    def __init__(self, note: LogFn) -> None:
        super().__init__(logging.WARNING)
        self.note, self.is_said = note, False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(("Retrying in", "Rate limited")) and not self.is_said:
            self.is_said = True
            self.note(f"the Hub is not answering well: {redact(text)}")
