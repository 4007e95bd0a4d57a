# ruff: noqa: E501 (the expected lines are as long as they are)
"""`--set KEY=VALUE` changes exactly one value, by the rules of a file, and its problems name the setting."""

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import KnownNames, dump_recipe, parse_recipe, resolve_recipe

NAMES = KnownNames(models={"cnn": ("conv1", "head")}, datasets={"mnist": tuple("0123456789")})
TEXT = """\
kind: pretrain
model: cnn
data: {name: mnist}
phases:
  - train: all
    epochs: 8
    optimizer: {name: sgd, lr: 0.05}
  - train: head
    epochs: 2
    optimizer: {name: sgd, lr: 0.05}
seed: 0
"""


def read(*overrides, text=TEXT):
    return resolve_recipe(parse_recipe(text, where="r.yaml", overrides=overrides, names=NAMES))


def problems(*overrides, text=TEXT):
    with pytest.raises(RecipeError) as caught:
        read(*overrides, text=text)
    return list(caught.value.problems)


def at(data, *place):
    for part in place:
        data = data[part]
    return data


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("phases[0].optimizer.lr=1e-3", ("phases", 0, "optimizer", "lr"), 1e-3),
        ("phases[1].train=[conv1, head]", ("phases", 1, "train"), ["conv1", "head"]),
        ("phases[1].optimizer={name: adamw, lr: 1}", ("phases", 1, "optimizer", "name"), "adamw"),
        ("phases[1].schedule.name=cosine", ("phases", 1, "schedule"), {"name": "cosine", "warmup": 0.0}),
        ("data.classes=[3, 5]", ("data", "classes"), ["3", "5"]),
        ("data.columns={path: image_id, split: set}", ("data", "columns"), {"path": "image_id", "split": "set"}),
        ("data.columns.label=dx", ("data", "columns"), {"label": "dx"}),
        ("data.augment.shift=2", ("data", "augment", "shift"), 2),
        ("model.pad_type=same", ("model",), {"name": "cnn", "pad_type": "same"}),
        ("model.note=a=b", ("model", "note"), "a=b"),
        ('model.note="true"', ("model", "note"), "true"),
        ("phases[0].name=my phase", ("phases", 0, "name"), "my phase"),
    ],
)
def test_one_value_is_set(setting, place, value):
    changed = read(setting)
    assert at(changed, *place) == value
    plain = read()
    for key in set(plain) - {place[0]}:
        assert changed[key] == plain[key]


def test_later_settings_win_and_null_takes_a_key_out():
    data = read("phases[0].epochs=3", "phases[0].epochs=null", "phases[0].steps=10", "phases[0].steps=20")
    assert data["phases"][0]["steps"] == 20
    assert "epochs" not in data["phases"][0]


def test_numbers_are_class_names_as_they_are_written():
    written = ["001", "+1", "0x1F", "1", "-0"]
    names = KnownNames(models=NAMES.models, datasets={"mnist": (*written, "2")})
    listed = f"[{', '.join(written)}]"
    for text, overrides in (
        (TEXT, [f"data.classes={listed}"]),
        (TEXT.replace("mnist}", f"mnist, classes: {listed}}}"), []),
    ):
        found = resolve_recipe(parse_recipe(text, where="r.yaml", overrides=overrides, names=names))
        assert found["data"]["classes"] == written
    again = dump_recipe(parse_recipe(text, where="r.yaml", names=names))
    assert resolve_recipe(parse_recipe(again, where="r.yaml", names=names)) == found
    assert read("seed=007")["seed"] == 7 and type(read("seed=007")["seed"]) is int, "elsewhere it is a number"


def test_items_of_lists_can_be_set():
    assert read("data.classes=[1, 2]", "data.classes[1]=4")["data"]["classes"] == ["1", "4"]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("seed", "--set seed: expected KEY=VALUE, with a key such as phases[0].optimizer.lr"),
        ("=3", "--set =3: expected KEY=VALUE, with a key such as phases[0].optimizer.lr"),
        ("phases[x].epochs=3", "--set phases[x].epochs=3: expected KEY=VALUE, with a key such as phases[0].optimizer.lr"),
        ("seed=", "--set seed=: has no value; write null for none"),
        ("seed=x", '--set seed=x: expected a whole number, found the text "x"'),
        ("phases[0].epochs=0", "--set phases[0].epochs=0: must be at least 1, found 0"),
        ("phases[5].epochs=3", "--set phases[5].epochs=3: phases: has no item [5]; its items are [0] to [1]"),
        ("phases.epochs=3", '--set phases.epochs=3: phases: is a list, so it has no key "epochs"; give an index, as in '
         "phases[0]"),
        ("seed.x=3", '--set seed.x=3: seed: is the whole number 0, so it has no key "x"'),
        ("data[0]=3", "--set data[0]=3: data: is a mapping, so it has no item [0]"),
        ("seed=[1", "--set seed=[1: not valid YAML: this list '[' is not closed, or a comma is missing in it"),
        ("seed=- 1", "--set seed=- 1: write a list as [a, b] and a mapping as {a: b}"),
        ("seed=*a", "--set seed=*a: a recipe has no aliases (*name); write the value out"),
        ("phases[0].train=[nope]", '--set phases[0].train=[nope]: unknown stage "nope"; stages are conv1, head'),
        ("phases[0].steps=5", "--set phases[0].steps=5: both epochs and steps are given; a phase lasts one or the other: "
         "drop one, or set it to null"),
        ("data.augment.shfit=2", "--set data.augment.shfit=2: unknown key; did you mean 'shift'? Allowed keys are "
         "preset, shift, rotate, scale, shear, elastic, elastic_grid, erase, crop, flip, colour, erasing, mixup, cutmix"),
        ("data.augment={shift: -1}", "--set data.augment={shift: -1}: data.augment.shift: must be at least 0, found -1"),
        ("model.x=[1]", "--set model.x=[1]: expected a number, text, true or false, found a list"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_problem_that_names_it(setting, line):
    assert problems(setting) == [line]


def test_problems_of_settings_come_after_those_of_the_file():
    broken = TEXT.replace("seed: 0", "seed: .inf").replace("lr: 0.05}\nseed", "lr: x}\nseed")
    found = problems("data.shots=0", text=broken)
    assert [line.partition(": ")[0] for line in found] == ["r.yaml:10", "r.yaml:11", "--set data.shots=0"]


def test_a_value_put_where_the_file_had_an_unreadable_one_is_checked():
    broken = TEXT.replace("seed: 0", "seed: .inf").replace("{name: mnist}", "{name: mnist, augment: .nan}")
    found = problems("seed=x", "data.augment.shift=y", text=broken)
    starts = {line.partition(": ")[0] for line in found}
    assert starts == {"r.yaml:3", "r.yaml:11", "--set seed=x", "--set data.augment.shift=y"}
