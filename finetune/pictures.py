"""One file becomes one picture of 8 bits, grey or colour, the right way up; and one picture becomes a square.

What is refused is refused with its name and the reason. Only the formats listed here are ever tried: Pillow knows some
whose reading starts other programs (EPS starts Ghostscript).
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError
from finetune.machine import memory
from finetune.strangers.gate import Gate
from finetune.strangers.jpeg import MOST_SCANS, is_endless
from finetune.strangers.regular import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PICTURE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MOST_PIXELS = 64_000_000
PIXEL_BYTES = 16  # that decoding takes at its worst, 16-bit colour with transparency
MOST_BYTES = 600_000_000  # of a file: MOST_PIXELS of 4 channels of 16 bits, and some room
# A longer strip than this is not resized whole, as that could take 4 GB for a picture of one row, but near its middle.
MOST_ELONGATED = 16

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
        return read_regular(file, MOST_BYTES)
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
    if is_endless(content):
        raise DataError(f"{name}: cannot be read as an image (a JPEG of over {MOST_SCANS} scans; save it anew)")
    try:
        with _QUIET, Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _refuse_huge(picture)
            with _ROOM.share(picture.width * picture.height):
                return eight_bits(picture)
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
            return _shows_grey(picture)
    except Exception:  # as in decode_picture, which gives the reason
        return None


def eight_bits(picture: Image) -> Image:
    """The conversion of `read_picture` for a picture already open. DataError without a path for what has no white."""
    _refuse_huge(picture)
    with _QUIET:
        picture.load()
        return _upright(picture, _opaque(picture, grey=_shows_grey(picture)))


def _refuse_huge(picture: Image) -> None:
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{width:,}×{height:,} pixels, and at most {MOST_PIXELS:,} are decoded; save the picture smaller"
        )


def framed(
    picture: Image, *, channels: int, size: int, crop: float, resize: str, interpolation: str
) -> npt.NDArray[np.uint8]:
    """What is kept of a picture: uint8, R×R×channels with R = floor(size / crop).

    "squash" resizes both sides to R. "shorter_side" resizes the shorter one to R and takes the R×R square of which
    `centre` is, pixel for pixel, what timm's evaluation transform takes (Resize, CenterCrop). A strip more than
    MOST_ELONGATED times as long as wide is the exception: its pixels may differ by rounding.
    """
    from PIL import Image

    picture = picture.convert("L" if channels == 1 else "RGB")
    side, method = working_side(size, crop), Image.Resampling[interpolation.upper()]
    if resize == "squash":
        square = picture if picture.size == (side, side) else picture.resize((side, side), method)
    else:
        square = _square(picture, side, size, method)
    return np.array(square).reshape(side, side, channels)


def working_side(size: int, crop: float) -> int:
    """The side R, in pixels, of what is kept of a picture whose centre of `size` the network sees."""
    return math.floor(size / crop)


def centre(pixels: Pixels, size: int) -> Pixels:
    """The size×size centre of the last two axes, which are at least as long."""
    top, left = (_margin(side, size) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _margin(side: int, size: int) -> int:
    return round((side - size) / 2)  # halves go to the even number, as in torchvision's center_crop


def _square(picture: Image, side: int, size: int, method: int) -> Image:
    shorter, longer = sorted(picture.size)
    length = int(side * longer / shorter)  # as torchvision's Resize rounds
    start = _margin(length, size) - _margin(side, size)
    wide = picture.width > picture.height
    if longer > MOST_ELONGATED * shorter:
        ends = (start * longer / length, (start + side) * longer / length)
        box = (ends[0], 0, ends[1], shorter) if wide else (0, ends[0], shorter, ends[1])
        return picture.resize((side, side), method, box=box)
    whole = (length, side) if wide else (side, length)
    resized = picture if picture.size == whole else picture.resize(whole, method)
    return resized.crop((start, 0, start + side, side) if wide else (0, start, side, start + side))


def _shows_grey(picture: Image) -> bool:
    """Whether every pixel is a grey by what the picture's mode and palette say."""
    if picture.mode in ("P", "PA"):
        colours = np.array(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")


def _opaque(picture: Image, *, grey: bool) -> Image:
    """Mode "L" where grey, else "RGB"; what is transparent lies over white."""
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        return _from_deep(picture)
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


def _from_deep(picture: Image) -> Image:
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


def quiet() -> AbstractContextManager[None]:
    """Around the decoding of many pictures: what each of them would do to the list of warnings is done once."""
    return _QUIET


_ROOM = Gate(max(MOST_PIXELS, memory() // 4 // PIXEL_BYTES))  # pixels that all threads decode at one time
