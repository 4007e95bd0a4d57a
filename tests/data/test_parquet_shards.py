"""Parquet shards as `datasets` writes them: the same images as a folder's, and one clear message for what is wrong."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from measure import alone
from shard_files import NAMES, parquet_set, pictures, put_parquet, table
from tiny import files_under, finetune, phase, pretrain_recipe, refused, report_of, worked

from finetune.data.image_folder_dataset import ReadOptions, open_image_folder
from finetune.data.image_io import CropSpec
from finetune.data.openers import is_image_path, read_manifest, short_name
from finetune.data.table_columns import ColumnNames
from finetune.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
SPEC = CropSpec(channels=3, size=16, crop=1.0, resize="squash", interpolation="bilinear")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def as_folder(root, **parts):
    """The same pictures, a file each."""
    for part, count in parts.items():
        for content, _, name in pictures(part, count):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    return f"./{root}"


def test_shards_are_opened_like_a_folder_of_the_same_pictures():
    root = str(parquet_set(Path("fruit")))
    folder = as_folder(Path("files"), train=18, test=6)
    there, here = open_image_folder(root, SPEC), open_image_folder(folder, SPEC)
    assert there.notes == here.notes == ()
    for ours, theirs in ((there.train, here.train), (there.test, here.test)):
        assert sorted(ours.files) == sorted(theirs.files) and ours.class_names == NAMES
        order = [ours.files.index(name) for name in theirs.files]
        assert ours.subset(order).fingerprint() == theirs.fingerprint()
    assert is_image_path(root) and short_name(root) == "fruit" and short_name("a/train.parquet") == "train"


@pytest.mark.parametrize("row_group_size", [1, 4, 1000])
@pytest.mark.parametrize("batch_rows", [1, 3, 32])
def test_a_row_is_found_in_any_order_and_from_many_threads(row_group_size, batch_rows, monkeypatch):
    monkeypatch.setattr("finetune.data.parquet_file.BATCH_ROWS", batch_rows)
    monkeypatch.setattr("finetune.data.parquet_file.WINDOW_BATCHES", 2)
    put_parquet(Path("a/train-0.parquet"), pictures("train", 23), row_group_size=row_group_size)
    put_parquet(Path("a/test-0.parquet"), pictures("test", 5), row_group_size=row_group_size)
    records = read_manifest("a").records
    expected = {name: content for part, n in (("train", 23), ("test", 5)) for content, _, name in pictures(part, n)}
    assert {r.name: r.open() for r in records} == {r.name: r.open() for r in records[::-1]} == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda r: r.open(), records)) == [expected[r.name] for r in records]


def test_in_order_each_row_group_is_read_once(monkeypatch):
    root = parquet_set(Path("fruit"))
    records, begun = read_manifest(str(root)).records, []
    read = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *a, **k: begun.append(k["row_groups"][0]) or read(*a, **k)
    )
    for record in records:
        record.open()
    assert begun == [0, 1, 0, 1, 2, 0, 1, 2]  # test of 6 rows, train of 9 and 9, four rows a group


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["train.parquet", "validation.parquet", "test.parquet"], ["test", "train", "validation"]),
        (["data/train-00000-of-00001.parquet", "data/val-00000-of-00001.parquet"], ["train", "test"]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], ["test", "train"]),
        (["train.parquet", "eval.parquet", "test.parquet"], ["validation", "test", "train"]),
        (["mnist-train-000.parquet", "mnist-test-000.parquet"], ["test", "train"]),
        (["a.parquet", "b.parquet"], ["train", "train"]),
    ],
)
def test_names_of_files_and_folders_say_the_split(files, found):
    for file in files:
        put_parquet(Path("set") / file, pictures(file, 2))
    assert [record.split for record in read_manifest("set").records[::2]] == found


def test_one_file_is_a_data_set_too():
    put_parquet(Path("all.parquet"), pictures("x", 40), row_group_size=7)
    splits = open_image_folder("all.parquet", SPEC)
    assert len(splits.train) == 32 and len(splits.test) == 8 and splits.train.origin == "all.parquet train"


def test_groups_splits_and_other_columns():
    rows = pictures("x", 8)
    more = {"group": list("aabbccdd"), "split": ["train"] * 4 + ["test"] * 4}
    put_parquet(Path("x.parquet"), rows, **more)
    assert [(r.group, r.split) for r in read_manifest("x.parquet").records] == list(
        zip(more["group"], more["split"], strict=True)
    )
    more = {"patient": list(range(8)), "other": ["Val"] * 8}
    put_parquet(Path("y.parquet"), rows, columns=("scan", "finding"), **more)
    columns = ColumnNames({"group": "patient", "split": "other", "label": "finding"})
    assert [(r.group, r.split, r.label) for r in read_manifest("y.parquet", columns).records][7] == (
        "7",
        "test",
        "pear",
    )
    columns = {"label": "absent"}
    with pytest.raises(DataError, match=r"data.columns.label: no column 'absent'"):
        read_manifest("y.parquet", ColumnNames(columns))
    assert len(read_manifest("y.parquet", ColumnNames(columns, required=False)).records) == 8


def test_texts_are_class_names_and_plain_bytes_are_pictures():
    rows = [(content, NAMES[label], None) for content, label, _ in pictures("x", 6)]
    put_parquet(Path("a/text.parquet"), rows, names=None)
    flat = pa.table({"jpg": [row[0] for row in rows], "category": pa.array([r[1] for r in rows]).dictionary_encode()})
    Path("b").mkdir()
    pq.write_table(flat, "b/flat.parquet")
    for name in ("a", "b"):
        found = read_manifest(name)
        assert [r.label for r in found.records] == [NAMES[i % 2] for i in range(6)] and found.class_names == NAMES
        assert found.records[3].open() == rows[3][0] and found.records[3].name.endswith(".parquet#3")
    put_parquet(Path("c/text.parquet"), [(*rows[0][:1], f"{NAMES[0]} ", None), *rows], names=None)
    assert "are taken for one class" in read_manifest("c").notes[0]


def test_numbers_without_names_are_the_names_or_classes_txt_has_them():
    put_parquet(Path("a/x.parquet"), pictures("x", 6), names=None)
    found = read_manifest("a")
    assert found.class_names == ("0", "1") and "numbers without names" in found.notes[0]
    Path("a/classes.txt").write_text("apple\npear\n\n")
    assert read_manifest("a").class_names == NAMES and not read_manifest("a").notes
    Path("a/classes.txt").write_text("apple\n")
    with pytest.raises(DataError, match=r"x.parquet row 1: the label 1, and there are 1 class names"):
        read_manifest("a")


def test_rows_without_a_label_are_left_out_and_counted():
    rows = [(content, -1 if i > 5 else label, name) for i, (content, label, name) in enumerate(pictures("x", 8))]
    put_parquet(Path("x.parquet"), rows)
    found = read_manifest("x.parquet")
    assert len(found.records) == 6 and "2 pictures without a label left out: x/apple/6.png, x/pear/7" in found.notes[0]


def test_broken_bytes_in_row_7_are_a_bad_image():
    rows = pictures("train", 12)
    rows[7] = (rows[7][0][:40] + b"rubbish" + rows[7][0][47:], *rows[7][1:])
    rows[9] = (None, *rows[9][1:])
    put_parquet(Path("set/train-00000-of-00001.parquet"), rows)
    put_parquet(Path("set/test-00000-of-00001.parquet"), pictures("test", 4))
    with pytest.raises(DataError, match=r"2 bad images") as error:
        open_image_folder("set", SPEC)
    lines = str(error.value).splitlines()
    assert lines[1].startswith("  train-00000-of-00001.parquet row 7 (train/pear/7.png): cannot be read as an image")
    assert "row 9 (train/pear/9.png): has no bytes of a picture" in lines[2]
    assert len(open_image_folder("set", SPEC, ReadOptions(on_bad_image="skip")).train) == 10


def test_a_damaged_page_costs_its_row_group_and_no_other():
    put_parquet(Path("set/train-0.parquet"), pictures("train", 12))
    put_parquet(Path("set/test-0.parquet"), pictures("test", 4))
    chunk = pq.ParquetFile("set/train-0.parquet").metadata.row_group(1).column(0)
    content = bytearray(Path("set/train-0.parquet").read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 40] = bytes(40)
    Path("set/train-0.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"4 bad images\n  train-0.parquet row 4 .*cannot be read from the shard"):
        open_image_folder("set", SPEC)
    assert len(open_image_folder("set", SPEC, ReadOptions(on_bad_image="skip")).train) == 8


def change_column(name, values):
    def change(rows):
        found = table(rows)
        return found.set_column(found.schema.get_field_index(name), name, pa.array(values(len(rows))))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: table(rows, columns=("picture", "label")), "it has no column image, but picture, label"),
        (lambda rows: table(rows, names=("pear", "apple")), r"class names of label are \['pear', 'apple'\] there, and"),
        (lambda rows: table(rows, names=None), "the class names of label are none there"),
        (change_column("label", lambda n: ["apple"] * n), "label is string there, and int64 in the other"),
        (change_column("image", lambda n: [b""] * n), "image is binary there, and struct"),
    ],
)
def test_a_neighbour_of_another_schema_is_refused(change, said):
    root = parquet_set(Path("fruit"))
    pq.write_table(change(pictures("train", 4)), root / "data/train-00001-of-00002.parquet")
    match = rf"data/train-00001-of-00002.parquet has another schema than data/test-00000-of-00001.parquet: .*{said}"
    with pytest.raises(DataError, match=match):
        read_manifest(str(root))


def no_pictures(path):
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)


def no_labels(path):
    pq.write_table(table(pictures("x", 2)).drop_columns("label"), path)


def two_labels(path):
    label = {"names": list(NAMES), "_type": "ClassLabel"}
    features = {"info": {"features": {"fine_label": label, "coarse_label": label}}}
    rows = table(pictures("x", 2), columns=("image", "fine_label"), names=None).append_column("coarse_label", [[1, 1]])
    pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(features)}), path)


def two_names_alike(path):
    put_parquet(path, pictures("x", 2), names=("apple", "apple"))


def no_label_at_all(path):
    put_parquet(path, [(content, -1, None) for content, _, _ in pictures("x", 4)])


def list_labels(path):
    put_parquet(path, [(content, [label], None) for content, label, _ in pictures("x", 4)])


def bad_split(path):
    put_parquet(path, pictures("x", 2), split=["train", "trian"])


def half(path):
    put_parquet(path, pictures("x", 40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read as Parquet .*damaged, cut short, or something else"),
        (lambda path: path.write_bytes(b"PAR1" + b"x" * 40 + b"PAR1"), "cannot be read as Parquet"),
        (half, "cannot be read as Parquet"),
        (os.mkfifo, "it is a pipe, not a regular file"),
        (no_pictures, r"expected a column of pictures, image \{bytes, path\} or bytes; found text \(string\), label"),
        (no_labels, "expected a column of labels, for example label; found image"),
        (two_labels, "found fine_label, coarse_label; name one with --set data.columns.label=fine_label"),
        (two_names_alike, "'apple' is the name of class 0 and of class 1"),
        (no_label_at_all, "found no picture with a label; .*4 pictures without a label left out"),
        (list_labels, "expected a label of whole numbers or texts in the column label, found list<"),
        (bad_split, "row 1: unknown split 'trian'.*train"),
    ],
)
def test_what_is_wrong_is_said(make, said):
    make(Path("x.parquet"))
    with pytest.raises(DataError, match=rf"^x.parquet: .*{said}"):
        read_manifest("x.parquet")


def test_missing_shards_and_several_versions_are_refused():
    root = parquet_set(Path("fruit"))
    (root / "data/train-00000-of-00002.parquet").unlink()
    with pytest.raises(
        DataError, match=r"expected 2 files data/train-...-of-00002.parquet, found 1; number 0 is missin"
    ):
        read_manifest("fruit")
    for version in ("large", "small"):
        put_parquet(Path("set") / version / "train/0000.parquet", pictures("x", 2))
    with pytest.raises(DataError, match="found them in large, small, which may be versions of the same"):
        read_manifest("set")
    assert len(read_manifest("set/small").records) == 2
    put_parquet(Path("both/train-test.parquet"), pictures("x", 2))
    with pytest.raises(DataError, match="says test, train; expected one part"):
        read_manifest("both")


def test_a_folder_of_pictures_stays_one_beside_a_stray_parquet():
    folder = Path(as_folder(Path("files"), train=4, test=4))
    put_parquet(folder / "train/pear/stray.parquet", pictures("x", 2))
    assert len(read_manifest(f"./{folder}").records) == 8


def test_without_pyarrow_it_says_what_to_install(monkeypatch):
    parquet_set(Path("fruit"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow.*pip install 'finetune-images\[shards\]'"):
        read_manifest("fruit")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_row_group_or_with_values_stored_once():
    rng = os.urandom
    put_parquet(Path("large.parquet"), [(rng(200_000), i % 2, None) for i in range(500)], row_group_size=500)
    code = (
        "import sys; from measure import peak; from finetune.data.openers import read_manifest\n"
        "records = read_manifest(sys.argv[1]).records; before = peak()\n"
        "print(sum(len(record.open()) for record in records), peak() - before)"
    )
    total, taken = map(int, alone(code, "large.parquet").split())
    assert total == 100_000_000 and taken < 330e6  # whole, with pyarrow's own copies, it takes more
    same = bytes(1_000_000)
    put_parquet(Path("bomb.parquet"), [(same, i % 2, None) for i in range(600)], row_group_size=600)
    assert Path("bomb.parquet").stat().st_size < 1e6
    total, taken = map(int, alone(code, "bomb.parquet").split())
    assert total == 600_000_000 and taken < 330e6


def test_train_evaluate_and_predict():
    parquet_set(Path("fruit"), channels=1)
    Path("recipe.yaml").write_text(pretrain_recipe(phase("all", "steps: 2"), "{name: fruit}"))
    worked("pretrain", "--recipe", "recipe.yaml", "--out", "new.safetensors", "--quiet")
    assert report_of("new.safetensors")["recipe"]["data"]["name"] == "fruit"
    found = worked("evaluate", "new.safetensors", "--data", "fruit", "--json").json
    assert found["total"] == 6 and found["claimed_accuracy"] == found["accuracy"]
    rows = [(content, None, None) for content, _, _ in pictures("new", 4, channels=1)]
    rows[2] = (b"none", None, None)
    Path("unlabelled").mkdir()
    pq.write_table(table(rows, names=None).drop_columns("label"), "unlabelled/0.parquet")
    done = finetune("predict", "new.safetensors", "unlabelled")
    answers = dict(line.split("\t") for line in done.out.splitlines())
    assert done.code == 1 and list(answers) == [f"0.parquet#{row}" for row in range(4)]
    assert answers["0.parquet#2"].startswith("error: 0.parquet row 2: cannot be read as an image")
    assert files_under(Path("fruit")) == {
        f"data/{name}.parquet" for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    }


def test_a_missing_folder_of_shards_is_named():
    assert "there is no such file" in refused(
        *("adapt", "--from", "random:cnn", "--target", "nowhere.parquet", "--quiet"),
    )
