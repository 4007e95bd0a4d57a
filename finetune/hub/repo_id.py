"""Parses repository names and revisions of the Hub, and names the files of a repository."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from finetune.data.spec import HUB_DATA
from finetune.errors import SettingError

PREFIX = "hub:"
RepoKind: TypeAlias = Literal["model", "dataset"]
WEIGHTS, CONFIG, RECIPE, REPORT, CARD = "model.safetensors", "config.json", "recipe.yaml", "report.json", "README.md"
OUR_FILES = (WEIGHTS, CONFIG, RECIPE, REPORT, CARD)
EXAMPLES, ONNX_FOLDER = "examples/", "onnx/"  # the card's pictures, and what --with onnx adds, beside PREPROCESSOR
PREPROCESSOR = "preprocessor_config.json"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
REPO = re.compile(rf"{_PART}/[A-Za-z0-9._](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_ABBREVIATED = re.compile(r"[0-9a-f]{7,}")
# What git forbids in the name of a branch or tag, and what would mean something in a path or address.
_BAD_REVISION = re.compile(r"[\s~^:?*\[\\%#@\x00-\x1f\x7f]|\.\.|//|^[/.-]|[/.]$|\.lock$")
_MAX_COMMIT_LEN = 128  # characters
_MAX_LEN = 96  # characters of OWNER/NAME, the Hub's own limit


@dataclass(frozen=True)
class HubName:
    """A repository, and the branch, tag, pull request (refs/pr/N) or commit that was asked for, if any."""

    repo: str
    revision: str | None = None
    kind: RepoKind = "model"

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def stem(self) -> str:
        """NAME alone, for a file's name."""
        return self.repo.partition("/")[2]


def is_hub_source(source: object) -> bool:
    """Whether a source is on the Hub: `hub:OWNER/NAME[@REVISION]`."""
    return isinstance(source, str) and source.startswith(PREFIX)


def parse_name(text: str, *, revision_allowed: bool = True, kind: RepoKind = "model") -> HubName:
    """Reads OWNER/NAME[@REVISION], with or without `hub:` (`hub-data:` for a data set) before it.

    SettingError says what is wrong with it.
    """
    given = text.removeprefix(PREFIX if kind == "model" else HUB_DATA)
    repo, at, revision = given.partition("@")
    if "://" in given:
        raise SettingError(f"{text!r}: expected OWNER/NAME, not an address; HF_ENDPOINT says which Hub is asked")
    if not REPO.fullmatch(repo) or len(repo) > _MAX_LEN or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise SettingError(
            f"{text!r}: expected OWNER/NAME{'[@REVISION]' if revision_allowed else ''}, for example ada/kmnist-cnn; "
            f"letters, digits, '-', '_' and '.', at most {_MAX_LEN} of them"
        )
    if at and not revision_allowed:
        raise SettingError(f"{text!r}: a push goes to the branch main; name its result with --tag instead of @")
    if at:
        check_revision(revision, f"{text!r}: after @")
    return HubName(repo, revision or None, kind)


def check_revision(text: str, where: str) -> None:
    """SettingError, beginning with `where`, unless the text can be the name of a branch, tag or commit."""
    if not text or _BAD_REVISION.search(text):
        raise SettingError(f"{where} expected the name of a branch, tag or commit, for example v1; found {text!r}")


def is_commit_id(text: str) -> bool:
    """Whether a Hub may call a commit so: by hex digits of any number, or another name that can follow @."""
    return bool(text) and "/" not in text and len(text) <= _MAX_COMMIT_LEN and not _BAD_REVISION.search(text)


def same_commit(one: str | None, other: str | None) -> bool:
    """Whether two ids name one commit: they are equal, or one is the other's first 7 or more hex digits."""
    if one is None or other is None or one == other:
        return one == other
    short, long = sorted((one, other), key=len)
    return len(short) < len(long) and long.startswith(short) and all(map(_ABBREVIATED.fullmatch, (short, long)))


def fullest_id(commit: str, others: Iterable[str | None]) -> str:
    """The longest id of a commit among itself and others; itself where these are several commits."""
    longer = sorted({other for other in others if other and same_commit(commit, other)} | {commit}, key=len)
    is_chain = all(same_commit(one, longer[-1]) for one in longer)
    return longer[-1] if is_chain else commit
