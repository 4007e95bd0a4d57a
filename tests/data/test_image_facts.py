"""16-bit pictures of a set have one white, parts on other scales are refused, pages are counted."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from finetune.data import image_facts
from finetune.data.image_folder_dataset import open_image_folder
from finetune.data.image_io import EXACT, CropSpec, Decoding
from finetune.errors import DataError

SPEC = CropSpec(None, 8, 1.0, "squash", "bilinear", bits=None)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of decoded pictures."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def grey(seed, most=170):
    return np.random.default_rng(seed).integers(0, most, (8, 8))


def deep(root, *, ending="tif", **scales):
    """ROOT/PART/CLASS/0.tif ... of 16 bits, whose values are 0 to 169 times the part's scale."""
    for part, scale in scales.items():
        for label, name in enumerate(("one", "two")):
            (root / part / name).mkdir(parents=True)
            for i in range(6):
                values = grey(seed=[label, i, len(part)]) * scale
                Image.fromarray(values.astype(np.uint16)).save(root / part / name / f"{i}.{ending}")
    return root


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize(("scale", "bits"), [(1, 8), (4, 10), (8, 12), (24, 12), (96, 14), (120, 16), (385, 16)])
def test_one_white_for_all(tmp_path, scale, bits, ending):
    found = open_image_folder(str(deep(tmp_path / "x", ending=ending, train=scale, val=scale)), SPEC)
    assert found.decoding == Decoding("exact", bits)
    [note] = found.notes
    assert f"white is {2**bits - 1:,} ({bits} bits), for all of them" in note
    values = grey(seed=[0, 0, 5]) * scale
    assert np.array_equal(found.train.images[0, 0].numpy(), values >> (bits - 8))
    assert len({image.numpy().tobytes() for image in found.train.images}) == 12, "no two became one"


def test_pictures_of_8_bits_have_nothing_to_say(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "x" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(grey([len(name), i, ord(name[0])]).astype(np.uint8)).save(
                tmp_path / "x" / name / f"{i}.png"
            )
    found = open_image_folder(str(tmp_path / "x"), SPEC)
    assert found.decoding == EXACT and not any("16" in note for note in found.notes)


def test_parts_on_other_scales_are_refused_and_near_ones_told(tmp_path):
    with pytest.raises(DataError) as caught:
        open_image_folder(str(deep(tmp_path / "x", train=8, val=200)), SPEC)
    message = str(caught.value)
    assert "train up to 1,3" in message and "(12 bits, train/" in message and "test up to 33,8" in message
    assert "(16 bits, val/" in message and "bring the parts to one scale" in message
    found = open_image_folder(str(deep(tmp_path / "y", train=20, val=60)), SPEC)
    assert found.decoding.bits == 14 and "train up to 3,3" in found.notes[0] and "(14 bits, val/" in found.notes[0]


def test_deep_pictures_in_one_part_only(tmp_path):
    root = deep(tmp_path / "x", train=8, val=8)
    for path in (root / "val").glob("*/*.tif"):
        Image.open(path).point(lambda value: value / 8).convert("L").save(path)
    found = open_image_folder(str(root), SPEC)
    assert "pictures of 16 bits are in train and not in test" in found.notes[1]


def test_a_recorded_white_is_kept_and_another_scale_is_told(tmp_path):
    root = deep(tmp_path / "x", train=8, val=8)
    found = open_image_folder(str(root), replace(SPEC, bits=12))
    assert found.decoding.bits == 12 and found.notes[0].endswith("as these weights were trained")
    found = open_image_folder(str(root), replace(SPEC, bits=16))
    assert found.decoding.bits == 16 and "that is another scale" in found.notes[0]
    with pytest.raises(DataError, match=r"24 bad images(.|\n)*and 1,023 is white"):
        open_image_folder(str(root), replace(SPEC, bits=10))


def test_what_was_found_is_kept_and_what_is_damaged_is_found_again(tmp_path, cache, monkeypatch):
    root, looked = deep(tmp_path / "x", train=8, val=8), []
    real = image_facts.look_at
    monkeypatch.setattr(image_facts, "look_at", lambda content: looked.append(1) or real(content))
    first = open_image_folder(str(root), SPEC)
    assert len(looked) == 24
    again = open_image_folder(str(root), SPEC)
    assert len(looked) == 24 and again.notes == first.notes and again.decoding == first.decoding
    kept = cache / image_facts.FILE
    content = json.loads(kept.read_text())
    content["facts"][next(iter(content["facts"]))] = [60_000, False, 0]
    for damaged in (json.dumps(content), "{", "[]"):
        kept.write_text(damaged)
        looked.clear()
        assert open_image_folder(str(root), SPEC).notes == first.notes and len(looked) == 24


def test_dark_colours_of_16_bits_are_told(tmp_path):
    """PNG as any library but Pillow writes it: RGB of 16 bits."""
    for scale, told in ((8, 1), (385, 0)):
        root = tmp_path / str(scale)
        for label, name in enumerate(("one", "two")):
            (root / name).mkdir(parents=True)
            for i in range(5):
                values = np.stack([grey([label, i, band]) * scale for band in range(3)], -1).astype(">u2")
                rows = b"".join(b"\0" + row.tobytes() for row in values)
                parts = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)))
                body = (
                    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                    for kind, data in (*parts, (b"IEND", b""))
                )
                (root / name / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
        found = open_image_folder(str(root), SPEC)
        assert found.decoding == EXACT
        assert sum("hold values of 12 bits only" in note for note in found.notes) == told


def test_files_of_several_pages_are_counted(tmp_path):
    pages = [Image.fromarray(grey(seed).astype(np.uint8)) for seed in range(3)]
    root = tmp_path / "x"
    for name, endings in (("one", ("tif", "gif", "png", "webp")), ("two", ("bmp", "jpg", "tiff", "gif"))):
        (root / name).mkdir(parents=True)
        for i, ending in enumerate(endings):
            several = {"save_all": True, "append_images": pages[1:]} if name == "one" else {}
            pages[i % 3].save(root / name / f"{i}.{ending}", **several)
    notes = open_image_folder(str(root), SPEC).notes
    assert any("4 pictures have several pages or frames, the first is used: one/0.tif, one/1.gif" in n for n in notes)


def photographs(root, side):
    y, x = np.mgrid[:side, :side]
    for label, name in enumerate(("one", "two")):
        (root / name).mkdir(parents=True)
        for i in range(5):
            wave = np.sin(x / (9 + 7 * i + label)) * np.cos(y / (11 + 3 * i)) * 100 + 128
            Image.fromarray(np.dstack([wave, wave.T, 255 - wave]).astype(np.uint8)).save(root / name / f"{i}.jpg")
    return str(root)


def test_exact_and_scaled_pixels_are_kept_apart(tmp_path):
    exact, scaled = replace(SPEC, decode="exact"), replace(SPEC, decode="scaled")
    big, small = photographs(tmp_path / "big", 256), photographs(tmp_path / "small", 31)
    first = open_image_folder(big, exact)
    other = open_image_folder(big, scaled)
    assert (first.decoding.decode, other.decoding.decode) == ("exact", "scaled")
    assert first.test.files == other.test.files, "the test part is chosen by the files"
    difference = (first.train.images.int() - other.train.images.int()).abs()
    assert 0 < difference.max() < 12
    assert open_image_folder(big, exact).train.fingerprint() == first.train.fingerprint()
    below = [open_image_folder(small, spec).train.fingerprint() for spec in (exact, scaled)]
    assert below[0] == below[1]
