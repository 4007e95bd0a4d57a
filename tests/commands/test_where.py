"""`finetune where` and `train: auto`: the answer, the recipe it writes, and everything that goes by it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter
from tiny import Impatient, adapt_recipe, files_under, phase, pretrain_recipe, refused, report_of, worked

import finetune as package
from finetune.commands.auto_stages import recipe_for, with_answer
from finetune.errors import Interrupted
from finetune.models.timm.network import TimmNetwork
from finetune.recipe.load import check_recipe, resolve_recipe
from finetune.report.stage_answer import StageAnswer, StageRow

HEAD = phase("head", "steps: 4")


def write(phases: str, data: str = "{validation: 30, shots: 9}", more: str = "") -> str:
    Path("auto.yaml").write_text(adapt_recipe(phases, data, more=more))
    return "auto.yaml"


def digits(root: Path, change=lambda x: x, relabel=lambda label: label, count: int = 150) -> str:
    """Pictures of scikit-learn's digits, changed and relabelled, as a folder whose classes are mnist's."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:count], labels, strict=False)):
        path = root / str(relabel(label)) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray((image.reshape(8, 8) * 15.9).astype(np.uint8))
        Image.fromarray(change(np.asarray(small.resize((28, 28), Image.Resampling.BICUBIC)))).save(path)
    return str(root)


def permuted(root: Path) -> str:
    return digits(root, relabel=lambda label: (label + 3) % 10)


def chosen(report) -> str:
    return " ".join(report.where.trains)


def test_it_names_what_the_task_changed(folder: Path) -> None:
    """Of the network of mnist: new labels on digits ask for the head, blur and noise for the first stages."""
    head = package.where("mnist", permuted(folder / "permuted"), write(phase(), "{}"))
    assert chosen(head) == "head" and head.where.head_rows == (10, 10)
    assert "is right in" in head.conclusion and head.where.stages[2].probe >= 0.98
    rng = np.random.default_rng(0)
    spoilt = lambda x: (gaussian_filter(x.astype(float), 2) + rng.normal(0, 40, x.shape)).clip(0, 255).astype(np.uint8)  # noqa: E731
    noisy = digits(folder / "noisy", spoilt)
    first = package.where("mnist", noisy, "auto.yaml")
    assert chosen(first).startswith("conv1 conv2") and "head" not in chosen(first), first.where
    assert [row.stage for row in first.where.stages if row.probe is None] == ["head"]
    for row in first.where.stages[:-1]:
        assert row.ci95[0] < row.probe < row.ci95[1]


def test_the_command_says_why_and_writes_a_recipe_that_adapt_takes(folder: Path, pretrained: Path, data: Path) -> None:
    before = files_under(data)
    words = ("--from", pretrained, "--target", "kmnist", "--recipe", write(HEAD + phase("all", "steps: 5")))
    done = worked("where", *words)
    for said in ("conv1", "trains: all of its rows are new", "train all stages", "classes are new", "wrote recipes/"):
        assert said in done.out, done.out
    text = Path("recipes/where-mnist-kmnist.yaml").read_text()
    assert text.startswith("# What finetune where answered for mnist on kmnist: train ") and "# head: trains: " in text
    found = worked("where", *words, "--json", "--out", "given.yaml")
    assert found.json["out"] == "given.yaml" and Path("given.yaml").read_text() == text
    trains = [row["stage"] for row in found.json["where"]["stages"] if row["trains"]]
    assert files_under(folder) == {"auto.yaml", "given.yaml", "recipes/where-mnist-kmnist.yaml"}
    assert files_under(data) == before  # nobody noted that test images were opened
    worked("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "given.yaml", "--out", "a.safetensors")
    assert report_of("a.safetensors")["phases"][-1]["trains"] == trains


def test_auto_is_the_same_training_as_the_stages_it_stands_for(folder: Path, pretrained: Path) -> None:
    words = ("adapt", "--from", pretrained, "--target", "kmnist")
    done = worked(*words, "--recipe", write(HEAD + phase("auto", "steps: 6")), "--out", "a.safetensors", "--html")
    report = report_of("a.safetensors")
    trains = [row["stage"] for row in report["where"]["stages"] if row["trains"]]
    assert report["phases"][1]["name"] == "auto" and report["phases"][1]["trains"] == trains
    assert "relative gradient" in done.out and "relative gradient" in Path("a.report.html").read_text()
    assert report["recipe"]["phases"][1]["train"] in (trains, "all", "head")
    again = dict(report["recipe"])
    Path("again.yaml").write_text(json.dumps(again))
    worked(*words, "--recipe", "again.yaml", "--out", "b.safetensors")
    assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()
    assert report_of("b.safetensors")["where"] is None
    assert package.verify("a.safetensors").holds


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bytes(folder: Path, pretrained: Path) -> None:
    recipe = write(phase("auto") + phase("auto", "steps: 3"))
    package.adapt(pretrained, "kmnist", recipe, out="whole.safetensors")
    with pytest.raises(Interrupted):
        package.adapt(pretrained, "kmnist", recipe, out="part.safetensors", console=Impatient("epoch 2/2"))
    report = package.adapt(pretrained, "kmnist", recipe, out="part.safetensors", resume=True)
    assert Path("part.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert [own.name for own in report.phases] == ["auto", "auto-2"]
    assert package.adapt(pretrained, "kmnist", recipe, out="part.safetensors", resume=True).where == report.where


@pytest.mark.slow
def test_each_seed_has_its_own_answer(folder: Path, pretrained: Path) -> None:
    recipe = write(phase("auto", "steps: 3"))
    report = package.adapt_seeds(pretrained, "kmnist", recipe, seeds=2, shots=8, out="s.safetensors")
    assert chosen(report).split() == report.phases[0].trains == report.phases_per_seed["0"][0].trains
    single = package.adapt(pretrained, "kmnist", recipe, seed=1, shots=8, out="one.safetensors")
    assert single.phases[0].trains == report.phases_per_seed["1"][0].trains
    assert package.verify("s.safetensors").holds
    assert "name the stages" in refused(
        *("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", recipe, "--seeds", 2, "--keep", "average")
    )


def test_plan_shows_the_answer(folder: Path, pretrained: Path) -> None:
    words = ("plan", "--from", pretrained, "--target", "kmnist", "--recipe", write(phase("auto", "steps: 3")))
    assert "which stages to train" in worked(*words).out
    found = worked(*words, "--json").json
    assert found["phases"][0]["trains"] == [row["stage"] for row in found["where"]["stages"] if row["trains"]]


def test_images_too_few_for_folds_go_by_gradients(folder: Path, pretrained: Path) -> None:
    words = ("--from", pretrained, "--target", "kmnist", "--shots", 1)
    done = worked("where", *words, "--recipe", write(phase(), data="{validation: 0}"))
    assert "no class has two" in done.out and "trains: " in done.out


def test_a_network_with_few_cuts_and_a_source_without_a_head(folder: Path, backbone: Path, monkeypatch) -> None:
    """Gradients of every stage, a probe where there is a boundary; weights without a head have no rows to keep."""
    weights = {name: own for name, own in load_file(backbone).items() if not name.startswith("fc.")}
    save_file(weights, "bare.safetensors")
    shutil.copytree(backbone.parents[1] / "meadow", "meadow")
    recipe = write(phase(), "{}", more="input: {size: 32}\n")
    last = len(worked("models", "timm/test_resnet", "--json").json["stages"]) - 1
    monkeypatch.setattr(TimmNetwork, "cuts", (0, last, last + 1))
    report = package.where("bare.safetensors", "meadow", recipe, model="timm/test_resnet")
    probed = [row.stage for row in report.where.stages if row.probe is not None]
    assert probed == [report.where.stages[-2].stage] and report.where.head_rows == (0, 3)
    assert all(row.gradient > 0 for row in report.where.stages)


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ("  - {train: head, solver: lbfgs}\n", "trains the head alone"),
        (phase("autp"), "did you mean 'auto'"),
        ("  - {train: auto, solver: lbfgs}\n", "write train: head"),
    ],
)
def test_recipes_that_no_answer_fits(phases: str, said: str, folder: Path, pretrained: Path) -> None:
    assert said in refused("where", "--from", pretrained, "--target", "kmnist", "--recipe", write(phases))


def test_a_pretraining_has_nothing_to_go_by(folder: Path) -> None:
    Path("pre.yaml").write_text(pretrain_recipe(phase("auto")))
    assert "starts from random ones: write all" in refused("pretrain", "--recipe", "pre.yaml")


def test_one_class_is_refused(folder: Path, pretrained: Path) -> None:
    for number in range(4):
        Path("one/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28), number, np.uint8)).save(f"one/a/{number}.png")
    said = refused("where", "--from", pretrained, "--target", "one", "--recipe", write(phase()))
    assert "one class only" in said


STAGES = ("conv1", "conv2", "fc1", "head")


def answer(*trains: str):
    rows = [StageRow(s, None, None, 1.0, 10, s in trains, "because") for s in STAGES]
    return StageAnswer(rows, 10, (0, 10))


SOLVED = {"train": "head", "solver": "lbfgs"}
SHORT = {"train": "head", "steps": 2, "optimizer": {"name": "sgd", "lr": 0.1}}
LONG = {"train": "all", "steps": 9, "optimizer": {"name": "sgd", "lr": 0.01}}
VIEWS = {**LONG, "train": {"last": 2}, "views": 3}


@pytest.mark.parametrize(
    ("phases", "trains", "wanted"),
    [
        ([SHORT, LONG], ("conv2", "head"), [("head", "head", 2), ("conv2+head", ["conv2", "head"], 9)]),
        ([SHORT, LONG], ("conv1",), [("conv1", ["conv1"], 9)]),  # a head that stays as it is has no phase of its own
        ([SHORT, LONG], ("head",), [("head", "head", 2), ("head-2", "head", 9)]),
        ([LONG], ("head",), [("head", "head", 9)]),
        ([SOLVED, LONG, VIEWS], ("head",), [("head", "head", None)]),  # nothing is left to do
        ([SOLVED, VIEWS], STAGES, [("head", "head", None), ("all", "all", 9)]),
        ([VIEWS, LONG], STAGES, [("last-2", {"last": 2}, 9), ("all", "all", 9)]),  # it trains them all as it is
        ([{**LONG, "name": "mine"}], ("fc1",), [("mine", ["fc1"], 9)]),
    ],
)
def test_the_recipe_that_is_written(phases, trains, wanted) -> None:
    data = {"name": "kmnist", "augment": "digits"}
    recipe = check_recipe({"kind": "adapt", "data": data, "phases": phases})
    found = recipe_for(recipe, answer(*trains))
    written = resolve_recipe(found)
    assert [(own["name"], own["train"], own.get("steps")) for own in written["phases"]] == wanted
    assert check_recipe(written) == found  # a file of it is taken
    assert found.scratch.optimizer == recipe.phases[-1].optimizer  # the comparison is trained as before


@pytest.mark.parametrize("trains", [("head",), ("conv1", "fc1"), STAGES])
def test_a_resolved_recipe_keeps_the_rules(trains) -> None:
    phases = [{**VIEWS, "train": "auto"}, {**LONG, "train": "auto", "lora": {"rank": 2}}]
    recipe = check_recipe({"kind": "adapt", "data": {"name": "kmnist", "augment": "digits"}, "phases": phases})
    found = with_answer(recipe, answer(*trains))
    assert check_recipe(resolve_recipe(found)) == found
    assert {own.trained_stages(STAGES) for own in found.phases} == {trains}
    assert (found.phases[1].lora is None) == (trains == ("head",))  # no adapter beside a head
    assert (found.phases[0].views is None) == (trains == STAGES)  # nothing frozen to keep views of
