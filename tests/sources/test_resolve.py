"""What `--from` takes besides a checkpoint: bare files of weights with --model, and timm's through a loopback Hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import timm_hub
import torch
from album import scenes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from tiny import SUPPORT, Done, adapt_recipe, pretrain_recipe, refused, report_of, worked

import finetune as toolkit
from finetune.sources.resolve import open_source
from finetune.train.device import seeded

SOLVED = "  - {train: head, solver: lbfgs}\n"
SMALL = "input: {size: 32}\n"
NEW = "new.safetensors"
RESNET = ("--model", "timm/test_resnet")


def metadata_of(path: Path | str) -> Any:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["finetune"])


def stock(name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    with seeded(0):
        state: dict[str, torch.Tensor] = timm.create_model(name, **arguments).state_dict()
    return state


def typed(source: Path | str, target: Path | str, *words: object, recipe: str = "") -> tuple[object, ...]:
    Path("recipe.yaml").write_text(recipe or adapt_recipe(SOLVED, more=SMALL))
    return ("adapt", "--from", source, "--recipe", "recipe.yaml", "--target", target, "--out", NEW, *words)


def adapted(source: Path | str, target: Path | str, *words: object, recipe: str = "") -> Any:
    worked(*typed(source, target, *words, recipe=recipe), "--quiet")
    return report_of(NEW)


@pytest.fixture
def body(folder: Path, backbone: Path) -> Path:
    """The weights of the backbone alone, without classifier and without metadata."""
    save_file({name: t for name, t in load_file(backbone).items() if not name.startswith("fc.")}, "body.safetensors")
    return Path("body.safetensors")


# Bare files


@pytest.mark.slow
def test_a_body_is_as_good_a_source_as_its_checkpoint(body: Path, backbone: Path, orchard: Path) -> None:
    adapted(backbone, orchard)
    reference = report_of(NEW)
    shutil.move(NEW, "reference.safetensors")
    report = adapted(body, orchard, *RESNET)
    digest = hashlib.sha256(body.read_bytes()).hexdigest()
    assert report["source"] == {
        "path": "body.safetensors",
        "sha256": digest,
        "model": "timm/test_resnet",
        "dataset": None,
        "accuracy": None,
    }
    assert metadata_of(NEW)["lineage"] == [{"id": "body.safetensors", "sha256": digest, "task": None}]
    assert report["results"] == reference["results"] and report["retention"] is None
    assert report["results"]["before"]["method"] == "nearest class mean"
    assert report["transplant"]["fresh"] == ["fc.weight", "fc.bias"]
    one, other = load_file(NEW), load_file("reference.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert toolkit.load(NEW).class_names == ("apple", "pear", "plum")
    for head in ("random", "class_means"):
        adapted(body, orchard, *RESNET, "--set", f"head={head}")


def test_a_body_has_no_head_and_may_become_grey(body: Path) -> None:
    classifier = open_source(body, "timm/test_resnet").classifier
    assert classifier.class_names == () and classifier.network.head.out_features == 0
    assert adapted(body, "mnist", *RESNET)["results"]["after"]["total"] == 100
    old, new = load_file(body)["conv1.0.weight"], load_file(NEW)["conv1.0.weight"]
    torch.testing.assert_close(new, old.sum(1, keepdim=True))


def test_a_classifier_in_the_file_is_kept_as_classes_by_number(folder: Path, backbone: Path) -> None:
    save_file(load_file(backbone), "whole.safetensors")
    names = {"2": "fly", "1": "bee", "0": "ant"}
    for number, name in names.items():
        scenes(Path("drawn"), train={name: 4}, test={name: 6})
        for part in ("train", "test"):
            Path("drawn", part, name).rename(Path("drawn", part, number))
    still = "  - {train: head, steps: 1, batch_size: 12, optimizer: {name: sgd, lr: 1e-30}}\n"
    report = adapted("whole.safetensors", "drawn", *RESNET, recipe=adapt_recipe(still, more=SMALL))
    assert report["transplant"]["head_rows_reused"] == {"0": "0", "1": "1", "2": "2"}
    assert report["results"]["before"]["method"] == "source head"
    assert report["results"]["after"]["accuracy"] > 0.8, "the head knows ants, bees and flies"
    assert torch.equal(load_file(NEW)["fc.weight"], load_file(backbone)["fc.weight"])


def test_the_articles_cnn_without_metadata(folder: Path, pretrained: Path) -> None:
    save_file(load_file(pretrained), "bare.safetensors")
    report = adapted("bare.safetensors", "mnist", "--model", "cnn", recipe=adapt_recipe(SOLVED))
    assert report["results"]["before"]["method"] == "source head"
    assert report["results"]["before"]["correct"] == report_of(pretrained)["results"]["test"]["correct"]
    assert report["source"]["model"] == metadata_of(NEW)["model"] == "cnn"


def test_the_model_may_stand_in_the_recipe(body: Path, orchard: Path) -> None:
    recipe = adapt_recipe(SOLVED, more=SMALL + "model: timm/test_resnet\n")
    report = adapted(body, orchard, recipe=recipe)
    assert report["recipe"]["model"] == "timm/test_resnet"
    wrong = recipe.replace("test_resnet", "test_vit")
    adapted(body, orchard, *RESNET, recipe=wrong)
    assert report_of(NEW)["results"] == report["results"], "--model goes before the recipe"
    Path("recipe.yaml").write_text(recipe)
    words = ("--recipe", "recipe.yaml", "--from", body, "--target", orchard)
    assert worked("plan", *words, "--json").json["model"] == "timm/test_resnet"


@pytest.mark.slow
def test_arguments_of_the_model_build_another_network(folder: Path, orchard: Path) -> None:
    """Padding as TensorFlow pads has no tensors of its own: the file fits both ways, the numbers differ."""
    state = stock("test_efficientnet")
    save_file({name: t for name, t in state.items() if not name.startswith("classifier.")}, "body.safetensors")
    model = ("--model", "timm/test_efficientnet")
    adapted("body.safetensors", orchard, *model)
    plain = toolkit.load(NEW)
    report = adapted(
        "body.safetensors", orchard, *model, "--set", "model.pad_type=same", "--set", "model.drop_rate=0.1"
    )
    arguments = {"pad_type": "same", "drop_rate": 0.1}
    assert metadata_of(NEW)["arguments"] == arguments
    assert report["recipe"]["model"] == {"name": "timm/test_efficientnet", **arguments}
    same = toolkit.load(NEW)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = timm.create_model("test_efficientnet", num_classes=3, pad_type="same").eval()
        reference.load_state_dict(load_file(NEW))
        assert torch.equal(same(x), reference(x))
        assert not torch.allclose(same.network.features(x), plain.network.features(x))


@pytest.mark.slow
def test_the_files_own_words_on_its_input(folder: Path, orchard: Path, backbone: Path) -> None:
    tensors = load_file(backbone)
    own = metadata_of(backbone)["input"]
    recipe = adapt_recipe(SOLVED)
    for texts, wanted in (
        ({"mean": "0.5", "std": "0.25", "input": "40"}, {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 40}),
        ({"mean": "[0.4, 0.5, 0.6]", "input": "40"}, {"mean": [0.4, 0.5, 0.6], "std": own["std"], "size": 40}),
        ({"mean": "grey", "std": "0", "input": "-3", "license": "cc"}, {"mean": own["mean"], "std": own["std"]}),
    ):
        save_file(tensors, "told.safetensors", metadata=texts)
        adapted("told.safetensors", orchard, *RESNET, recipe=recipe)
        found = metadata_of(NEW)["input"]
        assert {key: found[key] for key in wanted} == wanted
    save_file(tensors, "told.safetensors", metadata={"mean": "0.5", "input": "40"})
    adapted("told.safetensors", orchard, *RESNET, recipe=adapt_recipe(SOLVED, more="input: {size: 32, mean: [0.3]}\n"))
    found = metadata_of(NEW)["input"]
    assert found["size"] == 32 and found["mean"] == [0.3] * 3, "the recipe goes before the file"


@pytest.mark.slow
def test_a_size_in_the_file_that_its_model_does_not_take(folder: Path, orchard: Path) -> None:
    for said, size in (("50", 160), ("0", 160), ("9999", 160), ("48", 48)):
        save_file(stock("test_vit"), "vit.safetensors", metadata={"input": said})
        assert open_source("vit.safetensors", "timm/test_vit").classifier.input.size == size
    adapted("vit.safetensors", orchard, "--model", "timm/test_vit", recipe=adapt_recipe(SOLVED))
    assert metadata_of(NEW)["input"]["size"] == 48


@pytest.mark.slow
def test_timms_own_conversions_fit_a_bare_file_too(folder: Path, orchard: Path) -> None:
    """The cure that a refused size names: position embeddings are resampled, and channels adapted, as timm does."""
    state = {name: t for name, t in stock("test_vit").items() if not name.startswith("head.")}
    save_file(state, "vit.safetensors")
    model = ("--model", "timm/test_vit", "--set", "model.dynamic_img_size=false")
    message = refused(*typed("vit.safetensors", orchard, *model, "--set", "input.size=48"))
    assert message.endswith("; --set model.img_size=48 builds it for that size\n")
    adapted("vit.safetensors", orchard, *model, "--set", "model.img_size=48", recipe=adapt_recipe(SOLVED))
    new = load_file(NEW)
    assert new["pos_embed"].shape[1] == 10 and state["pos_embed"].shape[1] == 101
    assert torch.equal(new["blocks.3.mlp.fc1.weight"], state["blocks.3.mlp.fc1.weight"])
    save_file(stock("test_resnet"), "resnet.safetensors")
    adapted("resnet.safetensors", orchard, *RESNET, "--set", "model.in_chans=1")
    old, grey = load_file("resnet.safetensors")["conv1.0.weight"], load_file(NEW)["conv1.0.weight"]
    torch.testing.assert_close(grey, old.sum(1, keepdim=True))
    assert metadata_of(NEW)["input"]["channels"] == 1


def test_weights_of_another_backbone_are_listed_on_both_sides(folder: Path, orchard: Path) -> None:
    save_file(stock("test_vit"), "vit.safetensors")
    for more in ((), ("--set", "model.in_chans=1")):
        message = refused(*typed("vit.safetensors", orchard, *RESNET, *more))
        first, *rows = message.strip().splitlines()
        assert first == "vit.safetensors: the tensors do not fit the model, which has 92; the file has 82"
        assert 10 < len(rows) <= 20 and rows[-1].strip().startswith("and ") and rows[-1].endswith(" more")
        assert any("the model has no such tensor, the file has float32 " in row for row in rows)
        assert any("the file has no such tensor" in row and "the model has float32 " in row for row in rows)
        assert not Path("runs").exists() and not Path(NEW).exists()
    save_file({**stock("test_resnet"), "fc.weight": torch.zeros(5, 7)}, "odd.safetensors")
    message = refused(*typed("odd.safetensors", orchard, *RESNET))
    assert "fc.weight: the model has float32 5×96, the file has float32 5×7" in message
    assert "fc.bias: the model has float32 5, the file has float32 1000" in message


def test_a_bare_file_needs_its_model(body: Path, orchard: Path) -> None:
    message = refused(*typed(body, orchard))
    assert message.startswith("body.safetensors: a safetensors file without finetune's metadata")
    assert "--model timm/resnet18" in message
    assert "without finetune's metadata" in refused("predict", body, "x.png")
    assert "without finetune's metadata" in refused("evaluate", body, "--data", orchard)


def test_a_checkpoint_says_its_own_model(folder: Path, backbone: Path, orchard: Path) -> None:
    for words in (RESNET, ("--set", "model.drop_rate=0.5"), ("--model", "timm/test_vit")):
        message = refused(*typed(backbone, orchard, *words))
        assert message.startswith(f"{backbone}: it says its own model, timm/test_resnet; leave --model")


# Names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "timm/test_resnt"), "unknown model 'timm/test_resnt'; did you mean 'timm/test_resnet'"),
        (("--model", "timm/test_resnet.r161_in1k"), "unknown tag 'r161_in1k'; did you mean 'r160_in1k'?"),
        (("--model", "test_resnet"), "timm/NAME"),
        (("--model", "timm/hf-hub:evil/model"), "without paths"),
        (("--model", "timm/local-dir:/tmp"), "without paths"),
        ((*RESNET, "--set", "model.drop_rte=0.1"), "unknown argument 'drop_rte'; did you mean 'drop_rate'"),
        ((*RESNET, "--set", "model.checkpoint_path=/etc/passwd"), "'checkpoint_path' cannot be set"),
        ((*RESNET, "--set", "model.pretrained=true"), "'pretrained' cannot be set"),
        ((*RESNET, "--set", "model.cache_dir=/tmp"), "'cache_dir' cannot be set: a recipe may not name files"),
        ((*RESNET, "--set", "model.num_classes=3"), "'num_classes' cannot be set"),
        ((*RESNET, "--set", "model.pretrained_cfg={file: /etc/passwd}"), "model.pretrained_cfg"),
        ((*RESNET, "--set", "model.in_chans=2"), "expected 1 or 3, found 2"),
        (("--model", "cnn", "--set", "model.dropout=0.5"), "unknown argument"),
        ((*RESNET, "--set", "phases[0].train=[layer9]"), "unknown stage"),
    ],
)
def test_wrong_names_are_answered_with_the_near_ones(
    words: tuple[str, ...], says: str, body: Path, orchard: Path
) -> None:
    message = refused(*typed(body, orchard, *words))
    assert says in message, message
    assert not Path("runs").exists()


def test_the_same_for_the_recipe_of_a_pretraining(folder: Path, orchard: Path) -> None:
    for change, says in (
        ("model.checkpoint_path=/etc/passwd", "'checkpoint_path' cannot be set"),
        ("model.drop_rte=0.1", "did you mean 'drop_rate'"),
    ):
        recipe = pretrain_recipe(data=f"{{name: {orchard}}}").replace("model: cnn", "model: timm/test_resnet")
        Path("recipe.yaml").write_text(recipe)
        assert says in refused("pretrain", "--recipe", "recipe.yaml", "--set", change)


@pytest.mark.parametrize(
    ("source", "words", "says"),
    [
        ("timm:test_resnt", (), "unknown model 'timm/test_resnt'; did you mean 'timm/test_resnet'"),
        ("timm:test_resnet.r161_in1k", (), "unknown tag 'r161_in1k'; did you mean 'r160_in1k'?"),
        ("timm:../../etc/passwd", (), "without paths"),
        ("timm:", (), "expected timm/NAME"),
        ("timm:gcvit_base", (), "no weights on the Hub"),
        (
            "timm:test_resnet",
            ("--model", "timm/resnet18"),
            "timm:test_resnet: is a timm/test_resnet, and --model says ",
        ),
        ("timm:test_resnet", ("--set", "model.drop_rte=1"), "unknown argument 'drop_rte'; did you mean 'drop_rate'"),
        ("timm:test_resnet", ("--set", "model.checkpoint_path=x"), "'checkpoint_path' cannot be set"),
    ],
)
def test_a_source_of_timms_that_is_not_there(
    source: str, words: tuple[str, ...], says: str, folder: Path, orchard: Path
) -> None:
    message = refused(*typed(source, orchard, *words))
    assert says in message and not Path("runs").exists(), message


# timm's weights through the Hub

RUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tiny import finetune
for line in sys.stdin:
    asked = json.loads(line)
    if asked["offline"]:
        from huggingface_hub import constants
        constants.HF_HUB_OFFLINE = True  # what the variable of this name would have set
    done = finetune(*asked["words"])
    print(json.dumps([done.code, done.out, done.err]), flush=True)
"""
TAGGED = "timm:test_resnet.r160_in1k"


class Commands:
    """The command line in a process of its own, in a folder with a recipe: it asks a loopback Hub, until `offline`."""

    def __init__(self, work: Path) -> None:
        self.work, self.offline = work, False
        (work / "recipe.yaml").write_text(adapt_recipe(SOLVED, more=SMALL))

    def __call__(self, *words: object) -> Done:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(json.dumps({"words": [str(word) for word in words], "offline": self.offline}) + "\n")
        self.child.stdin.flush()
        return Done(*json.loads(self.child.stdout.readline()))

    @contextlib.contextmanager
    def running(self) -> Iterator[Commands]:
        tests = SUPPORT
        with timm_hub.served(to_bytes(stock("test_resnet"))) as self.servers:
            settings = timm_hub.settings(self.servers, self.work / "hub")
            self.child = subprocess.Popen(
                [sys.executable, "-c", RUN, str(tests)],
                env={**os.environ, **settings, "PYTHONPATH": str(tests.parent)},
                cwd=self.work,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            yield self
            self.child.communicate()

    def hide_cache(self) -> None:
        shutil.rmtree(self.work / "hub")

    def serve(self, tensors: dict[str, torch.Tensor]) -> None:
        for server in self.servers:
            server.content = to_bytes(tensors)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with Commands(tmp_path_factory.mktemp("timm")).running() as found:
        yield found


@pytest.mark.slow
def test_timms_weights_in_grey_and_with_arguments(commands: Commands, data: Path) -> None:
    words = ("--recipe", "recipe.yaml", "--target", "mnist", "--data-root", data, "--out", "grey.safetensors")
    done = commands("adapt", "--from", TAGGED, *words, "--set", "model.drop_rate=0.2")
    assert done.code == 0, done.err
    metadata = metadata_of(commands.work / "grey.safetensors")
    assert metadata["arguments"] == {"drop_rate": 0.2, "in_chans": 1} and metadata["input"]["channels"] == 1
    assert "head: rows kept" not in done.err
    asked = len(commands.servers[0].asked)
    checks = {check["check"]: check for check in commands("verify", "grey.safetensors", "--json").json["checks"]}
    assert checks["parent 1"]["state"] == checks["frozen"]["state"] == "ok", checks
    assert len(checks["frozen"]["details"]) == len(stock("test_resnet")) - 2, "the first convolution in grey too"
    assert len(commands.servers[0].asked) == asked, "from the cache, without asking"
    commands.serve({name: t + 1 for name, t in stock("test_resnet").items()})
    commands.hide_cache()
    words = ("verify", "grey.safetensors", "--json")
    checks = {check["check"]: check["says"] for check in commands(*words).json["checks"]}
    assert checks["parent 1"].endswith("nor has the Hub's cache; --fetch asks the Hub")
    assert len(commands.servers[0].asked) == asked
    checks = {check["check"]: check["says"] for check in commands(*words, "--fetch").json["checks"]}
    assert checks["parent 1"].endswith("is not at hand: in the Hub's cache it has another sha256"), checks
    assert len(commands.servers[0].asked) > asked
    commands.serve(stock("test_resnet"))
    commands.hide_cache()
    assert commands(*words, "--fetch").json["checks"][-3]["state"] == "ok"


@pytest.mark.slow
def test_weights_of_timms_without_a_head(commands: Commands, orchard: Path) -> None:
    commands.serve({name: t for name, t in stock("test_vit").items() if not name.startswith("head.")})
    for words in (("predict", "timm:test_vit", orchard), ("evaluate", "timm:test_vit", "--data", orchard)):
        done = commands(*words)
        assert done.code == 2 and done.err.startswith("finetune: timm:test_vit: these weights have no head"), done.err
    words = ("--target", orchard, "--recipe", "recipe.yaml", "--json", "--out", "headless.safetensors")
    done = commands("adapt", "--from", "timm:test_vit", *words)
    assert done.code == 0 and done.json["results"]["before"]["method"] == "nearest class mean", done.err


@pytest.mark.slow
def test_timms_classes_have_their_words(commands: Commands, orchard: Path) -> None:
    commands.serve(stock("test_convnext"))
    done = commands("predict", "timm:test_convnext", orchard / "test/pear/1.png", "--top", 2, "--json")
    assert done.code == 0, done.err
    (sight,) = done.json
    assert len(sight["top"]) == 2 and not sight["label"].isdecimal()


@pytest.mark.slow
def test_timms_weights_are_adapted_and_kept_in_the_cache(commands: Commands, orchard: Path) -> None:
    """The last of these, since nothing is online after it."""
    commands.serve(stock("test_resnet"))
    words = ("adapt", "--from", TAGGED, "--target", orchard, "--recipe", "recipe.yaml", "--json", "--quiet")
    done = commands(*words)
    assert done.code == 0, done.err
    report, digest = done.json, hashlib.sha256(commands.servers[0].content).hexdigest()
    assert report["source"] == {
        "id": TAGGED,
        "sha256": digest,
        "model": "timm/test_resnet.r160_in1k",
        "dataset": None,
        "accuracy": None,
    }
    assert report["results"]["before"]["method"] == "nearest class mean"
    out = commands.work / "checkpoints/test_resnet.r160_in1k-orchard.safetensors"
    metadata = metadata_of(out)
    assert metadata["lineage"] == [{"id": TAGGED, "sha256": digest, "task": None}]
    assert metadata["model"] == "timm/test_resnet.r160_in1k" and report == report_of(out)
    source, new = stock("test_resnet"), load_file(out)
    assert all(torch.equal(new[name], source[name]) for name in source if not name.startswith("fc."))
    assert toolkit.load(out).class_names == ("apple", "pear", "plum")
    asked, commands.offline = len(commands.servers[0].asked), True
    again = commands(*words, "--out", "again.safetensors")
    assert again.code == 0, again.err
    assert (commands.work / "again.safetensors").read_bytes() == out.read_bytes()
    missing = commands("adapt", "--from", "timm:test_vit2", *words[3:])
    assert missing.code == 1 and "HF_HUB_OFFLINE" in missing.err and "Traceback" not in missing.err
    assert commands("plan", *words[1:8]).json["model"] == "timm/test_resnet.r160_in1k"
    assert len(commands.servers[0].asked) == asked, "from the cache alone"
