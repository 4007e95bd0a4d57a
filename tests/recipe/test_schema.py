"""The schema: every key is guarded, values are strict, and a recipe written out reads back the same."""

import json
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from finetune.errors import RecipeError
from finetune.recipe.load import KnownNames, check_recipe, dump_recipe, parse_recipe, resolve_recipe
from finetune.recipe.problems import format_place
from finetune.recipe.schema import (
    OPTIMIZERS,
    PRESETS,
    SCHEDULES,
    AdaptRecipe,
    AugmentSettings,
    DataSettings,
    LastStages,
    Phase,
    PresetName,
    PretrainRecipe,
    ScratchSettings,
    Sgd,
)

NAMES = KnownNames(models={"cnn": ("conv1", "conv2", "fc1", "head")}, datasets={"mnist": tuple("0123456789")})
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
ADAMW = {"name": "adamw", "lr": 1, "betas": [0.5, 0.6], "eps": 1e-5, "weight_decay": 0}
PHASE = {
    "train": {"last": 2},
    "name": "top",
    "epochs": 3,
    "min_steps": 1,
    "max_steps": 9000,
    "batch_size": 8,
    "optimizer": SGD,
    "schedule": {"name": "one_cycle", "warmup": 0.2, "shape": "linear"},
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "ema": 0.99,
    "layer_decay": 0.7,
    "norms": "update",
    "augment": False,
    "keep": "best",
}
STEPPED = {"train": ["fc1", "head"], "steps": 7, "optimizer": ADAMW}
VIEWED = {**STEPPED, "views": 3, "l2_sp": 0.01}
CACHE = {"memory": 0.5, "disk": 4}
AUGMENT = {"shift": 1, "rotate": 2, "scale": 0.1, "shear": 3, "elastic": 1.5, "elastic_grid": 5, "erase": 6}
AUGMENT |= {"crop": 0.4, "flip": True, "colour": 0.3, "erasing": 0.2, "mixup": 0.2, "cutmix": 1.0}
DATA = {
    "name": "mnist",
    "classes": [5, "7"],
    "validation": 0.1,
    "shots": 3,
    "on_bad_image": "skip",
    "group": r"(\d+)_\d+",
    "columns": {"path": "image_id", "label": "kind", "split": "part", "group": "patient"},
    "decode": "exact",
    "augment": AUGMENT,
}
INPUT = {"size": 28, "mean": [0.5], "std": [0.25], "interpolation": "bicubic", "crop": 0.875, "resize": "squash"}
SOLVED = {"train": "head", "solver": "lbfgs"}
ADAPTED = {
    "train": "all",
    "name": "low",
    "epochs": 1,
    "optimizer": ADAMW,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
}
PRETRAIN = {
    "kind": "pretrain",
    "model": {"name": "cnn", "rate": 0.5, "pad": "same", "deep": True},
    "input": INPUT,
    "data": DATA,
    "phases": [PHASE, {**STEPPED, "schedule": {"name": "step", "at": [0.5, 0.75], "factor": 0.2}}],
    "precision": "float32",
    "balance": "sampler",
    "sharding": "fsdp",
    "cache": CACHE,
    "seed": 3,
    "test_each_epoch": True,
}
ADAPT = {
    "kind": "adapt",
    "model": {"name": "cnn", "rate": 0.5},
    "input": INPUT,
    "data": {**DATA, "augment": {key: AUGMENT[key] for key in AUGMENT if key not in ("mixup", "cutmix")}},
    "head": "random",
    "phases": [SOLVED, ADAPTED, PHASE, {**VIEWED, "schedule": {"name": "cosine", "warmup": 0.1}}],
    "max_error": 0.05,
    "calibration_folds": 3,
    "compare": ["scratch", "interpolated"],
    "retain": 0.9,
    "keep": "interpolated",
    "scratch": {"optimizer": ADAMW, "schedule": {"name": "constant"}},
    "precision": "bfloat16",
    "balance": "logit_adjustment",
    "sharding": "fsdp",
    "cache": CACHE,
    "seed": 4,
}
ONE = {"train": "all", "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}}


def check(data):
    return check_recipe(data, where="r", names=NAMES)


def places(value, place=()):
    """Yields the way to every key of nested mappings, arguments of the model left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(key, str) and not (place == ("model",) and key != "name"):
            yield (*place, key)
        yield from places(item, (*place, key))


def models_in(value, found):
    if isinstance(value, BaseModel):
        found.setdefault(type(value), set()).update(value.model_fields_set)
        for name in type(value).model_fields:
            models_in(getattr(value, name), found)
    elif isinstance(value, tuple):
        for item in value:
            models_in(item, found)
    return found


def test_the_full_recipes_have_every_key_there_is():
    found = models_in((check(PRETRAIN), check(ADAPT)), {})
    wanted = {PretrainRecipe, AdaptRecipe, AugmentSettings, Phase, LastStages, ScratchSettings}
    assert wanted | set(OPTIMIZERS.values()) | set(SCHEDULES.values()) <= found.keys()
    for model, given in found.items():
        assert given == set(model.model_fields) - {"preset"}, model  # a preset gives way to its fields


def typos(key):
    yield key + key[-1]
    if len(key) > 3:
        yield key[:2] + key[3:]


@pytest.mark.parametrize("recipe", [PRETRAIN, ADAPT], ids=["pretrain", "adapt"])
def test_a_typo_in_any_key_is_one_problem_with_the_right_suggestion(recipe):
    count = 0
    for place in places(recipe):
        for typo in typos(place[-1]):
            data = json.loads(json.dumps(recipe))
            parent = data
            for part in place[:-1]:
                parent = parent[part]
            parent[typo] = parent.pop(place[-1])
            with pytest.raises(RecipeError) as caught:
                check(data)
            assert len(caught.value.problems) == 1, caught.value.problems
            start = f"r: {format_place((*place[:-1], typo))}: unknown key; did you mean '{place[-1]}'"
            assert caught.value.problems[0].startswith(start)
            count += 1
    assert count > 80


@pytest.mark.parametrize("recipe", [PRETRAIN, ADAPT, {"kind": "adapt", "phases": [ONE, ONE, STEPPED]}])
def test_a_recipe_written_out_reads_back_equal(recipe):
    first = check(recipe)
    text = dump_recipe(first)
    again = parse_recipe(text, where="dump", names=NAMES)
    assert again == first
    assert check(resolve_recipe(first)) == first
    assert dump_recipe(again) == text


@pytest.mark.parametrize(
    "text", ["no", "1e-3", "null", "~", "a: b", "#x", "ä", "'", '"', "0x1F", "[a]", "-", "\u2028", "😀"]
)
def test_text_of_any_kind_survives_writing_and_reading(text):
    known = KnownNames(models=NAMES.models, datasets={text: (text,)}, source_stages=NAMES.source_stages)
    data = {"name": text, "classes": [text], "validation": 9, "augment": "digits"}
    first = check_recipe({**ADAPT, "data": data}, names=known)
    assert parse_recipe(dump_recipe(first), where="dump", names=known) == first


def test_scalars_follow_yaml_1_2():
    text = "kind: pretrain\n"
    text += "model: {name: cnn, a: 1e-3, b: 1.e-3, c: 1E5, d: .5, e: no, f: 0o17, g: 0x1f, h: 010, i: 1_0}\n"
    text += "data: {name: mnist}\nphases: [{train: all, epochs: 1, optimizer: {name: sgd, lr: 1}}]"
    assert parse_recipe(text, where="r", names=NAMES).model.arguments == {
        "a": 0.001,
        "b": 0.001,
        "c": 1e5,
        "d": 0.5,
        "e": "no",
        "f": 15,
        "g": 31,
        "h": 10,
        "i": "1_0",
    }


def test_kinds_of_values_are_kept_apart():
    arguments = check({**PRETRAIN, "model": {"name": "cnn", "a": True, "b": 1, "c": 1.0, "d": "1"}}).model.arguments
    assert [type(value) for value in arguments.values()] == [bool, int, float, str]
    assert type(check(PRETRAIN).phases[1].optimizer.lr) is float  # given as the whole number 1
    assert check({**PRETRAIN, "model": "cnn"}).model.arguments == {}
    assert check(PRETRAIN).data.classes == ("5", "7")
    data = {**DATA, "validation": 5}
    assert type(check({**PRETRAIN, "data": data}).data.validation) is int


def test_phases_are_named_after_what_they_train():
    wholes = [{**ONE, "train": train} for train in ("head", "all", {"last": 2}, ["conv1", "fc1"], "all", "all")]
    wholes += [{**ONE, "name": "all-2"}]
    names = [phase.name for phase in check({**ADAPT, "phases": wholes}).phases]
    assert names == ["head", "all", "last-2", "conv1+fc1", "all-3", "all-4", "all-2"]


@pytest.mark.parametrize("given", [{}, {"optimizer": ADAMW}, {"schedule": {"name": "cosine"}}, {"schedule": None}])
def test_what_scratch_leaves_out_stays_open(given):
    recipe = check({"kind": "adapt", "phases": [ONE], "scratch": given})
    assert (recipe.scratch.optimizer is None) == ("optimizer" not in given)
    assert (recipe.scratch.schedule is None) == (not given.get("schedule"))
    assert parse_recipe(dump_recipe(recipe), where="dump", names=NAMES) == recipe


def test_recipes_cannot_be_changed_and_rules_hold_without_the_reader():
    recipe = check(PRETRAIN)
    with pytest.raises(ValidationError):
        recipe.seed = 1
    optimizer = Sgd(name="sgd", lr=0.1)
    for phase in (
        Phase(train="all", optimizer=optimizer),
        Phase(train="all", epochs=1, keep="best", optimizer=optimizer),
        Phase(train="all", epochs=1, steps=1, optimizer=optimizer),
    ):
        with pytest.raises(ValidationError):
            AdaptRecipe(kind="adapt", data=DataSettings(), phases=(phase,))


def test_python_data_is_held_to_what_a_file_can_say():
    for value, say in [
        ({1, 2}, "expected text, a number, a list or a mapping, found a Python set"),
        (float("nan"), "must be a finite number"),
        (10**5000, "is too large a number"),
    ]:
        with pytest.raises(RecipeError) as caught:
            check({**PRETRAIN, "seed": value})
        assert len(caught.value.problems) == 1
        assert caught.value.problems[0].startswith(f"r: seed: {say}")
    endless = {**PRETRAIN}
    endless["data"] = endless
    with pytest.raises(RecipeError, match="nested deeper than 20 levels"):
        check(endless)
    for data in (None, [], "kind: adapt", 3):
        with pytest.raises(RecipeError):
            check(data)


# --- presets of augmentation ------------------------------------------------------------------------------------------


def augmented(augment):
    return check({"kind": "adapt", "data": {"augment": augment}, "phases": [ONE]}).data.augment


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_stands_for_its_fields_and_given_ones_win(name):
    expected = AugmentSettings.model_validate(PRESETS[name])
    assert augmented(name) == augmented({"preset": name}) == augmented(PRESETS[name]) == expected
    assert augmented({"preset": name, "shift": 7, "flip": False}) == expected.model_copy(
        update={"shift": 7, "flip": False}
    )
    assert DataSettings.model_validate({"augment": name}).augment == expected


def test_a_resolved_recipe_has_the_fields_of_a_preset():
    recipe = check({"kind": "adapt", "data": {"augment": {"preset": "photo", "flip": False}}, "phases": [ONE]})
    written = resolve_recipe(recipe)["data"]["augment"]
    assert written["crop"] == 0.35 and written["flip"] is False and "preset" not in written
    assert parse_recipe(dump_recipe(recipe), where="dump", names=NAMES) == recipe


@pytest.mark.parametrize(
    ("augment", "problems"),
    [
        ("phot", ["r: data.augment: unknown preset \"phot\"; did you mean 'photo'? Presets are none, digits, photo"]),
        ("", ['r: data.augment: unknown preset ""; presets are none, digits, photo']),
        (
            {"preset": "fotos", "flip": 1, "colour": 2},
            [
                "r: data.augment.preset: unknown preset \"fotos\"; did you mean 'photo'? "
                "Presets are none, digits, photo",
                "r: data.augment.colour: must be at most 1, found 2",
                "r: data.augment.flip: expected true or false, found the whole number 1",
            ],
        ),
        ({"preset": 3}, ["r: data.augment.preset: expected none, digits or photo, found the whole number 3"]),
        ({"prest": "photo"}, None),
        (3, ["r: data.augment: expected a mapping, found the whole number 3; for example augment: {shift: 2}"]),
    ],
)
def test_a_preset_that_is_none_is_told(augment, problems):
    with pytest.raises(RecipeError) as caught:
        augmented(augment)
    if problems is None:
        assert "did you mean 'preset'?" in caught.value.problems[0] and len(caught.value.problems) == 1
    else:
        assert sorted(caught.value.problems) == sorted(problems)


def test_a_single_field_of_a_preset_can_be_set():
    text = "kind: adapt\ndata: {augment: photo}\nphases: [{train: all, epochs: 1, optimizer: {name: sgd, lr: 0.1}}]\n"
    recipe = parse_recipe(text, where="r", overrides=["data.augment.flip=false"], names=NAMES)
    assert recipe.data.augment == augmented({"preset": "photo", "flip": False})


def test_the_json_schema_lists_the_presets():
    assert set(PRESETS) == set(get_args(PresetName))
