"""WebDataset tars: read in place, never unpacked; hostile or damaged archives end in one clear message."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from shard_files import NAMES, pictures, put_tar, samples
from tiny import files_under

from finetune.data.image_folder_dataset import open_image_folder
from finetune.data.image_io import CropSpec
from finetune.data.openers import is_image_path, read_manifest, short_name
from finetune.errors import DataError

SPEC = CropSpec(channels=3, size=16, crop=1.0, resize="squash", interpolation="bilinear")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_labels_of_one_class_written_in_two_ways_are_said():
    labels = ("cafe\u0301", "caf\u00e9", "dog")
    members = [
        pair
        for number, label in enumerate(labels)
        for pair in ((f"{number}.cls", label.encode()), (f"{number}.png", pictures("a", 1)[0][0]))
    ]
    put_tar(Path("pets.tar"), members)
    (note,) = read_manifest("pets.tar").notes
    assert r"'cafe\u0301', 'caf\xe9' are taken for one class" in note


@pytest.mark.parametrize("label", ["cls", "json"])
def test_tars_are_opened_as_a_data_set(label):
    put_tar(Path("fruit/fruit-train-000000.tar"), samples("a", 8, label))
    put_tar(Path("fruit/fruit-train-000001.tar"), samples("b", 8, label))
    put_tar(Path("fruit/fruit-test-000000.tar"), samples("c", 4, label))
    Path("fruit/classes.txt").write_text("apple\npear\n")
    before = files_under(Path("fruit"))
    assert is_image_path("fruit") and short_name("x/fruit-train.tar") == "fruit-train"
    found = read_manifest("fruit")
    assert found.class_names == NAMES and not found.notes
    expected = {name: content for part, n in (("a", 8), ("b", 8), ("c", 4)) for content, _, name in pictures(part, n)}
    assert {record.name: record.open() for record in found.records} == expected
    assert all(NAMES[i % 2] == record.label for i, record in enumerate(found.records))
    assert {record.group for record in found.records} == (
        {f"{part}{number}" for part in "abc" for number in (0, 1)} if label == "json" else {""}
    )
    splits = open_image_folder("fruit", SPEC)
    assert len(splits.train) == 16 and len(splits.test) == 4
    assert files_under(Path("fruit")) == before, "nothing is unpacked"


def test_numbers_are_the_class_names_without_a_list():
    put_tar(Path("x.tar"), samples("a", 4))
    found = read_manifest("x.tar")
    assert found.class_names == ("0", "1") and "numbers without names" in found.notes[0]
    Path("classes.txt").write_text("apple\n")
    with pytest.raises(DataError, match=r"x.tar: a/pear/1: the label 1, and there are 1 class names, from 0"):
        read_manifest("x.tar")


def test_names_that_repeat_have_the_shard_before_them_and_other_files_do_not_matter():
    picture = pictures("x", 1)[0][0]
    put_tar(
        Path("w.tar"), [("0.jpg", picture), ("0.cls", b"cafe\xcc\x81"), ("1.jpg", picture), ("1.cls", b"caf\xc3\xa9")]
    )
    assert "are taken for one class" in read_manifest("w.tar").notes[0]
    one = [("0.jpg", picture), ("0.cls", b"cat"), ("0.txt", b"a caption"), ("0.seg.png", b"a mask"), (".DS_Store", b"")]
    folder = tarfile.TarInfo("./sub/")
    folder.type = tarfile.DIRTYPE
    put_tar(Path("set/a.tar"), [*one, (folder, b""), ("./sub/1.JPG", picture), ("./sub/1.cls", b"dog\n")])
    put_tar(Path("set/b.tar"), [*one, ("2.png", picture)])
    found = read_manifest("set")
    assert [(r.name.partition("#")[0], r.label) for r in found.records] == [
        ("a.tar", "cat"),
        ("a.tar", "dog"),
        ("b.tar", "cat"),
    ]
    assert found.records[2].where == "b.tar: 0.jpg" and "1 pictures without a label left out: b.tar#" in found.notes[0]


def special(kind, name="x/0.png", target="../../etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return (info, b"")


def claims(size):
    """The header of a picture that says another size than there are bytes."""
    info = tarfile.TarInfo("a/huge.png")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def long_header(size):
    """A header for a name of so many bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT)


def negative_size():
    block = bytearray(claims(0))
    block[124:136] = b"\xff" * 11 + b"\x00"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


GOOD = list(samples("a", 6))
WHOLE = "whole.tar"


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("/etc/0.png", b"x")], "found /etc/0.png, which leads out of it"),
        ([("../0.png", b"x")], r"found ../0.png, which leads out of it"),
        ([("a/../../0.png", b"x")], "which leads out of it"),
        ([("a\\..\\0.png", b"x")], "which leads out of it"),
        ([special(tarfile.SYMTYPE)], "found a link, x/0.png"),
        ([special(tarfile.LNKTYPE)], "found a link, x/0.png"),
        ([special(tarfile.CHRTYPE)], "found a device or a pipe"),
        ([special(tarfile.FIFOTYPE)], "found a device or a pipe"),
        ([("9.png", b"x"), ("9.jpg", b"x")], "expected one picture of each name, found 9.png, 9.jpg"),
        ([("9.png", b"x"), ("9.cls", b"x" * 20_000)], "9.cls: 20,000 bytes, and at most 10,000 are read"),
        ([("9.png", b"x"), ("9.json", b"{")], "9.json: expected JSON"),
        ([("9.png", b"x"), ("9.cls", "a\u200bb\x07".encode())], "9: a label that cannot be shown"),
    ],
)
def test_members_that_no_archive_of_pictures_has_are_refused(members, said):
    put_tar(Path("x.tar"), [*GOOD, *members])
    with pytest.raises(DataError, match=rf"^x.tar: x.tar: .*{said}"):
        read_manifest("x.tar")


def whole():
    return put_tar(Path(WHOLE), GOOD).read_bytes()


def last_header():
    with tarfile.open(WHOLE) as archive:
        return archive.getmembers()[-1].offset


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: whole()[:3000], "cut short: a/apple/.*the file ends before"),
        (lambda: whole()[: last_header()], "damaged or cut short at byte"),
        (lambda: whole()[: last_header() + 200], "damaged or cut short at byte"),
        (lambda: whole() + whole(), "bytes follow the archive's end"),
        (lambda: whole() + bytes(2 << 20), "bytes follow the archive's end"),
        (lambda: b"", "cannot be read as a tar archive"),
        (lambda: b"no archive at all" * 100, "cannot be read as a tar archive"),
        (lambda: gzip.compress(b"x"), "a compressed archive"),
        (lambda: claims(1 << 40) + bytes(2048), "huge.png has 1,099,511,627,776 bytes, and the file ends before"),
        (lambda: long_header(1 << 33) + bytes(2048), "a header of 8,589,9"),
        (negative_size, "cut short|cannot be read"),
        (lambda: claims(0)[:-1] + b"\x01" + whole(), "cannot be read as a tar archive|damaged"),
    ],
)
def test_archives_that_are_damaged_or_lie_are_refused(content, said):
    Path("x.tar").write_bytes(content())
    with pytest.raises(DataError, match=rf"^x.tar: x.tar: .*({said})"):
        read_manifest("x.tar")


def test_sparse_files_are_refused():
    info = tarfile.TarInfo("0.png")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": "9",
    }
    info.size = 1
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x"))
    Path("x.tar").write_bytes(file.getvalue())
    with pytest.raises(DataError, match="found a file with holes, 0"):
        read_manifest("x.tar")


def test_what_is_no_picture_and_what_is_cut_meanwhile_are_bad_images():
    broken = [("a/pear/9.png", b"no picture"), ("a/pear/9.cls", b"1")]
    put_tar(Path("x.tar"), [*samples("a", 30), *broken])
    with pytest.raises(DataError, match=r"1 bad image\n  x.tar: a/pear/9.png: cannot be read as an image"):
        open_image_folder("x.tar", SPEC)
    records = read_manifest("x.tar").records
    Path("x.tar").write_bytes(Path("x.tar").read_bytes()[:2000])
    with pytest.raises(DataError, match="it was cut short meanwhile"):
        records[-1].open()


def test_json_without_a_label_is_no_label():
    picture = pictures("x", 1)[0][0]
    rows = [(f"{i}.png", picture) for i in range(3)]
    values = [{"label": "cat"}, {"class_name": "dog", "label": 7}, {"other": [1]}]
    members = [
        m for row, v in zip(rows, values, strict=True) for m in (row, (row[0][:-3] + "json", json.dumps(v).encode()))
    ]
    put_tar(Path("x.tar"), members)
    assert [record.label for record in read_manifest("x.tar").records] == ["cat", "dog"]
