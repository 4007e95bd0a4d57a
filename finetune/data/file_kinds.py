"""What the files are that are not taken for pictures: other formats by their endings, and what systems leave behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from finetune.io.sanitize import printable

MAX_KINDS = 6  # named in one message
_CONVERT = "save them as JPEG or PNG"
_STILLS = "save some of their frames as pictures"
_DEVELOP = "develop them to JPEG, PNG or TIFF"

# By ending: what such a file is, and what to do with it.
OTHER_KINDS: dict[str, tuple[str, str]] = {
    ".jxl": ("JPEG XL", _CONVERT),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), ("JPEG 2000", _CONVERT)),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
        ("camera raw", _DEVELOP),
    ),
    **dict.fromkeys((".svg", ".svgz", ".ai", ".eps"), ("vector drawing", "export them as PNG")),
    **dict.fromkeys((".psd", ".xcf", ".kra"), ("picture editor", "export them as PNG")),
    **dict.fromkeys((".dcm", ".dicom"), ("DICOM", "export them as PNG, with the window that you need")),
    **dict.fromkeys((".nii", ".mha", ".nrrd"), ("volume", "save slices of them as pictures")),
    **dict.fromkeys((".npy", ".npz", ".mat", ".h5", ".hdf5"), ("array", "save them as pictures, such as PNG")),
    **dict.fromkeys((".tga", ".ico", ".exr", ".hdr", ".dds"), ("rare picture", _CONVERT)),
    **dict.fromkeys(
        (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp"), ("video", _STILLS)
    ),
    **dict.fromkeys((".pdf", ".djvu"), ("document", "save their pages as pictures")),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"), ("archive", "unpack them")),
}

# Folders and files that systems and programs put beside people's own, in small letters; hidden names start with a dot.
SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),  # Synology and QNAP
        *("__macosx", "icon\r"),  # macOS
        *("$recycle.bin", "recycler", "system volume information"),  # Windows
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini"),
        *("lost+found", "__pycache__"),
    }
)


def is_system_name(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or is one that a system puts beside people's own."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def describe_kinds(names: Iterable[str]) -> str:
    """What files are by their endings, the commonest first: "9 HEIC files (dog/0.HEIC, ...), to be read ...; 1 ...".

    One name of each kind is given, and what to do where that is known.
    """
    by_kind: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        by_kind[OTHER_KINDS.get(suffix, (printable(suffix)[:20], ""))].append(name)
    parts = []
    for (kind, cure), files in sorted(by_kind.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        noun = "file" if len(files) == 1 else "files"
        what = f"{len(files):,} {kind} {noun}" if kind else f"{len(files):,} {noun} without an ending"
        more = ", ..." if len(files) > 1 else ""
        parts.append(f"{what} ({printable(min(files))}{more}){f': {cure}' if cure else ''}")
    hidden = len(parts) - MAX_KINDS
    return "; ".join(parts[:MAX_KINDS]) + (f"; and {hidden:,} kinds more" if hidden > 0 else "")
