"""timm and the Hub, both ways: other people's repositories become ours, and what we push loads in stock timm."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from album import put
from hub_home import Loopback, loopback
from hub_rules import card_data, card_faults
from safetensors.torch import load, save
from selection import selected
from tiny import ROOT, SUPPORT, Done, adapt_recipe, finetune, phase, worked

from finetune.checkpoint.format import read_metadata

TRANSFORMERS = importlib.util.find_spec("transformers") is not None
CLASSES = ["ash", "oak", "yew"]
# Architecture, arguments, and the name under which each has its head.
MODELS = {
    "grey": ("test_resnet", {"in_chans": 1}, "fc"),
    "vit": ("test_vit", {"img_size": 64}, "head"),
    "mobile": ("mobilenetv3_small_050", {}, "classifier"),
    "convnext": ("test_convnext", {}, "head.fc"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("hub-timm")) as found:
        yield found


def exported(kind: str, seed: int = 0, classes: int = 3, **config: Any) -> tuple[Any, dict[str, bytes]]:
    """A network as timm itself would export it, with random weights, and the files of its repository."""
    import tempfile

    import timm
    from timm.models import save_for_hf

    torch.manual_seed(seed)
    architecture, arguments, _ = MODELS[kind]
    model = timm.create_model(architecture, num_classes=classes, **arguments).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, folder, safe_serialization=True, model_config={"label_names": CLASSES[:classes], **config})
        return model, {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def changed(files: dict[str, bytes], **config: Any) -> dict[str, bytes]:
    """The same with another config.json; None takes a key out, and `pretrained_cfg` is changed by key."""
    values = json.loads(files["config.json"])
    settings = config.pop("pretrained_cfg", None)
    if settings is not None:
        values["pretrained_cfg"] = values["pretrained_cfg"] | settings
    values = {key: value for key, value in (values | config).items() if value is not None}
    return {**files, "config.json": json.dumps(values).encode()}


def in_one_process(hub: Loopback, call: str, *given: Any, cwd: Path) -> Any:
    """What a function of this file gives, called in a new process that is pointed at the loopback Hub."""
    code = f"import json, sys, test_timm_repositories as t\nprint(json.dumps(t.{call}(*json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)],
        env=hub.environment(hub.new_home(), PYTHONPATH=f"{ROOT}:{SUPPORT}:{Path(__file__).parent}"),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def commands(lines: list[list[str]]) -> list[list[Any]]:
    """Runs commands one after the other; code, output and errors of each."""
    return [[done.code, done.out, done.err] for done in (finetune(*words) for words in lines)]


def run_all(hub: Loopback, cwd: Path, *lines: list[object]) -> list[Done]:
    return [Done(*done) for done in in_one_process(hub, "commands", [[str(w) for w in w] for w in lines], cwd=cwd)]


# there and back


def round_trips(kinds: list[str]) -> dict[str, Any]:
    """Adapts repositories of others, pushes the results, and looks at them as the world would."""
    found = {}
    for kind in kinds:
        Path("work", kind).mkdir(parents=True)
        with contextlib.chdir(Path("work", kind)):
            found[kind] = round_trip(kind, f"../../{album_of(kind)}", "../../small.yaml")
    return found


def album_of(kind: str) -> str:
    """A network of grey pictures gets grey ones, and so does one of colour, which is changed for them."""
    return "grey" if kind in ("grey", "convnext") else "colour"


def round_trip(kind: str, data: str, recipe: str) -> dict[str, Any]:
    """The first adapt is from the repository, the second from its result; the card's own words load what was pushed."""
    repo, ours = f"them/{kind}", f"ada/{kind}"
    image = f"{data}/test/elm/0.png"
    worked("adapt", "--from", f"hub:{repo}", "--target", data, "--recipe", recipe, "--out", "a.safetensors")
    if kind == "grey":  # a chain of two
        worked("adapt", "--from", "a.safetensors", "--target", data, "--recipe", recipe, "--out", "b.safetensors")
    else:
        shutil.copy("a.safetensors", "b.safetensors")
    worked("push", "b.safetensors", ours, "--license", "mit")
    found = {"world": as_the_world_sees_it(ours, "b.safetensors", image)}
    shutil.copy(image, "image.png")
    found["said"] = by_the_card(ours, data, recipe)
    return found


@torch.no_grad()
def as_the_world_sees_it(repo: str, checkpoint: str, image: str) -> dict[str, Any]:
    """Stock timm and transformers against our own classifier: logits, labels, and how a picture becomes the input."""
    import timm
    from PIL import Image

    import finetune as toolkit

    classifier = toolkit.load(checkpoint)
    spec = classifier.input
    torch.manual_seed(0)
    images = torch.rand(2, spec.channels, spec.size, spec.size)
    wanted = classifier.network(images)
    model = timm.create_model(f"hf_hub:{repo}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**settings)
    seen = transform(Image.open(image).convert("L" if spec.channels == 1 else "RGB"))
    found = {
        "timm": float((model(images) - wanted).abs().max()),
        "labels": [list(model.pretrained_cfg["label_names"])],
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        "input": spec.as_dict(),
        "picture": float((seen - classifier.preprocess(image)).abs().max()),
    }
    if TRANSFORMERS:
        from transformers import AutoModelForImageClassification

        theirs = AutoModelForImageClassification.from_pretrained(repo).eval()
        found["transformers"] = float((theirs(pixel_values=images).logits - wanted).abs().max())
        found["labels"] += [list(theirs.config.id2label.values())]
    return found


def by_the_card(repo: str, data: str, recipe: str) -> list[str]:
    """What each of the card's ways to load says of image.png: its commands and its Python, as written."""
    from huggingface_hub import hf_hub_download

    card = Path(hf_hub_download(repo, "README.md")).read_text()
    said = []
    for language, text in re.findall(r"```(\w*)\n(.*?)```", card, re.DOTALL):
        if language == "bibtex":
            continue
        if language == "python":
            if "transformers" in text and not TRANSFORMERS:
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                made: dict[str, Any] = {}
                exec(compile(text, "card", "exec"), made)
            if "features" in made:
                config = json.loads(Path(hf_hub_download(repo, "config.json")).read_text())
                assert made["features"].shape == (1, config["num_features"])
            said.append(out.getvalue().strip())
        else:
            assert text.startswith("pip install finetune-images\n")
            for line in text.splitlines()[1:] if repo.endswith("grey") else re.findall("finetune predict.*", text):
                words = shlex.split(line.replace("DATA", data))
                assert words.pop(0) == "finetune"
                more = ["--recipe", recipe] if words[0] == "adapt" else []
                done = worked(*words, *more)
                if words[0] == "predict":
                    said.append(done.out.split("\t")[1].split(" ")[0])
    return said


@pytest.fixture(scope="module")
def worlds(hub, tmp_path_factory, request):
    """Each model's round trip, in one process for its imports' sake; the folder, and the commits it began from."""
    folder = tmp_path_factory.mktemp("worlds")
    for name, channels in (("grey", 1), ("colour", 3)):
        for part, count in (("train", 4), ("test", 2)):
            for label in ("oak", "ash", "elm"):
                for index in range(count):
                    drawn = f"{part} {label} {index}"
                    put(folder / name / part / label / f"{index}.png", drawn, side=80, channels=channels)
    (folder / "small.yaml").write_text(adapt_recipe(phase(length="epochs: 1", batch=4), data="{}"))
    kinds = selected(request, MODELS)
    commits = {kind: hub.add(f"them/{kind}", exported(kind)[1]) for kind in kinds}
    return in_one_process(hub, "round_trips", kinds, cwd=folder), folder, commits


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["grey", "vit", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mobile", "convnext"))]
)
def test_what_we_push_is_the_same_model_to_stock_timm_and_transformers(hub: Loopback, worlds, kind):
    found, folder, commits = worlds[0][kind], worlds[1], worlds[2]
    world = found["world"]
    assert world["timm"] < 1e-5 and world.get("transformers", 0) < 1e-5
    assert all(labels == ["ash", "elm", "oak"] for labels in world["labels"])
    spec, settings = world["input"], world["settings"]
    assert settings["input_size"] == [1 if album_of(kind) == "grey" else 3, spec["size"], spec["size"]]
    assert (settings["mean"], settings["std"]) == (spec["mean"], spec["std"])
    assert (settings["interpolation"], settings["crop_pct"]) == (spec["interpolation"], spec["crop"])
    assert settings["crop_mode"] == {"shorter_side": "center", "squash": "squash"}[spec["resize"]]
    assert world["picture"] < 1e-5
    assert len(found["said"]) == 4 - (not TRANSFORMERS) and len(set(found["said"])) == 1, found["said"]
    assert found["said"][0] in ("ash", "elm", "oak")

    uploaded, head = hub.files(f"ada/{kind}"), f"{MODELS[kind][2]}.weight"
    config, card = json.loads(uploaded["config.json"]), uploaded["README.md"].decode()
    assert config["num_features"] == load(uploaded["model.safetensors"])[head].shape[1]
    data, base = card_data(card), {"base_model": f"them/{kind}", "base_model_relation": "finetune"}
    assert card_faults(card) == ([], []) and "datasets" not in data, "a folder is no data set of the Hub"
    assert base.items() <= data.items() and data["library_name"] == "timm"
    assert data["model-index"][0]["results"][0]["dataset"]["type"] == "imagefolder"
    lineage = read_metadata(folder / "work" / kind / "b.safetensors").lineage
    chain = ["a.safetensors"] if kind == "grey" else []
    assert [parent["id"] for parent in lineage] == [*chain, f"hub:them/{kind}@{commits[kind]}"]
    assert str(folder) not in card


# other people's repositories


# The classes of repositories that hold; None where ImageNet's words are expected.
NAMED = {
    "half": CLASSES,
    "twice": ["ash (0)", "oak", "ash (2)"],
    "nameless": ["0", "1", "2"],
    "offset": CLASSES,
    "own-thousand": [str(n) for n in range(1000)],
    "thousand": None,
}


# What is said of repositories that do not.
REFUSED = {
    "misfit": ["num_classes 5", "3 rows"],
    "names": ["1 label_names for num_classes 3"],
    "unknown": ["unknown model 'timm/test_convnex'", "did you mean 'timm/test_convnext"],
    "unfit": ["stem.0.bias: the model has float32 24, the file has no", "root.0.bias: the model has no such tensor"],
    "refused": ["checkpoint_path"],
    "oblong": ["input_size is [3, 160, 80]"],
    "strange": ["pretrained_cfg"],
    "family": ["cannot be fine-tuned here"],
}


def adapt(*words: str) -> list[str]:
    return ["adapt", *words, "--target", "trees", "--recipe", "small.yaml", "--quiet"]


@pytest.fixture(scope="module")
def others(hub, tmp_path_factory):
    """A folder with pictures, and what commands say of repositories of every kind: by name, a list of results."""
    folder = tmp_path_factory.mktemp("others")
    for label in CLASSES:
        for index in range(3):
            put(folder / "trees" / "test" / label / f"{index}.png", f"{label} {index}", side=170)
            put(folder / "trees" / "train" / label / f"{index}.png", f"{label} {index} t", side=170)
    (folder / "small.yaml").write_text(adapt_recipe(phase(length="epochs: 1", batch=4), data="{}"))
    model, plain = exported("convnext")
    tensors = load(plain["model.safetensors"])
    head = {name: t for name, t in tensors.items() if name.startswith("head.fc.")}
    offset = {name: torch.cat([torch.full_like(t[:1], 99.0), t]) for name, t in head.items()}
    _, thousand = exported("convnext", classes=1000)
    thousand = changed(thousand, label_names=None)
    old = {name.replace("stem.", "root."): t for name, t in tensors.items()}
    repositories = {
        "plain": plain,
        "half": {**plain, "model.safetensors": save({k: t.half() for k, t in tensors.items()})},
        "twice": changed(plain, label_names=["ash", "oak", "ash"]),
        "nameless": changed(plain, label_names=None, model_args=None),
        "thousand": thousand,
        "own-thousand": changed(thousand, pretrained_cfg={"tag": "mine"}),
        "headless": changed(
            {**plain, "model.safetensors": save({k: t for k, t in tensors.items() if k not in head})},
            num_classes=0,
            label_names=None,
            model_args=None,
        ),
        "offset": changed(
            {**plain, "model.safetensors": save({**tensors, **offset})}, pretrained_cfg={"label_offset": 1}
        ),
        "bare": {"model.safetensors": plain["model.safetensors"]},
        "misfit": changed(plain, num_classes=5, label_names=None),
        "names": changed(plain, label_names=["ash"]),
        "unknown": changed(plain, architecture="test_convnex"),
        "unfit": {**plain, "model.safetensors": save(old)},
        "refused": changed(plain, model_args={"checkpoint_path": "/etc/hostname"}),
        "oblong": changed(plain, pretrained_cfg={"input_size": [3, 160, 80]}),
        "strange": changed(plain, pretrained_cfg={"mean": "grey"}),
        "family": changed(plain, architecture="poolformer_s12"),
    }
    for name, files in repositories.items():
        hub.add(f"other/{name}", files)
    names = [name for name in repositories if name != "plain"]
    picture = "trees/test/ash/0.png"
    lines = {
        "plain": [
            ["inspect", "hub:other/plain", "--json"],
            ["inspect", "hub:other/plain"],
            ["pull", "other/plain", "--json", "--out", "p.safetensors"],
            ["pull", "other/plain", "--out", "p.safetensors"],
            ["evaluate", "hub:other/plain", "--data", "trees", "--json"],
            ["evaluate", "p.safetensors", "--data", "trees", "--json"],
            ["predict", "hub:other/plain", "trees/test", "--json"],
            ["plan", *adapt("--from", "hub:other/plain")[1:-1], "--json"],
        ]
    } | {
        name: [
            ["predict", f"hub:other/{name}", picture, "--json"],
            ["pull", f"other/{name}", "--out", f"pulled/{name}.safetensors"],
            ["inspect", f"hub:other/{name}", "--json"],
            *([adapt("--from", f"hub:other/{name}")] if name not in NAMED else []),
        ]
        for name in names
    }
    ran = iter(run_all(hub, folder, *[line for some in lines.values() for line in some]))
    return folder, model, {name: [next(ran) for _ in some] for name, some in lines.items()}


@pytest.mark.slow
def test_a_repository_of_others_becomes_a_checkpoint_of_ours(hub: Loopback, others):
    folder, model, said = others
    shown, text, pulled, again, there, here, seen, planned = said["plain"]
    assert all(done.code == 0 for done in said["plain"]), said["plain"]
    source = f"hub:other/plain@{hub.commits('other/plain')[0]['id']}"
    assert shown.json["model"] == "timm/test_convnext" and shown.json["classes"] == CLASSES
    assert (shown.json["source"], shown.json["tensors"]) == (source, len(model.state_dict()))
    assert f"adapt --from {source}" in text.out and "no metadata of finetune" in text.out

    metadata = read_metadata(folder / "p.safetensors")
    assert metadata.classes == CLASSES and metadata.model == "timm/test_convnext"
    assert [(p["id"], p["sha256"]) for p in metadata.lineage] == [(source, shown.json["sha256"])]
    assert pulled.json["converted"] is True and pulled.json["id"] == source and pulled.err.count("was-") == 0
    assert again.code == 0 and "moved" not in again.err, "the same again changes nothing"
    assert [p.name for p in folder.glob("p.*")] == ["p.safetensors"]
    assert here.json["accuracy"] == there.json["accuracy"] and here.json["total"] == 9
    assert planned.json["model"] == "timm/test_convnext"

    import timm
    from PIL import Image

    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    for row in seen.json:
        logits = model(transform(Image.open(folder / row["file"]).convert("RGB")).unsqueeze(0)).detach()[0]
        assert row["label"] == CLASSES[int(logits.argmax())]
        assert row["probability"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_classes_are_named_as_the_repository_says(others, name):
    folder, _, said = others
    classes = NAMED[name]
    assert [done.code for done in said[name]] == [0, 0, 0], said[name]
    found = read_metadata(folder / "pulled" / f"{name}.safetensors").classes
    assert found == classes if classes else found[0].startswith("tench") and len(set(found)) == 1000
    if name == "offset":
        same = {said[one][0].json[0]["probability"] for one in ("nameless", "offset")}
        assert len(same) == 1, "the row before the first class is left out"


@pytest.mark.slow
def test_weights_without_a_head_can_be_adapted_and_are_pulled_as_they_are(hub: Loopback, others):
    folder, _, said = others
    predicted, pulled, shown, adapted = said["headless"]
    assert predicted.code == 2 and "no head" in predicted.err
    assert pulled.code == 0 and "without a head" in pulled.out and adapted.code == 0, (pulled, adapted)
    there = hub.files("other/headless")["model.safetensors"]
    assert (folder / "pulled" / "headless.safetensors").read_bytes() == there
    assert shown.json["number of classes"] == 0


@pytest.mark.slow
def test_weights_whose_model_nobody_says_are_kept_and_the_model_asked_for(hub: Loopback, others):
    folder, _, said = others
    predicted, pulled, shown, adapted = said["bare"]
    assert pulled.code == 0 and "--model" in pulled.out and "--model" in predicted.err and "--model" in adapted.err
    assert (folder / "pulled" / "bare.safetensors").read_bytes() == hub.files("other/bare")["model.safetensors"]
    assert "--model timm/NAME" in shown.json["use it with"]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_repository_that_does_not_hold_is_refused_everywhere_in_one_message(others, name):
    words, (folder, _, said) = REFUSED[name], others
    predicted, pulled, _, adapted = said[name]
    for done in (predicted, pulled, adapted):
        assert done.code == 2 and done.out == "" and done.err.startswith("finetune: "), (name, done)
        assert all(word in done.err for word in words), done.err
        assert f"other/{name}@" in done.err.splitlines()[0], done.err
    assert not (folder / "pulled" / f"{name}.safetensors").exists()
