"""Translates the Hub client's exceptions into finetune errors, and says which are worth a retry."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from finetune.errors import HubError, HubRefusal, OutputError
from finetune.hub.credentials import endpoint, redact, token, token_origin

RETRY_STATUS = (408, 429, 500, 502, 503, 504)

MAX_WAIT = 30  # seconds that a Hub may ask to wait before a person is told instead

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "InvalidURL")

_CONNECTION_LOST = (
    *("ReadError", "WriteError", "CloseError", "RemoteProtocolError", "ReadTimeout", "WriteTimeout", "PoolTimeout"),
    *("DecodingError", "LocalProtocolError", "StreamError", "IncompleteRead"),
)


class RepositoryMissing(HubRefusal):
    """There is no such repository, or none that this token may see: the Hub does not tell which."""


class TransferBroken(HubError):
    """A transfer ended without an answer of the Hub: cut off, or failed within the client."""


def retry_delay(error: Exception, wait: float | None) -> float | None:
    """The seconds to wait before another try, or None when that would not help or `wait` is None: no tries left."""
    if wait is None:
        return None
    status = status_of(error)
    if status is not None:
        return _asked_to_wait(error, wait) if status in RETRY_STATUS else None
    if _disk_full(error) is not None:
        return None
    return wait if _name(error) in _CONNECTION_LOST or _wrong_size(error) else None


def short_reason(error: Exception) -> str:
    """Why a try failed, in a word or two."""
    status = status_of(error)
    return str(status) if status is not None else "a wrong size" if _wrong_size(error) else "cut off"


def _wrong_size(error: Exception) -> bool:
    return "Consistency check failed" in str(error)


def translate_error(error: Exception, what: str) -> HubError | OutputError:
    """The error to show for one of the client's; `what` completes 'could not ...'. Holds no token."""
    return _translate(error, f"could not {what}")


def _translate(error: Exception, failed: str) -> HubError | OutputError:
    full = _disk_full(error)
    if full is not None:
        place = f" at {full.filename}" if full.filename else ""
        return OutputError(f"{failed}: no room on the disk{place} ({full.strerror}); make room, or move HF_HOME")
    kind, status = _name(error), status_of(error)
    if kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError") and status is None:
        return HubRefusal(f"{failed}: HF_HUB_OFFLINE is set; unset it to go online")
    if status is not None:
        return _translate_status(error, status, failed)
    if _wrong_size(error):
        return TransferBroken(f"{failed}: it arrived with another size than the Hub says; run it again")
    said = redact(str(_root(error))).strip() or kind
    if kind in _UNREACHABLE:
        return HubError(
            f"{failed}: no connection to {endpoint()} ({_first_line(said)}); check the network, HF_ENDPOINT and "
            "proxy settings. What was pulled before works with HF_HUB_OFFLINE=1"
        )
    if kind in _CONNECTION_LOST:
        return TransferBroken(f"{failed}: the connection to {endpoint()} broke off ({_first_line(said)}); run it again")
    return TransferBroken(f"{failed}: {kind}: {_first_line(said)}; run it again")


def _translate_status(error: Exception, status: int, failed: str) -> HubError:
    kind = _name(error)
    said = _server_words(error)
    if kind == "GatedRepoError":
        return HubRefusal(
            f"{failed}: access is gated by its owner{said}; open its page on {endpoint()}, ask for access, and log in "
            "with `hf auth login`"
        )
    if kind == "DisabledRepoError":
        return HubRefusal(f"{failed}: the Hub has disabled this repository{said}")
    if kind == "RevisionNotFoundError":
        return HubRefusal(f"{failed}: the repository has no such revision{said}; check the name after @")
    if kind in ("RemoteEntryNotFoundError", "EntryNotFoundError"):
        return HubRefusal(f"{failed}: the repository has no such file{said}")
    if kind == "RepositoryNotFoundError":
        private = "log in with `hf auth login` if it is private" if token() is None else "or the token may not see it"
        return RepositoryMissing(f"{failed}: {endpoint()} has no such repository{said}; check OWNER/NAME, {private}")
    if status == 404:
        return RepositoryMissing(f"{failed}: not found (404){said}; check OWNER/NAME, what is after @, and HF_ENDPOINT")
    if status == 401:
        cure = "set a valid one, or log in again with `hf auth login`"
        who = f"does not accept {token_origin()}" if token() else "wants a token"
        return HubRefusal(f"{failed}: {endpoint()} {who} (401){said}; {cure}")
    if status == 403:
        needed = f"a push needs write access, and its owner may have to give leave to read: see {endpoint()}"
        who = token_origin() if token() else "being logged out"
        return HubRefusal(f"{failed}: {who} does not permit it (403){said}; {needed}")
    if status == 412:
        return HubError(f"{failed}: somebody changed the repository meanwhile (412); look at it and push again")
    if status == 409:
        return HubError(f"{failed}: it conflicts with what is there (409){said}; look at the repository and try again")
    if status == 429:
        wait = _retry_after(error)
        when = f"in {wait} s" if wait else "in a few minutes"
        return HubError(f"{failed}: too many requests for now (429); try again {when}")
    if status >= 500:
        return HubError(f"{failed}: a fault of the Hub ({status}){said}; try again later")
    return HubError(f"{failed}: the Hub answered {status}{said}")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: the client wraps the fault of a connection in up to three others."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer, if the error is about one."""
    root = _root(error)
    status = getattr(getattr(root, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _root(error: BaseException) -> BaseException:
    """The one that says most: the Hub's answer or the connection's fault inside the client's wrappers."""
    wrappers = (RuntimeError, FileNotFoundError)  # 'Error while uploading', LocalEntryNotFoundError
    for inner in causes(error):
        if not isinstance(inner, wrappers) or inner.__cause__ is None:
            return inner
    return error


def _name(error: BaseException) -> str:
    return type(_root(error)).__name__


def _disk_full(error: BaseException) -> OSError | None:
    found = [inner for inner in causes(error) if isinstance(inner, OSError) and inner.errno in DISK_FULL_ERRNOS]
    return found[0] if found else None


def _server_words(error: BaseException) -> str:
    said = redact(str(getattr(_root(error), "server_message", None) or "")).strip()
    return f": {_first_line(said)}" if said else ""


def _first_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."


def _retry_after(error: BaseException) -> int | None:
    headers = getattr(getattr(_root(error), "response", None), "headers", {})
    value = headers.get("Retry-After", "")
    return int(value) if value.isdigit() else None


def _asked_to_wait(error: Exception, wait: float) -> float | None:
    asked = _retry_after(error)
    if asked is None:
        return wait
    return float(asked) if asked <= MAX_WAIT else None
