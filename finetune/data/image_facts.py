"""What one must know of all images of a set before any is cropped: the largest value of deep ones, and their pages.

Each is looked at once: what was found is kept by the digest of the image's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import PIL

from finetune.data.bit_depth import (
    DEPTHS,
    colour_white_at_least,
    depth_of,
    is_deep,
    is_deep_colour,
    says_its_white,
    white_at_least,
)
from finetune.data.image_formats import is_animation, may_be_deep, may_have_pages
from finetune.data.image_io import open_image, pixels_in_memory
from finetune.data.manifest import ImageRecord, Manifest, list_some
from finetune.errors import DataError
from finetune.io.atomic import open_atomic
from finetune.io.safe_open import read_regular
from finetune.io.sanitize import printable

FILE = "photographs/facts.json"
FORMAT = 1
OTHER_SCALE = 4  # bits between the largest values of two splits that no difference of exposure explains
MAX_JSON_BYTES = 1 << 30


@dataclass(frozen=True)
class ImageFacts:
    """white: the largest value of a grey image of 16 bits, 0 for any other. pages: whether it has several.

    colour_white: as `white`, of a colour image of 16 bits, of which only the high byte is known.
    """

    white: int = 0
    pages: bool = False
    colour_white: int = 0


def needs_look(content: bytes) -> bool:
    """Whether an image has to be opened to know its facts: JPEG and most PNG files need not."""
    return may_be_deep(content) or may_have_pages(content) or is_animation(content)


def look_at(content: bytes) -> ImageFacts:
    """The facts of an encoded image. DataError for one that cannot be decoded."""
    with open_image(content) as image:
        pages = is_animation(content) or (may_have_pages(content) and bool(getattr(image, "is_animated", False)))
        if not may_be_deep(content) or says_its_white(image):
            return ImageFacts(0, pages)
        with pixels_in_memory(image):
            if is_deep(image):
                return ImageFacts(white_at_least(image), pages)
            return ImageFacts(0, pages, colour_white_at_least(image) if is_deep_colour(image) else 0)


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


def notes_on_facts(manifest: Manifest, facts: Sequence[ImageFacts], bits: int, *, given: bool) -> list[str]:
    """What people should know of the facts of a manifest's records, which were decoded with 2^bits - 1 as white.

    `given`: the bits are those of a checkpoint, and the images were not asked. DataError where two splits cannot be of
    one scale.
    """
    return [
        *_notes_on_white(manifest, facts, bits, given=given),
        *_notes_on_colours(manifest, facts),
        *_notes_on_pages(manifest, facts),
    ]


def _notes_on_white(manifest: Manifest, facts: Sequence[ImageFacts], bits: int, *, given: bool) -> list[str]:
    largest: dict[str, tuple[int, str]] = {}  # by split: the largest value, and the image that has it
    for record, found in zip(manifest.records, facts, strict=True):
        if found.white > largest.get(record.split, (0, ""))[0]:
            largest[record.split] = found.white, record.name
    if not largest:
        return []
    depths = {split: depth_of(value) for split, (value, _) in largest.items()}
    told = "; ".join(
        f"{split} up to {value:,} ({depths[split]} bits, {printable(name)})" for split, (value, name) in largest.items()
    )
    if max(depths.values()) - min(depths.values()) >= OTHER_SCALE and not given:
        raise DataError(
            f"{manifest.name}: the values of 16-bit pictures are on different scales: {told}; bring the parts to one "
            "scale, or mend the picture that is named"
        )
    by_whom = "as these weights were trained" if given else "for all of them"
    if given and max(depths.values()) != bits:
        by_whom += "; that is another scale than these pictures seem to have"
    notes = [f"{manifest.name}: 16-bit pictures hold {told}; white is {(1 << bits) - 1:,} ({bits} bits), {by_whom}"]
    if alone := sorted({record.split for record in manifest.records} - largest.keys()):
        notes.append(f"{manifest.name}: pictures of 16 bits are in {', '.join(largest)} and not in {', '.join(alone)}")
    return notes


def _notes_on_colours(manifest: Manifest, facts: Sequence[ImageFacts]) -> list[str]:
    largest = max((found.colour_white for found in facts), default=0)
    if not largest or (bits := depth_of(largest)) == DEPTHS[-1]:
        return []
    return [
        f"{manifest.name}: colour pictures of 16 bits hold values of {bits} bits only, and of colours the high byte is "
        "read: they come out dark; save them with 8 bits, or with values up to 65,535"
    ]


def _notes_on_pages(manifest: Manifest, facts: Sequence[ImageFacts]) -> list[str]:
    names = [record.name for record, found in zip(manifest.records, facts, strict=True) if found.pages]
    have = "picture has" if len(names) == 1 else "pictures have"
    note = f"{manifest.name}: {len(names):,} {have} several pages or frames, the first is used: {list_some(names)}"
    return [note] if names else []


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
        return {
            digest: ImageFacts(int(white), bool(pages), int(colour))
            for digest, (white, pages, colour) in content["facts"].items()
        }
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
