"""The Hub's address, token and client; the token is redacted from every text."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from finetune.system import VERSION

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CLIENT: dict[str, Any] = {"library_name": "finetune", "library_version": VERSION}
"""What requests say of the program that makes them, in their User-Agent."""
STALL_TIMEOUT = 120.0  # seconds without a byte in either direction before a connection is given up
MIN_TOKEN_LEN = 8  # characters
_TOKEN_LIKE = re.compile(r"(?:hf_|api_org_)[A-Za-z0-9]{16,}")
_TOKEN_LIKE_BYTES = re.compile(_TOKEN_LIKE.pattern.encode())
_SIGNATURE = re.compile(r"(https?://[^\s?]+)\?[^\s)]+")
_LOGIN_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")


def endpoint() -> str:
    """The Hub's address without any name and password in it."""
    from huggingface_hub import constants

    return redact(constants.ENDPOINT)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def token() -> str | None:
    """The token that requests carry: HF_TOKEN's, or the one that `hf auth login` stored."""
    from huggingface_hub import get_token

    return get_token()


def token_origin() -> str:
    """Where the token comes from, for a message."""
    named = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)]
    return f"the token in {named[0]}" if named else "the stored token"


def redact(text: str) -> str:
    """The text without the token, anything that looks like one, and logins and signatures within addresses."""
    if secret := _secret():
        text = text.replace(secret, "(token)")
    text = _LOGIN_IN_ADDRESS.sub("", _TOKEN_LIKE.sub("(token)", text))
    return _SIGNATURE.sub(r"\1", text)


def holds_token(content: bytes) -> bool:
    """Whether bytes that are about to be sent contain the token in use, or anything that looks like one."""
    secret = _secret()
    return (bool(secret) and secret.encode() in content) or _TOKEN_LIKE_BYTES.search(content) is not None


def _secret() -> str:
    """The token, or "" for one so short that it would be found in texts by chance."""
    found = token() or ""
    return found if len(found) >= MIN_TOKEN_LEN else ""


def open_api(*, bars: bool = False) -> HfApi:
    """The client of the Hub that HF_ENDPOINT names. `bars`: progress bars on standard error, if it is a terminal."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, get_session  # type: ignore[attr-defined]

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        (enable_progress_bars if bars and sys.stderr.isatty() else disable_progress_bars)()
    with contextlib.suppress(AttributeError):
        get_session().timeout = STALL_TIMEOUT
    return HfApi(**CLIENT)
