"""`finetune push` against a loopback Hub: one commit, none for what is there, and never another model unasked."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_home import (
    OTHER_TOKEN,
    READ_TOKEN,
    RECIPE,
    STRANGE_TOKEN,
    TIMM_RESNET,
    TOKEN,
    Loopback,
    loopback,
    make_checkpoint,
    write_report,
)
from hub_rules import card_data, card_faults

from finetune.checkpoint.safetensors_io import read_header
from finetune.cli.main import cli
from finetune.hub.bundle import make_bundle
from finetune.hub.repo_id import parse_name
from finetune.recipe.load import check_recipe
from finetune.recipe.yaml_loader import read_yaml
from finetune.system import VERSION

FILES = {"model.safetensors", "config.json", "recipe.yaml", "report.json", "README.md"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with loopback(tmp_path_factory.mktemp("hub-push")) as found:
        yield found


@pytest.fixture(scope="module")
def checkpoint(hub):
    path = make_checkpoint(hub.work / "kmnist.safetensors")
    write_report(path)
    return path


@pytest.fixture(scope="module")
def other(hub):
    return make_checkpoint(hub.work / "other.safetensors", seed=1)


@pytest.fixture(autouse=True)
def no_faults(hub):
    hub.plant()
    hub.options()


def test_push_makes_one_commit_of_five_files_and_again_none(hub: Loopback, checkpoint):
    done = hub.worked("push", checkpoint, "ada/kmnist-cnn", "--tag", "v1", "--message", "First", "--license", "MIT")
    assert [c["title"] for c in hub.commits("ada/kmnist-cnn")] == ["First", "initial commit"]
    head = hub.commits("ada/kmnist-cnn")[0]["id"]
    assert head[:12] in done.out and hub.store.load("ada/kmnist-cnn")["tags"] == {"v1": head}
    files = hub.files("ada/kmnist-cnn")
    assert files.keys() == FILES and files["model.safetensors"] == checkpoint.read_bytes()
    again = hub.worked("push", checkpoint, "ada/kmnist-cnn", "--tag", "v1", "--license", "mit", "--json")
    values = json.loads(again.out)
    assert (values["made"], values["changed"], values["commit"]) == (False, [], head)
    assert values["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert len(hub.commits("ada/kmnist-cnn")) == 2


def test_nothing_new_is_committed_for_a_hub_that_does_not_tell_hashes_beforehand(hub: Loopback, checkpoint):
    hub.worked("push", checkpoint, "ada/same")
    hub.options(preupload_oid=False)
    assert "no new commit" in hub.worked("push", checkpoint, "ada/same").out
    assert len(hub.commits("ada/same")) == 2


@pytest.mark.slow
def test_a_poorer_hub_does_too(hub: Loopback, checkpoint, tmp_path):
    """Without hashes in the list of files, and without a list of refs."""
    hub.options(blobs=False, refs=False)
    for _ in range(2):
        hub.worked("push", checkpoint, "ada/poor", "--tag", "v1", "--license", "mit")
        assert len(hub.commits("ada/poor")) == 2
        assert hub.store.load("ada/poor")["tags"] == {"v1": hub.commits("ada/poor")[0]["id"]}
    hub.worked("pull", "ada/poor@v1", "--out", tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == checkpoint.read_bytes()
    other = make_checkpoint(tmp_path / "other.safetensors", seed=9)
    assert "holds another model" in hub.refused("push", other, "ada/poor")
    hub.plant({"path": "/get/", "flip": True, "times": 9})
    assert "sha256" in hub.refused("pull", "ada/poor", "--out", tmp_path / "y.safetensors", code=1)


def test_a_changed_card_changes_one_file_and_needs_no_yes(hub: Loopback, checkpoint):
    hub.worked("push", checkpoint, "ada/licensed")
    done = hub.worked("push", checkpoint, "ada/licensed", "--license", "mit")
    assert done.out.startswith("pushed README.md to ada/licensed in commit")
    new, old = hub.commits("ada/licensed")[:2]
    assert {n for n in FILES if new["files"][n] != old["files"][n]} == {"README.md"}


def test_another_model_is_replaced_only_when_said(hub: Loopback, checkpoint, other):
    hub.worked("push", checkpoint, "ada/busy")
    before = hub.commits("ada/busy")[0]["id"]
    said = hub.refused("push", other, "ada/busy")
    assert "--yes" in said and before in said and "after 90.00 %" in said and "cnn, 3 classes" in said
    assert hub.commits("ada/busy")[0]["id"] == before
    hub.worked("push", other, "ada/busy", "--yes")
    assert hub.files("ada/busy")["model.safetensors"] == other.read_bytes()
    assert hub.files("ada/busy", before)["model.safetensors"] == checkpoint.read_bytes()


def test_what_is_there_is_shown_of_other_peoples_models_too(hub: Loopback, checkpoint):
    card = (
        "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: image-classification}\n"
        "    dataset: {type: cifar10, name: CIFAR}\n    metrics: [{type: accuracy, value: 0.5}]\n---\n# x\n"
    )
    config = json.dumps({"architecture": "resnet18", "num_classes": 10})
    hub.add("ada/theirs", {"model.safetensors": b"x" * 99, "config.json": config.encode(), "README.md": card.encode()})
    said = hub.refused("push", checkpoint, "ada/theirs")
    assert "resnet18, 10 classes" in said and "accuracy 0.5 on CIFAR" in said
    hub.add("ada/bare", {"model.safetensors": b"y" * 99, "config.json": b"[not json"})
    said = hub.refused("push", checkpoint, "ada/bare")
    assert "unknown" in said and "none recorded" in said


@pytest.mark.parametrize(("answer", "code"), [("n", 2), ("y", 0)])
def test_on_a_terminal_the_person_is_asked(hub: Loopback, checkpoint, answer, code):
    repo = f"ada/asked-{answer}"
    hub.add(repo, {"model.safetensors": b"z" * 99})
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "finetune", "push", str(checkpoint), repo]
    env = hub.environment(hub.new_home())
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=hub.work)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # a terminal whose other end is closed
        pass
    assert process.wait(timeout=30) == code, said
    assert b"Replace it?" in said and hub.commits(repo)[0]["title"].startswith("finetune" if code == 0 else "by hand")


def test_a_pull_request_proposes_once_and_leaves_main(hub: Loopback, checkpoint, other):
    hub.worked("push", checkpoint, "ada/reviewed")
    done = hub.worked("push", other, "ada/reviewed", "--create-pr")
    assert "/ada/reviewed/discussions/1" in done.out
    assert hub.files("ada/reviewed")["model.safetensors"] == checkpoint.read_bytes()
    assert hub.files("ada/reviewed", "refs/pr/1")["model.safetensors"] == other.read_bytes()
    assert "no new commit" in hub.worked("push", other, "ada/reviewed", "--create-pr").out
    assert list(hub.store.load("ada/reviewed")["pulls"]) == ["1"]
    assert "drop one" in hub.refused("push", other, "ada/reviewed", "--create-pr", "--tag", "v9")


def test_somebody_without_write_access_may_still_propose(hub: Loopback, checkpoint, other):
    hub.worked("push", checkpoint, "ada/open")
    assert "403" in hub.refused("push", other, "ada/open", "--yes", HF_TOKEN=OTHER_TOKEN)
    assert "/discussions/1" in hub.worked("push", other, "ada/open", "--create-pr", HF_TOKEN=OTHER_TOKEN).out


def test_private_is_for_new_repositories(hub: Loopback, checkpoint):
    hub.worked("push", checkpoint, "ada/hidden", "--private")
    assert hub.store.load("ada/hidden")["private"] is True
    hub.worked("push", checkpoint, "ada/hidden", "--private")
    hub.worked("push", checkpoint, "ada/shown")
    assert "public" in hub.refused("push", checkpoint, "ada/shown", "--private")


def test_a_tag_that_is_taken_is_refused_before_anything_is_sent(hub: Loopback, checkpoint, other):
    hub.worked("push", checkpoint, "ada/tagged", "--tag", "v1")
    assert "v1 is taken" in hub.refused("push", other, "ada/tagged", "--tag", "v1", "--yes")
    assert len(hub.commits("ada/tagged")) == 2
    hub.worked("push", checkpoint, "ada/tagged", "--tag", "v2")
    assert set(hub.store.load("ada/tagged")["tags"]) == {"v1", "v2"}


def test_a_dry_run_sends_nothing_and_shows_what_would_go(hub: Loopback, checkpoint, tmp_path):
    before = len(hub.log())
    done = hub.worked("push", checkpoint, "ada/dry", "--dry-run", cwd=tmp_path, HF_TOKEN=None, HF_HUB_OFFLINE="1")
    assert len(hub.log()) == before and not hub.store.exists("ada/dry")
    folder = tmp_path / "hub" / "ada" / "dry"
    assert {p.name for p in folder.iterdir()} == FILES
    assert (folder / "README.md").read_text() in done.out
    hub.worked("push", checkpoint, "ada/dry", "--dry-run", cwd=tmp_path)
    assert [p.name for p in folder.parent.iterdir()] == ["dry"]
    hub.worked("push", checkpoint, "ada/dry", "--dry-run", "--license", "mit", cwd=tmp_path)
    assert len(list(folder.parent.iterdir())) == 2, "what was there is moved aside"
    hub.worked("push", checkpoint, "ada/dry", "--license", "mit")
    assert hub.files("ada/dry") == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_json_is_all_there_is_on_standard_output_and_quiet_is_quiet(hub: Loopback, checkpoint, tmp_path):
    out = tmp_path / "x.safetensors"
    for words in (
        ("push", checkpoint, "ada/json", "--license", "mit"),
        ("push", checkpoint, "ada/json", "--dry-run"),
        ("pull", "ada/json", "--out", out),
        ("inspect", "hub:ada/json"),
    ):
        done = hub.worked(*words, "--json", cwd=tmp_path)
        assert isinstance(json.loads(done.out), dict), words
        if words[0] != "inspect":
            done = hub.worked(*words, "--json", "--quiet", cwd=tmp_path)
            assert done.err == "" and isinstance(json.loads(done.out), dict), words
    assert hub.refused("pull", "ada/nothing", "--json").startswith("could not look at")


def make_timm_checkpoint(path: Path, **changes) -> tuple[Path, dict]:
    """A checkpoint that says it is timm's test_resnet, of which only the head is there, and its report's values."""
    metadata = {
        "model": "timm/test_resnet",
        "input": {"channels": 3, "size": 64, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"},
        "lineage": [{"id": "timm:test_resnet", "sha256": "0" * 64, "task": None}],
        **changes,
    }
    made = make_checkpoint(path, **metadata)
    from safetensors.numpy import load, save

    header = read_header(made).texts
    made.write_bytes(save({"fc.weight": load(made.read_bytes())["head.weight"][:, :96].copy()}, header))
    network = {"model": "timm/test_resnet", "parameters": 372_691, "multiply_adds": 16_097_000, "timm": TIMM_RESNET}
    return made, network


def test_neither_push_nor_pull_imports_torch_or_timm(hub: Loopback, tmp_path):
    path, network = make_timm_checkpoint(tmp_path / "x.safetensors")
    write_report(path, network=network)
    for words in (["push", path, "ada/light", "--dry-run"], ["push", path, "ada/light"], ["pull", "ada/light"]):
        hub.worked(*words, cwd=tmp_path)
        assert not {"torch", "timm", "torchvision", "transformers"} & hub.imported(), words
    recorded = json.loads(hub.files("ada/light")["config.json"])["pretrained_cfg"]
    assert "tag" not in recorded, "these weights are no longer timm's"
    assert card_data(hub.files("ada/light")["README.md"].decode())["base_model"] == "timm/test_resnet.r160_in1k"
    for odd in ({"classifier": 5}, {"hub": "../x"}, {"unknown": 1}):  # then timm itself is asked
        write_report(path, network=network | {"timm": TIMM_RESNET | odd})
        bundle = make_bundle(path, parse_name("ada/light"), None)
        assert json.loads(bundle.files["config.json"])["pretrained_cfg"] == recorded, odd


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ada"], "OWNER/NAME"),
        (["ada/x@v1"], "--tag"),
        (["https://huggingface.co/ada/x"], "not an address"),
        (["ada/x--y"], "OWNER/NAME"),
        (["ada/../x"], "OWNER/NAME"),
        (["ada/x", "--license", "apache"], "did you mean 'apache-2.0'"),
        (["ada/x", "--tag", "a b"], "--tag: expected"),
    ],
)
def test_what_is_typed_wrongly_is_said_before_any_request(hub: Loopback, checkpoint, words, says):
    before = len(hub.log())
    assert says in hub.refused("push", checkpoint, *words)
    assert len(hub.log()) == before


def test_what_is_no_checkpoint_is_not_pushed(hub: Loopback):
    (hub.work / "text.safetensors").write_text("hello")
    assert "not a safetensors file" in hub.refused("push", "text.safetensors", "ada/x")
    assert "finetune pull" in hub.refused("push", "hub:ada/x", "ada/y")


@pytest.mark.parametrize(
    ("token", "says"),
    [(None, "hf auth login"), (STRANGE_TOKEN, "does not accept the token in HF_TOKEN"), (READ_TOKEN, "403")],
)
def test_a_missing_wrong_or_weak_token_is_said(hub: Loopback, checkpoint, token, says):
    said = hub.refused("push", checkpoint, "ada/never", HF_TOKEN=token)
    assert says in said and "hf_" not in said and not hub.store.exists("ada/never")


def test_the_stored_token_serves_too(hub: Loopback, checkpoint):
    home = hub.new_home()
    home.mkdir()
    (home / "token").write_text(TOKEN)
    hub.worked("push", checkpoint, "ada/stored", home=home, HF_TOKEN=None)
    (home / "token").write_text(STRANGE_TOKEN)
    assert "the stored token" in hub.refused("push", checkpoint, "ada/stored", home=home, HF_TOKEN=None)


@pytest.mark.parametrize("planted", [TOKEN, "hf_" + "Q" * 34])
@pytest.mark.parametrize(
    "words", [["ada/x", "--message"], ["ada/x", "--tag"], ["ada/x", "--license"], []], ids=lambda w: str(w[-1:])
)
def test_a_token_that_was_typed_is_not_sent_and_not_repeated(hub: Loopback, checkpoint, words, planted):
    before = len(hub.log())
    typed = planted if words else f"ada/{planted}"
    said = hub.refused("push", checkpoint, *words, typed)
    assert "holds a token" in said and planted not in said and len(hub.log()) == before
    assert words[-1:] == [] or said.startswith(words[-1])


def test_a_token_among_the_files_stops_the_push(hub: Loopback, tmp_path):
    inside = make_checkpoint(tmp_path / "leak.safetensors", recipe={"note": TOKEN})
    said = hub.refused("push", inside, "ada/leak")
    assert "holds a token" in said and TOKEN not in said and not hub.store.exists("ada/leak")
    anybodys = make_checkpoint(tmp_path / "leak2.safetensors", recipe={"note": "hf_" + "Q" * 34})
    assert "holds a token" in hub.refused("push", anybodys, "ada/leak")


def test_every_request_says_which_version_made_it(hub: Loopback, checkpoint, tmp_path):
    asked = hub.requests_of("push", checkpoint, "ada/agent")
    asked += hub.requests_of("pull", "ada/agent", "--out", tmp_path / "x.safetensors")
    ours = [row["agent"] for row in asked if "/api/models/ada" in row["path"] or "validate" in row["path"]]
    assert len(ours) > 5 and {agent.partition(";")[0] for agent in ours} == {f"finetune/{VERSION}"}


def test_what_a_person_wrote_into_the_card_survives_the_next_push(hub: Loopback, checkpoint, other):
    hub.worked("push", checkpoint, "ada/edited")
    card = hub.files("ada/edited")["README.md"].decode()
    edited = card.replace("<!-- Your own words", "## How I took the pictures\n\nWith care.\n\n<!-- Your own words")
    edited = edited.replace("license: unknown", "license: mit\nlanguage: [en]")
    edited = edited.replace("- finetune\n", "- finetune\n- mine\n")
    edited = edited.replace("Nobody has tested it", "Nobody but me has tested it") + "\nThanks to Bob.\n"
    edited = edited.replace("| after | fine-tuned", "| after | fine-tuned by me")
    hub.add("ada/edited", {"README.md": edited.encode()})
    assert "pushed README.md to" in hub.worked("push", checkpoint, "ada/edited").out, "it names a licence now"
    assert "no new commit" in hub.worked("push", checkpoint, "ada/edited").out
    done = hub.worked("push", other, "ada/edited", "--yes")
    now = hub.files("ada/edited")["README.md"].decode()
    for words in ("## How I took the pictures\n\nWith care.\n", "Nobody but me has tested it", "\nThanks to Bob.\n"):
        assert now.count(words) == 1
    assert "'use' was changed by hand and is kept" in done.err and "'results'" in done.err
    data = card_data(now)
    assert (data["license"], data["language"], data["tags"][-1]) == ("mit", ["en"], "mine")
    assert now.count("<!-- finetune:begin") == card.count("<!-- finetune:begin") and "fine-tuned by me" in now
    hub.worked("push", other, "ada/edited", "--license", "apache-2.0")
    assert card_data(hub.files("ada/edited")["README.md"].decode())["license"] == "apache-2.0"


def test_a_card_that_the_hub_does_not_accept_stops_everything(hub: Loopback, checkpoint):
    hub.plant({"path": "/api/validate-yaml", "status": 400, "message": "bad card", "times": 9})
    assert "bad card" in hub.refused("push", checkpoint, "ada/unborn")
    assert not hub.store.exists("ada/unborn")


def test_the_card_says_what_the_checkpoint_says(hub: Loopback, checkpoint):
    text = make_bundle(checkpoint, parse_name("ada/kmnist-cnn"), "cc-by-4.0").card
    data = card_data(text)
    assert card_faults(text) == ([], [])
    assert {k: data[k] for k in ("library_name", "pipeline_tag", "license", "metrics")} == {
        "library_name": "finetune",
        "pipeline_tag": "image-classification",
        "license": "cc-by-4.0",
        "metrics": ["accuracy"],
    }
    assert "base_model" not in data, "the source was a file"
    assert "datasets" not in data, "the Hub's own people have no such data set there"
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.9
    assert "| 40 / 100 | 40.00 % | 30.90 to 49.80 |" in text and "| 90 / 100 | 90.00 % | 82.60 to 94.50 |" in text
    assert "after beats before by 50.00 points" in text and "on mnist itself: 99.00 % before, 66.00 % after" in text
    assert "900 images to learn from" in text and "CC BY-SA 4.0" in text
    for line in [line for line in text.splitlines() if line.startswith("finetune ")]:
        name, *rest = line.split()[1:]
        assert name in cli.commands
        assert {w for w in rest if w.startswith("--")} <= {o for p in cli.commands[name].params for o in p.opts}


@pytest.mark.parametrize(
    ("parent", "base"),
    [
        (f"hub:lab/mnist@{'a' * 40}", "lab/mnist"),
        ("timm:resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm:resnet18", "timm/resnet18.a1_in1k"),
        ("timm:eva02_tiny_patch14_224.mim_in22k", "timm/eva02_tiny_patch14_224.mim_in22k"),
    ],
)
def test_the_card_names_the_base_model(tmp_path, parent, base):
    lineage = [{"id": "step.safetensors"}, {"id": parent}, {"id": "hub:lab/older@" + "b" * 40}]
    text = make_bundle(make_checkpoint(tmp_path / "x.safetensors", lineage=lineage), parse_name("ada/x"), None).card
    data = card_data(text)
    assert (data["base_model"], data["base_model_relation"]) == (base, "finetune")


@pytest.mark.parametrize(
    ("name", "title", "datasets"),
    [
        ("mnist", "MNIST", ["ylecun/mnist"]),
        ("fashion", "Fashion-MNIST", ["zalando-datasets/fashion_mnist"]),
        ("qmnist", "QMNIST", None),
        ("/home/ada/mnist", "mnist", None),
        ("bees.csv", "bees", None),
    ],
)
def test_the_card_links_data_sets_that_the_hub_has_and_no_folders(tmp_path, name, title, datasets):
    short = Path(name).name.removesuffix(".csv")
    changes = {"recipe": {**RECIPE, "data": {**RECIPE["data"], "name": name}}, "data": {"name": short}}
    bundle = make_bundle(make_checkpoint(tmp_path / "x.safetensors", **changes), parse_name("ada/x"), None)
    data = card_data(bundle.card)
    assert data.get("datasets") == datasets
    assert (
        f"trained on {title if Path(name).name == name and '.' not in name else f'a data set called {title}'},"
        in bundle.card
    )
    assert "/home/ada" not in bundle.card
    assert any("/home/ada/mnist" in remark for remark in bundle.remarks) == name.startswith("/")


def test_names_of_classes_cannot_break_the_card(tmp_path):
    classes = ["| a | b |", "<img src=x onerror=alert(1)>", "---license: mit", "`x` [y](http://z)"]
    lines = {"name": "/home/ada/a|b\n# Title"}
    path = make_checkpoint(tmp_path / "x.safetensors", classes=classes, data=lines)
    text = make_bundle(path, parse_name("ada/x"), None).card
    assert card_data(text)["license"] == "unknown" and "\n# Title" not in text and "/home/ada" not in text
    assert "\n---\nlicense: mit" not in text.split("\n---\n", 1)[1]


def test_the_report_goes_along_only_with_its_own_checkpoint(hub: Loopback, tmp_path):
    path = make_checkpoint(tmp_path / "x.safetensors")
    write_report(path)
    ours = json.loads(make_bundle(path, parse_name("ada/x"), None).files["report.json"])
    assert ours["comparisons"]["after_vs_before"]["verdict"] == "helps"
    assert ours["source"]["path"] == "mnist.safetensors", "folders of this machine stay here"
    write_report(path, results={"after": {"correct": 1, "total": 100, "accuracy": 0.01, "ci95": [0, 0.05]}})
    bundle = make_bundle(path, parse_name("ada/x"), None)
    assert "another run" in bundle.remarks[0]
    assert json.loads(bundle.files["report.json"])["results"]["after"]["accuracy"] == 0.9
    path.with_suffix(".report.json").write_text("{")
    assert "not a report: cut short at line 1, column 2; put it right, or move" in hub.refused("push", path, "ada/x")
    path.with_suffix(".report.json").unlink()
    os.mkfifo(path.with_suffix(".report.json"))
    assert "the report cannot be read (it is a pipe, not a regular file); put" in hub.refused("push", path, "ada/x")
    path.with_suffix(".report.json").unlink()
    for odd in ({"comparisons": [1]}, {"comparisons": {"a_vs_b": 1}}, {"retention": {"before": "x"}}, {"retention": 5}):
        write_report(path, **odd)
        assert "another run" not in str(make_bundle(path, parse_name("ada/x"), None).remarks)


def test_the_recipe_goes_up_whole_and_readable(tmp_path):
    text = make_bundle(make_checkpoint(tmp_path / "x.safetensors"), parse_name("ada/x"), None).files["recipe.yaml"]
    read = yaml.safe_load(text)
    assert read == RECIPE and check_recipe(read_yaml(text.decode()).data) == check_recipe(RECIPE)
    phase = RECIPE["phases"][0] | {"optimizer": {"name": "adamw", "lr": 1e-05}}
    small = RECIPE | {"phases": [phase], "data": {"name": "on"}}
    made = make_checkpoint(tmp_path / "z.safetensors", recipe=small)
    assert yaml.safe_load(make_bundle(made, parse_name("ada/x"), None).files["recipe.yaml"]) == small, "YAML 1.1 too"
    strange = make_checkpoint(tmp_path / "y.safetensors", recipe={"kind": "of another version", "n": [1]})
    bundle = make_bundle(strange, parse_name("ada/x"), None)
    assert bundle.files["recipe.yaml"] == b'kind: "of another version"\nn: [1]\n'


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    path = make_checkpoint(tmp_path / "x.safetensors")
    first, second = (make_bundle(path, parse_name("ada/x"), None).files for _ in range(2))
    assert first == second and all(isinstance(v, bytes | Path) for v in first.values())
