"""Which formats are decoded, and what other files are by their first bytes."""

from __future__ import annotations

import importlib
import re
from functools import cache

from finetune.text import install_hint

MAX_PPM_HEAD = 65_536  # bytes, comments included
MAX_PPM_COMMENTS = 1_000  # of a PPM whose pixels are written as text
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # every Pillow decodes them
_PPM_HEAD = re.compile(rb"P(?:[14]|[2356]\s+\d+)\s+\d+\s+\d+\s")  # the kind, then width, height and white
_HEAD = 1_000  # bytes in which a text is looked for
_AS_PICTURE = "save it as PNG or JPEG"

# The brands of files in boxes (ISO 14496-12), by the four letters after "ftyp".
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_RAW = "a camera's RAW file; develop it to JPEG or TIFF"
_VIDEO = "a video; save its frames as JPEG"

# What begins with these bytes, and what a person can do.
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "a PDF document; save its pages as PNG or JPEG"),
    (b"%!PS", f"a PostScript drawing; {_AS_PICTURE}"),
    (b"8BPS", f"a Photoshop document; {_AS_PICTURE}"),
    (b"\xff\x0a", f"a JPEG XL picture; {_AS_PICTURE}"),
    (b"\x00\x00\x00\x0cJXL ", f"a JPEG XL picture; {_AS_PICTURE}"),
    (b"\x00\x00\x00\x0cjP  ", f"a JPEG 2000 picture; {_AS_PICTURE}"),
    (b"\xff\x4f\xff\x51", f"a JPEG 2000 picture; {_AS_PICTURE}"),
    (b"\x1a\x45\xdf\xa3", _VIDEO),
    (b"\x00\x00\x01\xba", _VIDEO),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"IIU\x00", _RAW),
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"\x00\x00\x01\x00", f"an icon; {_AS_PICTURE}"),
    (b"gimp xcf", f"a GIMP document; {_AS_PICTURE}"),
    (b"\x76\x2f\x31\x01", f"an OpenEXR picture; {_AS_PICTURE}"),
    (b"#?RADIANCE", f"a Radiance HDR picture; {_AS_PICTURE}"),
    (b"SIMPLE  =", f"a FITS file; {_AS_PICTURE}"),
    (b"\x93NUMPY", f"a NumPy array; {_AS_PICTURE}"),
    (b"\x89HDF", "an HDF5 file; save its pictures as PNG or JPEG"),
    (b"PK\x03\x04", "a ZIP archive or an office document; unpack it"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"\x00\x05\x16\x07", "what macOS keeps beside a file, not a picture; delete it"),
    (b"version https://git-lfs", "a pointer of Git LFS, and the picture itself was not fetched; run `git lfs pull`"),
)
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (b"<svg", f"an SVG drawing; {_AS_PICTURE}"),
    (b"<!doctype html", "a web page, perhaps an error message saved in place of the picture; fetch it again"),
    (b"<html", "a web page, perhaps an error message saved in place of the picture; fetch it again"),
)


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats decoded here: FORMATS, AVIF from Pillow 11.3 on, HEIF with pillow-heif."""
    from PIL import features

    more = ["AVIF"] if "avif" in features.modules and features.check("avif") else []
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
        more.append("HEIF")
    except ImportError:
        pass
    return (*FORMATS, *more)


def describe_content(content: bytes) -> str | None:
    """What a file that cannot be decoded here is, and what to do: "a PDF document; ..."; None where that is unknown."""
    if brand := _brand(content):
        return _describe_brand(brand, content)
    if content[:4] == b"RIFF" and content[8:12] == b"AVI ":
        return _VIDEO
    if content[128:132] == b"DICM":
        return "a DICOM file; export it as 16-bit PNG or TIFF"
    head = content[:_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<"):
        return next((said for text, said in _TEXTS if text in head), None)
    return next((said for start, said in _KINDS if content.startswith(start)), None)


def _brand(content: bytes) -> bytes:
    return content[8:12] if content[4:8] == b"ftyp" else b""


def _describe_brand(brand: bytes, content: bytes) -> str:
    size = int.from_bytes(content[:4])
    compatible = {content[i : i + 4] for i in range(16, min(size, _HEAD), 4)}
    formats = readable_formats()
    if brand in _AVIF_BRANDS or compatible & set(_AVIF_BRANDS):
        broken = "AVIF" in formats
        return f"an AVIF picture that is damaged; {_AS_PICTURE}" if broken else "an AVIF picture; Pillow 11.3 reads it"
    if brand in _HEIC_BRANDS:
        if "HEIF" in formats:
            return f"a HEIC picture that is damaged; {_AS_PICTURE}"
        return f"a HEIC picture; {install_hint('heic')} or save it as JPEG"
    return _RAW if brand == b"crx " else _VIDEO


def may_be_deep(content: bytes) -> bool:
    """Whether these bytes may be an image of 16 bits whose white is not said: a PNG, a TIFF, a PGM."""
    if content.startswith(b"\x89PNG"):
        return content[24:25] == b"\x10"  # bits, in the header
    return is_tiff(content) or content[:2] in (b"P5", b"P2")


def may_have_pages(content: bytes) -> bool:
    """Whether these bytes may hold several pages or frames, of a format that is told by opening it."""
    return is_tiff(content) or content[:4] == b"GIF8"


def is_animation(content: bytes) -> bool:
    """Whether these bytes are a PNG, WebP or AVIF of several frames, from their heads."""
    if content.startswith(b"\x89PNG"):
        return b"acTL" in content[: max(0, content.find(b"IDAT"))]
    if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X":
        return bool(content[20] & 2) if len(content) > 20 else False
    return _brand(content) == b"avis"


def slow_ppm(content: bytes) -> str | None:
    """What makes a PPM or PGM slow to read, in words: Pillow reads its head byte by byte and copies at each comment."""
    if content[:1] != b"P" or content[1:2] not in (b"1", b"2", b"3", b"4", b"5", b"6"):
        return None
    head = re.sub(rb"#[^\r\n]*", b"", content[:MAX_PPM_HEAD])
    if len(content) > MAX_PPM_HEAD and _PPM_HEAD.match(head) is None:
        return f"a PPM of over {MAX_PPM_HEAD:,} bytes before its pixels"
    plain = content[1:2] in (b"1", b"2", b"3")
    return f"a PPM of over {MAX_PPM_COMMENTS:,} comments" if plain and content.count(b"#") > MAX_PPM_COMMENTS else None


def is_tiff(content: bytes) -> bool:
    """Whether these bytes begin like a TIFF, to which many RAW formats belong."""
    return content[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
