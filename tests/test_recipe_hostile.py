"""Whatever is given as a recipe, the answer is a recipe or a RecipeError, soon."""

import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.errors import RecipeError
from finetune.recipe.reader import KnownNames, check_recipe, dump_recipe, parse_recipe

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


def test_reading_recipes_needs_no_torch():
    code = "import sys, finetune.recipe.reader, finetune.recipe.reference; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
