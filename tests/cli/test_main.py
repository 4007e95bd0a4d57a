"""Whatever is wrong, the command line ends with the right exit code and one message that says what to do about it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import adapt_recipe, files_under, finetune, make_data, phase, pretrain_recipe, refused, worked
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import finetune as toolkit
from finetune import __version__
from finetune.cli.main import cli
from finetune.data.registry import DATASETS
from finetune.distributed.error_file import tell_torchrun
from finetune.errors import CheckpointError, SettingError
from finetune.recipe.load import find_recipe


def write(text: str, name: str = "small.yaml") -> str:
    Path(name).write_text(text)
    return name


# The command line itself


def test_help_of_every_command(folder: Path) -> None:
    assert finetune("--version").out == f"finetune, version {__version__}\n"
    text = worked("--help").out
    for name, command in cli.commands.items():
        assert f"\n  {name} " in text
        own = worked(name, "--help").out
        assert own.startswith("Usage: ") and f" {name} " in own.splitlines()[0]
        assert command.help and " ".join(command.help.split())[:60] in " ".join(own.split())
        assert finetune(name, "-h").out == own
    assert "130" in text and files_under(folder) == set()


def test_the_help_lists_every_command_once_under_what_one_wants(folder: Path) -> None:
    lines = worked("--help").out.splitlines()
    titles = ("Train", "Ask", "Look", "Share")
    at = [next(i for i, line in enumerate(lines) if line.startswith(title)) for title in titles]
    names = [line.split()[0] for line in lines[at[0] :] if line.startswith("  ") and line[2:3].strip()]
    assert at == sorted(at) and [name for name in names if name in cli.commands] == list(cli.commands)


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_has_an_example_that_parses(name: str, folder: Path) -> None:
    shown = worked(name, "--help").out.partition("  Example:\n")[2]
    (line,) = (line.strip() for line in shown.splitlines() if line.strip())
    program, command, *words = shlex.split(line)
    assert (program, command) == ("finetune", name)
    cli.commands[name].make_context(name, words)
    for word in words:
        assert not word.startswith("recipes/") or find_recipe(word).is_file()


def test_the_help_names_all_that_can_be_given(folder: Path) -> None:
    text = " ".join(worked("adapt", "--help").out.split()).replace("hub- data", "hub-data")  # wrapped at the hyphen
    for word in ("hub:OWNER/NAME", "timm:NAME", "mnist", "table", "shards", "hub-data:OWNER/NAME"):
        assert word in text
    for name in ("predict", "evaluate", "check", "verify", "inspect"):
        assert "--quiet" in worked(name, "--help").out


def test_the_shell_completes(folder: Path) -> None:
    def answered(**variables: str) -> str:
        words = [sys.executable, "-c", "from finetune.cli.main import main; main()"]
        return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **variables}).stdout

    assert "-F _finetune_completion finetune" in answered(_FINETUNE_COMPLETE="bash_source")
    typed = {"COMP_WORDS": "finetune adapt --see", "COMP_CWORD": "2"}
    assert answered(_FINETUNE_COMPLETE="bash_complete", **typed).split() == ["plain,--seed", "plain,--seeds"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "nonsense"),
        (["pretrain"], "--recipe"),
        (["pretrain", "--recipe"], "--recipe"),
        (["pretrain", "--recipe", "a.yaml", "--epochs", "3"], "--epochs"),
        (["pretrain", "--recipe", "a.yaml", "--jsn"], "--json"),
        (["pretrain", "--recipe", "a.yaml", "extra"], "extra"),
        (["pretrain", "--recipe", "a.yaml", "--seed", "-1"], "-1"),
        (["pretrain", "--recipe", "a.yaml", "--seed", "one"], "one"),
        (["adapt"], "--from"),
        (["adapt", "--from", "a.safetensors", "--shots", "0"], "0"),
        (["evaluate", "a.safetensors"], "--data"),
        (["evaluate", "--data", "mnist"], "CHECKPOINT"),
        (["inspect"], "CHECKPOINT"),
        (["plan"], "--recipe"),
    ],
)
def test_wrong_options(words: list[str], said: str, folder: Path) -> None:
    done = finetune(*words)
    assert done.code == 2 and said in done.err and done.out == "" and "Traceback" not in done.err
    assert files_under(folder) == set()


NUMBERS = [
    pytest.param(own, id=f"{name} {own.opts[0]}")
    for name, command in cli.commands.items()
    for own in command.params
    if isinstance(own.type, (type(click.FLOAT), type(click.INT)))
]


@pytest.mark.parametrize("option", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf", "1e999"])
def test_no_option_takes_a_number_that_is_none(option: click.Parameter, value: str) -> None:
    with pytest.raises(click.BadParameter, match=value):
        option.type.convert(value, option, None)


def test_seconds_between_snapshots_are_a_number_from_python_too(folder: Path) -> None:
    for value in (float("nan"), float("inf"), -1):
        with pytest.raises(SettingError, match=f"snapshot_every: expected .*found {value}"):
            toolkit.pretrain("digits", snapshot_every=value)
    done = finetune("pretrain", "--recipe", "digits", "--snapshot-every", "nan")
    assert done.code == 2 and "nan is not a finite number" in done.err


@pytest.mark.parametrize("words", [("pretrain", "--recipe", "none"), ("pretrain", "--recipe", "digits", "--seed", "x")])
def test_torchrun_ends_with_our_message(words: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "0.json")
    finetune(*words)
    assert not Path("0.json").exists(), "without torchrun nothing is written"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    said = finetune(*words).err.splitlines()[-1].removeprefix("Error: ").removeprefix("finetune: ")
    tell_torchrun("a second message")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "1.json")
    tell_torchrun("of a process that ended with it", time.time() + 1)
    failures = {rank: ProcessFailure(rank, 1, 2, f"{rank}.json") for rank in (1, 0)}
    assert f"finetune: {said}\n===" in str(ChildFailedError("finetune", failures)).partition("Root Cause")[2]


def test_no_words_at_all_shows_the_help(folder: Path) -> None:
    done = finetune()
    assert "pretrain" in done.out + done.err and "Traceback" not in done.err and done.code in (0, 2)


# Recipes

WRONG_RECIPES = {
    "an unknown key": (("model: cnn", "modle: cnn"), ["small.yaml:2: ", "modle", "did you mean", "model"]),
    "a wrong type": (("batch_size: 30", "batch_size: ten"), ["small.yaml:5: phases[0].batch_size: ", "whole number"]),
    "a number that is text": (("lr: 0.01", "lr: '0.01'"), ["small.yaml:5: phases[0].optimizer.lr: ", "0.01"]),
    "an unknown model": (("model: cnn", "model: cmn"), ["small.yaml:2: model: ", "unknown model", "cnn"]),
    "an unknown stage": (
        ("train: all", "train: [fc2]"),
        ["small.yaml:5: phases[0].train", "fc2", "fc1", "conv1, conv2"],
    ),
    "an unknown data set": (("name: mnist", "name: mnits"), ["small.yaml:3: data.name: ", "did you mean", "mnist"]),
    "an unknown class": (
        ("{name: mnist}", "{name: mnist, classes: [ten]}"),
        ["small.yaml:3: data.classes", "ten", "classes of mnist"],
    ),
    "no class": (("{name: mnist}", "{name: mnist, classes: []}"), ["small.yaml:3: data.classes"]),
    "no phase": (("phases:\n", "phases: []\nother:\n"), ["small.yaml", "phases"]),
    "no duration": (("epochs: 2, ", ""), ["small.yaml:5: phases[0]: ", "'epochs' or 'steps'"]),
    "too many stages": (("train: all", "train: {last: 9}"), ["small.yaml:5: phases[0].train.last: ", "4 stages"]),
    "best without validation": (("epochs: 2", "epochs: 2, keep: best"), ["small.yaml:5: phases[0].keep", "validation"]),
    "a YAML fault": (("data: {", "data: {{"), ["small.yaml:"]),
    "a Python object": (("model: cnn", "model: !!python/name:os.system x"), ["small.yaml:2:", "tags"]),
}


@pytest.mark.parametrize("fault", WRONG_RECIPES)
def test_wrong_recipes(fault: str, folder: Path) -> None:
    (old, new), said = WRONG_RECIPES[fault]
    text = pretrain_recipe()
    assert old in text
    message = refused("pretrain", "--recipe", write(text.replace(old, new)))
    for part in said:
        assert part in message
    assert files_under(folder) == {"small.yaml"}


def test_every_problem_at_once_with_its_line(folder: Path) -> None:
    text = pretrain_recipe().replace("model: cnn", "model: cmn").replace("epochs: 2", "epochs: -2")
    lines = refused("pretrain", "--recipe", write(text), "--set", "seed=no", "--set", "sede=1").splitlines()
    for start in ("small.yaml:2: model: ", "small.yaml:5: phases[0].epochs: ", "--set seed=no: ", "--set sede=1: "):
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seed", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("seed=", "has no value"),
        ("phases[3].epochs=1", "no item [3]"),
        ("phases.epochs=1", "phases[0]"),
        ("optimizer.lr=1", "optimizer"),
        ("phases[0].optimizer.lr=fast", "number"),
        ("data.name=[", ""),
    ],
)
def test_wrong_settings(setting: str, said: str, folder: Path) -> None:
    message = refused("pretrain", "--recipe", write(pretrain_recipe()), "--set", setting)
    assert f"--set {setting}: " in message and said in message


def test_recipes_that_are_not_there(folder: Path) -> None:
    write(pretrain_recipe())
    message = refused("pretrain", "--recipe", "smal.yaml")
    assert "smal.yaml: no such file" in message and "small.yaml" in message
    assert "is a folder" in refused("pretrain", "--recipe", ".")
    Path("image.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    assert "is not UTF-8" in refused("pretrain", "--recipe", "image.yaml")
    assert "is empty" in refused("pretrain", "--recipe", write("", "empty.yaml"))


def test_recipes_of_the_other_kind(folder: Path, pretrained: Path) -> None:
    message = refused("pretrain", "--recipe", write(adapt_recipe()))
    assert "expected 'pretrain', found 'adapt'" in message and "`finetune adapt --from SOURCE --recipe" in message
    write(pretrain_recipe())
    message = refused("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "small.yaml")
    assert "expected 'adapt', found 'pretrain'" in message and "`finetune pretrain --recipe" in message


def test_no_compare_does_not_hide_that_the_kind_is_wrong(folder: Path, pretrained: Path) -> None:
    words = ("--from", pretrained, "--target", "kmnist", "--no-compare")
    assert "expected 'adapt'" in refused("adapt", *words, "--recipe", write(pretrain_recipe()))


# Data


def test_targets_that_are_not_there(folder: Path, pretrained: Path) -> None:
    words = ("--from", pretrained, "--recipe", write(adapt_recipe()))
    message = refused("adapt", *words, "--target", "kmnits")
    assert "--target kmnits: " in message and "did you mean 'kmnist'" in message and "emnist-letters" in message
    assert "name a data set with --target" in refused("adapt", *words)
    assert "did you mean 'kmnist'" in refused("evaluate", pretrained, "--data", "kmnits")


def test_data_files_cut_short(folder: Path, pretrained: Path) -> None:
    make_data(folder / "bad", "mnist", 30, 30)
    path = DATASETS["mnist"].raw_folder(folder / "bad") / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    message = refused("pretrain", "--recipe", write(pretrain_recipe()), "--data-root", folder / "bad")
    assert f"{path}: damaged" in message and "expected 23,536 bytes" in message and "found 23,436" in message
    assert not Path("runs").exists() and not Path("checkpoints").exists()
    assert "damaged" in refused("evaluate", pretrained, "--data", "mnist", "--data-root", folder / "bad")


def test_more_images_than_there_are(folder: Path, pretrained: Path) -> None:
    words = ("adapt", "--from", pretrained, "--recipe", write(adapt_recipe()), "--target", "kmnist")
    assert "from 0 to 300" in refused(*words, "--set", "data.validation=301")
    assert "no image to train on" in refused(*words, "--shots", 1, "--set", "data.validation=9")
    assert files_under(folder) == {"small.yaml"}


def test_class_lists(folder: Path, pretrained: Path) -> None:
    words = ("adapt", "--from", pretrained, "--recipe", write(adapt_recipe()), "--target", "kmnist")
    assert "did you mean" in refused(*words, "--set", "data.classes=[kii]")
    assert "classes" in refused(*words, "--set", "data.classes=[]")
    assert "listed twice" in refused(*words, "--set", "data.classes=[o, o]")


def test_a_class_without_images_is_said_so(folder: Path) -> None:
    """The files of a data set that lack one class: no NaN, no advice about learning rates."""
    make_data(folder / "five", "mnist", 5, 5)
    words = ("pretrain", "--recipe", write(pretrain_recipe()), "--data-root", folder / "five")
    message = refused(*words, "--set", "data.classes=[7, 1]")
    assert "no image of class 7" in message


# Checkpoints


def damaged(name: str, whole: bytes) -> bytes:
    """A file that is no checkpoint, or no longer one."""
    header = 8 + int.from_bytes(whole[:8], "little")
    pickled, torched = io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, pickled, _use_new_zipfile_serialization=False)
    torch.save({"weight": torch.zeros(3)}, torched)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("model.safetensors", whole[:1000])
    return {
        "empty": b"",
        "one byte": whole[:1],
        "seven bytes": whole[:7],
        "the length alone": whole[:8],
        "half a header": whole[: header // 2],
        "a header alone": whole[:header],
        "half of it": whole[: len(whole) // 2],
        "all but a byte": whole[:-1],
        "a byte too many": whole + b"\0",
        "torch.save": torched.getvalue(),
        "the old torch.save": pickled.getvalue(),
        "a plain pickle": pickle.dumps({"weight": 1}),
        "a zip": packed.getvalue(),
        "random bytes": np.random.default_rng(0).bytes(5000),
        "zeros": bytes(5000),
        "text": b"kind: pretrain\n" * 100,
        "a header of nonsense": (20).to_bytes(8, "little") + b"x" * 200,
    }[name]


DAMAGES = {
    "empty": "the file is empty",
    "one byte": "not a safetensors file",
    "seven bytes": "not a safetensors file",
    "the length alone": "cut short",
    "half a header": "cut short",
    "a header alone": "cut short",
    "half of it": "cut short",
    "all but a byte": "cut short",
    "a byte too many": "bytes too many",
    "torch.save": "pickle",
    "the old torch.save": "pickle",
    "a plain pickle": "pickle",
    "a zip": "zip",
    "random bytes": "not a safetensors file",
    "zeros": "",
    "text": "not a safetensors file",
    "a header of nonsense": "not a safetensors file",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_are_no_checkpoints(damage: str, folder: Path, pretrained: Path) -> None:
    Path("bad.safetensors").write_bytes(damaged(damage, pretrained.read_bytes()))
    recipe = write(adapt_recipe())
    for words in (
        ("evaluate", "bad.safetensors", "--data", "mnist"),
        ("inspect", "bad.safetensors"),
        ("adapt", "--from", "bad.safetensors", "--recipe", recipe, "--target", "kmnist"),
    ):
        message = refused(*words)
        assert message.startswith("bad.safetensors: ") and DAMAGES[damage] in message and message.count("\n") == 1
    with pytest.raises(CheckpointError):
        toolkit.load("bad.safetensors")
    assert files_under(folder) == {"bad.safetensors", "small.yaml"}


def test_no_checkpoint_at_all(folder: Path, pretrained: Path) -> None:
    shutil.copy(pretrained, "mnist.safetensors")
    message = refused("evaluate", "mnits.safetensors", "--data", "mnist")
    assert "there is no such checkpoint" in message and "mnist.safetensors" in message
    assert "cannot be read" in refused("inspect", ".")
    assert "mnist.safetensors/x: " in refused("inspect", "mnist.safetensors/x")


def altered(pretrained: Path, tensors: Callable[[dict[str, Any]], Any] | None = None, **changes: Any) -> str:
    """A copy with other tensors or other metadata, and no digest of the tensors, as older files have none."""
    with safe_open(pretrained, "pt") as file:
        values, metadata = load_file(pretrained), json.loads(file.metadata()["finetune"]) | {"tensors": None}
    if tensors is not None:
        tensors(values)
    save_file(values, "bad.safetensors", metadata={"finetune": json.dumps({**metadata, **changes})})
    return "bad.safetensors"


def test_an_altered_copy_is_otherwise_fine(folder: Path, pretrained: Path) -> None:
    worked("evaluate", altered(pretrained), "--data", "mnist")


def test_tensors_that_do_not_fit_are_listed_on_both_sides(folder: Path, pretrained: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["head.weight"], values["extra"] = torch.zeros(7, 128), torch.zeros(2)
        del values["conv1.bias"]

    path = altered(pretrained, change)
    lines = refused("evaluate", path, "--data", "mnist").splitlines()
    assert "the tensors do not fit the model" in lines[0] and len(lines) == 4
    for line, name, model, file in zip(
        lines[1:],
        ("conv1.bias", "extra", "head.weight"),
        ("32", "no such tensor", "10×128"),
        ("no such tensor", "2", "7×128"),
        strict=True,
    ):
        model_side, _, file_side = line.partition(", the file has ")
        assert line.strip().startswith(f"{name}: ") and model in model_side and file in file_side
    assert worked("inspect", path).code == 0, "the metadata can still be looked at"


def test_tensors_that_are_not_those_it_was_written_with(folder: Path, pretrained: Path) -> None:
    content = bytearray(pretrained.read_bytes())
    content[-5] ^= 1
    Path("bad.safetensors").write_bytes(content)
    for words in (("evaluate", "bad.safetensors", "--data", "mnist"), ("predict", "bad.safetensors", "x.png")):
        message = refused(*words)
        assert message.startswith("bad.safetensors: its tensors are not those it was written with: expected the sha256")
        assert "get or make the file again" in message
    assert worked("inspect", "bad.safetensors").code == 0, "the metadata can still be looked at"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers(value: str, folder: Path, pretrained: Path) -> None:
    path = altered(pretrained, lambda values: values["fc1.weight"][3, 5].fill_(float(value)))
    assert "NaN or infinite numbers in fc1.weight" in refused("evaluate", path, "--data", "mnist")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind(dtype: torch.dtype, folder: Path, pretrained: Path) -> None:
    path = altered(pretrained, lambda values: values.update(conv2_bias=values.pop("conv2.bias").to(dtype)))
    assert "do not fit" in refused("evaluate", path, "--data", "mnist")
    path = altered(pretrained, lambda values: values.update({"conv2.bias": values["conv2.bias"].to(dtype)}))
    assert "conv2.bias" in refused("evaluate", path, "--data", "mnist")


def test_safetensors_of_others(folder: Path, pretrained: Path) -> None:
    for metadata in (
        None,
        {"format": "pt"},
        {"finetune": ""},
        {"finetune": "[]"},
        {"finetune": "{}"},
        {"finetune": "1" * 9999},
    ):
        save_file({"weight": torch.zeros(2)}, "other.safetensors", metadata=metadata)
        assert "metadata" in refused("evaluate", "other.safetensors", "--data", "mnist")
        if metadata is None or "finetune" not in metadata:
            shown = worked("inspect", "other.safetensors", "--json").json
            assert shown["tensors"] == 1 and shown["numbers by type"] == {"F32": 2}, "what there is to say is said"
            assert "no metadata of finetune" in worked("inspect", "other.safetensors").out
        else:
            assert "metadata" in refused("inspect", "other.safetensors")


INPUT = {"channels": 1, "size": 28, "mean": [0.1], "std": [0.3], "interpolation": "bilinear"}
WRONG_METADATA: dict[str, dict[str, Any]] = {
    "format": {"format": 2},
    "model": {"model": 5},
    "classes": {"classes": "0123456789"},
    "lineage": {"lineage": {}},
    "results": {"results": []},
    "input": {"input": None},
    "input.size": {"input": INPUT | {"size": 28.5}},
    "input.mean": {"input": INPUT | {"mean": ["0.1"]}},
    "input.std": {"input": INPUT | {"std": [0.0]}},
    "input.channels": {"input": INPUT | {"channels": 10**9}},
    "input.interpolation": {"input": INPUT | {"interpolation": "magic"}},
    "versions": {"versions": {"torch": 2}},
    "surprise": {"surprise": 1},
    "no class": {"classes": []},
    "a class twice": {"classes": ["0", "0", *"23456789"]},
    "a number that is none": {"input": INPUT | {"mean": [float("nan")]}},
    "endless": {"input": INPUT | {"std": [float("inf")]}},
    "an unknown model": {"model": "resnet9000"},
    "an argument": {"arguments": {"depth": 3}},
    "more classes than rows": {"classes": list("0123456789a")},
    "another size than the model's": {"input": INPUT | {"size": 64}},
    "colour for a grey model": {"input": INPUT | {"channels": 3, "mean": [0.1] * 3, "std": [0.3] * 3}},
}


@pytest.mark.parametrize("fault", WRONG_METADATA)
def test_metadata_that_does_not_hold(fault: str, folder: Path, pretrained: Path) -> None:
    path = altered(pretrained, **WRONG_METADATA[fault])
    message = refused("evaluate", path, "--data", "mnist")
    assert message.startswith("bad.safetensors: ")
    if "input." in fault:
        assert fault in message or "input" in message
    with pytest.raises(CheckpointError):
        toolkit.load(path)


@pytest.mark.parametrize(
    "harmless", [{"data": {"name": "no such set"}}, {"data": {"name": 5}}, {"results": {"test": 5}}, {"data": {}}]
)
def test_what_a_file_says_of_its_past_is_only_believed(
    harmless: dict[str, Any], folder: Path, pretrained: Path
) -> None:
    path = altered(pretrained, **harmless)
    assert worked("evaluate", path, "--data", "mnist", "--json").json["claimed_accuracy"] is None
    recipe = write(adapt_recipe(phase(length="steps: 1")))
    report = worked("adapt", "--from", path, "--recipe", recipe, "--target", "kmnist", "--quiet", "--json").json
    assert (report["retention"] is None) == ("data" in harmless)


# Places to write


def test_places_that_cannot_be_written(folder: Path) -> None:
    recipe = write(pretrain_recipe())
    Path("file").write_text("mine")
    Path("folder.safetensors").mkdir()
    for out in ("file/x.safetensors", "file/deeper/x.safetensors", "/proc/x.safetensors", "/proc/no/x.safetensors"):
        message = refused("pretrain", "--recipe", recipe, "--out", out)
        assert "cannot write there" in message and "--out" in message
    assert "is a folder; expected a file name" in refused("pretrain", "--recipe", recipe, "--out", "folder.safetensors")
    for out in ("model.pt", "model", ".safetensors", "model.safetensors.bak", "."):
        assert "expected a file name that ends in .safetensors" in refused("pretrain", "--recipe", recipe, "--out", out)
    assert files_under(folder) == {"small.yaml", "file"} and Path("file").read_text() == "mine"
    Path("runs").write_text("mine too")
    assert "runs: cannot write there" in refused("pretrain", "--recipe", recipe, "--out", "x.safetensors")


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cuda:", "cuda:-1", "cpu:1", "", "CPU", "cuda:x"])
def test_devices_that_are_not_there(device: str, folder: Path, pretrained: Path) -> None:
    if device == "cuda:" and torch.cuda.is_available():
        pytest.skip("taken for cuda")
    message = refused("pretrain", "--recipe", write(pretrain_recipe()), "--device", device)
    assert f"--device {device}: not on this machine, which has cpu" in message
    assert "--device" in refused("evaluate", pretrained, "--data", "mnist", "--device", device)
    assert files_under(folder) == {"small.yaml"}


# Training that fails


def test_a_loss_that_is_no_number(folder: Path, pretrained: Path) -> None:
    recipe = write(pretrain_recipe(phase("head", "steps: 5", more="name: first") + phase(more="name: second")))
    message = refused("pretrain", "--recipe", recipe, "--set", "phases[1].optimizer.lr=1e30", "--quiet", code=1)
    assert "the loss is no longer a finite number" in message and "learning rate" in message
    assert "kept: the weights after epoch 1 of 1 of phase first in runs/small/interrupted.safetensors" in message
    assert toolkit.load("runs/small/interrupted.safetensors").class_names == tuple("0123456789")
    assert not Path("checkpoints/small.safetensors").exists()
    recipe = write(pretrain_recipe())
    message = refused("pretrain", "--recipe", recipe, "--set", "phases[0].optimizer.lr=1e30", "--quiet", code=1)
    assert "no epoch had ended, so there are no weights to keep" in message


@pytest.mark.parametrize("lr", ["1e40", "1e300"])
def test_weights_that_are_lost_in_the_last_step(lr: str, folder: Path) -> None:
    """The loss is always of the step before: the last step may still break the weights."""
    recipe = write(pretrain_recipe(phase(length="steps: 1", optimizer=f"{{name: sgd, lr: {lr}}}")))
    refused("pretrain", "--recipe", recipe, "--quiet", code=1)
    assert list(Path("checkpoints").iterdir()) == [], "no checkpoint that cannot be read"


# Ctrl-C


def interrupted(words: list[str], when: Callable[[], bool]) -> subprocess.CompletedProcess[str]:
    """Runs the program and sends it SIGINT as soon as `when` holds."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from finetune.cli.main import main; main()"
    )
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            while not when():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() - started < 60, "it never came so far"
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def rows_of(name: str) -> list[dict[str, Any]]:
    path = Path(f"runs/{name}/metrics.jsonl")
    return (
        [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    )


@pytest.mark.slow
def test_ctrl_c_keeps_the_last_weights(folder: Path) -> None:
    recipe = write(pretrain_recipe(phase(length="epochs: 100000", batch=3)))
    done = interrupted(["pretrain", "--recipe", recipe, "--json"], lambda: len(rows_of("small")) > 0)
    assert done.returncode == 130 and done.stdout == "" and "Traceback" not in done.stderr
    kept = Path("runs/small/interrupted.safetensors")
    assert "finetune: stopped by Ctrl-C; kept: the weights after epoch " in done.stderr and str(kept) in done.stderr
    files = {name for name in files_under(folder) if not name.startswith("runs/small/snapshots/")}
    assert files == {
        "small.yaml",
        *(f"runs/small/{name}" for name in ("recipe.yaml", "metrics.jsonl", "log.txt", "interrupted.safetensors")),
    }
    assert toolkit.load(kept).class_names == tuple("0123456789")
    found = worked("evaluate", kept, "--data", "mnist", "--json").json
    assert found["total"] == 100 and found["claimed_accuracy"] is None
    assert worked("inspect", kept, "--json").json["recipe"]["phases"][0]["epochs"] == 100000
    # They are the weights of the last row: training just so long from the start gives the same.
    epochs = rows_of("small")[-1]["epoch"]
    assert f"after epoch {epochs} of 100000 of phase all" in done.stderr
    if torch.get_num_threads() == 1:
        words = ("--set", f"phases[0].epochs={epochs}", "--out", "short.safetensors", "--quiet")
        worked("pretrain", "--recipe", recipe, *words)
        one, other = load_file(kept), load_file("short.safetensors")
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_ctrl_c_during_the_scratch_run_keeps_the_fine_tuned_weights(folder: Path, pretrained: Path) -> None:
    # Thousands of steps of the head alone take a second; as many of the whole network from random weights do not.
    phases = phase("head", "steps: 4000", 10, "{name: sgd, lr: 1e-6}") + phase("all", "epochs: 1", 10)
    recipe = write(adapt_recipe(phases, compare="[scratch]"))
    words = ["adapt", "--from", str(pretrained), "--target", "kmnist", "--recipe", recipe]
    done = interrupted(words, lambda: any(row["phase"] == "scratch" for row in rows_of("mnist-kmnist")))
    assert done.returncode == 130 and "Traceback" not in done.stderr
    kept = "runs/mnist-kmnist/interrupted.safetensors"
    assert f"kept: the weights after epoch 1 of 1 of phase all in {kept}" in done.stderr
    classifier = toolkit.load(kept)
    assert classifier.class_names == DATASETS["kmnist"].class_names
    assert worked("evaluate", kept, "--data", "kmnist", "--json").json["accuracy"] > 0.5
    lineage = worked("inspect", kept, "--json").json["lineage"]
    assert [parent["id"] for parent in lineage] == ["mnist.safetensors"]
    assert not Path("checkpoints/mnist-kmnist.safetensors").exists()
