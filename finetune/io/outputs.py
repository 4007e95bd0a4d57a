"""Where a command writes for a person: checked before the work starts; what is there is moved aside and never lost.

Every option that names a file to write goes through `check_output`, and what is written there through `replace_file`,
or through `prepared_files` and `move_files_aside` where several files change together.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path

from finetune.errors import OutputError, SettingError
from finetune.io.atomic import link_aside, prepared_files, raises_output_error
from finetune.io.safe_open import kind_of, sha256_of
from finetune.io.text_path import MAX_NAME_BYTES, fitting_name, to_path

ASIDE_ROOM = 40  # bytes of a second name for its mark and its ending
Note = Callable[[str], None]


def check_output(
    path: str | Path,
    option: str,
    endings: Sequence[str],
    *,
    inputs: Iterable[str | Path | None] = (),
    beside: Sequence[Path] = (),
) -> Path:
    """The path that an option such as `--out` names, once a file can be written there. Makes folders, and no file.

    inputs: what the same call reads, as far as these are files. beside: paths that are written together with it.
    SettingError for a name without one of these endings; OutputError for an input, and where something else than a
    regular file is in the way or nothing can be written.
    """
    check_file_name(path, option, endings)
    refused = lambda fault: OutputError(f"{option}: {fault}")  # noqa: E731
    named = to_path(path, refused)
    for place in (named, *beside):
        if (found := in_the_way(to_path(place, refused))) is not None:
            raise OutputError(f"{option} {path}: {place} is {found}; expected a file name that is free or a file")
        if (same := next((text for text in inputs if text is not None and _same_file(place, text)), None)) is not None:
            raise OutputError(f"{option} {path}: {place} is what this command reads ({same}); name another file")
    check_writable(named.parent, f"name another place with {option}")
    return named


def check_file_name(path: str | Path, option: str, endings: Sequence[str]) -> None:
    """SettingError unless the name ends in one of these endings and has more before it than dots."""
    text = os.fspath(path)
    name = text.rpartition(os.sep)[2]  # unlike Path.name "" where the text ends in a slash
    stem = next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), "")
    if not stem.strip("."):
        wanted = " or ".join(endings)
        raise SettingError(f"{option} {text}: expected a file name that ends in {wanted}, as NAME{endings[0]} does")


def in_the_way(path: Path) -> str | None:
    """What is at this path that no file may take the place of, in words; None for a regular file and for nothing."""
    try:
        kind = kind_of(path.stat().st_mode)
    except FileNotFoundError:
        return "a link that leads nowhere" if path.is_symlink() else None
    except NotADirectoryError:
        return None  # check_writable says which part of the path is none
    if kind is None:
        return None
    return f"a link to {kind}" if path.is_symlink() else kind


def _same_file(path: Path, text: str | Path) -> bool:
    try:
        return path.samefile(text)
    except (OSError, ValueError):  # one of them is not there, or the text names something else than a file
        return False


def check_writable(folder: Path, hint: str) -> None:
    """Makes a folder. OutputError where no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot write there ({error.strerror}); {hint}") from None


def replace_file(path: Path, content: bytes, note: Note = lambda text: None) -> None:
    """Writes a file whole or not at all; an older, different one gets a second name first. OutputError."""
    with prepared_files({path: content}):
        move_file_aside(path, content, note)


def move_files_aside(paths: Sequence[Path], stem: str, note: Note) -> None:
    """Gives older files second names, with the start of the first one's sha256 after `stem`, with which all begin.

    All stay in place until they are replaced, so that there is no moment without them. A second name that an
    interrupted attempt gave to the same content is used again.
    """
    existing = [path for path in paths if path.is_file()]
    if not existing:
        return
    with raises_output_error(existing[0]):
        asides = _second_names(existing, stem)
    for old, aside in asides.items():
        if not aside.exists():
            link_aside(old, aside)
        note(f"{old} was there already: moved to {aside.name}")


def is_kept_aside(report: Path) -> bool:
    """Whether a report's content has a second name already, as after an attempt that was cut short. OutputError."""
    name = report.name.removesuffix(".report.json")
    with raises_output_error(report):
        there = report.parent.glob(f"{glob.escape(_aside_stem(name))}.was-*.report.json")
        return not report.is_file() or sha256_of(report) in map(sha256_of, there)


def move_file_aside(path: Path, content: bytes, note: Note) -> None:
    """As `move_files_aside`, for one file that is about to become `content`; where it is that already, it stays."""
    with raises_output_error(path):
        if not path.is_file() or sha256_of(path) == sha256_of(content):
            return
        [(_, aside)] = _second_names([path], path.stem).items()
    if not aside.exists():
        link_aside(path, aside)
    note(f"{path} was there already: moved to {aside.name}")


def _second_names(existing: Sequence[Path], stem: str) -> dict[Path, Path]:
    """For each file a path that is free or has the same content; all with the same middle, so that pairs stay pairs."""
    digests = {old: sha256_of(old) for old in existing}

    def usable(old: Path, aside: Path) -> bool:
        return not aside.exists() or (aside.is_file() and sha256_of(aside) == digests[old])

    middles = (f".was-{digests[existing[0]][:8]}{numbered(n)}" for n in count(1))
    start = _aside_stem(stem)
    candidates = ({old: old.with_name(start + m + old.name.removeprefix(stem)) for old in existing} for m in middles)
    return next(asides for asides in candidates if all(usable(*pair) for pair in asides.items()))


def _aside_stem(stem: str) -> str:
    """What second names begin with: the stem, cut where `.was-` and the longest ending would make a name too long."""
    return fitting_name(stem, "", MAX_NAME_BYTES - ASIDE_ROOM)


def numbered(number: int) -> str:
    """The end of the number-th name: "", "-2", "-3"."""
    return "" if number == 1 else f"-{number}"
