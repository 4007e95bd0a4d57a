"""Decodes image files safely, resizes and crops them."""

from __future__ import annotations

import io
import math
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError
from finetune.io.safe_open import read_regular
from finetune.system import available_memory

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class WeightedSemaphore:
    """`share(n)` waits until n of `most` are free. What is larger than `most` goes through alone."""

    def __init__(self, most: int) -> None:
        self.most, self.taken, self.changed = most, 0, threading.Condition()

    @contextmanager
    def share(self, amount: int) -> Iterator[None]:
        """Has `amount` for as long as the block runs."""
        amount = min(amount, self.most)
        with self.changed:
            self.changed.wait_for(lambda: self.taken + amount <= self.most)
            self.taken += amount
        try:
            yield
        finally:
            with self.changed:
                self.taken -= amount
                self.changed.notify_all()


MAX_SCANS = 100  # a progressive JPEG has about 10

MAX_SEGMENTS = 20_000  # a long video or depth map kept in a picture has hundreds

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what ends a scan's bytes; the others are part of them

_START, _END, _SCAN = b"\xff\xd8", 0xD9, 0xDA

_MARKED, _BEGINS = b"\xff", bytes((0xFF, _SCAN))  # as often in a file as it has segments and scans, or oftener


def has_too_many_scans(content: bytes) -> bool:
    """Whether these bytes are a JPEG of more scans or segments than MOST_SCANS, MOST_SEGMENTS.

    Only the picture itself counts: not what a segment holds, such as a thumbnail, nor what follows its end.
    """
    place, scans = len(_START), 0
    few = content.count(_MARKED) <= MAX_SEGMENTS and content.count(_BEGINS) <= MAX_SCANS
    if few or not content.startswith(_START):
        return False
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(content, place)
        if found is None:
            return False
        marker, place = content[found.start() + 1], found.end()
        if marker == _END:
            return False
        if marker == _SCAN:
            scans += 1
            if scans > MAX_SCANS:
                return True
        place += int.from_bytes(content[place : place + 2])
    return True


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

MAX_PIXELS = 64_000_000

PIXEL_BYTES = 16  # that decoding takes at its worst, 16-bit colour with transparency

MAX_BYTES = 600_000_000  # of a file: MOST_PIXELS of 4 channels of 16 bits, and some room

# A longer strip than this is not resized whole, as that could take 4 GB for a picture of one row, but near its middle.
MAX_ELONGATED = 16

Pixels = TypeVar("Pixels", "npt.NDArray[np.uint8]", "Tensor")


def read_picture(file: str | Path) -> Image:
    """The picture in a file, decoded whole: its first frame, turned as its EXIF note says, mode "L" if grey else "RGB".

    16 bits become 8, transparent pixels lie over white. Raises DataError "PATH: why" for what is no whole picture, and
    for one of more than MOST_PIXELS before it is decoded.
    """
    return decode_picture(read_bytes(file), file)


def read_bytes(file: str | Path) -> bytes:
    """A picture file's bytes. DataError where there is no such file, or it is not one that could be a picture."""
    try:
        return read_regular(file, MAX_BYTES)
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such image file") from None
    except IsADirectoryError:
        raise DataError(f"{file}: cannot be read as an image (it is a folder)") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read as an image ({error.strerror or error})") from None


def decode_picture(content: bytes, name: str | Path) -> Image:
    """`read_picture` for bytes already read; `name` is for the message. Safe in many threads at once."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise DataError(f"{name}: cannot be read as an image (the file is empty)")
    if has_too_many_scans(content):
        raise DataError(f"{name}: cannot be read as an image (a JPEG of over {MAX_SCANS} scans; save it anew)")
    try:
        with _QUIET, Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _refuse_huge(picture)
            with _ROOM.share(picture.width * picture.height):
                return to_eight_bits(picture)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name}: cannot be read as an image (it starts with {content[:12]!r}, which none of {', '.join(FORMATS)} "
            "does, or it is damaged there)"
        ) from None
    except Exception as error:  # what Pillow's decoders raise on damaged files has no common base
        raise DataError(f"{name}: cannot be read as an image ({error})") from None


def is_grey(content: bytes) -> bool | None:
    """Whether `decode_picture` gives mode "L", from the file's head alone; None where that cannot be read."""
    from PIL import Image

    try:
        with _QUIET, Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return _is_grey_image(picture)
    except Exception:  # as in decode_picture, which gives the reason
        return None


def to_eight_bits(picture: Image) -> Image:
    """The conversion of `read_picture` for a picture already open. DataError without a path for what has no white."""
    _refuse_huge(picture)
    with _QUIET:
        picture.load()
        return _upright(picture, _drop_alpha(picture, grey=_is_grey_image(picture)))


def _refuse_huge(picture: Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{width:,}×{height:,} pixels, and at most {MAX_PIXELS:,} are decoded; save the picture smaller"
        )


def crop_to_square(
    picture: Image, *, channels: int, size: int, crop: float, resize: str, interpolation: str
) -> npt.NDArray[np.uint8]:
    """What is kept of a picture: uint8, R×R×channels with R = floor(size / crop).

    "squash" resizes both sides to R. "shorter_side" resizes the shorter one to R and takes the R×R square of which
    `centre` is, pixel for pixel, what timm's evaluation transform takes (Resize, CenterCrop). A strip more than
    MOST_ELONGATED times as long as wide is the exception: its pixels may differ by rounding.
    """
    from PIL import Image

    picture = picture.convert("L" if channels == 1 else "RGB")
    side, method = resized_side(size, crop), Image.Resampling[interpolation.upper()]
    if resize == "squash":
        square = picture if picture.size == (side, side) else picture.resize((side, side), method)
    else:
        square = _square(picture, side, size, method)
    return np.array(square).reshape(side, side, channels)


def resized_side(size: int, crop: float) -> int:
    """The side R, in pixels, of what is kept of a picture whose centre of `size` the network sees."""
    return math.floor(size / crop)


def center_crop(pixels: Pixels, size: int) -> Pixels:
    """The size×size centre of the last two axes, which are at least as long."""
    top, left = (_crop_offset(side, size) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _crop_offset(side: int, size: int) -> int:
    return round((side - size) / 2)  # halves go to the even number, as in torchvision's center_crop


def _square(picture: Image, side: int, size: int, method: int) -> Image:
    shorter, longer = sorted(picture.size)
    length = int(side * longer / shorter)  # as torchvision's Resize rounds
    start = _crop_offset(length, size) - _crop_offset(side, size)
    wide = picture.width > picture.height
    if longer > MAX_ELONGATED * shorter:
        ends = (start * longer / length, (start + side) * longer / length)
        box = (ends[0], 0, ends[1], shorter) if wide else (0, ends[0], shorter, ends[1])
        return picture.resize((side, side), method, box=box)
    whole = (length, side) if wide else (side, length)
    resized = picture if picture.size == whole else picture.resize(whole, method)
    return resized.crop((start, 0, start + side, side) if wide else (0, start, side, start + side))


def _is_grey_image(picture: Image) -> bool:
    """Whether every pixel is a grey by what the picture's mode and palette say."""
    if picture.mode in ("P", "PA"):
        colours = np.array(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")


def _drop_alpha(picture: Image, *, grey: bool) -> Image:
    """Mode "L" where grey, else "RGB"; what is transparent lies over white."""
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        return _from_16_bit(picture)
    mode = "L" if grey else "RGB"
    if picture.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in picture.info:
        return picture.convert("RGB").convert(mode) if picture.mode == "P" else picture.convert(mode)
    if picture.mode == "La":
        picture = picture.convert("LA")
    elif picture.mode != "LA":
        picture = picture.convert("RGBA")
    over = Image.new(mode, picture.size, "white")
    over.paste(picture.convert(mode), mask=picture.getchannel("A"))
    return over


def _from_16_bit(picture: Image) -> Image:
    """The high byte of 16-bit grey, which Pillow's own conversion would cut off at 255."""
    from PIL import Image

    # Older Pillows give 16-bit PNG, and every Pillow gives PGM of more than 8 bits, as mode I from 0 to 65535.
    if not picture.mode.startswith("I;16") and not (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        raise DataError(f"expected pixels of 8 or 16 bits, found a picture of mode {picture.mode}, which has no white")
    deep = np.asarray(picture)
    high = (deep >> 8).astype(np.uint8)
    if isinstance(clear := picture.info.get("transparency"), int):
        high[deep == clear] = 255
    return Image.fromarray(high)


def _upright(source: Image, picture: Image) -> Image:
    """`picture` turned as the EXIF note of `source` says; a damaged note turns nothing."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(source.getexif().get(0x0112, 1))
    except Exception:  # the pixels are whole, and Pillow's readers of the note have no common base for their errors
        turn = None
    return picture if turn is None else picture.transpose(turn)


class _Quiet:
    """Switches warnings off while any thread decodes: Pillow warns of what is no matter here, such as a damaged note.

    warnings.catch_warnings alone would not do: two threads that overlap put back each other's state.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.saved = warnings.catch_warnings()
                self.saved.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.saved.__exit__(kind, error, at)


_QUIET = _Quiet()


def quiet_decoding() -> AbstractContextManager[None]:
    """Around the decoding of many pictures: what each of them would do to the list of warnings is done once."""
    return _QUIET


_ROOM = WeightedSemaphore(
    max(MAX_PIXELS, available_memory() // 4 // PIXEL_BYTES)
)  # pixels that all threads decode at one time


@dataclass(frozen=True)
class CropSpec:
    """What is kept of a picture: see `crop_to_square`. channels None: 1 if every picture is grey, else 3."""

    channels: int | None
    size: int
    crop: float
    resize: str
    interpolation: str
