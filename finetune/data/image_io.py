"""Decodes image files safely, resizes and crops them."""

from __future__ import annotations

import io
import math
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from finetune.data.bit_depth import deep_to_bytes, is_deep, says_its_white
from finetune.data.image_formats import describe_content, readable_formats, slow_ppm
from finetune.errors import DataError
from finetune.io.safe_open import read_regular
from finetune.system import available_memory

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Pixels = TypeVar("Pixels", "npt.NDArray[np.uint8]", "Tensor")
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
        *(".avif", ".heic", ".heif", ".hif"),
    }
)
MAX_PIXELS = 64_000_000
MAX_SIDE = 100_000  # each row costs memory of its own, and resizing them to a square R pixels wide R·4 bytes more
MAX_PIXEL_BYTES = 16  # of memory for each pixel decoded, at worst: 16-bit colour with transparency
MAX_BYTES = 600_000_000  # of a file: MAX_PIXELS of 4 channels of 16 bits, and some room
MAX_SCANS = 100  # a progressive JPEG has about 10
MAX_SEGMENTS = 20_000  # a long video or depth map kept in an image has hundreds

# An image longer than this is resized near its middle only: whole, one of a single row could take 4 GB.
MAX_ASPECT_RATIO = 16
_REDUCED_PAGE, _DNG_VERSION = 254, 50706  # tags of TIFF
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # ends the bytes of a scan, which may hold the other \xff.. pairs
START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = b"\xff\xd8", 0xD9, 0xDA


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels, where there is a choice.

    decode: JPEG files "exact", all pixels of them, or "scaled" by the decoder, which is faster (see `decode_image`).
    bits: of grey images of 16 bits, 2^bits - 1 is white.
    """

    decode: Literal["exact", "scaled"] = "exact"
    bits: int = 16


EXACT = Decoding()


@dataclass(frozen=True)
class CropSpec:
    """How an image file becomes a square: see `decode_image` and `crop_to_square`.

    channels None: 1 if every image is grey, else 3. bits None: as the largest value of all images asks.
    """

    channels: int | None
    size: int
    crop: float
    resize: str
    interpolation: str
    decode: Literal["exact", "scaled"] = "exact"
    bits: int | None = 16

    @property
    def side(self) -> int:
        """The side in pixels of the square."""
        return resized_side(self.size, self.crop)

    def square(self, image: Image) -> npt.NDArray[np.uint8]:
        """The square of a decoded image: uint8 side×side×channels, which have to be known."""
        assert self.channels is not None
        return crop_to_square(
            image,
            channels=self.channels,
            size=self.size,
            crop=self.crop,
            resize=self.resize,
            interpolation=self.interpolation,
        )


class WeightedSemaphore:
    """A semaphore for amounts: `share(n)` waits until n of `limit` are free. A larger amount waits for all of them."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken, self.changed = limit, 0, threading.Condition()

    @contextmanager
    def share(self, amount: int) -> Iterator[None]:
        """Holds `amount` while the block runs."""
        amount = min(amount, self.limit)
        with self.changed:
            self.changed.wait_for(lambda: self.taken + amount <= self.limit)
            self.taken += amount
        try:
            yield
        finally:
            with self.changed:
                self.taken -= amount
                self.changed.notify_all()


class _QuietWarnings:
    """Ignores warnings while any thread decodes: Pillow warns of what does not matter here, such as damaged EXIF.

    warnings.catch_warnings alone is not safe in threads: two that overlap restore each other's state.
    """

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.saved = warnings.catch_warnings(action="ignore")
                self.saved.__enter__()
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.saved.__exit__(None, None, None)


QUIET_WARNINGS = _QuietWarnings()  # held around the decoding of many images, so that each of them need not switch it
_PIXELS_IN_MEMORY = WeightedSemaphore(max(MAX_PIXELS, available_memory() // 4 // MAX_PIXEL_BYTES))


def read_image(path: str | Path, spec: CropSpec | None = None) -> Image:
    """Decodes an image file (see `decode_image`). DataError "PATH: why"."""
    try:
        return decode_image(read_image_bytes(path), spec)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def read_image_bytes(path: str | Path) -> bytes:
    """Reads an image file. DataError, which does not name it, for what is no regular file or over MAX_BYTES."""
    try:
        return read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise DataError("there is no such image file") from None
    except IsADirectoryError:
        raise DataError("cannot be read as an image (it is a folder)") from None
    except OSError as error:
        raise DataError(f"cannot be read as an image ({error.strerror or error})") from None


def decode_image(content: bytes, spec: CropSpec | None = None) -> Image:
    """Decodes the first frame, turned upright by its EXIF orientation: mode "L" if grey, else "RGB".

    With `spec.decode` "scaled" the decoder of JPEG makes 1/2, 1/4 or 1/8 of it, whose sides are at least twice
    `spec.side`. 16 bits become 8, where 2^spec.bits - 1 is white; transparent pixels lie over white. Safe in many
    threads at once. DataError, which does not name the file, for a damaged image, and for one of more than MAX_PIXELS,
    or with a side over MAX_SIDE, before it is decoded.
    """
    with open_image(content) as image:
        _refuse_huge(image)
        # Of a progressive file libjpeg holds all coefficients, however little of it is made.
        size = image.size if image.info.get("progressive") else None
        if spec is not None and spec.decode == "scaled":
            _scale_jpeg(image, 2 * spec.side)
        with pixels_in_memory(image, size):
            return to_eight_bits(image, spec.bits or 16 if spec is not None else 16)


@contextmanager
def open_image(content: bytes) -> Iterator[Image]:
    """Opens an encoded image, whose pixels are not decoded yet. DataError for this, and for all that fails with it."""
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise DataError("cannot be read as an image (the file is empty)")
    if has_too_many_scans(content):
        raise DataError(f"cannot be read as an image (a JPEG of over {MAX_SCANS} scans; save it anew)")
    if fault := slow_ppm(content):
        raise DataError(f"cannot be read as an image ({fault}; save it anew)")
    try:
        with QUIET_WARNINGS, Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            _refuse_raw(image, content)
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        if said := describe_content(content):
            raise DataError(f"cannot be read as an image (it is {said})") from None
        raise DataError(
            f"cannot be read as an image (it starts with {content[:12]!r}, which none of "
            f"{', '.join(readable_formats())} does, or it is damaged there)"
        ) from None
    except Exception as error:  # the errors of Pillow's decoders have no common base
        raise DataError(f"cannot be read as an image ({' '.join(str(error).split())})") from None


@contextmanager
def pixels_in_memory(image: Image, size: tuple[int, int] | None = None) -> Iterator[None]:
    """Waits until there is room to decode an image, of `size` where that is not its own, and keeps it in the block."""
    width, height = size or image.size
    with _PIXELS_IN_MEMORY.share(width * height):
        yield


def is_grey(content: bytes) -> bool | None:
    """Whether `decode_image` gives mode "L", from the file's head alone; None where that cannot be read."""
    try:
        with open_image(content) as image:
            return _is_grey_image(image)
    except DataError:  # as in decode_image, which gives the reason
        return None


def to_eight_bits(image: Image, bits: int = 16) -> Image:
    """Converts an open image as `decode_image` does, all its pixels. DataError for pixels whose white is unknown."""
    _refuse_huge(image)
    bits = 16 if says_its_white(image) else bits
    with QUIET_WARNINGS:
        image.load()
        return _upright(image, _drop_alpha(image, bits, grey=_is_grey_image(image)))


def _scale_jpeg(image: Image, side: int) -> None:
    """Has an open JPEG decoded at a smaller scale where both of its sides still have `side` pixels; else nothing."""
    if image.format in ("JPEG", "MPO") and min(image.size) >= 2 * side:
        image.draft(None, (side, side))


def _refuse_raw(image: Image, content: bytes) -> None:
    """DataError for a camera's RAW file, of which Pillow would show the small preview."""
    tags = getattr(image, "tag_v2", {})
    reduced = _DNG_VERSION in tags or tags.get(_REDUCED_PAGE, 0) & 1 or content[8:10] == b"CR"
    if image.format == "TIFF" and reduced:
        raise DataError(
            "its first page is a small preview, as in a camera's RAW file; develop it to JPEG or a TIFF of one page"
        )


def has_too_many_scans(content: bytes) -> bool:
    """Whether these bytes are a JPEG of more than MAX_SCANS scans or MAX_SEGMENTS segments.

    Counts the image itself only: not what a segment holds, such as a thumbnail, nor what follows its end.
    """
    position, scans = len(START_OF_IMAGE), 0
    if not content.startswith(START_OF_IMAGE):
        return False
    # A quick upper bound first: each segment has a byte 0xff, each scan its marker.
    plain = np.frombuffer(content, np.uint8)
    marks = np.flatnonzero(plain[:-1] == 0xFF)
    if len(marks) <= MAX_SEGMENTS and np.count_nonzero(plain[marks + 1] == _START_OF_SCAN) <= MAX_SCANS:
        return False
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(content, position)
        marker = content[found.start() + 1] if found else _END_OF_IMAGE
        if found is None or marker == _END_OF_IMAGE:
            return False
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            return True
        position = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
    return True


def _refuse_huge(image: Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{width:,}×{height:,} pixels, and at most {MAX_PIXELS:,} are decoded; save the image smaller")
    if max(width, height) > MAX_SIDE:
        raise DataError(f"{width:,}×{height:,} pixels, and a side has at most {MAX_SIDE:,}; save the image smaller")


def crop_to_square(
    image: Image, *, channels: int, size: int, crop: float, resize: str, interpolation: str
) -> npt.NDArray[np.uint8]:
    """Resizes and crops an image to uint8 R×R×channels, where R = `resized_side(size, crop)`.

    "squash" resizes both sides to R. "shorter_side" resizes the shorter one to R and cuts out the R×R square whose
    `center_crop` is, pixel for pixel, that of timm's evaluation transform (Resize, CenterCrop). In an image more than
    MAX_ASPECT_RATIO times as long as wide, pixels may differ by rounding.
    """
    from PIL import Image

    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    side, method = resized_side(size, crop), Image.Resampling[interpolation.upper()]
    if resize == "squash":
        square = image if image.size == (side, side) else image.resize((side, side), method)
    else:
        square = _square(image, side, size, method)
    return np.array(square).reshape(side, side, channels)


def resized_side(size: int, crop: float) -> int:
    """The side in pixels of the stored square, of which the network sees the centre of `size` pixels."""
    return math.floor(size / crop)


def center_crop(pixels: Pixels, size: int) -> Pixels:
    """The size×size centre of the last two axes, which are at least as long."""
    top, left = (_crop_offset(side, size) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _crop_offset(side: int, size: int) -> int:
    return round((side - size) / 2)  # halves go to the even number, as in torchvision's center_crop


def _square(image: Image, side: int, size: int, method: int) -> Image:
    shorter, longer = sorted(image.size)
    length = int(side * longer / shorter)  # as torchvision's Resize rounds
    start = _crop_offset(length, size) - _crop_offset(side, size)
    wide = image.width > image.height
    if longer > MAX_ASPECT_RATIO * shorter:
        ends = (start * longer / length, (start + side) * longer / length)
        box = (ends[0], 0, ends[1], shorter) if wide else (0, ends[0], shorter, ends[1])
        return image.resize((side, side), method, box=box)
    whole = (length, side) if wide else (side, length)
    resized = image if image.size == whole else image.resize(whole, method)
    return resized.crop((start, 0, start + side, side) if wide else (0, start, side, start + side))


def _is_grey_image(image: Image) -> bool:
    """Whether the image's mode and palette allow nothing but greys."""
    if image.mode in ("P", "PA"):
        colours = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La") or is_deep(image)


def _drop_alpha(image: Image, bits: int, *, grey: bool) -> Image:
    """Converts to mode "L" where grey, else "RGB"; transparent pixels lie over white."""
    from PIL import Image

    if is_deep(image):
        return deep_to_bytes(image, bits)
    mode = "L" if grey else "RGB"
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB").convert(mode) if image.mode == "P" else image.convert(mode)
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode != "LA":
        image = image.convert("RGBA")
    over = Image.new(mode, image.size, "white")
    over.paste(image.convert(mode), mask=image.getchannel("A"))
    return over


def _upright(source: Image, image: Image) -> Image:
    """Turns `image` by the EXIF orientation of `source`; damaged EXIF turns nothing."""
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
    except Exception:  # the pixels are whole, and the errors of Pillow's EXIF reader have no common base
        turn = None
    return image if turn is None else image.transpose(turn)
