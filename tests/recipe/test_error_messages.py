# ruff: noqa: E501 (the expected lines are as long as they are)
"""Every class of fault gives one clear line, with the right line number; all of them come at once."""

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import KnownNames, check_recipe, parse_recipe, read_recipe
from finetune.run.setup import open_recipe

STAGES = ("conv1", "conv2", "fc1", "head")
NAMES = KnownNames(
    models={"cnn": STAGES, "timm/resnet18": ()},
    model_arguments={"timm/resnet18": ("drop_rate", "width")},
    datasets={"mnist": tuple("0123456789"), "kmnist": ("o", "ki")},
    source_stages=STAGES,
)
GOOD = """\
kind: pretrain
model: cnn
data: {name: mnist, validation: 0.1}
phases:
  - train: all
    epochs: 8
    optimizer: {name: sgd, lr: 0.05}
    schedule: {name: cosine}
seed: 0
"""
PHASE_KEYS = (
    "train, name, epochs, steps, min_steps, max_steps, batch_size, optimizer, solver, lora, schedule, l2_sp, "
    "label_smoothing, clip_norm, ema, layer_decay, norms, augment, views, keep"
)


def problems(text, overrides=()):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, where="r.yaml", overrides=overrides, names=NAMES)
    return list(caught.value.problems)


def changed(old, new):
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_the_good_recipe_is_good():
    assert parse_recipe(GOOD, where="r.yaml", names=NAMES).phases[0].optimizer.lr == 0.05


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        # keys
        ("optimizer:", "optimiser:", f"7: phases[0].optimiser: unknown key; did you mean 'optimizer'? Allowed keys are "
         f"{PHASE_KEYS}"),
        ("seed: 0", "zzz: 0", "9: zzz: unknown key; allowed keys are kind, model, input, data, balance, phases, precision, "
         "sharding, cache, seed, test_each_epoch"),
        ("name: cosine", "nam: cosine", "8: phases[0].schedule.nam: unknown key; did you mean 'name'? Allowed keys are "
         "name, warmup, shape, at, factor"),
        ("kind: pretrain", "knid: pretrain", "1: knid: unknown key; did you mean 'kind'? Allowed keys are kind, model, "
         "input, data, balance, phases, precision, sharding, cache, seed, test_each_epoch, head, compare, retain, keep, "
         "scratch, max_error, calibration_folds"),
        ("model: cnn", "model: {nmae: cnn}", "2: model.nmae: unknown key; did you mean 'name'? A model needs its name"),
        (", lr: 0.05", "", "7: phases[0].optimizer: missing key 'lr', for example lr: 0.01"),
        ("name: sgd, lr", "lr", "7: phases[0].optimizer: missing key 'name', one of sgd, adamw"),
        ("model: cnn", "", "1: missing key 'model', for example model: cnn"),
        ("name: mnist, ", "", "3: data: missing key 'name', for example name: mnist"),
        ("    epochs: 8\n", "", "5: phases[0]: missing key 'epochs' or 'steps': say how long the phase lasts"),
        ("seed: 0", "seed: 0\n1: 2", "10: a key must be text, found the whole number 1"),
        ("seed: 0", "seed: 0\nmodel: x", "10: model: is given twice, first on line 2"),
        ("seed: 0", "<<: {a: b}", "9: a recipe has no merge keys (<<); write the keys out"),
        # kinds of value
        ("epochs: 8", "epochs: 8x", '6: phases[0].epochs: expected a whole number, found the text "8x"; for example '
         "epochs: 5"),
        ("epochs: 8", "epochs: true", "6: phases[0].epochs: expected a whole number, found true; for example epochs: 5"),
        ("epochs: 8", "epochs: 8.0", "6: phases[0].epochs: expected a whole number, found the number 8.0; write 8"),
        ("lr: 0.05", "lr: '0.05'", '7: phases[0].optimizer.lr: expected a number, found the text "0.05"; write 0.05 '
         "without quotes"),
        ("lr: 0.05", "lr: 5_0", '7: phases[0].optimizer.lr: expected a number, found the text "5_0"; write 50'),
        ("lr: 0.05", "lr: 5%", '7: phases[0].optimizer.lr: expected a number, found the text "5%"; write 0.05'),
        ("lr: 0.05", "lr: 0x10%", '7: phases[0].optimizer.lr: expected a number, found the text "0x10%"; write 0.16'),
        ("lr: 0.05", "lr: .inf", "7: phases[0].optimizer.lr: must be a finite number, not an infinite one, one that is "
         "too large, or none (nan)"),
        ("lr: 0.05", "lr: 0.05, nesterov: no", "7: phases[0].optimizer.nesterov: expected true or false, found the text "
         '"no"; write false'),
        ("name: mnist", "name: 5", '3: data.name: expected text, found the whole number 5; write "5" in quotes'),
        ("{name: sgd, lr: 0.05}", "sgd", '7: phases[0].optimizer: expected a mapping, found the text "sgd"; for example '
         "optimizer: {name: sgd, lr: 0.05}"),
        ("name: sgd, lr: 0.05", "name: adamw, lr: 0.05, betas: [0.9]",
         "7: phases[0].optimizer.betas: expected 2 numbers, found 1"),
        ("train: all", "train: alll", "5: phases[0].train: expected head, all, auto, {last: N} or a list of stage names, "
         "found the text \"alll\"; did you mean 'all'?"),
        ("train: all", "train: fc1", "5: phases[0].train: expected head, all, auto, {last: N} or a list of stage names, "
         'found the text "fc1"; stages go in a list, even one: [fc1]'),
        ("validation: 0.1", "validation: ten", "3: data.validation: expected a whole number of images or a fraction below "
         '1, found the text "ten"'),
        ("model: cnn", "model: {name: cnn, x: [1]}", "2: model.x: expected a number, text, true or false, found a list"),
        ("seed: 0", "seed:", "9: seed: expected a whole number, found nothing (null)"),
        ("model: cnn", "model: {name: timm/resnet18, drop_rat: [1]}", "2: model.drop_rat: unknown argument; did you mean "
         "'drop_rate'? Arguments of timm/resnet18 are drop_rate, width"),
        ("model: cnn", "model: {name: timm/resnet18, zzz: 1}", "2: model.zzz: unknown argument; arguments of timm/resnet18 "
         "are drop_rate, width"),
        # bounds
        ("epochs: 8", "epochs: 0", "6: phases[0].epochs: must be at least 1, found 0"),
        ("lr: 0.05", "lr: 0", "7: phases[0].optimizer.lr: must be above 0, found 0"),
        ("validation: 0.1", "validation: 1.5", "3: data.validation: must be below 1, found 1.5"),
        ("validation: 0.1", "augment: {rotate: 200}", "3: data.augment.rotate: must be at most 180, found 200"),
        ("validation: 0.1", "augment: {shift: 513}", "3: data.augment.shift: must be at most 512, found 513"),
        ("validation: 0.1", "augment: {elastic: 513}", "3: data.augment.elastic: must be at most 512, found 513"),
        ("validation: 0.1", "augment: {erase: 513}", "3: data.augment.erase: must be at most 512, found 513"),
        ("train: all", "train: []", "5: phases[0].train: must not be empty"),
        ("name: mnist", "name: ''", "3: data.name: must not be empty text"),
        ("seed: 0", f"seed: {2**63}", "9: seed: is too large a number; whole numbers go up to 9223372036854775807"),
        ("name: mnist", 'name: "a\\nb"', "3: data.name: has a line break, a tab or another control character, which no "
         "text of a recipe needs"),
        # choices and names
        ("kind: pretrain", "kind: pretran", "1: kind: unknown kind \"pretran\"; did you mean 'pretrain'? Kinds are "
         "pretrain, adapt"),
        ("name: sgd", "name: sdg", "7: phases[0].optimizer.name: unknown optimizer \"sdg\"; did you mean 'sgd'? "
         "Optimizers are sgd, adamw"),
        ("name: cosine", "name: 3", "8: phases[0].schedule.name: expected one of constant, cosine, one_cycle, step, found "
         "the whole number 3"),
        ("seed: 0", "precision: float23", '9: precision: expected auto, float32 or bfloat16, found the text "float23"; '
         "did you mean 'float32'?"),
        ("model: cnn", "model: cnm", "2: model: unknown model \"cnm\"; did you mean 'cnn'? Models are cnn, timm/resnet18"),
        ("name: mnist", "name: zzz", '3: data.name: unknown data set "zzz"; data sets are mnist, kmnist'),
        ("name: mnist", "name: mnist, classes: [1, 22]", "3: data.classes: unknown class \"22\"; did you mean '2'? Classes "
         "of mnist are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("train: all", "train: [conv1, fc3]", "5: phases[0].train: unknown stage \"fc3\"; did you mean 'fc1'? Stages are "
         "conv1, conv2, fc1, head"),
        ("train: all", "train: [conv1,\n     xyz]", '6: phases[0].train: unknown stage "xyz"; stages are conv1, conv2, '
         "fc1, head"),
        ("train: all", "train: {last: 5}", "5: phases[0].train.last: there are only 4 stages (conv1, conv2, fc1, head), "
         "found the whole number 5"),
        # rules between fields
        ("epochs: 8", "epochs: 8\n    steps: 9", "7: phases[0].steps: both epochs and steps are given; a phase lasts one "
         "or the other: drop one, or set it to null"),
        ("epochs: 8", "steps: 8\n    min_steps: 9", "7: phases[0].min_steps: min_steps bounds a length in epochs, and this "
         "one is in steps: drop it"),
        ("epochs: 8", "epochs: 8\n    min_steps: 9\n    max_steps: 8", "8: phases[0].max_steps: must not be below "
         "min_steps, which is 9"),
        ("lr: 0.05", "lr: 0.05, momentum: 0, nesterov: true", "7: phases[0].optimizer.nesterov: nesterov needs a momentum "
         "above 0"),
        ("name: cosine", "name: step, at: [0.5, 0.5]", "8: phases[0].schedule.at: the fractions must grow from one to the "
         "next"),
        ("epochs: 8", "epochs: 8\n    l2_sp: 0.1", "7: phases[0].l2_sp: it pulls weights towards a source, and a pretrain "
         "recipe has none: drop it"),
        (", validation: 0.1}\nphases:\n  - train: all", "}\nphases:\n  - train: all\n    keep: best",
         "6: phases[0].keep: best is chosen by validation images, and data.validation is 0; set it, for example to 0.1"),
        ("name: mnist", "name: mnist, classes: [5, '5']", '3: data.classes: "5" is listed twice'),
        ("train: all", "train: [fc1, fc1]", '5: phases[0].train: "fc1" is listed twice'),
        ("seed: 0", "  - {train: all, name: x, epochs: 1, optimizer: {name: sgd, lr: 1}}\n"
         "  - {train: all, name: x, epochs: 1, optimizer: {name: sgd, lr: 1}}",
         '10: phases[2].name: the name "x" is taken by phases[1]; give each phase its own'),
        ("train: all\n    epochs: 8", "train: head\n    epochs: 8\n    views: 2", "7: phases[0].views: no image is augmented, "
         "so there is one view of each: drop it, or set data.augment"),
        ("validation: 0.1}\nphases:\n  - train: all", "augment: photo}\nphases:\n  - train: all\n    views: 2",
         "6: phases[0].views: nothing is frozen in this phase, so nothing can be kept of the views: drop it"),
        ("validation: 0.1}\nphases:\n  - train: all", "augment: photo}\nphases:\n  - train: head\n    views: 2\n    "
         "norms: update", "6: phases[0].views: norms: update moves frozen layers, so no views can be kept: drop one of "
         "the two"),
        ("validation: 0.1}\nphases:\n  - train: all", "augment: photo}\nphases:\n  - train: head\n    views: 2\n    "
         "augment: false", "6: phases[0].views: no image of this phase is augmented, so there is one view of each: drop it"),
        ("validation: 0.1}\nphases:\n  - train: all", "augment: {preset: photo, mixup: 0.2}}\nphases:\n  - train: head\n"
         "    views: 2", "6: phases[0].views: an image that is mixed with others has no views to keep: drop it, or mixup "
         "and cutmix"),
        ("seed: 0", "cache: {memory: 2GB}", '9: cache.memory: expected a number, found the text "2GB"'),
        ("seed: 0", "cache: {memory: -1}", "9: cache.memory: must be at least 0, found -1"),
        # what YAML has and a recipe has not
        ("model: cnn", "model: &m cnn", "2: model: a recipe has no anchors (&name); remove it"),
        ("model: cnn", "model: *m", "2: model: a recipe has no aliases (*name); write the value out"),
        ("model: cnn", "model: !!str cnn", "2: model: a recipe has no tags (!); remove it"),
        ("seed: 0", "seed: 0\n---\nseed: 1", "10: a second document starts here; a recipe is one document"),
    ],
)  # fmt: skip
def test_one_fault_gives_one_line(old, new, line):
    assert problems(changed(old, new)) == [f"r.yaml:{line}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ": is empty; a recipe starts with `kind: pretrain` or `kind: adapt`"),
        ("# only a comment\n", ": is empty; a recipe starts with `kind: pretrain` or `kind: adapt`"),
        ("[a]", ":1: expected a mapping that starts with `kind: `, found a list"),
        ("kind", ':1: expected a mapping that starts with `kind: `, found the text "kind"'),
        ("a:\n\tb: c", ":2: not valid YAML: a tab stands where only spaces may; indent and separate with spaces"),
        ("a: b: c", ":1: not valid YAML: this ':' cannot stand here; is the indentation off, or are quotes missing?"),
        ("\na: [1,\n 2\n", ":2: not valid YAML: this list '[' is not closed, or a comma is missing in it"),
        ("\na: {b: 1\n\n", ":2: not valid YAML: this mapping '{' is not closed, or a comma is missing in it"),
        ("a: 'b\n\n", ":1: not valid YAML: this quote is not closed"),
        (
            "a:\n  b: 1\n c: 2",
            ":3: not valid YAML: the indentation does not fit the lines above, or something follows a finished value",
        ),
        ("a: @b", ":1: not valid YAML: a value cannot start with this character; put quotes around it"),
        ("a: b\nc: \x07", ':2: the character "\\x07" cannot stand in a recipe'),
        ("a: " + "[" * 30, ":1: a[0][0]: is nested deeper than 20 levels"),
    ],
)
def test_what_stops_the_reading_gives_one_line(text, line):
    assert problems(text) == [f"r.yaml{line}"]


def test_many_problems_come_at_once_in_the_order_of_the_file():
    text = """\
kind: pretrain
model: cn
data: {name: mnist, classes: [1, true, 1]}
phases:
  - train: [conv1, fc3]
    epochs: 8x
    steps: 3
    optimiser: {name: sgd, lr: 1}
    keep: best
  - train: head
    epochs: 1
    optimizer: {name: sdg, lr: text}
seed: .nan
"""
    starts = [
        '2: model: unknown model "cn"',
        "3: data.classes[1]: expected a class name (text or a whole number), found true",
        "3: data.classes: 1 is listed twice",
        "6: phases[0].epochs: expected a whole number",
        "7: phases[0].steps: both epochs and steps",
        "8: phases[0].optimiser: unknown key; did you mean 'optimizer'?",
        "9: phases[0].keep: best is chosen by validation images",
        '12: phases[1].optimizer.name: unknown optimizer "sdg"',
        "12: phases[1].optimizer.lr: expected a number",
        "13: seed: must be a finite number",
    ]
    found = problems(text)
    assert len(found) == len(starts)
    assert all(line.startswith(f"r.yaml:{start}") for line, start in zip(found, starts, strict=True))
    found = problems(text.replace("model: cn\n", "model: cnn\n"))
    assert found[2].startswith('r.yaml:5: phases[0].train: unknown stage "fc3"; did you mean')


def test_arguments_are_checked_by_the_registry_together_with_the_rest(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(changed("model: cnn", "model:\n  name: cnn\n  drop_rate: 0.5").replace("lr: 0.05", "lr: 0"))
    with pytest.raises(RecipeError) as caught:
        open_recipe(path, ["model.width=3"])
    assert caught.value.problems == (
        f"{path}:4: model.drop_rate: unknown argument; cnn takes no arguments",
        f"{path}:9: phases[0].optimizer.lr: must be above 0, found 0",
        "--set model.width=3: unknown argument; cnn takes no arguments",
    )


def test_arguments_are_not_checked_where_they_are_not_known():
    text = changed("model: cnn", "model: {name: cnn, drop_rate: 0.5}")
    assert parse_recipe(text, where="r.yaml", names=NAMES).model.arguments == {"drop_rate": 0.5}


def test_nothing_of_pydantics_own_words_is_shown():
    text = "\n".join(problems("kind: pretrain\nmodel: []\ndata: 3\nphases: [{train: 3, name: [], schedule: x}, 2]\n"))
    for word in ("Input", "pydantic", "http", "valid ", "dictionary", "extra", "loc"):
        assert word not in text


def test_an_adapt_recipe_names_stages_of_its_source_only_when_they_are_known():
    data = {"kind": "adapt", "phases": [{"train": ["nope"], "epochs": 1, "optimizer": {"name": "sgd", "lr": 1}}]}
    with pytest.raises(RecipeError) as caught:
        check_recipe(data, where="mine", names=NAMES)
    assert caught.value.problems == ('mine: phases[0].train: unknown stage "nope"; stages are conv1, conv2, fc1, head',)
    check_recipe(data, where="mine", names=KnownNames(models={}, datasets={}))


def test_files_that_cannot_be_read_say_what_to_do(tmp_path):
    (tmp_path / "mnist.yaml").write_text(GOOD)
    (tmp_path / "latin.yaml").write_bytes(b"kind: pretrain\nmodel: \xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"#" * 1_000_001)
    assert read_recipe(tmp_path / "mnist.yaml", names=NAMES).seed == 0
    shipped = "`finetune recipes` lists the recipes that come with finetune"
    for name, say in {
        "mnits.yaml": f"/mnits.yaml: no such file; did you mean 'mnist.yaml'? {shipped}",
        "latin.yaml": "/latin.yaml:2: is not UTF-8 text; save the file as UTF-8",
        "large.yaml": "/large.yaml: is larger than 1,000 kB; a recipe is far smaller",
        "": ": is a folder; name one of its recipes: large.yaml, latin.yaml, mnist.yaml",
    }.items():
        with pytest.raises(RecipeError) as caught:
            read_recipe(tmp_path / name, names=NAMES)
        assert caught.value.problems == (f"{tmp_path}{say}",)


def test_a_windows_file_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "w.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read_recipe(tmp_path / "w.yaml", names=NAMES) == parse_recipe(GOOD, where="g", names=NAMES)
