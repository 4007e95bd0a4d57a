"""Grey images of 16 bits: which of their values is white, and how these become 8 bits.

A camera or scanner of 12 bits stores values up to 4,095 in files of 16. No image tells alone whether it is dark or of
fewer bits, so one depth holds for a whole set: the smallest of DEPTHS with room for its largest value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finetune.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

DEPTHS = (8, 10, 12, 14, 16)  # bits
MAX_TOO_BRIGHT = 0.01  # of an image's pixels, above white: more is another scale, not a glare
_WHITE_IS_ZERO, _MAX_SAMPLE_VALUE, _BITS_PER_SAMPLE = (262, 0), 281, 258  # of TIFF


def depth_of(value: int) -> int:
    """The smallest depth in bits that holds a value from 0 to 65535."""
    return next(bits for bits in DEPTHS if value < 1 << bits)


def is_deep(image: Image) -> bool:
    """Whether an image, open or decoded, has grey values of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def is_deep_colour(image: Image) -> bool:
    """Whether an open PNG or TIFF has colours, or grey and transparency, of 16 bits, whose high byte Pillow reads."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))[0] if image.format == "TIFF" else 16
    return bits == 16 and image.mode in ("RGB", "RGBA", "LA")


def colour_white_at_least(image: Image) -> int:
    """The largest value that an image of `is_deep_colour` may hold, from the high byte. Decodes it."""
    return int(np.asarray(image.convert("RGB")).max()) << 8 | 255


def says_its_white(image: Image) -> bool:
    """Whether an image that is open and not decoded is a PGM with a largest value of its own, which Pillow heeds."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    return image.format == "PPM" and isinstance(arguments, tuple) and int(arguments[-1]) < 65535


def white_at_least(image: Image) -> int:
    """The largest value that a deep image holds, or that its file declares: 1 to 65535. Decodes it. DataError."""
    declared = _declared_white(image)
    return max(1, int(_values(image).max()), declared)


def _declared_white(image: Image) -> int:
    tags = getattr(image, "tag_v2", {})
    bits, largest = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_MAX_SAMPLE_VALUE, 0)
    largest = largest[0] if isinstance(largest, tuple) else largest
    declared = max(0 if bits >= 16 else (1 << bits) - 1, int(largest))
    return declared if declared < 65535 else 0


def deep_to_bytes(image: Image, bits: int) -> Image:
    """Scales a deep image to mode "L": its highest 8 bits where 2^bits - 1 is white.

    DataError for values that have no white, and where many exceed it.
    """
    from PIL import Image

    values, white = _values(image), (1 << bits) - 1
    bright = values > white
    if bits < 16 and bright.mean() > MAX_TOO_BRIGHT:
        raise DataError(
            f"its values go up to {int(values.max()):,}, and {white:,} is white ({bits} bits) in the pictures "
            "trained on; bring it to their scale"
        )
    grey = (np.minimum(values, white) >> (bits - 8)).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(_WHITE_IS_ZERO[0]) == _WHITE_IS_ZERO[1]:
        grey = 255 - grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _values(image: Image) -> npt.NDArray[np.integer]:
    # Older Pillows give 16-bit PNG, and every Pillow gives PGM of more than 8 bits, as mode I from 0 to 65535.
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise DataError(f"expected pixels of 8 or 16 bits, found an image of mode {image.mode}, which has no white")
    return np.asarray(image)
