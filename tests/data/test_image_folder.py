"""Folders of pictures: which file is of which class and part, what is left out, and what cannot be a data set."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from album import album, put

from finetune.data.image_folder import list_folder
from finetune.errors import DataError


def parts(listing):
    return Counter((file.split, file.label) for file in listing.records)


def test_flat_class_folders(tmp_path):
    found = list_folder(album(tmp_path, dog=2, cat=3))
    assert found.class_names == ("cat", "dog")
    assert parts(found) == {("train", "cat"): 3, ("train", "dog"): 2}
    assert [file.name for file in found.records] == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png"]
    assert all(file.path == tmp_path / file.name for file in found.records)
    assert found.bad == () and found.notes == () and found.name == str(tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "Test"])
def test_the_one_other_part_is_the_test_part(tmp_path, name):
    found = list_folder(album(tmp_path, train={"a": 2, "b": 2}, **{name: {"a": 1, "b": 1}}))
    assert parts(found) == {("train", "a"): 2, ("train", "b"): 2, ("test", "a"): 1, ("test", "b"): 1}


def test_with_all_three_val_is_the_validation_part(tmp_path):
    found = list_folder(album(tmp_path, train={"a": 1, "b": 1}, val={"a": 2, "b": 2}, test={"a": 3, "b": 3}))
    assert parts(found)["validation", "a"] == 2 and parts(found)["test", "b"] == 3 and len(found.records) == 12


def test_train_alone_has_its_test_part_still_to_be_split_off(tmp_path):
    assert parts(list_folder(album(tmp_path, train={"a": 1, "b": 1}))) == {("train", "a"): 1, ("train", "b"): 1}


def test_a_class_missing_from_a_part_shifts_nothing(tmp_path):
    found = list_folder(album(tmp_path, train={"b": 1, "c": 1}, test={"a": 1, "c": 1}))
    assert found.class_names == ("a", "b", "c")
    assert {(f.split, f.name.split("/")[1], f.label) for f in found.records} == {
        ("train", "b", "b"),
        ("train", "c", "c"),
        ("test", "a", "a"),
        ("test", "c", "c"),
    }
    assert found.counts("train") == {"a": 0, "b": 1, "c": 1}


def test_class_folders_are_walked_to_any_depth_and_endings_may_be_capitals(tmp_path):
    album(tmp_path, a=1, b=1)
    put(tmp_path / "a" / "deep" / "er" / "x.PNG")
    put(tmp_path / "a" / "deep" / "train" / "y.png")
    assert [f.name for f in list_folder(tmp_path).records if f.label == "a"] == [
        "a/0.png",
        "a/deep/er/x.PNG",
        "a/deep/train/y.png",
    ]


def test_names_in_chinese_and_with_spaces_and_of_two_systems(tmp_path):
    for name in ("蚂蚁/图 片.png", "蜜 蜂/一.png"):
        put(tmp_path / "train" / name)
    put(tmp_path / "train" / "cafe\u0301" / "1.png")  # as macOS writes é
    put(tmp_path / "test" / "caf\u00e9" / "1.png")
    found = list_folder(tmp_path)
    assert found.class_names == ("caf\u00e9", "蚂蚁", "蜜 蜂")
    assert {f.split for f in found.records if f.label == "caf\u00e9"} == {"train", "test"}
    assert "train/蚂蚁/图 片.png" in [f.name for f in found.records]


def test_hidden_files_are_skipped_and_others_noted(tmp_path):
    album(tmp_path, a=1, b=1)
    for hidden in (".DS_Store", "a/._0.png", ".git/x/0.png", "__MACOSX/a/0.png", "a/.thumbs/0.png"):
        put(tmp_path / "p.png").rename(
            (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True) or tmp_path / hidden
        )
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "README.md").write_text("x")
    found = list_folder(tmp_path)
    assert len(found.records) == 2 and found.class_names == ("a", "b")
    system, others = found.notes
    assert "5 hidden or system files and folders left out: .DS_Store, ._0.png, .git, .thumbs, __MACOSX" in system
    assert "1 .md file (README.md); 1 .txt file (a/notes.txt)" in others


def test_what_lies_beside_train_is_noted(tmp_path):
    found = list_folder(album(tmp_path, train={"a": 1, "b": 1}, extra={"a": 1}))
    assert len(found.records) == 2 and "beside train: extra" in found.notes[0]


def test_links_that_leave_the_folder_are_bad_and_others_are_files(tmp_path):
    root = album(tmp_path / "in", a=2, b=2)
    outside = put(tmp_path / "secret.png")
    (root / "a" / "out.png").symlink_to(outside)
    (root / "a" / "up.png").symlink_to("../../secret.png")
    (root / "a" / "broken.png").symlink_to("nothing.png")
    (root / "a" / "ring.png").symlink_to("ring.png")
    (root / "a" / "same.png").symlink_to("0.png")
    (root / "b" / "more").symlink_to(tmp_path, target_is_directory=True)
    (root / "b" / "a").symlink_to(root / "a", target_is_directory=True)
    (root / "c").symlink_to(tmp_path, target_is_directory=True)
    found = list_folder(root)
    assert [f.name for f in found.records] == ["a/0.png", "a/1.png", "a/same.png", "b/0.png", "b/1.png"]
    bad = dict(found.bad)
    assert bad.keys() == {"a/out.png", "a/up.png", "a/broken.png", "a/ring.png", "b/more", "c"}
    for name in ("a/out.png", "a/up.png", "b/more", "c"):
        assert "leads out of the folder" in bad[name] and str(tmp_path) in bad[name]
    assert bad["a/broken.png"] == bad["a/ring.png"] == "a link that leads nowhere"
    assert found.class_names == ("a", "b") and "b/a is a link to a folder" in found.notes[0]


def test_the_folder_itself_may_be_a_link(tmp_path):
    album(tmp_path / "real", a=1, b=1)
    (tmp_path / "link").symlink_to("real")
    assert len(list_folder(tmp_path / "link").records) == 2


def refused(folder):
    with pytest.raises(DataError) as caught:
        list_folder(folder).check_trainable()
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    album(tmp_path / "flowers", a=1, b=1)
    assert "no such folder; did you mean 'flowers'?" in refused(tmp_path / "flower")
    assert "nor" in (message := refused(tmp_path / "x" / "y")) or "either" in message
    assert "expected a folder" in refused(put(tmp_path / "p.png"))


def test_no_class_folder(tmp_path):
    assert "found no class folder; expected" in refused(tmp_path)
    put(tmp_path / "1.png")
    message = refused(tmp_path)
    assert "1 pictures outside of one" in message and f"{tmp_path}/CLASS/picture.jpg" in message
    (tmp_path / "out").symlink_to("/")
    assert "out: a link that leads out" in refused(tmp_path)


def test_one_class_only(tmp_path):
    assert "one class only, 'a'" in refused(album(tmp_path, a=3))
    assert "one class only, 'a'" in refused(album(tmp_path / "x", train={"a": 3}, test={"a": 1}))


def test_test_without_train(tmp_path):
    assert "found test, val but no train" in refused(album(tmp_path, test={"a": 1, "b": 1}, val={"a": 1}))


def test_two_names_of_one_part(tmp_path):
    assert "two names of one part" in refused(album(tmp_path, train={"a": 1, "b": 1}, val={"a": 1}, valid={"a": 1}))


def test_a_class_name_that_cannot_be_shown(tmp_path):
    album(tmp_path, a=1, b=1)
    (tmp_path / "red\x1b[31m").mkdir()
    assert "\x1b" not in refused(tmp_path)
    (tmp_path / "red\x1b[31m").rmdir()
    (tmp_path / os.fsdecode(b"\xff\xfe")).mkdir()
    assert "cannot be shown" in refused(tmp_path)


def test_picking_classes(tmp_path):
    found = list_folder(album(tmp_path, a=1, b=2, c=3))
    picked = found.with_classes(["c", "a"])
    assert picked.class_names == ("c", "a") and parts(picked) == {("train", "a"): 1, ("train", "c"): 3}
    assert found.with_classes(None) is found
    for names, fault in ((["d"], "unknown class 'd'"), (["a", "a"], "each once"), ([], "found none")):
        with pytest.raises(DataError, match=fault):
            found.with_classes(names)


# --- parts under other names, and layouts that can be read in two ways -------------------------------------------


def test_parts_have_many_names_and_may_be_nested_once(tmp_path):
    wanted = {("train", "a"): 2, ("train", "b"): 2, ("test", "a"): 1, ("test", "b"): 1}
    two, one = {"a": 2, "b": 2}, {"a": 1, "b": 1}
    assert parts(list_folder(album(tmp_path / "1", Training=two, Testing=one))) == wanted
    nested = {"seg_train/seg_train": two, "seg_test/seg_test": one, "seg_pred": {}}
    (tmp_path / "2" / "seg_pred").mkdir(parents=True)
    found = list_folder(album(tmp_path / "2", **nested))
    assert parts(found) == wanted and "seg_pred" in found.notes[0]
    assert parts(list_folder(album(tmp_path / "3", **{"train2017/images": two, "val2017/images": one}))) == wanted
    alone = list_folder(album(tmp_path / "4", **{"seg_test/seg_test": one}))
    assert parts(alone) == {("test", "a"): 1, ("test", "b"): 1}


def test_class_folders_that_only_look_like_parts(tmp_path):
    found = list_folder(album(tmp_path, train_station=2, test_tube=2))
    assert found.class_names == ("test_tube", "train_station")
    found.check_trainable()
    assert list_folder(album(tmp_path / "one", test_tube=2)).class_names == ("test_tube",)


def test_only_test_is_listed_and_is_not_for_training(tmp_path):
    found = list_folder(album(tmp_path, test={"a": 1, "b": 2}))
    assert parts(found) == {("test", "a"): 1, ("test", "b"): 2}
    with pytest.raises(DataError, match="found test but no train"):
        found.check_trainable()


@pytest.mark.parametrize("names", [("bus", "train"), ("cat", "test"), ("invalid", "valid")])
def test_a_part_beside_classes_is_asked_about(tmp_path, names):
    found = list_folder(album(tmp_path, **dict.fromkeys(names, 2)))
    assert found.class_names == names
    with pytest.raises(DataError, match=rf"a part, or a class\? .*--set data\.classes=\[{', '.join(names)}\]"):
        found.check_trainable()
    found.with_classes(list(names)).check_trainable()


def test_folders_that_repeat_their_subfolders_are_asked_about(tmp_path):
    found = list_folder(album(tmp_path, siteA={"cat": 2, "dog": 2}, siteB={"cat": 2, "dog": 1, "fox": 1}))
    assert found.class_names == ("siteA", "siteB")
    with pytest.raises(DataError, match=r"siteA, siteB each hold folders called cat, dog: which are the classes\?"):
        found.check_trainable()
    found.with_classes(["siteA", "siteB"]).check_trainable()
    deeper = album(tmp_path / "x", **{"amazon/images": {"bike": 1, "mug": 1}, "dslr/images": {"bike": 1, "mug": 1}})
    assert "each hold folders called bike, mug" in refused(deeper)


def test_tracks_and_folders_within_a_class_are_no_question(tmp_path):
    tracks = {f"{track:05d}": 1 for track in range(3)}
    found = list_folder(album(tmp_path / "tracks", cat=tracks, dog=tracks))
    found.check_trainable()
    assert parts(found) == {("train", "cat"): 3, ("train", "dog"): 3} and "data.group=folder" in found.notes[0]
    for layout in ({"cat": {"day": 1, "night": 1}, "dog": {"park": 1}}, {"cat": {"images": 1}, "dog": {"images": 1}}):
        own = list_folder(album(tmp_path / "-".join(layout["cat"]), **layout))
        own.check_trainable()
        assert own.notes == ()
    mixed = album(tmp_path / "mixed", cat={"day": 1, "night": 1}, dog={"day": 1, "night": 1})
    put(mixed / "cat" / "0.png")
    put(mixed / "dog" / "0.png")
    list_folder(mixed).check_trainable()  # pictures beside them: these are classes


def test_a_data_set_one_level_deeper_is_named(tmp_path):
    assert f"if it is a data set, give {tmp_path}/1/w" in refused(
        album(tmp_path / "1", **{"w/train": {"a": 1, "b": 1}, "w/val": {"a": 1, "b": 1}})
    )
    assert f"if these are the classes, give {tmp_path}/2/w" in refused(album(tmp_path / "2", w={"a": 1, "b": 1}))
    assert "cat holds parts, test, train" in refused(
        album(tmp_path / "3", cat={"train": 1, "test": 1}, dog={"train": 1, "test": 1})
    )


# --- what is left out, and why ------------------------------------------------------------------------------------


def test_an_unlabelled_part_is_said_to_be_so(tmp_path):
    root = album(tmp_path / "x", train={"a": 3, "b": 3}, test=2)
    found = list_folder(root)
    found.check_trainable()
    assert {record.split for record in found.records} == {"train"}
    (note,) = found.notes
    assert "test/ has 2 pictures without class folders" in note and f"finetune predict CHECKPOINT {root}/test" in note
    flat = album(tmp_path / "y", train=3, test=2)
    (flat / "labels.csv").write_text("id,label")
    message = refused(flat)
    assert "train/ has 3 pictures without class folders" in message and f"Give {flat}/labels.csv" in message


def test_other_formats_are_named_as_what_they_are(tmp_path):
    root = album(tmp_path, cat=2)
    for index in range(3):
        put(tmp_path / "a.png").rename((tmp_path / "dog").mkdir(exist_ok=True) or tmp_path / "dog" / f"{index}.NEF")
    put(tmp_path / "cat" / "a.png").rename(tmp_path / "cat" / "film.mp4")
    put(tmp_path / "cat" / "b.jpg").rename(tmp_path / "cat" / "b.jfif")
    put(tmp_path / "loose.png")
    found = list_folder(root)
    assert [record.name for record in found.records] == ["cat/0.png", "cat/1.png", "cat/b.jfif"]
    outside, others = found.notes
    assert "1 pictures outside of class folders were left out: loose.png" in outside
    assert "3 camera raw files (dog/0.NEF, ...): develop" in others and "1 video file (cat/film.mp4)" in others
    with pytest.raises(DataError, match=r"to learn from of dog; dog: 3 camera raw files .*; add some, or leave"):
        found.check_trainable()


def test_what_systems_leave_behind_is_left_out_and_counted_once(tmp_path):
    root = album(tmp_path, cat=2, dog=2)
    for place in ("cat/@eaDir", "@eaDir/cat", "__MACOSX/cat", "dog/x/.ipynb_checkpoints", "$RECYCLE.BIN"):
        put(root / place / "0.png")
    (root / "lost+found").mkdir(mode=0)
    (root / "System Volume Information").mkdir()
    for file in ("cat/Thumbs.db", "dog/desktop.ini", ".DS_Store", "cat/._0.png"):
        (root / file).write_bytes(b"x")
    found = list_folder(root)
    found.check_trainable()
    assert parts(found) == {("train", "cat"): 2, ("train", "dog"): 2}
    (note,) = found.notes
    assert "11 hidden or system files and folders left out" in note and "@eaDir (2)" in note and "Thumbs.db" in note


def test_class_names_that_are_hard_to_tell_apart_are_said(tmp_path):
    for name in ("cat", "cat ", "Cat", "cafe\u0301", "caf\u00e9"):
        put(tmp_path / name / "0.png")
    found = list_folder(tmp_path)
    assert found.class_names == ("Cat", "caf\u00e9", "cat")
    assert [note.partition(": ")[2] for note in found.notes] == [
        r"'cafe\u0301', 'caf\xe9' are taken for one class, 'caf\u00e9'".replace(r"'caf\u00e9'", repr("caf\u00e9")),
        "'cat', 'cat ' are taken for one class, 'cat'",
        "the classes 'Cat' and 'cat' differ in capitals only; if they are one, rename them",
    ]


def test_a_name_that_no_folder_can_have(tmp_path):
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(DataError, match="there is no such folder"):
            list_folder(tmp_path / name)


def test_groups_in_two_parts_are_named(tmp_path):
    found = list_folder(album(tmp_path, train={"a": 2, "b": 2}, test={"a": 1, "b": 1}))
    grouped = [replace(record, group=record.name[-5]) for record in found.records]  # 0 and 1, by the files' names
    with pytest.raises(DataError, match=r"1 group is in two parts: 0 \(test/a/0.png in test, train/a/0.png in train\)"):
        replace(found, records=tuple(grouped)).check_groups()
    found.check_groups()
    replace(found, records=tuple(r for r in grouped if r.split == "train")).check_groups()


def test_folders_of_any_depth_are_walked(tmp_path):
    """Deeper than Python may call itself."""
    put(tmp_path / "a" / "x.png")
    put(tmp_path / "b" / "x.png")
    deep = [tmp_path / "a"]
    for _ in range(1200):
        deep.append(Path(f"{deep[-1]}/d"))
        deep[-1].mkdir()
    try:
        (deep[-1] / "y.png").write_bytes((tmp_path / "a" / "x.png").read_bytes())
        listing = list_folder(tmp_path)
        assert [len(record.name.split("/")) for record in listing.records] == [1202, 2, 2]
    finally:  # shutil.rmtree calls itself, too
        (deep[-1] / "y.png").unlink(missing_ok=True)
        for folder in reversed(deep[1:]):
            folder.rmdir()


def test_a_folder_of_other_things_is_left_soon(tmp_path, monkeypatch):
    """Such as the whole disk."""
    monkeypatch.setattr("finetune.data.image_folder.MANY_ENTRIES", 20)
    put(tmp_path / "a" / "x.png")
    for number in range(30):
        (tmp_path / "b" / f"{number}").mkdir(parents=True)
    assert list_folder(tmp_path).records, "one picture in thirty is enough"
    monkeypatch.setattr("finetune.data.image_folder.MIN_PICTURES", 0.1)
    assert refused(tmp_path).endswith(
        "of the first 31 files and folders in it only 1 are pictures; name the folder that holds the pictures"
    )
