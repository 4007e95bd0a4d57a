"""The Hub's address and token; the token is redacted from every text."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


_TOKEN_LIKE = re.compile(r"hf_[A-Za-z0-9]{16,}")

_SIGNATURE = re.compile(r"(https?://[^\s?]+)\?[^\s)]+")

_LOGIN_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")


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
