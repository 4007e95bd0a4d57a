"""Uploads a bundle to the Hub in one commit."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError, HubError, HubRefusal, SettingError
from finetune.hub.client import CLIENT, endpoint, holds_token, redact, token
from finetune.hub.errors import (
    FileMissing,
    LogFn,
    NotSupported,
    RepositoryMissing,
    log_nothing,
    with_retry,
    with_retry_no_xet,
)
from finetune.hub.history import check_parent
from finetune.hub.repo import Remote, find_repo, get_repo, look_at_file
from finetune.hub.repo_id import CARD, WEIGHTS, HubName, same_commit
from finetune.io.safe_open import sha256_of

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

Files = Mapping[str, bytes | Path]
"""Names in the repository, and their contents: bytes, or a file on this disk."""

_HEX = re.compile(r"[0-9a-fA-F]{5,}")


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
    taken = _tagged_commit(api, remote.repo, tag, remote.commit, note) if remote is not None else None
    if remote is not None and taken is not None and (not same_commit(taken, remote.commit) or remote.conflicts(files)):
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

    Nothing of the files is sent before the Hub says that a repository which is to be `private` is. Made to be run again
    after any interruption: what was uploaded is not sent twice, and a commit whose answer was lost is found by its
    content.
    """
    card = files[CARD]
    assert isinstance(card, bytes)
    if not private:
        check_card(api, card.decode(), note)
    is_new = find_repo(api, name, note) is None and _create(api, name, private, note)
    with _naming_unfilled(name, is_new, note):
        before = get_repo(api, name, note)
        if private:
            _check_private(before, is_new)
            check_card(api, card.decode(), note)
        changed = _changed(api, before, files, note)
        found = Pushed(name.repo, before.commit, False, (), f"{endpoint()}/{name.repo}")
        if changed:
            open_request = _find_pull_request(api, before, files, note) if create_pr else None
            found = open_request or _commit(api, before, files, message, create_pr, note)
    if found.made:
        try:
            found = _check_commit(api, before, found, files, create_pr, note)
        except HubError as error:
            raise type(error)(f"{error}; the tag {tag} was not made") if tag is not None else error from None
    if tag is not None:
        _tag(api, found, tag, note)
    return replace(found, changed=changed, tag=tag, sha256=sha256_of(files[WEIGHTS]))


def _create(api: HfApi, name: HubName, private: bool, note: LogFn) -> bool:
    """Creates a repository; False where there is one after all, which nobody has seen."""
    from huggingface_hub.errors import HfHubHTTPError

    tries = 0

    def call() -> bool:
        nonlocal tries
        tries += 1
        try:
            api.create_repo(name.repo, private=private or None)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return tries > 1  # made by a try whose answer was lost
        return True

    return with_retry(f"create {name}", call, note)


def _check_private(there: Remote, is_new: bool) -> None:
    """HubError unless the Hub says that the repository is private."""
    if there.private:
        return
    if there.private is None:
        said = "does not say whether it is private"
    elif is_new:
        said = "made it public all the same"
    else:
        said = "says that it is there and public"
    raise HubError(
        f"--private: {endpoint()} {said} ({there.repo}); nothing of the files was sent. Make it private in its "
        "settings and push again, or take another Hub"
    )


@contextlib.contextmanager
def _naming_unfilled(name: HubName, is_new: bool, note: LogFn) -> Iterator[None]:
    """Adds to an error that this push made the repository, and how to delete it."""
    import huggingface_hub

    # Its command was called `hf repo` first. Its module is not imported, as that switches progress bars on.
    has_repos = (Path(huggingface_hub.__file__).parent / "cli" / "repos.py").exists()
    verb = "repos" if has_repos else "repo"
    left = f"{name.repo} was made by this push, which could not fill it; to delete it: hf {verb} delete {name.repo}"
    try:
        yield
    except FinetuneError as error:
        raise type(error)(f"{error}\n{left}") if is_new else error from None
    except KeyboardInterrupt:
        if is_new:
            note(left)
        raise


def _changed(api: HfApi, there: Remote, files: Files, note: LogFn) -> tuple[str, ...]:
    """The names of files that a commit has to bring. A list may have files that were uploaded and never committed."""
    changed = there.changed(files)
    if not changed:
        for file in files:
            try:
                look_at_file(api, HubName(there.repo), str(there.commit), file, note)
            except FileMissing:
                changed.append(file)
    return tuple(changed)


def _commit(api: HfApi, before: Remote, files: Files, message: str, create_pr: bool, note: LogFn) -> Pushed:
    """One commit upon `before`. Each try first looks whether the one before it has worked after all."""
    name = HubName(before.repo)

    def once() -> Pushed:
        there = get_repo(api, name, note)
        if not _changed(api, there, files, note):
            return Pushed(name.repo, there.commit, True, (), f"{endpoint()}/{name.repo}/commit/{there.commit}")
        if create_pr and (open_request := _find_pull_request(api, there, files, note)):
            return open_request
        if not create_pr and not same_commit(there.commit, before.commit):
            raise HubError(
                f"could not push to {name}: somebody changed the repository meanwhile, in commit {there.commit}; look "
                "at it and push again"
            )
        made = _send_commit(api, before, files, message, create_pr, note)
        is_new = not same_commit(made.oid, before.commit)
        return Pushed(name.repo, made.oid, is_new, (), redact(made.commit_url), made.pr_url)

    try:
        found = with_retry_no_xet(f"push to {name}", once, note)
    except NotSupported as error:
        if not create_pr:
            raise
        raise NotSupported(f"{error}. It has no pull requests: push without --create-pr") from None
    return found


def _send_commit(api: HfApi, before: Remote, files: Files, message: str, create_pr: bool, note: LogFn) -> CommitInfo:
    """One commit upon `before`, which the Hub is to refuse when somebody else's came first."""
    from huggingface_hub import CommitInfo, CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    def send(parent: str | None) -> CommitInfo:
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        return api.create_commit(before.repo, added, commit_message=message, parent_commit=parent, create_pr=create_pr)

    def is_unchanged() -> bool:
        return same_commit(get_repo(api, HubName(before.repo), note).commit, before.commit)

    # The client sends at most 40 hex digits of a parent, which not every Hub understands as the start of a longer id.
    is_hex = before.commit is not None and _HEX.fullmatch(before.commit) is not None
    parent = str(before.commit)[:40] if is_hex else None
    try:
        return send(parent)
    except HfHubHTTPError as error:
        is_shortened = parent not in (None, before.commit)
        if not (is_shortened and 400 <= error.response.status_code < 500 and is_unchanged()):
            raise
        return send(None)
    except KeyError:  # a Hub that took --create-pr for a push, and gives no address of a request
        if not create_pr:
            raise
        there = get_repo(api, HubName(before.repo), note)
        return CommitInfo(
            f"{endpoint()}/{before.repo}", commit_message=message, commit_description="", oid=str(there.commit)
        )


def _check_commit(api: HfApi, before: Remote, found: Pushed, files: Files, create_pr: bool, note: LogFn) -> Pushed:
    """HubError when the commit does not hold the files, is no pull request, or replaced somebody else's."""
    after = get_repo(api, HubName(found.repo, found.commit), note)
    if wrong := after.conflicts(files):
        raise HubError(
            f"{found.repo}: {', '.join(wrong)} arrived damaged in commit {str(found.commit)[:12]}; push again"
        )
    if found.pull_request:
        return replace(found, commit=after.commit)
    if create_pr and same_commit(get_repo(api, HubName(before.repo), note).commit, after.commit):
        raise HubError(
            f"{before.repo}: {endpoint()} has no pull requests: in spite of --create-pr the files are on its main "
            f"branch, in commit {after.commit}; what was there before is in commit {before.commit}"
        )
    check_parent(api, before, after, note)
    return replace(found, commit=after.commit)


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

    def is_there() -> bool:
        return same_commit(_tagged_commit(api, found.repo, tag, found.commit, note) or "", found.commit)

    if is_there():
        return

    def call() -> None:
        try:
            api.create_tag(found.repo, tag=tag, revision=found.commit)
        except HfHubHTTPError as error:
            if error.response.status_code == 409:
                if is_there():
                    return  # made by a try whose answer was lost
                raise HubRefusal(
                    f"{found.repo}: pushed as {str(found.commit)[:12]}, but the tag {tag} is taken; choose another name"
                ) from None
            raise

    with_retry(f"tag {found.repo} as {tag}", call, note)


def _tagged_commit(api: HfApi, repo: str, tag: str, expected: str | None, note: LogFn) -> str | None:
    """The commit that a tag names, None for one that is free.

    A Hub without a list of refs is asked for the tag, and so is one that lists another id than `expected`: that of a
    tag which has a message is not the commit's.
    """
    try:
        refs = with_retry(f"read the tags of {repo}", lambda: api.list_repo_refs(repo), note)
    except RepositoryMissing:
        target = None
    else:
        target = {ref.name: ref.target_commit for ref in refs.tags}.get(tag)
        if target is None or same_commit(target, expected):
            return target
    with contextlib.suppress(HubRefusal):
        return get_repo(api, HubName(repo, tag), note).commit
    return target
