"""Looks for commits that somebody else made while a push was under way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from finetune.errors import HubError
from finetune.hub.client import CLIENT, endpoint
from finetune.hub.errors import LogFn, with_retry
from finetune.hub.repo import Remote, get_repo
from finetune.hub.repo_id import HubName, same_commit
from finetune.text import listed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAX_COMMITS = 200  # that are read of a history


def check_parent(api: HfApi, before: Remote, after: Remote, note: LogFn) -> None:
    """HubError when the commit `after` undid what somebody else committed since `before` was looked at.

    A Hub should refuse such a commit (412), and not every one does. What somebody else committed and is still there is
    noted, and so is a Hub that has no list of commits.
    """
    if before.commit is None or same_commit(before.commit, after.commit):
        return
    between = _commits_between(api, before.repo, before.commit, str(after.commit), note)
    if between is None:
        note(
            f"{before.repo}: {endpoint()} does not list commits, so that nobody else committed something before "
            f"{str(after.commit)[:12]} could not be checked"
        )
        return
    if not between:
        return
    theirs = get_repo(api, HubName(before.repo, between[0]), note)
    changed = [n for n in before.files.keys() | theirs.files.keys() if before.files.get(n) != theirs.files.get(n)]
    lost = sorted(name for name in changed if theirs.files.get(name) != after.files.get(name))
    who = f"{before.repo}: somebody else committed {theirs.commit} while this push was under way"
    if not lost:
        note(f"{who}; what it changed is still there")
        return
    raise HubError(
        f"{who}, and this push replaced its {listed(lost)} in commit {after.commit}: {endpoint()} did not refuse it. "
        f"Theirs are in {before.repo}@{theirs.commit}; look at both, and push again what is to stand"
    )


def _commits_between(api: HfApi, repo: str, before: str, after: str, note: LogFn) -> list[str] | None:
    """The commits that `after` has and `before` has not, newest first, without `after`; None where nobody tells."""
    rows = _history(api, repo, after, note, until=before) or []
    ours = [number for number, row in enumerate(rows) if same_commit(row, after)]
    if not ours:
        return None
    found = rows[ours[0] + 1 :]
    if found and same_commit(found[0], before):
        return []
    # Histories are sorted by time, so that a parent need not come next.
    older = _history(api, repo, before, note)
    if older is None:
        return None
    return [row for row in found if not any(same_commit(row, one) for one in older)]


def _history(api: HfApi, repo: str, revision: str, note: LogFn, until: str | None = None) -> list[str] | None:
    """The ids of a revision's commits, newest first, to `until` if that is among them; None where the Hub has none."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]

    def ids() -> Iterator[str]:
        address = f"{constants.ENDPOINT}/api/models/{repo}/commits/{revision}"
        for row in islice(
            paginate(address, params={}, headers=build_hf_headers(token=api.token, **CLIENT)), MAX_COMMITS
        ):
            yield str(row["id"])
            if until is not None and same_commit(str(row["id"]), until):
                return

    try:
        return with_retry(f"list the commits of {repo}", lambda: list(ids()), note)
    except HubError:
        return None
