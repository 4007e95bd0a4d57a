"""Whatever is given as a recipe, the answer is a recipe or a RecipeError, soon."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe.load import (
    MAX_SETTING_LEN,
    MAX_SETTINGS,
    KnownNames,
    check_recipe,
    dump_recipe,
    parse_recipe,
    read_recipe,
)

NAMES = KnownNames(models={"cnn": ("conv1", "head")}, datasets={"mnist": ("0", "1")}, source_stages=("conv1", "head"))
BASE = """\
kind: pretrain
model: {name: cnn, a: 1}
data: {name: mnist, validation: 0.1, classes: [0, 1], augment: {shift: 2}}
phases:
  - train: [conv1, head]
    epochs: 8
    optimizer: {name: sgd, lr: 5e-4, nesterov: true}
    schedule: {name: step, at: [0.5]}
"""
KEYS = ["kind", "model", "data", "phases", "seed", "head", "compare", "scratch", "name", "train", "epochs", "steps"]
KEYS += ["optimizer", "schedule", "lr", "momentum", "nesterov", "at", "keep", "validation", "classes", "augment", "<<"]
VALUES = [
    "pretrain",
    "adapt",
    "cnn",
    "mnist",
    "head",
    "all",
    "conv1",
    "sgd",
    "adamw",
    "step",
    "best",
    "scratch",
    "0",
    "no",
]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(VALUES)
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner),
    max_leaves=20,
)
pieces = st.sampled_from(
    [*KEYS, *VALUES, *"[]{},:-?&*!|>'\"%@`#\n \t", ": ", "\n  ", "\n- ", "1e-3", ".inf", "\\u", "---\n"]
)


def survives(read):
    """Runs `read`; a recipe that comes back must also survive being written and read."""
    try:
        recipe = read()
    except RecipeError as error:
        assert error.problems
        for line in error.problems:
            assert line.isprintable() or not line.isascii()
            assert "\n" not in line
        return
    assert parse_recipe(dump_recipe(recipe), where="dump", names=NAMES) == recipe


@QUICK
@given(st.text() | st.lists(pieces, max_size=40).map("".join))
def test_any_text(text):
    survives(lambda: parse_recipe(text, where="r", names=NAMES))


@QUICK
@given(st.integers(0, len(BASE)), st.integers(0, 5), st.lists(pieces, max_size=4).map("".join))
def test_any_damage_to_a_recipe(start, cut, put):
    survives(lambda: parse_recipe(BASE[:start] + put + BASE[start + cut :], where="r", names=NAMES))


@QUICK
@given(nested)
def test_any_data(data):
    survives(lambda: check_recipe(data, where="r", names=NAMES))


places = st.sampled_from(
    [("kind",), ("model",), ("data",), ("phases",), ("seed",), ("scratch",), ("compare",), ("head",), ("input",)]
    + [("data", key) for key in ("name", "validation", "classes", "augment", "shots")]
    + [("phases", 0, key) for key in ("train", "epochs", "steps", "optimizer", "schedule", "name", "keep", "ema")]
    + [("phases", 0, key) for key in ("solver", "lora", "layer_decay", "norms")]
    + [("input", key) for key in ("size", "mean", "std", "crop")]
    + [("model", "name"), ("data", "on_bad_image")]
    + [("phases", 0, "optimizer", key) for key in ("name", "lr", "momentum", "nesterov")]
    + [("phases", 0, "schedule", key) for key in ("name", "at", "warmup")]
)


@QUICK
@given(st.sampled_from(["pretrain", "adapt"]), st.lists(st.tuples(places, nested), min_size=1, max_size=3))
def test_any_value_in_any_place(kind, changes):
    phase = {"train": "all", "epochs": 1, "optimizer": {"name": "sgd", "lr": 1}, "schedule": {"name": "constant"}}
    data = {"kind": kind, "data": {"name": "mnist"}, "phases": [phase]} | (
        {"model": "cnn"} if kind == "pretrain" else {}
    )
    for place, value in changes:
        node = data
        for part in place[:-1]:
            if isinstance(part, int):
                node = node[part] if isinstance(node, list) and node else None
            else:
                node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[place[-1]] = value
    survives(lambda: check_recipe(data, where="r", names=NAMES))


@QUICK
@given(
    st.text(max_size=30) | st.builds("{}={}".format, st.lists(pieces, max_size=5).map(".".join), st.text(max_size=9))
)
def test_any_setting(setting):
    survives(lambda: parse_recipe(BASE, where="r", overrides=[setting], names=NAMES))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500_000,
        "{a: " * 200_000,
        "a: [" + "1," * 60_000,
        "a: &a [1]\n" + "b: [*a, *a]\n" * 2_000,
        "a: " + "9" * 300_000,
        "a" * 300_000 + ": 1",
        "".join(f"key{n}: 1\n" for n in range(5_000)),
        "kind: adapt\nphases: [" + "{train: all}," * 2_000 + "]",
        "kind: adapt\ndata: {name: mnist, classes: [" + ",".join(f"x{n}" for n in range(5_000)) + "]}\n",
        "kind: adapt\nmodel: {name: " + "m" * 900_000 + "}\n",
        "kind: adapt\nphases: [{train: " + "s" * 900_000 + "}]\n",
        "!" * 900_000,
        "a: !<" + "x" * 900_000 + ">",
    ],
    ids=lambda text: text[:12],
)
def test_large_and_deep_input_is_answered_soon(text):
    start = time.process_time()
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, where="r", names=NAMES)
    assert time.process_time() - start < 8
    assert len(caught.value.problems) <= 101
    assert all(len(line) < 2000 for line in caught.value.problems)


def refusal(read):
    with pytest.raises(RecipeError) as caught:
        read()
    return caught.value.problems


def test_places_that_are_no_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    (tmp_path / "ring.yaml").symlink_to(tmp_path / "ring.yaml")
    for name, why in {
        "pipe.yaml": "it is a pipe, not a regular file",
        "device.yaml": "it is a device, not a regular file",
        "ring.yaml": "Too many levels of symbolic links",
        "a\0b.yaml": "this is no file name",
    }.items():
        (problem,) = refusal(lambda name=name: read_recipe(tmp_path / name, names=NAMES))
        assert f"cannot be read ({why}); `finetune recipes` lists" in problem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BASE.encode("utf-16"), "r.yaml:1: is not UTF-8 text; save the file as UTF-8"),
        (BASE.encode("utf-16-le"), 'r.yaml:1: the character "\\x00" cannot stand in a recipe'),
        (BASE.encode() + b"name: \xff\n", "r.yaml:9: is not UTF-8 text"),
        (BASE.encode() + b"name: a\0b\n", 'r.yaml:9: the character "\\x00" cannot stand'),
        (b"\xef\xbb\xbf" + BASE.encode() + b"\xef\xbb\xbfseed: 1\n", "seed"),
        (b"x" * 1_000_001, "is larger than 1,000 kB; a recipe is far smaller"),
        (b"", "is empty"),
    ],
)
def test_bytes_that_are_no_recipe(tmp_path, content, said):
    (tmp_path / "r.yaml").write_bytes(content)
    assert said in " ".join(refusal(lambda: read_recipe(tmp_path / "r.yaml", names=NAMES)))


def test_a_byte_order_mark_is_none_of_the_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.replace(", a: 1", "").encode())
    assert read_recipe(tmp_path / "r.yaml", names=NAMES).kind == "pretrain"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("phases[0].batch_size=1000000000000", ": must be at most 1,000,000, found 1000000000000"),
        ("phases[0].epochs=1000000000", ": must be at most 100,000, found 1000000000"),
        ("phases[0].min_steps=100000001", ": must be at most 100,000,000"),
        ("phases[0].max_steps=100000001", ": must be at most 100,000,000"),
        ("phases[0].steps=100000001", ": must be at most 100,000,000"),
        ("input.size=1000000", ": must be at most 4,096, found 1000000"),
        ("input.std=[1e-9]", "input.std[0]: must be at least 0.001, found 1e-09"),
        ("data.shots=100000001", ": must be at most 100,000,000"),
        ("data.validation=100000001", ": must be at most 100,000,000"),
        ("phases[0].lora.rank=1025", ": must be at most 1,024"),
        ("phases[0].optimizer.lr=1e999", "must be a finite number"),
        ("phases[0].optimizer.lr=.nan", "must be a finite number"),
        ("seed=" + "9" * 10_000, "must be a finite number, not an infinite one, one that is too large"),
        ("phases[0].name=" + "n" * 4097, ": expected at most 4,096 characters, found 4,097"),
        ("model.name=" + "m" * 4097, "unknown model"),
        ("data.name=" + "m" * 4097, ": expected at most 4,096 characters, found 4,097"),
        ("data.classes=[" + "c" * 256 + "]", "data.classes[0]: expected at most 255 characters, found 256"),
        (
            "phases=[" + "{train: all, epochs: 1, optimizer: {name: sgd, lr: 1}}," * 101 + "]",
            "at most 100 phases, found 101",
        ),
        (".".join("a" * 21) + "=1", "names a place deeper than 20 levels"),
        (".".join("a" * 50_000) + "=1", "has 100,001 characters, at most 100,000"),
        ("data.name=" + "x" * MAX_SETTING_LEN, "characters, at most 100,000; write it in the recipe"),
        ("data={<<: {name: mnist}}", "no merge keys"),
        ("data.name=!!python/name:os.system ", "no tags"),
        ("data.name=&a [*a]", "no anchors"),
    ],
    ids=lambda value: value[:40],
)
def test_absurd_values_are_bounded(setting, said):
    problems = refusal(lambda: parse_recipe(BASE.replace(", a: 1", ""), where="r", overrides=[setting], names=NAMES))
    assert any(said in problem for problem in problems), problems
    assert all(problem.isprintable() and len(problem) < 1000 for problem in problems)


def test_an_item_of_what_is_not_there_is_refused():
    bare = "kind: adapt\ndata: {validation: 0.1}\nphases: [{train: all, epochs: 1, optimizer: {name: sgd, lr: 1}}]\n"
    for place in ("model", "data.augment"):
        (problem,) = refusal(
            lambda place=place: parse_recipe(bare, where="r", overrides=[f"{place}[0]=null"], names=NAMES)
        )
        assert problem == f"--set {place}[0]=null: {place}: is nothing (null), so it has no item [0]"


def test_settings_are_not_without_number():
    (problem,) = refusal(lambda: parse_recipe(BASE, where="r", overrides=["seed=1"] * (MAX_SETTINGS + 1), names=NAMES))[
        :1
    ]
    assert problem == "--set: given 1,001 times, at most 1,000"


def test_reading_recipes_needs_no_torch():
    code = "import sys, finetune.recipe.load, finetune.recipe.docs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
