"""What one must know of all images of a set before any is cropped: the largest value of deep ones, and their pages.

Each is looked at once: what was found is kept by the digest of the image's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import PIL

from finetune.data.bit_depth import is_deep, says_its_white, white_at_least
from finetune.data.image_formats import is_animation, may_be_deep, may_have_pages
from finetune.data.image_io import open_image, pixels_in_memory
from finetune.data.manifest import ImageRecord
from finetune.errors import DataError
from finetune.io.atomic import open_atomic
from finetune.io.safe_open import read_regular

FILE = "photographs/facts.json"
FORMAT = 1
MAX_JSON_BYTES = 1 << 30


@dataclass(frozen=True)
class ImageFacts:
    """white: the largest value of a grey image of 16 bits, 0 for any other. pages: whether it has several."""

    white: int = 0
    pages: bool = False


def needs_look(content: bytes) -> bool:
    """Whether an image has to be opened to know its facts: JPEG and most PNG files need not."""
    return may_be_deep(content) or may_have_pages(content) or is_animation(content)


def look_at(content: bytes) -> ImageFacts:
    """The facts of an encoded image. DataError for one that cannot be decoded."""
    with open_image(content) as image:
        pages = is_animation(content) or (may_have_pages(content) and bool(getattr(image, "is_animated", False)))
        if not (may_be_deep(content) and is_deep(image)) or says_its_white(image):
            return ImageFacts(0, pages)
        with pixels_in_memory(image):
            return ImageFacts(white_at_least(image), pages)


def find_facts(
    records: Mapping[str, ImageRecord], folder: Path, parallel_map: Callable[[Any, Any], Iterator[Any]]
) -> dict[str, ImageFacts]:
    """The facts of images by the digest of their bytes, from the file under `folder` or found now and kept there.

    Images that cannot be decoded are left out.
    """
    if not records:
        return {}
    known = _read(folder / FILE)
    missing = [digest for digest in records if digest not in known]
    looked = zip(missing, parallel_map(_look_at_record, [records[digest] for digest in missing]), strict=True)
    found = {digest: facts for digest, facts in looked if facts is not None}
    if found:
        with contextlib.suppress(OSError):  # they are looked at again next time
            _write(folder / FILE, known | found)
    return {digest: facts for digest, facts in (known | found).items() if digest in records}


def _look_at_record(record: ImageRecord) -> ImageFacts | None:
    """None for an image that cannot be decoded; the reason is found, and said, when it is cropped."""
    try:
        return look_at(record.open())
    except DataError:
        return None


def _read(path: Path) -> dict[str, ImageFacts]:
    try:
        content = json.loads(read_regular(path, MAX_JSON_BYTES))
        if content["made_with"] != _made_with() or content["hash"] != _hash(content["facts"]):
            return {}
        return {digest: ImageFacts(int(white), bool(pages)) for digest, (white, pages) in content["facts"].items()}
    except Exception:  # a damaged file raises nearly anything; the images themselves are at hand
        return {}


def _write(path: Path, facts: Mapping[str, ImageFacts]) -> None:
    plain = {digest: astuple(found) for digest, found in facts.items()}
    content = {"made_with": _made_with(), "facts": plain, "hash": _hash(plain)}
    with open_atomic(path) as file:
        file.write(json.dumps(content).encode())


def _made_with() -> str:
    return f"{FORMAT} Pillow {PIL.__version__}"  # another Pillow may read values differently


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
