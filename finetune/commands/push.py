"""`finetune push`: a checkpoint to a repository on the Hub, in one commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import OutputError, SettingError
from finetune.hub.bundle import Bundle, make_bundle
from finetune.hub.client import logged_in, open_api
from finetune.hub.credentials import endpoint, redact
from finetune.hub.model_card import check_licence
from finetune.hub.repo import Remote, describe, find_repo
from finetune.hub.repo_id import CARD, CONFIG, WEIGHTS, HubName, check_revision, parse_name
from finetune.hub.upload import Published, check_card, check_private, check_tag, publish
from finetune.io.atomic import write_atomic
from finetune.io.safe_open import sha256_of
from finetune.report.console import Console

if TYPE_CHECKING:
    from huggingface_hub import HfApi


Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class Pushed:
    """What a push did. After a dry run `commit` is None and the files are in `folder`; `made`: the commit is new."""

    repo: str
    commit: str | None
    made: bool
    changed: tuple[str, ...]
    url: str | None
    pull_request: str | None
    tag: str | None
    sha256: str
    folder: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as JSON values."""
        return asdict(self) | {"changed": list(self.changed)}


def push(
    checkpoint: str | Path,
    repository: str,
    *,
    private: bool = False,
    tag: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    licence: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
    confirm: Confirm | None = None,
    console: Console | None = None,
) -> Pushed:
    """Puts a checkpoint with its configuration, recipe, report and card into OWNER/NAME, in one commit or in none.

    `confirm` is asked before another model there is replaced; without it (and without `yes`) that is refused. The token
    is the Hub's own: HF_TOKEN, or what `hf auth login` stored. Errors are those of `finetune.errors`.
    """
    console = console or Console(quiet=True, results=False)
    name = parse_name(repository, revision_allowed=False)
    path = _file_of(checkpoint)
    if tag is not None:
        check_revision(tag, "--tag:")
    if tag is not None and create_pr:
        raise SettingError("--tag with --create-pr: a tag names what is on main, and a pull request is not; drop one")
    bundle = make_bundle(path, name, check_licence(licence) if licence else None)
    check_private(bundle.files)
    for remark in bundle.remarks:
        console.note(remark)
    if dry_run:
        return _write_folder(bundle, name, console)
    api = open_api(bars=not console.quiet)
    console.note(f"pushing to {name} on {endpoint()} as {logged_in(api, console.note)}")
    there = find_repo(api, name, console.note)
    if private and there is not None and there.private is False:
        raise SettingError(f"--private: {name} is there and public; make it private in its settings, or drop --private")
    if not create_pr:
        _ask(api, there, bundle, yes, confirm, console)
    if tag is not None:
        check_tag(api, there, bundle.files, tag, console.note)
    check_card(api, bundle.card, console.note)
    done = publish(
        api,
        name,
        bundle.files,
        message=message or f"finetune: {bundle.headline}",
        private=private,
        tag=tag,
        create_pr=create_pr,
        note=console.note,
    )
    _say(done, console)
    return Pushed(**asdict(done), sha256=sha256_of(path))


def _file_of(checkpoint: str | Path) -> Path:
    if str(checkpoint).startswith(("hub:", "timm:")):
        raise SettingError(f"{checkpoint}: a push takes a file; `finetune pull` makes one from hub:")
    return Path(checkpoint)


def _ask(
    api: HfApi, there: Remote | None, bundle: Bundle, yes: bool, confirm: Confirm | None, console: Console
) -> None:
    """Asks before other weights are replaced. SettingError when nobody can be asked, or the answer is no."""
    weights = bundle.files[WEIGHTS]
    others = [n for n, mark in (there.files if there else {}).items() if n == WEIGHTS and not mark.fits(weights)]
    if there is None or not others:
        return
    shown = redact(describe(api, there, console.note))
    shown += f"\nwould be replaced by\n  {bundle.headline}, sha256 {sha256_of(weights)[:12]}"
    if yes:
        console.note(shown)
    elif confirm is None:
        raise SettingError(f"{shown}\nsay --yes to replace it (it stays in the history), or name another repository")
    elif not confirm(f"{shown}\nReplace it? It stays in the history"):
        raise SettingError("nothing was pushed")


def _say(done: Published, console: Console) -> None:
    commit = done.commit[:12]
    if not done.made:
        where = f"pull request {done.pull_request}" if done.pull_request else f"commit {commit}"
        console.say(f"{done.repo}: everything is there already, in {where}; no new commit")
    elif done.pull_request:
        console.say(f"proposed {', '.join(done.changed)} to {done.repo}: {done.pull_request}")
    else:
        console.say(f"pushed {', '.join(done.changed)} to {done.repo} in commit {commit}: {done.url}")
    if done.tag is not None:
        console.say(f"the tag {done.tag} is commit {commit}")


def _write_folder(bundle: Bundle, name: HubName, console: Console) -> Pushed:
    """Writes what a push would upload to hub/OWNER/NAME, and shows it. A different folder there is moved aside."""
    folder = Path("hub") / name.repo
    contents = {n: c if isinstance(c, bytes) else c.read_bytes() for n, c in bundle.files.items()}
    if folder.exists() and not _has(folder, contents):
        aside = folder.with_name(f"{folder.name}.was-{time.strftime('%Y%m%d-%H%M%S')}")
        try:
            folder.rename(aside)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be moved aside ({error.strerror}); move it yourself") from None
        console.note(f"{folder} was there already: moved to {aside}")
    for file, content in contents.items():
        write_atomic(folder / file, content)
    console.say(f"wrote {folder}, which a push would upload to {name}; nothing was sent")
    for file, content in contents.items():
        console.say(f"  {file:<18} {len(content):>12,} bytes")
    for file in (CONFIG, CARD):
        console.say(f"\n--- {file}\n{contents[file].decode()}")
    digest = sha256_of(contents[WEIGHTS])
    return Pushed(name.repo, None, False, tuple(contents), None, None, None, digest, str(folder))


def _has(folder: Path, contents: dict[str, bytes]) -> bool:
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return there.keys() <= contents.keys() and all(p.read_bytes() == contents[n] for n, p in there.items())
