"""Size and hash of a file as a Hub states them, and whether bytes have them."""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.io.safe_open import sha256_of

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file's content; None for what is not.

    `sha256` is that of a large file. `blob_id` is git's id of a small one (40 hex digits: sha1; 64: sha256) or, where a
    Hub says so in an ETag, the sha256 of the content itself. `size` is in bytes. `listed`: the hash is of the list of
    the revision's files, and not from the head of a download.
    """

    sha256: str | None = None
    blob_id: str | None = None
    size: int | None = None
    listed: bool = True

    @classmethod
    def parse(cls, text: object, size: int | None = None) -> FileFacts:
        """The facts in a blob's id or an ETag; without a hash for anything but 40 or 64 hex digits."""
        found = str(text).lower()
        return cls(None, found if _BLOB_ID.fullmatch(found) else None, size)

    @classmethod
    def of_large(cls, sha256: object, size: int | None = None) -> FileFacts:
        """The facts of a large file, whose `sha256` may have its kind before it, as git-lfs writes it."""
        found = str(sha256).lower().removeprefix("sha256:")
        return cls(found if _SHA256.fullmatch(found) else None, None, size)

    @property
    def has_hash(self) -> bool:
        return self.sha256 is not None or self.blob_id is not None

    def with_size_of(self, other: FileFacts) -> FileFacts:
        """The same, with the other's size where this has none."""
        return self if self.size is not None else replace(self, size=other.size)

    def fits(self, content: bytes | Path) -> bool:
        """Whether the content has this size and hash, as far as these are known."""
        return self.mismatch(content) is None

    def mismatch(self, content: bytes | Path) -> str | None:
        """What is wrong with the content, as the end of 'its content ...'; None where it fits what is known."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if self.size is not None and size != self.size:
            return f"has {size:,} bytes, and not the {self.size:,} that the Hub says"
        if self.sha256 is not None:
            return None if sha256_of(content) == self.sha256 else self._wrong("sha256", self.sha256)
        if self.blob_id is None:
            return None
        if len(self.blob_id) == 40:
            return None if git_id_of(content, "sha1") == self.blob_id else self._wrong("git sha1", self.blob_id)
        either = sha256_of(content), git_id_of(content, "sha256")
        return None if self.blob_id in either else self._wrong("sha256", self.blob_id)

    @staticmethod
    def _wrong(kind: str, digest: str) -> str:
        return f"does not have the {kind} {digest[:12]} that the Hub says"


def git_id_of(content: bytes | Path, algorithm: str) -> str:
    """The id (hex) of this content as a git blob; `algorithm` is that of the repository, sha1 or sha256."""
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        header = b"blob %d\0" % file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.new(algorithm, header, usedforsecurity=False)
        return hashlib.file_digest(file, lambda: digest).hexdigest()
