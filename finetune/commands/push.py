"""`finetune push`: a checkpoint to a repository on the Hub, in one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from finetune.checkpoint.format import read_metadata
from finetune.errors import OutputError, SettingError
from finetune.hub.bundle import Bundle, Parts, make_bundle
from finetune.hub.client import endpoint, open_api, redact
from finetune.hub.download import fetch_file
from finetune.hub.errors import LogFn
from finetune.hub.model_card import check_licence
from finetune.hub.repo import Remote, describe, find_repo
from finetune.hub.repo_id import CARD, CONFIG, ONNX_FOLDER, WEIGHTS, HubName, check_revision, parse_name
from finetune.hub.upload import Pushed, check_no_token, check_no_token_typed, check_tag, logged_in, publish
from finetune.io.atomic import write_atomic
from finetune.io.safe_open import sha256_of
from finetune.report.console import Console

if TYPE_CHECKING:
    from huggingface_hub import HfApi


ONNX = "onnx"  # what --with takes


class PushOptions(TypedDict, total=False):
    """Keyword options of `finetune.push`; all may be left out.

    private: make a new repository private.
    tag: a name for the result, for example "v1".
    message: the commit's message, by default what the model is.
    create_pr: propose the files in a pull request instead of committing them to main.
    licence: one of the Hub's identifiers, for example "mit"; by default that of the timm weights it started from.
    dry_run: write the files to hub/OWNER/NAME, show them, and send nothing.
    parts: what else to put there: "onnx" for onnx/model.onnx and what transformers.js reads.
    data, data_root: of "onnx", whose pictures to prove it on, as in `finetune.export_checkpoint`.
    replace: replace another model that is there; without it `confirm` is asked, and without both that is refused.
    confirm: is given a question, and says whether the answer is yes.
    quiet: False shows progress and results on the terminal; `console` is where to show them.
    """

    private: bool
    tag: str | None
    message: str | None
    create_pr: bool
    licence: str | None
    dry_run: bool
    parts: Sequence[str]
    data: str | None
    data_root: str | Path | None
    replace: bool
    confirm: Callable[[str], bool] | None
    quiet: bool
    console: Console | None


def push(checkpoint: str | Path, repository: str, **options: Unpack[PushOptions]) -> Pushed:
    """Uploads a checkpoint, its configuration, recipe, report and model card to OWNER/NAME on the Hub, in one commit.

    Nothing is sent that is there already. `options` are those of PushOptions. The token is HF_TOKEN's or the one that
    `hf auth login` stored. Raises the errors of `finetune.errors`.
    """
    check_no_token_typed({"OWNER/NAME": repository, "--license": options.get("licence")})
    check_no_token_typed({"--message": options.get("message"), "--tag": options.get("tag")})
    quiet, tag, create_pr = options.get("quiet", True), options.get("tag"), options.get("create_pr", False)
    private, licence = options.get("private", False), options.get("licence")
    console = options.get("console") or Console(quiet=quiet, results=not quiet)
    name = parse_name(repository, revision_allowed=False)
    if str(checkpoint).startswith(("hub:", "timm:")):
        raise SettingError(f"{checkpoint}: a push takes a file; `finetune pull` makes one from hub:")
    if tag is not None:
        check_revision(tag, "--tag:")
    if tag is not None and create_pr:
        raise SettingError("--tag with --create-pr: a tag names what is on main, and a pull request is not; drop one")
    licence = check_licence(licence) if licence else None
    parts = _other_parts(Path(checkpoint), name, options, console)
    bundle, note = make_bundle(Path(checkpoint), name, licence, parts=parts), console.note
    check_no_token(bundle.files)
    if options.get("dry_run"):
        _note_all(bundle.remarks, note)
        return _write_folder(bundle, name, console)
    api = open_api(bars=not console.quiet)
    note(f"pushing to {name} on {endpoint()} as {logged_in(api, note)}")
    there = find_repo(api, name, note)
    if private and there is not None and there.private is False:
        raise SettingError(f"--private: {name} is there and public; make it private in its settings, or drop --private")
    if there is not None and not create_pr:
        _confirm_replacement(api, there, bundle, options, note)
    if there is not None and CARD in there.files and not there.files[CARD].fits(bundle.card.encode()):
        card = fetch_file(api, there, CARD, note).read_text(encoding="utf-8", errors="replace")
        bundle = make_bundle(Path(checkpoint), name, licence, card, parts)
        check_no_token(bundle.files)
    _note_all(bundle.remarks, note)
    if there is not None and WEIGHTS in there.files and not there.files[WEIGHTS].fits(bundle.files[WEIGHTS]):
        older = [file for file in there.files if file.startswith(ONNX_FOLDER) and file not in bundle.files]
        _note_all([f"{file}: of the weights that were there; --with onnx makes a new one" for file in older], note)
    if tag is not None:
        check_tag(api, there, bundle.files, tag, note)
    message = options.get("message") or f"finetune: {bundle.headline}"
    done = publish(api, name, bundle.files, message=message, private=private, tag=tag, create_pr=create_pr, note=note)
    _say(done, console)
    return done


def _other_parts(checkpoint: Path, name: HubName, options: PushOptions, console: Console) -> Parts:
    """The ONNX files, if they are asked for; they are proven first. SettingError for a part that is not known."""
    if unknown := [part for part in options.get("parts", ()) if part != ONNX]:
        raise SettingError(f"--with {unknown[0]}: expected {ONNX}")
    if not options.get("parts"):
        if given := [name for name in ("data", "data_root") if options.get(name) is not None]:
            option = f"--{given[0].replace('_', '-')}"
            raise SettingError(f"{option} goes with --with onnx: it says what the ONNX file is proven on")
        return Parts()
    from finetune.commands.export import onnx_parts  # torch, which a push without it does not need
    from finetune.hub.javascript import ONNX_INPUT, ONNX_MODEL, onnx_bundle

    before, network, proof = onnx_parts(checkpoint, options.get("data"), options.get("data_root"), console)
    said = (
        f"On {proof.pictures:,} pictures both together gave the checkpoint's logits to within "
        f"{proof.largest_difference:.1g}, and no other class."
    )
    console.note(said)
    return onnx_bundle(read_metadata(checkpoint), name.repo, {ONNX_INPUT: before, ONNX_MODEL: network}, said)


def _note_all(remarks: Iterable[str], note: LogFn) -> None:
    for remark in remarks:
        note(remark)


def _confirm_replacement(api: HfApi, there: Remote, bundle: Bundle, options: PushOptions, note: LogFn) -> None:
    """Asks before other weights are replaced. SettingError when nobody can be asked, or the answer is no."""
    weights, confirm = bundle.files[WEIGHTS], options.get("confirm")
    if WEIGHTS not in there.files or there.files[WEIGHTS].fits(weights):
        return
    shown = redact(describe(api, there, note))
    shown += f"\nwould be replaced by\n  {bundle.headline}, sha256 {sha256_of(weights)[:12]}"
    if options.get("replace"):
        note(shown)
    elif confirm is None:
        raise SettingError(f"{shown}\nsay --yes to replace it (it stays in the history), or name another repository")
    elif not confirm(f"{shown}\nReplace it? It stays in the history"):
        raise SettingError("nothing was pushed")


def _say(done: Pushed, console: Console) -> None:
    commit = str(done.commit)[:12]
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
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    ours = there.keys() <= contents.keys() and all(p.read_bytes() == contents[n] for n, p in there.items())
    if folder.exists() and not ours:
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
        console.say(f"  {file:<24} {len(content):>12,} bytes")
    for file in (CONFIG, CARD):
        console.say(f"\n--- {file}\n{contents[file].decode()}")
    digest = sha256_of(contents[WEIGHTS])
    return Pushed(name.repo, None, False, tuple(contents), None, sha256=digest, folder=str(folder))
