"""idx files, tables and pictures that are nearly right: each is read, or refused in plain words."""

import gzip
import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from album import pixels, put
from fuzzing import answered, damaged, fuzzed
from hypothesis import event, given
from hypothesis import strategies as st
from idx_files import make_files
from idx_files import put as put_files
from PIL import Image

from finetune.data.image_folder_dataset import ReadOptions, open_image_folder
from finetune.data.image_io import CropSpec, decode_image, is_grey
from finetune.data.registry import DATASETS, open_dataset
from finetune.errors import DataError

FRAME = CropSpec(channels=None, size=6, crop=1.0, resize="shorter_side", interpolation="bilinear")


@pytest.fixture(scope="module")
def root():
    with tempfile.TemporaryDirectory(prefix="finetune-fuzz-") as name:
        yield Path(name)


# --- idx --------------------------------------------------------------------------------------------------------------

ODD_SIZES = st.sampled_from([0, 1, 2, 3, 8, 27, 28, 29, 2_000_000, 2_000_001, 2**31, 2**32 - 1])


@st.composite
def idx_files(draw, content):
    """An idx file with its header or its values changed."""
    dimensions = content[3]
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["size", "magic", "values", "bytes", "dimensions", "length"]))
        if kind == "size" and dimensions and len(content) >= 4 + 4 * dimensions:
            place = 4 + 4 * draw(st.integers(0, dimensions - 1))
            content = content[:place] + struct.pack(">I", draw(ODD_SIZES)) + content[place + 4 :]
        elif kind == "magic":
            content = draw(st.binary(min_size=2, max_size=4)).ljust(4, b"\1") + content[4:]
        elif kind == "dimensions":
            content = content[:3] + bytes([draw(st.integers(0, 255))]) + content[4:]
        elif kind == "values":
            content = content[:-1] + bytes([draw(st.integers(0, 255))])
        elif kind == "length":
            content = content[: draw(st.integers(0, len(content)))] + bytes(draw(st.integers(0, 3)))
        else:
            content = draw(damaged(content))
    return content


@fuzzed(150)
@given(name=st.sampled_from(["mnist", "emnist-letters", "qmnist"]), data=st.data())
def test_idx_files(root, name, data):
    files = make_files(name, (3, 2))
    file = data.draw(st.sampled_from(sorted(files)))
    content = data.draw(idx_files(files[file]))
    raw = put_files(root, name, {other: files[other] for other in files if other != file})
    (raw / file).unlink(missing_ok=True)
    (raw / f"{file}.gz").unlink(missing_ok=True)
    if data.draw(st.booleans()):
        packed = gzip.compress(content, mtime=0)
        (raw / f"{file}.gz").write_bytes(data.draw(st.just(packed) | damaged(packed)))
    else:
        (raw / file).write_bytes(content)
    found = answered(lambda: open_dataset(name, root, download=False))
    event("read" if found is not None else "refused")
    if found is not None:
        assert {len(found.train), len(found.test)} <= {1, 2, 3}
        assert found.train.images.shape[1:] == (1, 28, 28) and found.train.class_names == DATASETS[name].class_names


# --- tables -----------------------------------------------------------------------------------------------------------

NAMES = ["a.png", "b.png", "./a.png", "nothing.png", "bad.png", "pipe.png", "zero.png", "ring.png", "/dev/stdin", ".."]
LABELS = ["cat", "dog", "train", "val", "test", "tset", "größer", "x" * 300, "\U0001f600"]
STRANGE = ["", " ", "\x1b[31m", "a\0b", "\u202e", "\ufeff", "a,b", '"', '""', "'", "\n", "\r", "c d.png"]
CELLS = st.sampled_from([*NAMES, *LABELS, *STRANGE])
GOOD = ["path,label", "path,label,split", "label,path", "PATH , Label"]
HEADS = st.sampled_from(GOOD * 3 + ["path,label,label", "path", "", "path;label", "a,path,label"])
RIGHT = (("a", "cat"), ("b", "dog"), ("c d", "cat"))
SELDOM = st.sampled_from([False] * 5 + [True])


@st.composite
def tables(draw):
    """A table of right rows, with others among them, quoted or not, and perhaps damaged bytes."""
    head, quote = draw(HEADS), draw(st.sampled_from(["never", "often", "always"]))
    right = [{"path": f"{file}.png", "label": label, "split": "train"} for file, label in RIGHT]
    rows = [[row.get(name.strip().lower(), "x") for name in head.split(",")] for row in right]
    rows += draw(st.lists(st.sampled_from(rows) | st.lists(CELLS, max_size=4), max_size=2))
    lines = [head]
    for cells in draw(st.permutations(rows)):
        quoted = quote == "always" or (quote == "often" and draw(st.booleans()))
        lines.append(",".join('"' + cell.replace('"', '""') + '"' if quoted else cell for cell in cells))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines) + draw(st.sampled_from(["", "\n", "\n", '"', "\0"]))
    content = text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"])))
    return draw(damaged(content)) if draw(SELDOM) else content


@pytest.fixture(scope="module")
def pictures(root):
    place = root / "pictures"
    for name in ("a.png", "b.png", "c d.png"):
        put(place / name)
    (place / "bad.png").write_bytes(b"GIF89a")
    os.mkfifo(place / "pipe.png")
    (place / "zero.png").symlink_to("/dev/zero")
    (place / "ring.png").symlink_to(place / "ring.png")
    return place


@fuzzed(150)
@given(content=tables(), skip=st.booleans())
def test_tables(pictures, content, skip):
    (pictures / "t.csv").write_bytes(content)
    found = answered(
        lambda: open_image_folder(
            str(pictures / "t.csv"),
            FRAME,
            ReadOptions(on_bad_image="skip" if skip else "fail"),
            cache=pictures.parent / "cache",
        )
    )
    event("read" if found is not None else "refused")
    if found is not None:
        assert len(found.train) and len(found.train.class_names) > 1
        assert {name.strip().removeprefix("./") for name in found.train.files} <= {"a.png", "b.png", "c d.png"}


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture(kind, **more):
    file = io.BytesIO()
    Image.fromarray(pixels("fuzz", side=20)).save(file, kind, **more)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, colour=2, data=b"\0" * 9):
    """A PNG that says this of itself, with next to no pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


PICTURES = [
    *(picture(kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")),
    picture("JPEG", progressive=True),
    picture("TIFF", compression="tiff_lzw"),
    picture("TIFF", compression="tiff_adobe_deflate"),
]
ODD_PNGS = st.builds(
    png,
    st.sampled_from([0, 1, 20, 8000, 8001, 65_535, 2**31 - 1, 2**32 - 1]),
    st.sampled_from([0, 1, 20, 8000, 2**31 - 1]),
    st.sampled_from([0, 1, 2, 4, 8, 16, 32]),
    st.integers(0, 7),
    st.binary(max_size=40) | st.just(bytes(100_000)),
)


@fuzzed(400)
@given(content=st.integers(0, len(PICTURES) - 1).flatmap(lambda number: damaged(PICTURES[number])) | ODD_PNGS)
def test_pictures(content):
    grey = is_grey(content)
    found = answered(lambda: decode_image(content))
    event("read" if found is not None else "refused")
    if found is not None:
        assert found.mode in ("L", "RGB") and found.width * found.height <= 64_000_000
        assert np.asarray(found).dtype == np.uint8 and grey == (found.mode == "L")


def test_a_folder_of_them(root):
    place = root / "folder"
    for number, content in enumerate([*PICTURES, *(content[:-30] for content in PICTURES), png(2**31 - 1, 2**31 - 1)]):
        for label in ("cat", "dog"):
            (place / label).mkdir(parents=True, exist_ok=True)
            (place / label / f"{number}.png").write_bytes(content)
    for label in ("cat", "dog"):  # pictures of both classes are learnt from, so these are there to be tested
        for number in range(3):
            Image.fromarray(pixels(f"{label} {number}", side=20)).save(place / label / f"own {number}.png")
    with pytest.raises(DataError, match=r"bad images\n  cat/1\d\.png: "):
        open_image_folder(str(place), FRAME, cache=root / "cache")
    found = open_image_folder(str(place), FRAME, ReadOptions(on_bad_image="skip"), cache=root / "cache")
    assert len(found.train) + len(found.test) >= 2 * len(PICTURES)
