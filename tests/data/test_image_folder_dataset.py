"""Photographs as data: the right pixels, decoded once and never stale, and what is said of a set that needs care."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from album import album, put
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from finetune.data import decode_cache, image_folder_dataset
from finetune.data.image_dataset import MemmapImages
from finetune.data.image_folder_dataset import ReadOptions, open_image_folder
from finetune.data.image_io import CropSpec, crop_to_square, read_image
from finetune.data.loader import prefetch
from finetune.data.openers import is_image_path
from finetune.data.split import choose_test
from finetune.errors import DataError
from finetune.paths import cache_folder

FRAME = CropSpec(channels=3, size=8, crop=1.0, resize="squash", interpolation="bilinear")
WIDE = CropSpec(channels=3, size=6, crop=0.75, resize="shorter_side", interpolation="bicubic")
REAL = Path(os.environ.get("FINETUNE_DATA_ROOT", "")) / "hymenoptera"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of decoded pictures."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pets(tmp_path):
    return album(tmp_path / "pets", train={"cat": 6, "dog": 5}, val={"cat": 2, "dog": 2})


def opened(root, frame=FRAME, cache=None, **options):
    """The photographs, and of how many pictures it was told that they were decoded."""
    told = []
    found = open_image_folder(
        str(root), frame, ReadOptions(**options), cache=cache, progress=lambda *counts: told.append(counts)
    )
    assert told == [(i + 1, len(told)) for i in range(len(told))]
    return found, len(told)


def files_of(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


def prints(photographs):
    return [part and part.fingerprint() for part in (photographs.train, photographs.validation, photographs.test)]


# --- what is opened --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [FRAME, WIDE])
def test_each_image_is_its_file(pets, frame):
    put(pets / "train" / "cat" / "wide.png", side=30)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 29, 3), dtype=np.uint8)).save(pets / "val/dog/x.jpg")
    found, decoded = opened(pets, frame)
    assert decoded == 17 and found.validation is None and not any("also in train" in note for note in found.notes)
    for part, name, count in ((found.train, "train", 12), (found.test, "val", 5)):
        assert len(part) == len(part.files) == count and part.class_names == ("cat", "dog")
        for image, label, file in zip(part.images, part.labels.tolist(), part.files, strict=True):
            assert file.split("/")[:2] == [name, part.class_names[label]]
            kept = crop_to_square(
                read_image(pets / file),
                channels=3,
                size=frame.size,
                crop=frame.crop,
                resize=frame.resize,
                interpolation=frame.interpolation,
            )
            assert np.array_equal(image.permute(1, 2, 0).numpy(), kept)
    assert found.train.origin == "pets train" and found.test.origin == "pets test"


def test_threads_for_large_files_and_none_for_small_ones_give_the_same(pets, cache, monkeypatch):
    bad = spoil(pets)
    begun, found = [], []

    def counted(*arguments, threads, ahead):
        begun.append((small, threads))
        return prefetch(*arguments, threads=threads, ahead=ahead)

    monkeypatch.setattr(decode_cache, "prefetch", counted)
    for small in (0, 10**9):
        monkeypatch.setattr(decode_cache, "MIN_SIZE_FOR_THREADS", small)
        shutil.rmtree(cache, ignore_errors=True)
        with pytest.raises(DataError) as caught:
            opened(pets)
        found.append((prints(opened(pets, on_bad_image="skip")[0]), str(caught.value)))
    assert set(begun) == {(0, os.cpu_count())} and found[0] == found[1]
    assert all(name in found[1][1] for name in bad)


def test_a_table_is_opened_like_a_folder(tmp_path, pets):
    lines = [f"{p.relative_to(tmp_path)},{p.parent.name},{p.parts[-3]}\n" for p in sorted(pets.rglob("*.png"))]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "".join(lines))
    table, decoded = opened(tmp_path / "t.csv")
    folder, again = opened(pets)
    assert (decoded, again) == (15, 0) and prints(table) == prints(folder)
    assert table.train.files[0] == "pets/train/cat/0.png" and table.train.origin == "t.csv train"


def test_a_validation_part_of_its_own(tmp_path):
    found, _ = opened(album(tmp_path, train={"a": 5, "b": 5}, val={"a": 1, "b": 2}, test={"a": 3}))
    assert found.validation.counts() == {"a": 1, "b": 2} and found.validation.origin.endswith("validation")
    assert found.test.counts() == {"a": 3, "b": 0}
    assert [note for note in found.notes if "no test picture of b" in note]


def test_picked_classes_in_their_order(tmp_path):
    root = album(tmp_path / "x", train={"a": 5, "b": 6, "c": 7}, test={"a": 1, "b": 1, "c": 1})
    found, decoded = opened(root, classes=["c", "a"])
    assert decoded == 14 and found.train.counts() == {"c": 7, "a": 5}
    assert opened(root)[1] == 7, "the others alone"
    assert prints(opened(root, classes=["c", "a"])[0]) == prints(found)
    with pytest.raises(DataError, match="did you mean"):
        opened(root, classes=["aa"])


def test_grey_pictures_have_one_channel_if_all_are_grey(tmp_path):
    root = album(tmp_path / "x", a=0, b=0)
    for label in "ab":
        for index in range(6):
            put(root / label / f"{index}.png", channels=1)
    frame = CropSpec(None, 8, 1.0, "squash", "bilinear")
    assert opened(root, frame)[0].train.images.shape[1:] == (1, 8, 8)
    (root / "a" / "bad.png").write_bytes(b"no")
    assert opened(root, frame, on_bad_image="skip")[0].train.images.shape[1] == 1
    put(root / "a" / "colour.png")
    assert opened(root, frame, on_bad_image="skip")[0].train.images.shape[1] == 3
    assert opened(root, CropSpec(1, 8, 1.0, "squash", "bilinear"), on_bad_image="skip")[0].train.images.shape[1] == 1


@pytest.mark.parametrize(
    ("name", "yes"),
    [
        ("mnist", False),
        ("a/b", True),
        ("./pets", True),
        ("pets.csv", True),
        ("PETS.CSV", True),
        ("here", True),
        ("nothing", False),
        ("", False),
        ("file", False),
        ("x" * 5000, False),
        ("a\0b", False),
    ],
)
def test_which_names_mean_photographs(tmp_path, monkeypatch, name, yes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "file").write_text("")
    assert is_image_path(name) is yes


# --- a test part of its own --------------------------------------------------------------------------------------


def test_without_a_test_part_about_a_fifth_is_kept_for_it(tmp_path):
    root = album(tmp_path / "flat", a=20, b=10, c=2, d=1)
    found, _ = opened(root)
    assert found.test.counts() == {"a": 3, "b": 1, "c": 1, "d": 0}, "of a class of two one is tested, of one none"
    assert found.train.counts() == {"a": 17, "b": 9, "c": 1, "d": 1}
    assert not set(found.train.files) & set(found.test.files)
    assert any("no test part of its own, so 5 of 33" in note for note in found.notes)
    chosen = set(found.test.files)
    smaller = CropSpec(3, 5, 1.0, "squash", "bilinear")
    assert set(opened(root, smaller)[0].test.files) == chosen, "the same for every size of input"
    some = opened(root, classes=["b", "a"])[0]
    assert set(some.test.files) == {name for name in chosen if name[0] in "ab"}, "and whatever classes are picked"
    (root / "a" / "0.png").rename(root / "a" / "zzz.png")
    renamed = {name.replace("a/0.png", "a/zzz.png") for name in chosen}
    assert set(opened(root)[0].test.files) == renamed, "and whatever the files are called"


def test_equal_pictures_stay_on_one_side(tmp_path):
    root = album(tmp_path / "flat", a=10, b=10)
    for label in "ab":
        for index in range(10):
            shutil.copy(root / label / f"{index}.png", root / label / f"{index} copy.png")
            Image.open(root / label / f"{index}.png").save(root / label / f"{index}.bmp")
    found, decoded = opened(root)
    assert decoded == 40, "equal files are decoded once"
    assert not any("also in train" in note for note in found.notes)
    counts = found.test.counts()
    assert min(counts.values()) >= 3 and not any(count % 3 for count in counts.values())


def test_one_picture_under_two_labels_is_told(tmp_path):
    root = album(tmp_path, train={"a": 9, "b": 9}, val={"a": 5, "b": 5})
    assert not any("two labels" in note for note in opened(root)[0].notes)
    shutil.copy(root / "train/a/0.png", root / "train/b/z.png")
    notes = opened(root)[0].notes
    assert any("1 picture is there under two labels: train/a/0.png = train/b/z.png" in note for note in notes)


def test_a_set_without_two_different_pictures_of_a_class(tmp_path):
    with pytest.raises(DataError, match="no class has two pictures that differ"):
        opened(album(tmp_path, a=1, b=1))


RANDOM_SETS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=60)


def held_out(pictures, fraction):
    """Which of the pictures, each (its set of inseparable ones, label), are tested; a set's number is its key."""
    sets, labels = np.array([number for number, _ in pictures]), np.array([label for _, label in pictures])
    return choose_test((sets * 2**59).astype(np.uint64), sets, labels, fraction)


@given(RANDOM_SETS, st.floats(0.05, 0.9))
def test_the_part_for_the_test_is_fair(pictures, fraction):
    held, labels = held_out(pictures, fraction), np.array([label for _, label in pictures])
    assert not {s for (s, _), h in zip(pictures, held, strict=True) if h} & {
        s for (s, _), h in zip(pictures, held, strict=True) if not h
    }
    assert set(labels[~held].tolist()) == set(labels.tolist()), "no class is without an image to learn from"
    alone = {s for s, label in pictures if len({la for s2, la in pictures if s2 == s}) == 1}
    for label in set(labels.tolist()):
        own = {s for s, la in pictures if la == label}
        assert len(own) < 2 or min(own) not in alone or held[labels == label].any()
    assert np.array_equal(held_out(pictures[::-1], fraction)[::-1], held)


@given(RANDOM_SETS, RANDOM_SETS)
@example([(0, 0), (0, 1), (1, 1)], [(2, 1)])
def test_no_image_to_learn_from_becomes_a_test_image_when_others_come(pictures, more):
    before, after = held_out(pictures, 0.2), held_out(pictures + more, 0.2)[: len(pictures)]
    learnt = [
        {s for (s, la), held in zip(pictures, before, strict=True) if la == label and not held} for label in range(4)
    ]
    shared = {s for s, _ in pictures if len({la for s2, la in pictures if s2 == s}) > 1}
    for (number, label), was, now in zip(pictures, before, after, strict=True):
        alone = any(number in learnt[la] and learnt[la] - {number} <= shared for s, la in pictures if s == number)
        assert was or alone or not now, (number, label)


def test_a_grown_folder_keeps_every_picture_on_its_side(tmp_path):
    grown = album(tmp_path, a=100, b=100)
    small, everything = tmp_path / "small", opened(grown)[0]
    for label in "ab":
        (small / label).mkdir(parents=True)
        for index in range(60, 80):
            shutil.copy(grown / label / f"{index}.png", small / label / f"{index}.png")
    few = opened(small)[0]
    assert len(few.test) and set(few.test.files) <= set(everything.test.files)
    assert set(few.train.files) <= set(everything.train.files)
    assert 20 <= len(everything.test) <= 60, "about a fifth"


# --- groups -----------------------------------------------------------------------------------------------------------


def tracks(tmp_path):
    root = album(tmp_path, a=48, b=48)
    for label in "ab":
        for index in range(48):
            (root / label / f"{index}.png").rename(root / label / f"{index // 4:03d}_{index:02d}.png")
    return root


@pytest.mark.parametrize("pattern, count", [(r"(.+)_\d+", 24), (r"(\d+)_\d+", 12), (r"\d+_\d", 14)])
def test_a_group_is_in_one_part(tmp_path, pattern, count):
    found, _ = opened(tracks(tmp_path), group=pattern)
    parts = [set(part.groups) for part in (found.train, found.test)]
    assert len(parts[0] | parts[1]) == count and not parts[0] & parts[1] and all(parts)
    assert any(f"{count} groups of" in note for note in found.notes)
    assert any("in several classes" in note for note in found.notes) == (count != 24)


def test_groups_stay_on_their_side_when_pictures_and_groups_are_added(tmp_path):
    root = tracks(tmp_path / "tracks")
    late = [path for path in root.glob("*/*.png") if path.name[:3] > "008" or path.name[5] in "13579"]
    for path in late:
        path.rename(path.with_suffix(".late"))
    before = opened(root, group=r"(.+)_\d+")[0]
    for path in late:
        path.with_suffix(".late").rename(path)
    after = opened(root, group=r"(.+)_\d+")[0]
    assert set(before.train.groups) <= set(after.train.groups) and set(before.test.groups) <= set(after.test.groups)


@pytest.mark.parametrize(
    "pattern, told",
    [
        (r"camera (\d+)", r"the pattern 'camera \(\\\\d\+\)' matches none of the 96 paths, such as 'a/000_00.png'"),
        (r"png", "finds one group only, 'png'"),
    ],
)
def test_a_pattern_that_groups_nothing_or_everything(tmp_path, pattern, told):
    with pytest.raises(DataError, match=told):
        opened(tracks(tmp_path), group=pattern)


def test_the_folder_of_a_picture_is_its_group(tmp_path):
    root = album(tmp_path, a=12, b=12)
    for path in sorted(root.glob("*/*.png")):
        home = path.parent / f"track {int(path.stem) // 3}"
        home.mkdir(exist_ok=True)
        path.rename(home / path.name)
    found = opened(root, group="folder")[0]
    assert set(found.train.groups) | set(found.test.groups) == {f"{c}/track {i}" for c in "ab" for i in range(4)}
    with pytest.raises(DataError, match="no class has two groups"):
        opened(album(tmp_path / "flat", a=9, b=9), group="folder")


# --- what needs care ---------------------------------------------------------------------------------------------


def spoil(pets):
    whole = (pets / "train/cat/0.png").read_bytes()
    (pets / "train/cat/cut.png").write_bytes(whole[: len(whole) // 2])
    (pets / "train/dog/empty.jpg").write_bytes(b"")
    (pets / "val/dog/text.jpg").write_text("Dear diary")
    (pets / "val/dog/gone.jpg").symlink_to("nowhere.jpg")
    return ["train/cat/cut.png", "train/dog/empty.jpg", "val/dog/text.jpg", "val/dog/gone.jpg"]


def test_all_bad_images_are_told_at_once(pets):
    bad = spoil(pets)
    with pytest.raises(DataError) as caught:
        opened(pets)
    message = str(caught.value)
    lines = message.split("\n")
    assert "4 bad images" in lines[0] and "--set data.on_bad_image=skip" in lines[-1] and len(lines) == 6
    for name in bad:
        assert any(line.startswith(f"  {name}: ") for line in lines)
    assert "the file is empty" in message and "leads nowhere" in message and str(pets) not in "".join(lines[1:])


def test_of_very_many_bad_images_the_first_are_named(pets):
    for index in range(25):
        (pets / "train" / "cat" / f"bad{index:02}.png").write_bytes(b"x" * index)
    with pytest.raises(DataError) as caught:
        opened(pets)
    assert str(caught.value).count("\n  train/cat/bad") == 20 and "and 5 more" in str(caught.value)


def test_bad_images_can_be_left_out(pets, cache):
    before, bad = prints(opened(pets)[0]), spoil(pets)
    packs = [path.stat().st_ino for path in files_of(cache)]
    found, _ = opened(pets, on_bad_image="skip")
    assert prints(found) == before
    assert [path.stat().st_ino for path in files_of(cache)] == packs, "nothing new to keep, so nothing is written"
    (note,) = (note for note in found.notes if "left out" in note)
    assert "4 bad images left out" in note and all(name in note for name in bad)


def test_good_pictures_are_kept_even_if_bad_ones_end_the_run(pets):
    for name in spoil(pets):
        with pytest.raises(DataError):
            opened(pets)
        (pets / name).unlink()
    assert opened(pets)[1] == 0


def test_a_class_without_a_picture_to_learn_from(tmp_path):
    root = album(tmp_path / "x", train={"a": 2, "b": 2, "c": 0}, test={"a": 1, "b": 1, "d": 1})
    with pytest.raises(DataError, match=r"no picture to learn from of c, d; .*data\.classes"):
        opened(root)
    assert opened(root, classes=["a", "b"])[0].train.counts() == {"a": 2, "b": 2}
    for index in range(2):
        (root / "train" / "b" / f"{index}.png").write_text("spoilt")
    with pytest.raises(DataError, match="no picture to learn from of b"):
        opened(root, classes=["a", "b"], on_bad_image="skip")


def test_test_pictures_that_are_also_in_train_are_named(pets):
    Image.open(pets / "train/cat/3.png").save(pets / "val/dog/same.bmp")
    shutil.copy(pets / "train/dog/1.png", pets / "val/dog/1 copy.png")
    found, _ = opened(pets)
    (note,) = (note for note in found.notes if "also in train" in note)
    pairs = "train/dog/1.png = val/dog/1 copy.png, train/cat/3.png = val/dog/same.bmp"
    assert f"2 test pictures are also in train: {pairs}; " in note


def test_small_classes_are_noted(tmp_path):
    found, _ = opened(album(tmp_path, train={"a": 5, "b": 4}, test={"a": 1, "b": 1}))
    assert len(found.notes) == 1 and "fewer than 5 images to learn from: b (4)" in found.notes[0]


# --- decoded once ------------------------------------------------------------------------------------------------


def test_the_second_opening_decodes_nothing_and_writes_nothing(pets, cache):
    first, decoded = opened(pets)
    before = [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in files_of(cache)]
    assert decoded == 15 and {path.suffix for path, *_ in before} == {".npy", ".json"} and len(before) == 2
    second, again = opened(pets)
    assert again == 0 and prints(second) == prints(first)
    assert [(path, path.stat().st_mtime_ns, path.stat().st_ino) for path in files_of(cache)] == before


def test_the_pack_is_a_plain_npy(pets, cache):
    found, _ = opened(pets)
    pixels = np.load(next(path for path in files_of(cache) if path.suffix == ".npy"), allow_pickle=False)
    assert pixels.shape == (15, 3, 8, 8) and pixels.dtype == np.uint8
    assert set(map(bytes, pixels)) == {bytes(i) for p in (found.train, found.test) for i in p.images.numpy()}


def test_one_picture_more_is_one_picture_decoded(pets, cache):
    opened(pets)
    put(pets / "train" / "cat" / "new.png")
    found, decoded = opened(pets)
    assert decoded == 1 and len(found.train) == 12 and len(files_of(cache)) == 2, "the old pack is gone"
    (pets / "train" / "cat" / "new.png").unlink()
    assert opened(pets)[1] == 0 and len(files_of(cache)) == 2


def test_a_changed_picture_of_the_same_size_and_date_is_not_served_stale(pets):
    path = put(pets / "train" / "cat" / "x.bmp", "before")
    before, stat = opened(pets)[0], path.stat()
    put(path, "after")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    after, decoded = opened(pets)
    assert decoded == 1
    row = after.train.files.index("train/cat/x.bmp")
    assert np.array_equal(after.train.images[row].permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
    assert not torch.equal(after.train.images[row], before.train.images[row])


@pytest.mark.parametrize(
    "other",
    [
        WIDE,
        CropSpec(3, 8, 1.0, "squash", "bicubic"),
        CropSpec(3, 8, 1.0, "shorter_side", "bilinear"),
        CropSpec(1, 8, 1.0, "squash", "bilinear"),
        CropSpec(3, 7, 0.875, "squash", "bilinear"),
    ],
)
def test_another_frame_is_decoded_anew(pets, other):
    opened(pets)
    assert opened(pets, other)[1] == 15 and opened(pets)[1] == 0 and opened(pets, other)[1] == 0


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_another_pillow_decodes_anew(pets, monkeypatch):
    opened(pets)
    monkeypatch.setattr("PIL.__version__", "0.0")
    assert opened(pets)[1] == 15


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path):
    root = album(tmp_path / "x", a=40, b=80)

    def change(done, all):
        if done == 1:
            put(root / "b" / "79.png", "another")
            assert all == 120

    with pytest.raises(DataError, match=r"1 bad image\n  b/79\.png: changed while it was being read; try again"):
        open_image_folder(str(root), FRAME, progress=change)
    assert opened(root)[1] == 1


DAMAGES = {
    "a bit flipped": (".npy", flip),
    "cut": (".npy", lambda p: p.write_bytes(p.read_bytes()[:-100])),
    "empty": (".npy", lambda p: p.write_bytes(b"")),
    "gone": (".npy", lambda p: p.unlink()),
    "of another shape": (".npy", lambda p: np.save(p, np.zeros((15, 1, 8, 8), np.uint8))),
    "of another type": (".npy", lambda p: np.save(p, np.zeros((15, 3, 8, 8), np.int8))),
    "a pickle": (".npy", lambda p: np.save(p, np.array([{}]), allow_pickle=True)),
    "no JSON": (".json", lambda p: p.write_bytes(b"{")),
    "another JSON": (".json", lambda p: p.write_text("[1, 2]")),
    "hashes missing": (".json", lambda p: p.write_text(json.dumps({**json.loads(p.read_text()), "hashes": []}))),
    "an odd digest": (".json", lambda p: p.write_text(json.dumps({**json.loads(p.read_text()), "digests": [[]] * 15}))),
    "of another format": (".json", lambda p: p.write_text(json.dumps({**json.loads(p.read_text()), "format": 0}))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pack_is_made_again(pets, cache, damage):
    first, _ = opened(pets)
    suffix, spoil_it = DAMAGES[damage]
    spoil_it(next(path for path in files_of(cache) if path.suffix == suffix))
    found, decoded = opened(pets)
    assert decoded == (1 if damage == "a bit flipped" else 15)
    assert prints(found) == prints(first) and found.notes == first.notes
    assert opened(pets)[1] == 0 and len(files_of(cache)) == 2


def test_a_damaged_pack_is_deleted_by_whoever_finds_it(tmp_path, cache):
    root = album(tmp_path / "x", a=2, b=2, c=2)
    opened(root)
    flip(next(path for path in files_of(cache) if path.suffix == ".npy"))  # its last row, of c
    assert opened(root, classes=["b", "c"])[1] == 1 and len(files_of(cache)) == 2
    assert opened(root)[1] == 2


def test_a_cache_that_cannot_be_written_is_done_without(pets, tmp_path, cache):
    expected = prints(opened(pets)[0])
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        found, decoded = opened(pets, cache=tmp_path / "file")
        assert decoded == 15 and prints(found) == expected
        (note,) = found.notes
        assert "cannot be kept in" in note and "Not a directory" in note and "FINETUNE_CACHE" in note


@pytest.mark.parametrize("room", [0, 100, 1000, 2500, 3050])
def test_a_disk_that_gets_full_loses_nothing(pets, cache, room):
    """The limit on a file's size makes the write fail at that byte, as a full disk does: 15 rows need 3,008 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        found, decoded = opened(pets)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    leftovers = [path for path in files_of(cache) if path.suffix == ".part"]
    assert decoded == 15 and not leftovers
    assert "File too large" in "".join(found.notes) or room == 3050
    assert prints(found) == prints(opened(pets)[0])


@pytest.mark.slow
def test_two_processes_at_once_do_no_harm(pets, cache):
    code = (
        "import os; from finetune.data.image_folder_dataset import *; import finetune.data.image_folder_dataset\n"
        "child = os.fork()\n"
        "for _ in range(6):\n"
        f"    p = open_image_folder({str(pets)!r}, CropSpec(3, 8, 1.0, 'squash', 'bilinear'))\n"
        "    os.write(1, f'{p.train.fingerprint()} {p.test.fingerprint()} {len(p.notes)}\\n'.encode())\n"
        "sys = __import__('sys'); sys.exit(os.waitpid(child, 0)[1] if child else 0)"
    )
    both = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    lines = both.stdout.splitlines()
    said = set(lines)
    found, decoded = opened(pets)
    assert said == {f"{found.train.fingerprint()} {found.test.fingerprint()} 0"}
    assert decoded == 0 and len(files_of(cache)) == 2 and len(lines) == 12


def test_what_a_process_that_died_left_is_tidied_when_old(pets, cache):
    opened(pets)
    place = files_of(cache)[0].parent
    for name, age in ((".old.part", 2), (".new.part", 0), ("alone.npy", 2)):
        (place / name).write_bytes(b"x")
        os.utime(place / name, (time.time() - age * 86400,) * 2)
    put(pets / "train" / "cat" / "new.png")
    opened(pets)
    assert {".new.part"} == {path.name for path in files_of(cache)} & {".old.part", ".new.part", "alone.npy"}


def test_packs_that_somebody_put_there_do_no_harm(pets, cache):
    before, _ = opened(pets)
    for damage in ("pipe", "deep", "types", "pixels", "digests"):
        sidecars = [path for path in files_of(cache) if path.suffix == ".json"]
        sidecar = max(sidecars, key=lambda path: path.stat().st_mtime_ns)  # an older one is damaged already
        about = json.loads(sidecar.read_bytes())
        if damage == "pipe":
            for path in (sidecar.with_name("a.json"), sidecar.with_name("b.npy")):
                os.mkfifo(path)
            sidecar.with_name("b.json").write_bytes(sidecar.read_bytes())
        elif damage == "deep":
            sidecar.with_name("deep.json").write_bytes(b"[" * 100_000)
            put(pets / "train" / "cat" / "another.png")  # a pack is made, and what is left of old ones is looked at
            before = None
        elif damage == "types":
            sidecar.write_text(json.dumps({**about, "hashes": [2**80] * len(about["hashes"])}))
        elif damage == "digests":
            sidecar.write_text(json.dumps({**about, "digests": [[d] for d in about["digests"]]}))
        else:
            pack = bytearray(sidecar.with_suffix(".npy").read_bytes())
            pack[-50:] = bytes(50)
            sidecar.with_suffix(".npy").write_bytes(pack)
        again, _ = opened(pets)
        assert before is None or prints(again) == prints(before), damage
        before = again


def test_sets_too_large_for_memory_stay_in_their_file(pets, monkeypatch):
    resident, _ = opened(pets)
    monkeypatch.setattr(image_folder_dataset, "memory_budget", lambda: 15 * 3 * 8 * 8 - 1)
    lazy, _ = opened(pets)
    assert isinstance(lazy.train.images, MemmapImages) and isinstance(lazy.test.images, MemmapImages)
    assert prints(lazy) == prints(resident) and lazy.train.files == resident.train.files
    monkeypatch.setattr(image_folder_dataset, "memory_budget", lambda: 15 * 3 * 8 * 8)
    assert isinstance(opened(pets)[0].train.images, torch.Tensor)


def test_the_budget_is_a_quarter_of_what_there_is(tmp_path, monkeypatch):
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for text, expected in (("max\n", physical // 4), ("4000\n", 1000), (None, physical // 4)):
        monkeypatch.setattr(image_folder_dataset, "MEMORY_LIMIT", tmp_path / "limit")
        (tmp_path / "limit").write_text(text) if text else (tmp_path / "limit").unlink()
        assert image_folder_dataset.memory_budget() == expected


def test_where_decoded_pictures_are_kept(tmp_path, monkeypatch, pets):
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    opened(pets)
    assert len(files_of(tmp_path / "xdg" / "finetune" / "photographs")) == 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "finetune" and cache_folder("x") == Path("x")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs hymenoptera in FINETUNE_DATA_ROOT")
def test_real_photographs(cache):
    """244 photographs and one GIF that says a picture could not be found, which torchvision's ImageFolder passes by."""
    frame = CropSpec(None, 64, 0.875, "shorter_side", "bilinear")
    found, decoded = opened(REAL, frame)
    assert decoded == 398 and found.train.class_names == ("ants", "bees")
    assert (len(found.train), len(found.test)) == (245, 153) and found.validation is None
    assert sum(not name.endswith(".gif") for name in found.train.files) == 244
    assert found.train.images.shape[1:] == (3, 73, 73)
    before = [path.stat().st_mtime_ns for path in files_of(cache)]
    again, decoded = opened(REAL, frame)
    assert decoded == 0 and prints(again) == prints(found)
    assert [path.stat().st_mtime_ns for path in files_of(cache)] == before
