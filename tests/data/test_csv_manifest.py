"""Tables of pictures: what a row means, and every problem of a table with its line."""

import csv
import io
import os
import unicodedata

import pytest
from album import put
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from measure import alone

from finetune.data.csv_manifest import MAX_PROBLEMS, read_csv
from finetune.data.table_columns import ColumnNames
from finetune.errors import DataError
from finetune.io.sanitize import printable_lines

ROWS = "a/1.png,cat\na/2.png,dog\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("table")
    for name in ("a/1.png", "a/2.png", "a/3.png", "b, c.png", "图 片.png"):
        put(root / name)
    return root


def table(place, content, name="t.csv"):
    path = place / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(listing):
    return [(file.name, file.label, file.split) for file in listing.records]


def refused(place, content):
    path = table(place, content)
    with pytest.raises(DataError) as caught:
        read_csv(path).check_trainable()
    lines = str(caught.value).split("\n")
    assert all(line.startswith(str(path)) for line in lines)
    return [line.removeprefix(str(path)) for line in lines]


def test_two_columns(place):
    found = read_csv(table(place, "path,label\n" + ROWS))
    assert rows(found) == [("a/1.png", "cat", "train"), ("a/2.png", "dog", "train")]
    assert found.class_names == ("cat", "dog") and found.notes == ()
    assert found.records[0].path == place / "a" / "1.png"


def test_columns_in_any_order_more_of_them_a_byte_order_mark_and_other_line_ends(place):
    content = 'Label, split ,note,PATH\r\n 猫 ,VAL,x,图 片.png\r\n\r\ndog,train,"y\nz","b, c.png"\r\n'
    found = read_csv(table(place, b"\xef\xbb\xbf" + content.encode()))
    assert rows(found) == [("图 片.png", "猫", "test"), ("b, c.png", "dog", "train")]


def test_splits(place):
    head = "path,label,split\n"
    one_other = read_csv(table(place, head + "a/1.png,cat,train\na/2.png,dog,valid\n"))
    assert [file.split for file in one_other.records] == ["train", "test"]
    three = "a/1.png,cat,train\na/2.png,dog,validation\na/3.png,dog,test\n"
    assert [file.split for file in read_csv(table(place, head + three)).records] == ["train", "validation", "test"]


def test_a_table_may_name_pictures_anywhere_but_only_those(place, tmp_path):
    content = f"path,label\n../{place.name}/a/1.png,cat\n{place}/a/2.png,dog\n"
    (tmp_path / place.name).mkdir()
    found = read_csv(table(place, content))
    assert len(found.records) == 2
    for name in ("~/1.png", "$HOME/1.png", "a/*.png", "file:///etc/passwd", "a"):
        assert "there is no file" in refused(place, f"path,label\n{name},cat\n{ROWS}")[0]


def test_a_row_that_repeats_another_counts_once(place):
    found = read_csv(table(place, "path,label\n" + ROWS + "./a/../a/1.png,cat\n"))
    assert len(found.records) == 2 and "1 rows repeat another" in found.notes[0]


def test_every_problem_is_told_with_its_line(place):
    content = (
        "path,label,split\na/1.png,cat,train\nmissing.png,cat,train\na/2.png,,train\na/3.png,dog,tarin\n"
        'a/1.png,dog,train\na/1.png,cat,test\na/2.png,dog\n,dog,test\na/2.png,\x1b[31m,test\n"open\n'
    )
    found = refused(place, content)
    for line, fault in (
        (3, "there is no file missing.png"),
        (4, "empty label"),
        (5, "unknown split 'tarin'; did you mean 'train'?"),
        (6, "a/1.png is 'dog' here and 'cat' in line 2"),
        (7, "a/1.png is in test here and in another split in line 2"),
        (8, "expected 3 values, found 2"),
        (9, "empty path"),
        (10, "a label that cannot be shown"),
        (11, "not CSV"),
    ):
        assert sum(text.startswith(f":{line}: ") and fault in text for text in found) == 1, (line, fault)
    assert len(found) == 9


def test_very_many_problems_are_counted(place):
    found = refused(place, "path,label\n" + "x.png,cat\n" * 100)
    assert len(found) == MAX_PROBLEMS + 1 and "and 60 problems more" in found[-1]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("cell,kind\n" + ROWS, ":1: no column path, label; expected a first line of path,label"),
        ("path;kind\na;b\n", ":1: no column label"),
        ("path,label,label\n", "the column label twice"),
        ("", "found nothing"),
        ("path,label\n", ": no picture; expected rows"),
        ("path,label,split\na/1.png,cat,test\na/2.png,dog,val\n", ": no picture to learn from"),
        ("path,label\na/1.png,cat\na/2.png,cat\n", ": found one class only, 'cat'"),
        (b"path,label\na/1.png,caf\xe9\n", ":2: expected UTF-8, found the byte 0xe9"),
        ("path,label\n".encode("utf-16"), ":1: expected UTF-8"),
        ("path,label\na\0b.png,cat\n", ":2: there is no file a\ufffdb.png"),
        ("path,label\n" + "a" * 300_000 + ",cat\n", ":2: "),
    ],
)
def test_what_is_no_such_table(place, content, fault):
    assert fault in refused(place, content)[0]


def test_a_table_that_is_not_there(place):
    table(place, "", "flowers.csv")
    with pytest.raises(DataError, match=r"no such file; did you mean 'flowers\.csv'"):
        read_csv(place / "flower.csv")
    (place / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory"):
        read_csv(place / "folder.csv")


def test_places_that_are_no_tables_or_pictures_are_refused_at_once(place):
    os.mkfifo(place / "pipe.csv")
    (place / "device.csv").symlink_to("/dev/zero")
    for name, kind in (("pipe.csv", "a pipe"), ("device.csv", "a device")):
        with pytest.raises(DataError, match=rf"{name}: cannot be read \(it is {kind}, not a regular file\)"):
            read_csv(place / name)
    os.mkfifo(place / "pipe.png")
    (place / "device.png").symlink_to("/dev/zero")
    (place / "ring.png").symlink_to(place / "ring.png")
    found = refused(place, "path,label\npipe.png,cat\ndevice.png,dog\nring.png,dog\n/dev/stdin,dog\n")
    assert [line.partition(" (")[0] for line in found] == [
        ":2: there is no file pipe.png",
        ":3: there is no file device.png",
        ":4: there is no file ring.png",
        ":5: there is no file /dev/stdin",
    ]


def test_old_line_ends(place):
    found = read_csv(table(place, "path,label\ra/1.png,cat\r\ra/2.png,dog\r"))
    assert rows(found) == [("a/1.png", "cat", "train"), ("a/2.png", "dog", "train")]
    assert "there is no file x.png" in refused(place, "path,label\rx.png,cat\r")[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,label," + ",".join(map(str, range(400_000))), ":1: a row of over 1,000,000 characters"),
        ("path,label\n" + "a," * 600_000, ":2: a row of over 1,000,000 characters; is a quote not closed"),
        ("path,label\n" + '"a\n",' * 300_000, "a row of over 1,000,000 characters"),
        ("path,label\n" + '"' + "a\n" * 100_000, ":2: not CSV (field larger than field limit (131072))"),
        ("x" * 200_000 + "\n", ":1: no column"),
        ("path,label," + ",".join(map(str, range(100_000))) + "\na,b\n", "expected 100002 values, found 2"),
        ("path,label\na/1.png," + "x" * 256 + "\n", ":2: a label that cannot be shown"),
        ("path,label,split\na/1.png,cat," + "tes" * 30_000 + "\n", ":2: unknown split 'testes"),
        ("path,label\n" + "x" * 100_000 + ",cat\n", ":2: there is no file xxx"),
    ],
    ids=range(9),
)
def test_what_is_too_large_is_refused_shortly(place, content, said):
    found = refused(place, content)
    assert any(said in line for line in found), found
    assert all(len(line) < 600 for line in found)


def test_the_lines_of_a_table_are_counted(place, monkeypatch):
    monkeypatch.setattr("finetune.data.csv_manifest.MAX_LINES", 3)
    assert len(read_csv(table(place, "path,label\n" + ROWS)).records) == 2
    assert "over 3 lines, and at most so many are read" in refused(place, "path,label\n" + ROWS + "\n")[0]


def test_reading_stops_after_very_many_problems(place):
    found = refused(place, "path,label\n" + "x.png,cat\n" * 50_000)
    assert len(found) == MAX_PROBLEMS + 1 and "and over 9,961 problems more" in found[-1]


def test_rows_that_repeat_one_another_are_counted_and_not_kept(place):
    found = read_csv(table(place, "path,label\n" + ROWS + "a/1.png,cat\n" * 30_000))
    (note,) = found.notes
    assert "30,000 rows repeat another and count once: a/1.png" in note and note.endswith(" and 29,980 more")
    assert len(note) < 800


def test_too_many_classes_are_refused_before_anything_is_trained(place, monkeypatch):
    monkeypatch.setattr("finetune.checkpoint.limits.MAX_CLASSES", 2)
    assert len(read_csv(table(place, "path,label\n" + ROWS)).class_names) == 2
    with pytest.raises(DataError, match="classes: 3 of them; at most 2"):
        read_csv(table(place, "path,label\n" + ROWS + "a/3.png,fly\n"))


# --- tables as people have them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
def test_what_divides_the_cells_is_found(place, between):
    lines = ["path,label,note", "a/1.png,cat,x", '"b, c.png",dog,']
    content = "\n".join(line if line[0] == '"' and between == "," else line.replace(",", between) for line in lines)
    content = content.replace(f'"b{between} c.png"', '"b, c.png"')
    assert rows(read_csv(table(place, content))) == [("a/1.png", "cat", "train"), ("b, c.png", "dog", "train")]
    assert rows(read_csv(table(place, f"sep={between}\n\n{content}")))[0] == ("a/1.png", "cat", "train")
    assert refused(place, f"sep={between}\n\n{content}\nx{between}cat{between}")[0].startswith(":6: there is no file x")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("image_id,category", "read path from image_id, label from category"),
        ("Filename,ClassId", "read path from Filename, label from ClassId"),
        ("id,Class Name", "read path from id, label from Class Name"),
        ("FILE,Label", "read path from FILE"),
    ],
)
def test_the_usual_names_of_columns(place, head, said):
    found = read_csv(table(place, f"{head}\n{ROWS}"))
    assert rows(found) == [("a/1.png", "cat", "train"), ("a/2.png", "dog", "train")]
    assert [note.partition(": ")[2] for note in found.notes] == [said]


def test_what_is_not_read_is_said_and_what_may_group_too(place):
    content = "filename,Width,class,patient_id\na/1.png,3,cat,7\na/2.png,4,dog,8\n"
    assert [note.partition(": ")[2] for note in read_csv(table(place, content)).notes] == [
        "read path from filename, label from class",
        "columns not read: Width, patient_id; patient_id may say which pictures belong together: with --set "
        "data.columns.group=patient_id these stay in one part",
    ]


def test_columns_that_a_person_names(place):
    content = "image,file,dx,kind,fold\na/1.png,x,cat,u,train\na/2.png,y,dog,v,val\n"
    path = table(place, content)
    with pytest.raises(DataError, match=r"2 columns may hold the path: image, file; .*--set data\.columns\.path=image"):
        read_csv(path)
    found = read_csv(path, ColumnNames({"path": "IMAGE", "label": "dx", "split": "fold", "group": "kind"}))
    assert rows(found) == [("a/1.png", "cat", "train"), ("a/2.png", "dog", "test")]
    assert [record.group for record in found.records] == ["u", "v"]
    with pytest.raises(DataError, match=r":1: data.columns.label: the table has no column 'dy'; columns are image"):
        read_csv(path, ColumnNames({"path": "image", "label": "dy"}))
    with pytest.raises(DataError, match=r":1: no column label; .* found image, .*--set data\.columns\.label=NAME"):
        read_csv(path, ColumnNames({"path": "image", "label": "dy"}, required=False))
    with pytest.raises(DataError, match="one column cannot be two"):
        read_csv(path, ColumnNames({"path": "image", "label": "image"}))


def test_a_first_line_that_is_missing(place):
    assert "is the first line missing? Put path,label above" in refused(place, ROWS)[0]


def test_parts_by_other_columns(place):
    rows_of = "a/1.png,cat,{}\na/2.png,dog,{}\na/3.png,dog,{}\n"

    def splits(head, *cells):
        found = read_csv(table(place, f"path,label,{head}\n" + rows_of.format(*cells)))
        return [record.split for record in found.records], found.notes

    assert splits("is_valid", "False", "True", "FALSE")[0] == ["train", "test", "train"]
    assert "read split from is_valid, where true is validation and false train" in splits("is_valid", 0, 1, 0)[1][0]
    assert splits("is_training_image", 1, 0, 1)[0] == ["train", "test", "train"]
    assert splits("set", "Training", "Testing", "dev")[0] == ["train", "test", "validation"]
    assert splits("split", "train", "eval", "test")[0] == ["train", "validation", "test"]
    assert splits("split", "train", "eval", "val")[0] == ["train", "test", "validation"]
    unread = splits("set", "Lego", "Duplo", "Lego")
    assert unread[0] == ["train"] * 3 and "columns not read: set" in unread[1][0]
    said = refused(place, "path,label,is_valid\n" + rows_of.format("True", "maybe", "False"))
    assert said[0].startswith(":3: unknown split 'maybe'; splits are true, false")


def test_paths_in_another_spelling_are_found(tmp_path):
    for name in ("cafe\u0301/\u00e9.png", "Photos/IMG_1.JPG", "c/7.jpg"):
        put(tmp_path / name)
    names = ["caf\u00e9/e\u0301.png", "cafe\u0301\\\u00e9.png", ".\\photos\\img_1.jpg", "photos/IMG_1", "c/7"]
    for name in names:
        found = read_csv(table(tmp_path, f"path,label\n{name},cat\n"))
        assert (
            found.records[0].path.is_file()
            and found.records[0].name == found.records[0].path.relative_to(tmp_path).as_posix()
        ), name
        assert "1 pictures found under another spelling" in found.notes[0]


def test_ids_are_found_in_the_folders_beside_the_table_unless_it_is_not_clear_which(tmp_path):
    for name in ("images_1/7.jpg", "images_2/8.png", "a/9.png", "b/9.png", "a/10.png", "a/10.jpg"):
        put(tmp_path / name)
    found = read_csv(table(tmp_path, "image_id,label\n7,cat\n8,dog\n"))
    assert rows(found) == [("images_1/7.jpg", "cat", "train"), ("images_2/8.png", "dog", "train")]
    said = refused(tmp_path, "image_id,label\n9,cat\na/10,dog\n11,dog\n" + "1" * 300 + ",dog\n")
    assert said[0] == ":2: 9 may be any of 2 files: a/9.png, b/9.png; write the whole path"
    assert said[1].startswith(":3: a/10 may be any of 2 files: a/10.jpg, a/10.png")
    assert said[2].startswith(":4: there is no file 11") and said[3].startswith(":5: there is no file 111")


def test_groups_of_a_table(place):
    head = "path,label,split,group\n"
    found = read_csv(table(place, head + "a/1.png,cat,train,p1\na/2.png,dog,test,\na/3.png,dog,train,\n"))
    assert [record.group for record in found.records] == ["p1", "", ""]
    said = refused(place, head + "a/1.png,cat,train,p1\na/2.png,dog,test,p1\na/3.png,dog,train,p1\n")
    assert said == [":3: the group p1 is in test here and in train in line 2"]
    assert len(read_csv(table(place, "path,label,group\na/1.png,cat,g\na/2.png,dog,g\n")).records) == 2


def test_rows_of_test_alone_are_listed_and_are_not_for_training(place):
    found = read_csv(table(place, "path,label,split\na/1.png,cat,test\na/2.png,dog,test\n"))
    assert {record.split for record in found.records} == {"test"}
    with pytest.raises(DataError, match="no picture to learn from of cat, dog"):
        found.check_trainable()


def test_labels_of_one_class_written_in_two_ways_are_said(place):
    content = "path,label\na/1.png,cafe\u0301\na/2.png,caf\u00e9\na/3.png,Caf\u00e9\n"
    (spaced,) = read_csv(table(place, "path,label\na/1.png,cat\na/2.png,cat \na/3.png,dog\n")).notes
    assert "'cat', 'cat ' are taken for one class, 'cat'" in spaced
    taken, capitals = read_csv(table(place, content)).notes
    assert r"'cafe\u0301', 'caf\xe9' are taken for one class" in taken and "differ in capitals only" in capitals


HUNGRY = """
import sys
from measure import peak
from finetune.data.csv_manifest import read_csv
from finetune.errors import DataError
before = peak()
try:
    read_csv(sys.argv[1])
except DataError as error:
    said = str(error)
assert peak() - before < 40 * 2**20, peak() - before
print(said)
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"a,b\n", "problems more"),
        pytest.param(b"\n", "over 10,000,000 lines", marks=pytest.mark.slow),
        (b'"a""b"', "a row of"),
        (b"\xc3\xa9\n\n,\n", "no column"),
    ],
    ids=range(4),
)
def test_a_large_table_takes_little_memory(place, line, said):
    path = table(
        place, b"path,label\n"[: 99 if b"," in line[:3] or line == b"\n" else 0] + line * (40_000_000 // len(line))
    )
    assert said in alone(HUNGRY, path)
    path.unlink()


CELL = st.one_of(
    st.sampled_from(["a/1.png", "a/2.png", "cat", "dog", "train", "test", "path", "label", "split", ""]),
    st.text(max_size=8),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.lists(st.lists(CELL, max_size=4), max_size=6).map(
            lambda rows: ("path,label,split\n" + "\n".join(map(",".join, rows))).encode("utf-8", "replace")
        ),
    )
)
@example(b'path,label\r\n"')
@example(b"\xef\xbb\xbf")
def test_any_bytes_are_a_table_or_a_data_error(place, content):
    path = table(place, content, "fuzz.csv")
    try:
        found = read_csv(path)
        found.check_trainable()
    except DataError as error:
        assert str(error).startswith(str(path))
        assert printable_lines(str(error)) == str(error)
    else:
        assert len(found.class_names) > 1 and found.records


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=3, max_size=3))
def test_labels_come_back_as_they_were_written(place, labels):
    out = io.StringIO()
    csv.writer(out).writerows([["path", "label"], *zip(["a/1.png", "a/2.png", "a/3.png"], labels, strict=True)])
    try:
        found = read_csv(table(place, out.getvalue(), "labels.csv"))
    except DataError as error:
        assert any(fault in str(error) for fault in ("label", "one class", "no column", "not CSV", "UTF-8"))
        return
    assert [f.label for f in found.records] == [unicodedata.normalize("NFC", label.strip()) for label in labels]
