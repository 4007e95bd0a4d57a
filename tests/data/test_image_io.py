"""Every form that a picture has becomes 8 bits, upright and opaque; what is no picture is named; squares are timm's."""

import io
import os
import struct
import threading
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from finetune.data import image_io
from finetune.data.bit_depth import DEPTHS
from finetune.data.image_facts import ImageFacts, look_at
from finetune.data.image_formats import FORMATS, readable_formats, slow_ppm
from finetune.data.image_io import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    CropSpec,
    WeightedSemaphore,
    center_crop,
    crop_to_square,
    decode_image,
    is_grey,
    read_image,
    resized_side,
    to_eight_bits,
)
from finetune.errors import DataError

INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "lanczos"]


def noise(height=9, width=7, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def stored(tmp_path, picture, name="a.png", **more):
    picture.save(tmp_path / name, **more)
    return tmp_path / name


def check(path, expected):
    """The file reads as these pixels, whether by its name or already open, and its head tells whether it is grey."""
    expected = np.asarray(expected)
    with Image.open(path) as opened:
        other = to_eight_bits(opened)
    for found in (read_image(path), other):
        assert found.mode == ("L" if expected.ndim == 2 else "RGB")
        assert np.array_equal(np.asarray(found), expected)
    assert is_grey(path.read_bytes()) is (expected.ndim == 2)


# --- what is handled -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.tiff", "a.webp", "a.ppm", "a.PNG"])
def test_colour_files(tmp_path, name):
    check(stored(tmp_path, Image.fromarray(noise()), name, lossless=True), noise())


def test_grey_files_stay_grey(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif", "a.pgm", "a.gif"):
        check(stored(tmp_path, Image.fromarray(noise(channels=1)), name), noise(channels=1))
    jpeg = stored(tmp_path, Image.fromarray(noise(channels=1)), "a.jpg")
    check(jpeg, Image.open(jpeg))


def test_one_bit(tmp_path):
    bits = Image.fromarray(noise(channels=1)).convert("1")
    for name in ("a.png", "a.bmp", "a.tif"):
        check(stored(tmp_path, bits, name), np.asarray(bits) * np.uint8(255))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_of_16_bits_the_high_byte_is_kept(tmp_path, name):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
    deep[0, :2] = 255, 65535
    picture = Image.fromarray(deep)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 7 9 65535 " + deep.astype(">u2").tobytes())
    else:
        picture.save(tmp_path / name)
    check(tmp_path / name, deep >> 8)


def test_palettes(tmp_path):
    palette = Image.fromarray(noise()).convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    for name in ("a.png", "a.gif", "a.bmp", "a.tif"):
        check(stored(tmp_path, palette, name), palette.convert("RGB"))
    greys = Image.fromarray(noise(channels=1) // 16)
    greys.putpalette([v for v in range(0, 256, 17) for _ in "rgb"])
    assert greys.mode == "P"
    check(stored(tmp_path, greys, "grey.png"), noise(channels=1) // 16 * 17)


def over_white(pixels, alpha):
    alpha = alpha.astype(float)[..., None] if pixels.ndim == 3 else alpha.astype(float)
    return pixels * (alpha / 255) + 255 * (1 - alpha / 255)


@pytest.mark.parametrize(("channels", "name"), [(3, "a.png"), (3, "a.webp"), (3, "a.tif"), (1, "a.png")])
def test_what_is_transparent_lies_over_white(tmp_path, channels, name):
    pixels, alpha = noise(channels=channels), noise(channels=1, seed=1)
    alpha[0], alpha[1] = 0, 255
    path = stored(tmp_path, Image.fromarray(np.dstack([pixels, alpha])), name, lossless=True, exact=True)
    found = np.asarray(read_image(path)).astype(float)
    assert found.shape == pixels.shape
    assert np.abs(found - over_white(pixels, alpha)).max() <= 1
    assert (found[0] == 255).all() and np.array_equal(found[1], pixels[1])


def test_one_colour_that_means_transparent(tmp_path):
    """PNG's tRNS and GIF's transparent index, in every mode that has them."""
    palette = Image.fromarray(noise()).convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    seen = np.where((np.asarray(palette) == 3)[..., None], 255, np.asarray(palette.convert("RGB")))
    for name in ("a.png", "a.gif"):
        check(stored(tmp_path, palette, name, transparency=3), seen)
    alphas = bytes([0, 128] + [255] * 30)
    path = stored(tmp_path, palette, "bytes.png", transparency=alphas)
    shown = np.asarray(read_image(path)).astype(float)
    alpha = np.frombuffer(alphas, np.uint8)[np.asarray(palette)]
    assert np.abs(shown - over_white(np.asarray(palette.convert("RGB")), alpha)).max() <= 1
    colour = noise()
    colour[2, 2] = colour[5, 5] = (1, 2, 3)
    cleared = np.where((colour == (1, 2, 3)).all(-1)[..., None], 255, colour)
    check(stored(tmp_path, Image.fromarray(colour), "c.png", transparency=(1, 2, 3)), cleared)
    grey = noise(channels=1)
    check(
        stored(tmp_path, Image.fromarray(grey), "g.png", transparency=int(grey[0, 0])),
        np.where(grey == grey[0, 0], 255, grey),
    )
    deep = grey.astype(np.uint16) * 257
    path = stored(tmp_path, Image.fromarray(deep), "d.png")
    clear = struct.pack(">IH", 2, deep[0, 0])[4:]
    chunk = struct.pack(">I", 2) + b"tRNS" + clear + struct.pack(">I", zlib.crc32(b"tRNS" + clear))
    content = path.read_bytes()
    path.write_bytes(
        content.replace(content[content.index(b"IDAT") - 4 :], chunk + content[content.index(b"IDAT") - 4 :])
    )
    check(path, np.where(grey == grey[0, 0], 255, grey))


def test_cmyk(tmp_path):
    path = stored(tmp_path, Image.fromarray(noise()).convert("CMYK"), "a.tif")
    check(path, noise())
    jpeg = stored(tmp_path, Image.fromarray(noise(40, 30)).convert("CMYK"), "a.jpg")
    assert read_image(jpeg).mode == "RGB"


def test_the_first_frame_of_several(tmp_path):
    pages = [Image.fromarray(noise(channels=1, seed=seed)) for seed in (0, 1)]
    for name in ("a.gif", "a.tif", "a.png"):
        check(stored(tmp_path, pages[0], name, save_all=True, append_images=pages[1:]), noise(channels=1))
    path = stored(
        tmp_path,
        Image.fromarray(noise()),
        "a.webp",
        save_all=True,
        append_images=[Image.fromarray(noise(seed=1))],
        lossless=True,
    )
    check(path, noise())


TURNED = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, 3),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_the_camera_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.webp", "a.tif"):
        path = stored(tmp_path, Image.fromarray(noise()), name, exif=exif, lossless=True)
        check(path, TURNED[orientation](noise()))
    jpeg = stored(tmp_path, Image.fromarray(noise()), "a.jpg", exif=exif)
    plain = stored(tmp_path, Image.fromarray(noise()), "plain.jpg")
    check(jpeg, TURNED[orientation](np.asarray(Image.open(plain))))


def test_a_damaged_note_of_the_camera_turns_nothing(tmp_path):
    path = stored(tmp_path, Image.fromarray(noise()), "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_image(path).size == (7, 9)
    path = stored(tmp_path, Image.fromarray(noise()), "b.jpg", exif=b"Exif\0\0nothing of the kind")
    assert read_image(path).size == (7, 9)


def test_the_name_does_not_decide_the_format(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    check((tmp_path / "a.png").rename(tmp_path / "a.jpg"), noise())


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(path):
    with pytest.raises(DataError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif"])
def test_files_cut_short(tmp_path, name):
    whole = stored(tmp_path, Image.fromarray(noise(64, 64)), name).read_bytes()
    for kept in (len(whole) // 2, len(whole) * 3 // 4):
        (tmp_path / name).write_bytes(whole[:kept])
        assert "cannot be read as an image (" in refused(tmp_path / name)


def test_what_is_no_picture(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert "the file is empty" in refused(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("Dear diary")
    assert "it starts with b'Dear diary', which none of JPEG, PNG" in refused(tmp_path / "text.jpg")
    assert "it is a folder" in refused(tmp_path)
    assert refused(tmp_path / "none.jpg") == "there is no such image file"
    assert "no file name" in refused("a\0b.jpg")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in refused(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3", b"P5", b"P6"])
def test_a_ppm_of_comments_is_refused_at_once(kind, tmp_path):
    """Pillow would take a minute for 10 MB of them."""
    white, pixels = (b"" if kind == b"P1" else b"255\n"), b"1 0 1 0 1 0 1 0 1 0 1 0"
    head, many = kind + b"\n# by a program\n2 2\n" + white, b"# a comment\n" * 1_000_000
    assert decode_image(head + pixels).size == (2, 2)
    (tmp_path / "a.ppm").write_bytes(kind + b"\n" + many + head[3:] + pixels)
    assert "a PPM of over 65,536 bytes before its pixels; save it anew" in refused(tmp_path / "a.ppm")
    dark = kind + b"\n200 200\n" + white + b" " * 120_000  # pixels of value 32
    if kind in (b"P5", b"P6"):
        assert slow_ppm(dark) is None and slow_ppm(head + b"#" * 120_000) is None
    else:
        assert slow_ppm(head + many) == "a PPM of over 1,000 comments"


def test_no_format_that_starts_a_program_is_tried(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert "it is a PostScript drawing" in refused(tmp_path / "a.jpg")


def png_head(width, height):
    """A PNG that claims this size and has next to no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_very_large_pictures_are_refused_with_their_size_before_they_are_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(png_head(10_000, 10_000))
    message = refused(tmp_path / "a.png")
    assert "10,000×10,000 pixels" in message and f"{MAX_PIXELS:,}" in message
    (tmp_path / "a.png").write_bytes(png_head(8_000, 8_000))
    assert "cut" in (message := refused(tmp_path / "a.png")) or "truncated" in message, "64 million are let through"
    (tmp_path / "a.png").write_bytes(png_head(100_000, 100_000))
    assert "decompression bomb" in refused(tmp_path / "a.png")
    for size in ((1, 64_000_000), (100_001, 1)):
        (tmp_path / "a.png").write_bytes(png_head(*size))
        assert f"{size[0]:,}×{size[1]:,} pixels, and a side has at most 100,000" in refused(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png_head(100_000, 640))
    assert "truncated" in refused(tmp_path / "a.png")


def test_a_picture_that_is_painted_over_without_end_is_refused(tmp_path):
    file = io.BytesIO()
    Image.new("L", (16, 16), 90).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    scan = content[content.rfind(b"\xff\xda") : -2]
    (tmp_path / "x.jpg").write_bytes(content[:-2] + scan * 20 + content[-2:])
    assert read_image(tmp_path / "x.jpg").size == (16, 16)
    (tmp_path / "x.jpg").write_bytes(content[:-2] + scan * 100 + content[-2:])
    assert "a JPEG of over 100 scans; save it anew" in refused(tmp_path / "x.jpg")


def test_large_pictures_wait_for_one_another(monkeypatch):
    file, seen = io.BytesIO(), []
    Image.new("L", (300, 200), 90).save(file, "PNG")

    class Watched(WeightedSemaphore):
        def share(self, amount):
            seen.append(amount)
            return super().share(amount)

    monkeypatch.setattr("finetune.data.image_io._PIXELS_IN_MEMORY", Watched(10))
    decode_image(file.getvalue())
    assert seen == [60_000]
    assert image_io._PIXELS_IN_MEMORY.taken == 0


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_white(tmp_path, kind):
    path = stored(tmp_path, Image.fromarray(noise(channels=1).astype(kind)), "a.tif")
    assert "expected pixels of 8 or 16 bits" in refused(path)
    with pytest.raises(DataError, match=r"^expected pixels"):
        to_eight_bits(Image.fromarray(noise(channels=1).astype(kind)))


def test_warnings_of_pillow_do_not_leak_and_the_state_is_put_back(tmp_path):
    """Many threads at once: each decodes a palette picture that Pillow warns of, and nothing is left switched off."""
    (tmp_path / "bomb.png").write_bytes(png_head(9_500, 9_500))  # Pillow warns from 89 million pixels on
    stored(tmp_path, Image.fromarray(noise()), "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    before, faults = list(warnings.filters), []

    def work():
        for _ in range(20):
            try:
                read_image(tmp_path / "a.jpg")
                with pytest.raises(DataError, match="9,500"):
                    read_image(tmp_path / "bomb.png")
            except BaseException as fault:
                faults.append(fault)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not faults and list(warnings.filters) == before


@settings(max_examples=40, deadline=None, derandomize=True)
@given(kind=st.sampled_from(["png", "jpeg", "gif", "tiff", "webp", "ppm"]), place=st.data())
def test_the_head_and_the_pixels_agree_on_grey(kind, place):
    """Also for damaged files: wherever a picture is decoded, its head had said whether it is grey."""
    buffer = io.BytesIO()
    Image.fromarray(noise()).convert(place.draw(st.sampled_from(["RGB", "L", "1"]))).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    content[place.draw(st.integers(0, len(content) - 1))] ^= place.draw(st.integers(0, 255))
    try:
        mode = decode_image(bytes(content)).mode
    except DataError:
        return
    assert is_grey(bytes(content)) is (mode == "L")


KINDS = {
    b"%PDF-1.7\n": "a PDF document",
    b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns='http://www.w3.org/2000/svg'/>": "an SVG drawing",
    b"\xef\xbb\xbf\n<!DOCTYPE html><html>404": "a web page, perhaps an error message",
    b"8BPS\0\1": "a Photoshop document",
    b"\xff\x0a\xfa\x7f": "a JPEG XL picture",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL picture",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000 picture",
    b"\0\0\0\x18ftypcrx \0\0\0\1crx isom": "a camera's RAW file",
    b"\0\0\0\x18ftypisom\0\0\0\1isommp41": "a video",
    b"\x1a\x45\xdf\xa3\0": "a video",
    b"RIFF\0\0\0\0AVI LIST": "a video",
    bytes(128) + b"DICM": "a DICOM file",
    b"version https://git-lfs.github.com/spec/v1\n": "run `git lfs pull`",
    b"PK\3\4\0\0": "a ZIP archive",
}


@pytest.mark.parametrize("content", KINDS)
def test_what_a_file_is_instead_is_named(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert KINDS[content] in refused(tmp_path / "a.jpg")


@pytest.mark.parametrize("brand", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"])
def test_heic_is_named_with_what_to_install(tmp_path, monkeypatch, brand):
    monkeypatch.setattr("finetune.data.image_formats.readable_formats", lambda: FORMATS)
    monkeypatch.setattr("finetune.data.image_io.readable_formats", lambda: FORMATS)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
    assert "a HEIC picture; pip install 'finetune-images[heic]' or save it as JPEG" in refused(tmp_path / "a.heic")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand.replace(b"heic", b"avif") + bytes(40))
    assert "an AVIF picture" in refused(tmp_path / "a.heic")


@pytest.mark.parametrize(("module", "ending"), [("PIL.AvifImagePlugin", "avif"), ("pillow_heif", "heic")])
def test_pictures_of_newer_formats(tmp_path, module, ending):
    pytest.importorskip(module)
    if ending.upper().replace("HEIC", "HEIF") not in readable_formats():
        pytest.skip("this Pillow was built without")
    smooth = np.add.outer(np.arange(60), np.arange(80))[..., None].astype(np.uint8) + np.array([0, 30, 60], np.uint8)
    path = stored(tmp_path, Image.fromarray(smooth), f"a.{ending}", quality=95)
    assert path.suffix in IMAGE_SUFFIXES
    assert np.abs(np.asarray(read_image(path)).astype(int) - smooth).max() < 30
    path.write_bytes(path.read_bytes()[:-300])
    assert "cannot be read as an image (" in refused(path)


def test_a_raw_file_is_not_taken_for_its_preview(tmp_path):
    for tags in ({254: 1}, {50706: b"\1\4\0\0"}):
        path = stored(tmp_path, Image.fromarray(noise()), "a.tif", tiffinfo=tags)
        assert "as in a camera's RAW file" in refused(path)


# --- JPEG at a smaller scale -----------------------------------------------------------------------------------------


def scaled(size=32, crop=1.0, resize="shorter_side", **more):
    return CropSpec(3, size, crop, resize, "bicubic", "scaled", **more)


def jpeg(picture, **more):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, **more)
    return buffer.getvalue()


@pytest.mark.parametrize("resize", ["shorter_side", "squash"])
@pytest.mark.parametrize(
    ("width", "height", "found"),
    [
        (127, 500, (127, 500)),  # below 4 sides nothing is scaled
        (128, 500, (64, 250)),
        (255, 300, (128, 150)),
        (256, 257, (64, 65)),
        (1000, 512, (125, 64)),
        (4000, 600, (500, 75)),  # by 8 at most
    ],
)
def test_a_jpeg_is_decoded_to_at_least_twice_the_side(resize, width, height, found):
    content = jpeg(Image.new("RGB", (width, height)))
    assert decode_image(content, scaled(resize=resize)).size == found
    assert decode_image(content, CropSpec(3, 32, 1.0, resize, "bicubic")).size == (width, height)
    assert min(decode_image(content, scaled(28, 0.875)).size) == min(found), "the side that counts is the stored one"


def test_below_the_threshold_pixels_are_the_same_and_above_they_are_near():
    y, x = np.mgrid[:512, :600]
    smooth = np.dstack([np.sin(x / 40) * 100 + 128, np.cos(y / 30) * 100 + 128, (x + y) / 5]).astype(np.uint8)
    big, small = jpeg(Image.fromarray(smooth)), jpeg(Image.fromarray(smooth[:127, :300]))
    for content, most in ((small, 0), (big, 6)):
        squares = [
            spec.square(decode_image(content, spec)).astype(int)
            for spec in (scaled(), replace(scaled(), decode="exact"))
        ]
        assert np.abs(squares[0] - squares[1]).max() <= most
        assert most or np.array_equal(squares[0], squares[1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_photograph_is_turned_as_the_camera_says(orientation):
    corner = np.zeros((512, 640), np.uint8)
    corner[:200, :100] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = np.asarray(decode_image(jpeg(Image.fromarray(corner), exif=exif), scaled()))
    expected = TURNED[orientation](corner[::8, ::8])
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 3


def test_scaled_jpeg_of_every_colour_space_and_progressive():
    y, x = np.mgrid[:400, :400]
    colours = Image.fromarray(np.dstack([x // 2, y // 2, (x + y) // 4]).astype(np.uint8))
    for picture in (colours, colours.convert("L"), colours.convert("CMYK")):
        for progressive in (False, True):
            content = jpeg(picture, progressive=progressive)
            small, whole = decode_image(content, scaled(50)), decode_image(content)
            assert small.size == (100, 100) and small.mode == whole.mode
            shrunk = np.asarray(whole.resize((100, 100), Image.Resampling.BOX)).astype(int)
            assert np.abs(np.asarray(small) - shrunk).mean() < 4


def test_other_formats_are_never_scaled(tmp_path):
    for name in ("a.png", "a.webp", "a.tif"):
        path = stored(tmp_path, Image.fromarray(noise(200, 200)), name, lossless=True)
        assert np.array_equal(np.asarray(read_image(path, scaled())), noise(200, 200))


def test_the_memory_waited_for_is_that_of_the_smaller_scale(monkeypatch):
    seen = []

    class Watched(WeightedSemaphore):
        def share(self, amount):
            seen.append(amount)
            return super().share(amount)

    monkeypatch.setattr("finetune.data.image_io._PIXELS_IN_MEMORY", Watched(10**9))
    for progressive in (False, True):
        decode_image(jpeg(Image.new("RGB", (800, 800)), progressive=progressive), scaled(50))
    assert seen == [100 * 100, 800 * 800], "of a progressive file all coefficients are held"


# --- grey of 16 bits -------------------------------------------------------------------------------------------------


def deep_file(values, ending, tmp_path, **more):
    picture, path = Image.fromarray(values.astype(np.uint16)), tmp_path / f"deep.{ending}"
    if ending == "pgm":
        path.write_bytes(b"P5 %d %d 65535 " % values.shape[::-1] + values.astype(">u2").tobytes())
    else:
        picture.save(path, **more)
    return path


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
@pytest.mark.parametrize("bits", DEPTHS)
def test_a_white_of_every_depth(tmp_path, ending, bits):
    values = np.linspace(0, 2**bits - 1, 63).astype(np.uint16).reshape(9, 7)
    path = deep_file(values, ending, tmp_path)
    spec = CropSpec(1, 9, 1.0, "squash", "bilinear", bits=bits)
    found = np.asarray(read_image(path, spec))
    assert found.min() == 0 and found.max() == 255 and np.array_equal(found, values >> (bits - 8))
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(to_eight_bits(opened, bits)), found)
    assert look_at(path.read_bytes()).white == 2**bits - 1


def test_values_over_white_are_white_where_few_and_refused_where_many(tmp_path):
    values = np.full((20, 20), 1000)
    values[0, :4] = 5000
    spec = CropSpec(1, 9, 1.0, "squash", "bilinear", bits=12)
    assert np.asarray(read_image(deep_file(values, "png", tmp_path), spec)).max() == 255
    values[0, :5] = 5000
    with pytest.raises(DataError, match=r"values go up to 5,000, and 4,095 is white \(12 bits\)"):
        read_image(deep_file(values, "png", tmp_path), spec)


def test_a_tiff_whose_zero_is_white(tmp_path):
    values = np.arange(63).reshape(9, 7) * 65
    path = deep_file(values, "tif", tmp_path, tiffinfo={262: 0})
    spec = CropSpec(1, 9, 1.0, "squash", "bilinear", bits=12)
    assert np.array_equal(np.asarray(read_image(path, spec)), 255 - (values >> 4))


def test_what_a_file_says_of_its_white(tmp_path):
    dark = np.arange(63).reshape(9, 7)
    assert look_at(deep_file(dark, "tif", tmp_path).read_bytes()).white == 62
    assert look_at(deep_file(dark, "tif", tmp_path, tiffinfo={281: 4095}).read_bytes()).white == 4095
    assert look_at(deep_file(dark, "tif", tmp_path, tiffinfo={281: 65535}).read_bytes()).white == 62
    pgm = b"P5 7 9 4095 " + (dark * 65).astype(">u2").tobytes()
    assert look_at(pgm) == ImageFacts(), "Pillow heeds the largest value of a PGM's head"
    eight = CropSpec(1, 9, 1.0, "squash", "bilinear", bits=8)
    assert np.array_equal(np.asarray(decode_image(pgm, eight)), np.asarray(decode_image(pgm)))


# --- the square ------------------------------------------------------------------------------------------------------

SIZES = [(224, 224), (300, 200), (199, 301), (640, 481), (33, 500), (257, 256), (8, 5), (1, 1), (225, 224)]


@pytest.mark.parametrize("resize", ["shorter_side", "squash"])
@pytest.mark.parametrize("crop", [1.0, 0.95, 0.875, 0.9, 0.5])
def test_the_centre_is_pixel_for_pixel_what_timm_gives(resize, crop):
    for place, (width, height) in enumerate(SIZES):
        interpolation = INTERPOLATIONS[1:][place % 3]
        for size in (32, 37):
            picture = Image.fromarray(noise(height, width, seed=place))
            theirs = create_transform(
                input_size=(3, size, size),
                is_training=False,
                interpolation=interpolation,
                crop_pct=crop,
                crop_mode="squash" if resize == "squash" else "center",
                normalize=False,
            )(picture)
            kept = crop_to_square(picture, channels=3, size=size, crop=crop, resize=resize, interpolation=interpolation)
            side = resized_side(size, crop)
            assert kept.shape == (side, side, 3) and kept.dtype == np.uint8
            ours = center_crop(torch.from_numpy(kept).permute(2, 0, 1), size)
            assert torch.equal(ours, theirs), (width, height, size)


@given(longer=st.integers(5, 90), size=st.integers(5, 40), crop=st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.7]))
@settings(max_examples=60, deadline=None)
def test_the_square_is_whole_and_around_the_middle(longer, size, crop):
    """A picture whose columns count up: the square shows R of them that follow each other."""
    side = resized_side(size, crop)
    picture = Image.fromarray(np.tile(np.arange(side + longer, dtype=np.uint8), (side, 1)))
    kept = crop_to_square(picture, channels=1, size=size, crop=crop, resize="shorter_side", interpolation="bilinear")
    row = kept[0, :, 0].astype(int)
    assert (np.diff(row) == 1).all() and 0 <= row[0] <= longer
    assert abs(row[0] - longer / 2) <= 1


def test_a_long_strip_is_seen_in_its_middle_and_costs_little():
    strip = np.zeros((1, 400_000), np.uint8)
    strip[:, 200_000 - 20 : 200_000 + 20] = 255
    for picture in (Image.fromarray(strip), Image.fromarray(np.ascontiguousarray(strip.T))):
        kept = crop_to_square(
            picture, channels=1, size=224, crop=0.875, resize="shorter_side", interpolation="bilinear"
        )
        assert kept.shape == (256, 256, 1) and (kept == 255).all()


@pytest.mark.parametrize("size", [(65, 4), (3, 61), (500, 31)])
def test_a_long_strip_is_what_the_whole_would_give_but_for_the_last_bit(monkeypatch, size):
    frame = {"channels": 3, "size": 9, "crop": 0.9, "resize": "shorter_side", "interpolation": "bilinear"}
    picture = Image.fromarray(noise(*size))
    near = crop_to_square(picture, **frame).astype(int)
    monkeypatch.setattr("finetune.data.image_io.MAX_ASPECT_RATIO", 1000)
    assert np.abs(near - crop_to_square(picture, **frame)).max() <= 1


def test_channels_and_size_that_are_there_already():
    picture = Image.fromarray(noise(8, 8))
    for resize in ("squash", "shorter_side"):
        frame = {"size": 8, "crop": 1.0, "resize": resize, "interpolation": "bilinear"}
        assert np.array_equal(crop_to_square(picture, channels=3, **frame), noise(8, 8))
        grey = crop_to_square(picture, channels=1, **frame)
        assert np.array_equal(grey[..., 0], np.asarray(picture.convert("L")))
        assert np.array_equal(crop_to_square(Image.fromarray(grey[..., 0]), channels=3, **frame), grey.repeat(3, 2))
    assert center_crop(noise(8, 8, 1), 4).tolist() == noise(8, 8, 1)[2:6, 2:6].tolist()
