"""A new kind of image source is one record that opens itself and one row of the table of openers."""

import contextlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from album import scenes
from tiny import phase, pretrain_recipe, report_of, worked

from finetune.data.image_folder_dataset import ReadOptions, open_image_folder
from finetune.data.image_io import CropSpec
from finetune.data.manifest import ImageRecord, Manifest, with_test_split
from finetune.data.openers import OPENERS, Opener, is_image_path, read_manifest, short_name
from finetune.data.split_names import SPLIT_NAMES
from finetune.data.table_columns import ColumnNames
from finetune.errors import DataError

SPEC = CropSpec(channels=3, size=16, crop=1.0, resize="squash", interpolation="bilinear")


@dataclass(frozen=True)
class ZipRecord(ImageRecord):
    archive: zipfile.ZipFile

    def open(self):
        try:
            return self.archive.read(self.name)
        except zipfile.BadZipFile as error:
            raise DataError(f"cannot be read from the archive ({error})") from None

    def size(self):
        return self.archive.getinfo(self.name).file_size


def read_zip(name):
    """Images that lie in a zip archive as SPLIT/CLASS/NAME."""
    archive = zipfile.ZipFile(name)
    parts = [Path(member).parts for member in archive.namelist()]
    records = [ZipRecord("/".join(p), p[1], SPLIT_NAMES[p[0]], archive) for p in parts]
    return Manifest(name, with_test_split(records), tuple(sorted({p[1] for p in parts})))


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A zip archive of pictures, the folder of the same pictures, and the one row that lets it be opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(OPENERS, "zip", Opener(lambda name: name.endswith(".zip"), read_zip, ".zip"))
    folder = scenes(tmp_path / "fruit", train={"apple": 12, "pear": 12}, val={"apple": 4, "pear": 4})
    with zipfile.ZipFile("orchard.zip", "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, path.relative_to(folder))
    return "orchard.zip"


def test_an_archive_is_opened_like_a_folder(archive):
    assert is_image_path(archive) and short_name(archive) == "orchard"
    decoded = []
    there = open_image_folder(archive, SPEC, progress=lambda done, total: decoded.append(total))
    folder = open_image_folder("./fruit", SPEC, progress=lambda done, total: decoded.append(total))
    assert decoded == [32] * 32, "the same bytes are in the cache, wherever they lie"
    assert there.train.files[0] == "train/apple/0.png" and there.train.origin == "orchard.zip train"
    assert len(there.test) == 8 and there.validation is None
    for ours, theirs in ((there.train, folder.train), (there.test, folder.test)):
        assert ours.fingerprint() == theirs.fingerprint() and ours.files == theirs.files


def test_a_damaged_member_is_a_bad_image(archive):
    content = bytearray(Path(archive).read_bytes())
    content[content.index(b"IDAT") + 9] ^= 1
    Path(archive).write_bytes(content)
    with pytest.raises(DataError, match=r"1 bad image\n  train/apple/0.png: cannot be read from the archive \(Bad CRC"):
        open_image_folder(archive, SPEC)
    assert len(open_image_folder(archive, SPEC, ReadOptions(on_bad_image="skip")).train) == 23


def test_an_archive_is_trained_on(archive):
    Path("recipe.yaml").write_text(pretrain_recipe(phase("all", "steps: 2"), "{name: orchard.zip}"))
    worked("pretrain", "--recipe", "recipe.yaml", "--out", "new.safetensors", "--quiet")
    found = worked("evaluate", "new.safetensors", "--data", archive, "--json").json
    assert found["total"] == 8 and found["claimed_accuracy"] == found["accuracy"]
    assert report_of("new.safetensors")["recipe"]["data"]["name"] == "orchard"


def test_a_registered_name_is_never_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mnist").mkdir()
    assert not is_image_path("mnist") and is_image_path("./mnist") and is_image_path("mnist/")


def test_tables_by_their_endings_and_columns_for_tables_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes(tmp_path / "p", train={"apple": 1, "pear": 1})
    for name in ("labels.csv", "labels.tsv", "labels.TXT"):
        Path(name).write_text("place\tlabel\np/train/apple/0.png\tapple\np/train/pear/0.png\tpear\n")
        assert is_image_path(name) and short_name(name) == "labels"
        assert len(read_manifest(name, ColumnNames({"path": "place"})).records) == 2
    with pytest.raises(DataError, match=r"\./p: data\.columns names the columns of a table"):
        read_manifest("./p", ColumnNames({"path": "place"}))
    assert len(read_manifest("./p", ColumnNames({"path": "place"}, required=False)).records) == 2


@pytest.mark.parametrize("name", ["x" * 300, f"./{'x' * 300}", f"{'x' * 300}.csv", "a/\0"])
def test_a_name_that_no_file_can_have_is_a_data_error(name):
    is_image_path(name)
    with contextlib.suppress(DataError):
        short_name(name)
    with pytest.raises(DataError):
        read_manifest(name)
