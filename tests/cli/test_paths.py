"""Every option that names a file or a folder, found in the commands themselves, given what is none."""

import os
import shutil
import signal
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from rights import closed_folder
from tiny import adapt_recipe, finetune, phase, pretrain_recipe

from finetune.cli.main import cli
from finetune.cli.options import OutputFile
from finetune.report.predictions import Column, Predictions, predictions_csv

# What options of these names take when another one is tested. A command with a new name has to say it here.
GIVEN = {
    "recipe": "adapt.yaml",
    "source": "ck.safetensors",
    "sources": "ck.safetensors",
    "checkpoint": "ck.safetensors",
    "checkpoints": "ck.safetensors",
    "target": "table.csv",
    "data": "table.csv",
    "images": "pictures/a/0.png",
    "report": "ck.report.json",
    "first": "p.csv",
    "second": "p.csv",
    "data_root": "data",
    "repository": "owner/name",
}
# Options whose text is no path.
NO_PATH = {
    *("device", "settings", "model", "metric", "seeds", "shots", "engine", "row", "against", "group", "host"),
    *("name", "tag", "message", "licence", "repository"),
}
FOLDERS = {"target", "data", "images", "data_root"}  # that take folders too
NEEDED = dict.fromkeys(("adapt", "plan", "where", "curve", "rank"), ("recipe", "source", "target"))
MORE = {"app": ["--port", "0"], "push": ["--dry-run", "--license", "mit"], "export": ["--to", "onnx"]}


def path_options():
    return list(_path_options())


def _path_options():
    for name, command in cli.commands.items():
        for option in command.params:
            if option.name not in NO_PATH and isinstance(option.type, (click.Path, click.types.StringParamType)):
                yield pytest.param(command, option, id=f"{name} {option.opts[0]}")


def words(command, option, value):
    """The command with this value of the option, and valid ones of those that it needs."""
    more = MORE.get(command.name, [])
    needed = NEEDED.get(command.name, ())
    typed = [command.name, *more]
    for own in command.params:
        if own is option or own.name in needed or (own.required and own.opts[0] not in more):
            given = value if own is option else GIVEN[own.name]
            given = "pre.yaml" if (command.name, given) == ("pretrain", "adapt.yaml") else given
            typed += [given] if isinstance(own, click.Argument) else [own.opts[0], given]
    return typed


@contextmanager
def within(seconds):
    def over(*_):
        raise AssertionError(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def seen(folder):
    """Every file by its name, with its kind, size, time and number."""
    found = {}
    for name, _, files in os.walk(folder):
        for file in files:
            path = Path(name) / file
            status = path.lstat()
            found[os.fsencode(path)] = (stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns, status.st_ino)
    return found


def things(ending):
    """What can be in the way of a file of this ending, and is no regular file: by kind, its path."""
    os.mkfifo(f"bad/pipe{ending}")
    Path(f"bad/folder{ending}").mkdir(exist_ok=True)
    links = {"pipe": f"pipe{ending}", "device": "/dev/zero", "folder": f"folder{ending}", "nowhere": "nothing-there"}
    for kind, there in {**links, "itself": f"to-itself{ending}"}.items():
        Path(f"bad/to-{kind}{ending}").symlink_to(there)
    names = ("pipe", "folder", *(f"to-{kind}" for kind in (*links, "itself")))
    return {
        **{name: f"bad/{name}{ending}" for name in names},
        "256 bytes": f"bad/{'x' * (256 - len(ending))}{ending}",
        "too deep": "d/" * 2100 + f"x{ending}",
    }


def bad_outputs(option):
    ending = option.type.endings[0]
    found = things(ending)
    found |= {name: f"bad/{name}{ending}" for name in ("", ".", "..", "...")}
    found |= {"slash": f"bad/x{ending}/", "dot": f"bad/x{ending}/.", "other ending": "bad/x.txt", "none": "bad/x"}
    return found | {"in a file": f"ck.safetensors/x{ending}", "empty": ""}


def bad_inputs(option):
    found = things(".safetensors" if "." not in GIVEN[option.name] else Path(GIVEN[option.name]).suffix)
    found |= {"255 bytes": f"bad/{'x' * 255}", "not UTF-8": "bad/\udcff.png", "empty": "", "a device": "/dev/zero"}
    if option.name == "data_root":  # what is not there is a folder without data sets
        found = {kind: found[kind] for kind in ("pipe", "to-pipe", "to-device", "256 bytes", "a device")}
    return found


def refuses(command, option, value, kind):
    before = seen(".")
    with within(20):
        done = finetune(*words(command, option, value))
    assert done.code in (1, 2) and (done.out == "" or option.name == "images"), (kind, done)
    assert done.err.count("\nfinetune: ") + done.err.startswith("finetune: ") + done.err.count("Error: ") == 1, (
        kind,
        done,
    )
    assert "Traceback" not in done.err and "Errno" not in done.err, (kind, done.err)
    assert seen(".") == before, (kind, set(seen(".").items()) ^ set(before.items()))


@pytest.fixture(scope="module")
def made(tmp_path_factory, pretrained, orchard):
    """A folder with one valid file of each kind."""
    here = tmp_path_factory.mktemp("made")
    for ending in (".safetensors", ".report.json"):
        shutil.copy(pretrained.with_suffix(ending), here / f"ck{ending}")
    shutil.copytree(orchard / "train", here / "pictures")
    classes = sorted(path.name for path in (here / "pictures").iterdir())
    first = (here / "pictures" / classes[0]).rename(here / "pictures" / "a")
    next(first.iterdir()).rename(first / "0.png")
    rows = [f"pictures/{path.parent.name}/{path.name},{path.parent.name}" for path in (here / "pictures").glob("*/*")]
    (here / "table.csv").write_text("\n".join(["path,label", *rows, ""]))
    (here / "pre.yaml").write_text(pretrain_recipe(phase(length="epochs: 1"), "{name: table.csv}"))
    (here / "adapt.yaml").write_text(adapt_recipe(phase(length="epochs: 1")))
    import numpy as np

    labels = np.arange(4) % 2
    columns = {("prediction", None): Column(labels, np.full(4, 0.9))}
    (here / "p.csv").write_bytes(predictions_csv(Predictions(tuple("abcd"), labels, ("x", "y"), columns)))
    return here


@pytest.fixture
def place(made, monkeypatch):
    """A copy of it where other users may look, too: pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory(prefix="paths-") as name:
        shutil.copytree(made, name, dirs_exist_ok=True)
        Path(name).chmod(0o755)
        monkeypatch.chdir(name)
        Path("bad").mkdir()
        yield Path(name)
        monkeypatch.chdir("/")


@pytest.mark.parametrize(("number", "given"), list(enumerate(path_options())), ids=[p.id for p in path_options()])
def test_what_is_no_file_is_refused(number, given, place):
    """One kind for each option, so that all kinds are met; the slow test gives every kind to each."""
    command, option = given.values
    found = bad_outputs(option) if isinstance(option.type, OutputFile) else bad_inputs(option)
    kinds = [kind for kind in found if option.name not in FOLDERS or kind not in ("folder", "to-folder")]
    kind = kinds[number % len(kinds)]
    refuses(command, option, found[kind], kind)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option"), path_options())
def test_whatever_is_no_file_is_refused(command, option, place):
    found = bad_outputs(option) if isinstance(option.type, OutputFile) else bad_inputs(option)
    for kind, value in found.items():
        if option.name == "data_root" or option.name not in FOLDERS or kind not in ("folder", "to-folder"):
            refuses(command, option, value, kind)
    if command.name == "push":
        return  # it asks for the token in a folder that is closed to other users
    with closed_folder() as closed:
        ending = option.type.endings[0] if isinstance(option.type, OutputFile) else ".png"
        done = finetune(*words(command, option, f"{closed}/x{ending}"))
    assert done.code in (1, 2) and "Traceback" not in done.err, done.err


OUTPUTS = [found for found in path_options() if isinstance(found.values[1].type, OutputFile)]


@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_an_input_is_never_written_over(command, option, place):
    """Nor by another name: the output is a link to each of the inputs."""
    inputs = {*words(command, option, "x")[1:]} & {path.name for path in place.iterdir()}
    assert inputs or command.name == "pull"
    for number, name in enumerate(sorted(inputs)):
        link = Path(f"bad/link{number}{option.type.endings[0]}")
        link.symlink_to(place / name)
        refuses(command, option, str(link), name)
