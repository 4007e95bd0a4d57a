"""Uploads a bundle to the Hub in one commit."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError, HubError, HubRefusal, SettingError
from finetune.hub.client import CLIENT, endpoint, holds_token, redact, token
from finetune.hub.errors import LogFn, RepositoryMissing, log_nothing, with_retry, with_retry_no_xet
from finetune.hub.repo import Remote, find_repo, get_repo
from finetune.hub.repo_id import WEIGHTS, HubName
from finetune.io.safe_open import sha256_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Files = Mapping[str, bytes | Path]
"""Names in the repository, and their contents: bytes, or a file on this disk."""


@dataclass(frozen=True)
class Pushed:
    """The outcome of a push. `commit` holds the files; `made`: it is new; `changed`: the files that differed before.

    After a dry run `commit` is None and the files are in `folder`. `sha256` is that of the checkpoint.
    """

    repo: str
    commit: str | None
    made: bool
    changed: tuple[str, ...]
    url: str | None
    pull_request: str | None = None
    tag: str | None = None
    sha256: str = ""
    folder: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return asdict(self) | {"changed": list(self.changed)}


def logged_in(api: HfApi, note: LogFn = log_nothing) -> str:
    """The name of the account that pushes. HubRefusal without a token, or with one that the Hub does not know."""
    if token() is None:
        raise HubRefusal(f"no token for {endpoint()}: log in with `hf auth login`, or set HF_TOKEN")
    api.token = token()  # explicitly, as HF_HUB_DISABLE_IMPLICIT_TOKEN is about reading
    found: dict[str, Any] = with_retry("learn whose token this is", lambda: api.whoami(), note)
    return str(found.get("name", "?"))


def check_no_token(files: Files) -> None:
    """HubRefusal when a file holds a token: the one in use, or anything that looks like one."""
    for name, content in files.items():
        if holds_token(content if isinstance(content, bytes) else content.read_bytes()):
            raise HubRefusal(f"{name} holds a token; nothing was uploaded. Take it out of the recipe or the checkpoint")


def check_no_token_typed(words: Mapping[str, str | None]) -> None:
    """SettingError when what was typed for an option, by its name, holds a token; the message does not repeat it."""
    for option, text in words.items():
        if text is not None and holds_token(text.encode(errors="replace")):
            raise SettingError(
                f"{option}: what was given holds a token, which everybody could read on the Hub; nothing was sent. "
                "Take it out; the token itself comes from `hf auth login` or HF_TOKEN"
            )


def check_card(api: HfApi, card: str, note: LogFn = log_nothing) -> None:
    """HubRefusal with the Hub's own objections to the card; its warnings are noted."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    def call() -> tuple[bool, dict[str, Any]]:
        answer = get_session().post(
            f"{constants.ENDPOINT}/api/validate-yaml",
            json={"content": card, "repoType": "model"},
            headers=build_hf_headers(token=api.token, **CLIENT),
        )
        if answer.status_code != 400:
            hf_raise_for_status(answer)
        values = answer.json()
        return answer.status_code == 400, values if isinstance(values, dict) else {}

    refused, found = with_retry("have the model card checked", call, note)
    errors, warnings = ([str(e.get("message")) for e in found.get(k) or []] for k in ("errors", "warnings"))
    for text in warnings:
        note(f"the Hub on the model card: {redact(text)}")
    if refused or errors:
        said = redact("\n  ".join(errors or [str(found.get("error") or "it does not say why")]))
        raise HubRefusal(f"the Hub does not accept the model card; nothing was uploaded\n  {said}")


def check_tag(api: HfApi, remote: Remote | None, files: Files, tag: str, note: LogFn = log_nothing) -> None:
    """HubRefusal when the tag is taken by other content, before anything is uploaded."""
    taken = _tagged_commit(api, remote.repo, tag, note) if remote is not None else None
    if remote is not None and taken is not None and (taken != remote.commit or remote.conflicts(files)):
        raise HubRefusal(
            f"{remote.repo}: the tag {tag} is taken by commit {taken[:12]}; choose another name for this one"
        )


def publish(
    api: HfApi,
    name: HubName,
    files: Files,
    *,
    message: str,
    private: bool = False,
    tag: str | None = None,
    create_pr: bool = False,
    note: LogFn = log_nothing,
) -> Pushed:
    """Makes one commit of the files on main (or a pull request), none where they are there already, and then the tag.

    Made to be run again after any interruption: what was uploaded is not sent twice, and a commit whose answer was
    lost is found by its content.
    """
    if find_repo(api, name, note) is None:
        with_retry(f"create {name}", lambda: api.create_repo(name.repo, private=private or None, exist_ok=True), note)
    before = get_repo(api, name, note)
    changed = tuple(before.changed(files))
    found = Pushed(name.repo, before.commit, False, (), f"{endpoint()}/{name.repo}")
    if changed:
        open_request = _find_pull_request(api, before, files, note) if create_pr else None
        found = open_request or _commit(api, before, files, message, create_pr, note)
    if tag is not None:
        _tag(api, found, tag, note)
    return replace(found, changed=changed, tag=tag, sha256=sha256_of(files[WEIGHTS]))


def _commit(api: HfApi, before: Remote, files: Files, message: str, create_pr: bool, note: LogFn) -> Pushed:
    """One commit upon `before`, checked. Each try first looks whether the one before it has worked after all."""
    from huggingface_hub import CommitOperationAdd

    name = HubName(before.repo)

    def once() -> Pushed:
        there = get_repo(api, name, note)
        if not there.changed(files):
            return Pushed(name.repo, there.commit, True, (), f"{endpoint()}/{name.repo}/commit/{there.commit}")
        if create_pr and (open_request := _find_pull_request(api, there, files, note)):
            return open_request
        made = api.create_commit(
            name.repo,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=message,
            # The commit that was looked at, so that what somebody else pushes meanwhile is never replaced unseen.
            parent_commit=before.commit,
            create_pr=create_pr,
        )
        return Pushed(name.repo, made.oid, made.oid != before.commit, (), redact(made.commit_url), made.pr_url)

    found = with_retry_no_xet(f"push to {name}", once, note)
    wrong = get_repo(api, HubName(found.repo, found.commit), note).conflicts(files)
    if wrong:
        raise HubError(
            f"{found.repo}: {', '.join(wrong)} arrived damaged in commit {str(found.commit)[:12]}; push again"
        )
    return found


def _find_pull_request(api: HfApi, remote: Remote, files: Files, note: LogFn) -> Pushed | None:
    """The open pull request that already has these files, as after an interruption; None where there is none."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        requests = [d.num for d in api.get_repo_discussions(remote.repo, discussion_status="open") if d.is_pull_request]
    except (HfHubHTTPError, KeyError, ValueError, TypeError):
        return None  # a Hub without discussions; then a second request is the worst that can happen
    for number in sorted(requests, reverse=True)[:10]:
        with contextlib.suppress(FinetuneError):
            there = get_repo(api, HubName(remote.repo, f"refs/pr/{number}"), note)
            if not there.changed(files):
                url = f"{endpoint()}/{remote.repo}/discussions/{number}"
                return Pushed(remote.repo, there.commit, False, (), url, url)
    return None


def _tag(api: HfApi, found: Pushed, tag: str, note: LogFn) -> None:
    """Gives the commit a tag, unless it has it. HubRefusal when the tag is another commit's."""
    from huggingface_hub.errors import HfHubHTTPError

    if _tagged_commit(api, found.repo, tag, note) == found.commit:
        return

    def call() -> None:
        try:
            api.create_tag(found.repo, tag=tag, revision=found.commit)
        except HfHubHTTPError as error:
            if error.response.status_code == 409:
                if _tagged_commit(api, found.repo, tag, note) == found.commit:
                    return  # made by a try whose answer was lost
                raise HubRefusal(
                    f"{found.repo}: pushed as {str(found.commit)[:12]}, but the tag {tag} is taken; choose another name"
                ) from None
            raise

    with_retry(f"tag {found.repo} as {tag}", call, note)


def _tagged_commit(api: HfApi, repo: str, tag: str, note: LogFn) -> str | None:
    """The commit that a tag names, None for one that is free; a Hub without a list of refs is asked for the tag."""
    try:
        refs = with_retry(f"read the tags of {repo}", lambda: api.list_repo_refs(repo), note)
    except RepositoryMissing:
        with contextlib.suppress(HubRefusal):
            return get_repo(api, HubName(repo, tag), note).commit
        return None
    return {ref.name: ref.target_commit for ref in refs.tags}.get(tag)
