"""What a command writes for a person: the names that are refused, and what is there already."""

import os
from pathlib import Path

import pytest

import finetune as toolkit
from finetune.errors import OutputError, SettingError
from finetune.io.atomic import append_line, write_atomic
from finetune.io.outputs import check_file_name, check_output, replace_file
from finetune.run.output_paths import check_outputs


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["", ".", "..", "...", "x/.", "o/x", "o/x.PNG", "o/.png", "o/..png", "o/...png"])
def test_a_name_needs_its_ending_and_more_than_dots_before_it(name):
    for text in (name, f"{name}/"):
        with pytest.raises(SettingError, match=r"^--plot .*: expected a file name that ends in \.svg or \.png"):
            check_file_name(text, "--plot", [".svg", ".png"])
    with pytest.raises(SettingError):
        check_file_name("x.png/", "--plot", [".png"])


@pytest.mark.parametrize("out", ["o/..safetensors", "o/...safetensors", "..safetensors", "o/.safetensors"])
def test_names_of_dots_touch_no_other_run(out, here):
    """`runs/.` would be the folder of all runs, and `runs/..` the current one."""
    (here / "runs" / "mnist").mkdir(parents=True)
    (here / "lock").touch()
    with pytest.raises(SettingError, match="expected a file name that ends in"):
        check_outputs(out, "name")
    assert sorted(p.name for p in here.iterdir()) == ["lock", "runs"] and (here / "runs" / "mnist").is_dir()


def test_a_run_whose_folder_cannot_be_there_is_refused(here):
    (here / "runs").mkdir()
    (here / "runs" / "test-sets.jsonl").touch()
    with pytest.raises(OutputError, match=r"runs/test-sets\.jsonl: the run's folder cannot be there"):
        check_outputs("test-sets.jsonl.safetensors", "name")


def test_each_file_of_a_run_is_looked_at(here):
    os.mkfifo("x.predictions.csv")
    with pytest.raises(OutputError, match=r"--out x\.safetensors: x\.predictions\.csv is a pipe; expected"):
        check_outputs("x.safetensors", "name")
    with pytest.raises(OutputError, match=r"y\.report\.json is what this command reads"):
        Path("y.report.json").touch()
        check_outputs("y.safetensors", "name", inputs=[None, "mnist", Path("y.report.json")])


def test_an_older_file_is_moved_aside_and_the_same_one_stays(here):
    said = []
    path = check_output("new/x.png", "--plot", [".png"])
    for content in (b"one", b"one", b"two", b"one"):
        replace_file(path, content, said.append)
    assert path.read_bytes() == b"one" and len(said) == 2
    assert sorted(p.read_bytes() for p in (here / "new").iterdir()) == [b"one", b"one", b"two"]


def test_the_writer_itself_replaces_regular_files_only(here):
    """Something else may have taken the name since it was looked at."""
    os.mkfifo("pipe")
    Path("link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        for write in (write_atomic, append_line, replace_file):
            with pytest.raises(OutputError, match=f"{name}: cannot be written \\(it is a (pipe|device), not a regular"):
                write(Path(name), b"x")
    assert Path("pipe").is_fifo() and Path("link").is_symlink() and len(list(here.iterdir())) == 2


def test_saving_moves_what_is_there_aside_and_takes_the_ending_of_a_checkpoint(here):
    classifier = toolkit.load("mnist")
    Path("x.safetensors").write_bytes(b"somebody's")
    toolkit.save(classifier, "x.safetensors")
    assert [p.read_bytes() for p in here.glob("x.was-*.safetensors")] == [b"somebody's"]
    toolkit.save(classifier, "x.safetensors")
    assert len(list(here.iterdir())) == 2 and toolkit.load("x.safetensors").class_names == classifier.class_names
    with pytest.raises(SettingError, match=r"save x\.png: expected a file name that ends in \.safetensors"):
        toolkit.save(classifier, "x.png")
    with pytest.raises(OutputError, match="is a folder"):
        Path("y.safetensors").mkdir()
        toolkit.save(classifier, "y.safetensors")
