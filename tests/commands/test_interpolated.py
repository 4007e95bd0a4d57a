"""The row `interpolated` from end to end: chosen before the test set is opened, kept, verified, taken up again."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import Impatient, adapt_recipe, finetune, phase, refused, report_of, worked

import finetune as toolkit
from finetune.commands.interpolate import WEIGHTS
from finetune.commands.source_task import SourceTask
from finetune.data.registry import open_dataset
from finetune.distributed.process_group import SINGLE_PROCESS
from finetune.errors import Interrupted
from finetune.hub.bundle import make_bundle
from finetune.hub.repo_id import parse_name
from finetune.sources.resolve import open_source

TRAINED = phase(length="steps: 12", batch=10, optimizer="{name: adamw, lr: 3e-3}")
MIXED = adapt_recipe(TRAINED, data="{validation: 0.2}", compare="[interpolated]")
PLAIN = adapt_recipe(TRAINED, data="{validation: 0.2}")


def adapted(source, *words, recipe=MIXED, target="kmnist", out="new.safetensors"):
    Path("adapt.yaml").write_text(recipe)
    typed = ("--recipe", "adapt.yaml", "--target", target, "--out", out, "--quiet", "--json", *words)
    return worked("adapt", "--from", source, *typed).json


def mixed_by_hand(source, adapted, weight):
    ours, theirs = load_file(adapted), load_file(source)
    return {
        name: tensor if name.startswith("head.") else torch.lerp(theirs[name], tensor, weight)
        for name, tensor in ours.items()
    }


def test_a_kept_mix_is_what_the_report_says_and_verifies(folder, pretrained, data):
    phases = adapt_recipe(TRAINED + phase("head", "steps: 2", 10), data="{validation: 0.2}")  # the last freezes most
    plain = adapted(pretrained, recipe=phases, out="plain.safetensors")
    report = adapted(pretrained, "--keep", "interpolated", "--set", "retain=0.95", recipe=phases)
    found = report["interpolation"]
    assert report["recipe"]["keep"] == "interpolated" and report["recipe"]["retain"] == 0.95
    assert report["results"]["after"] == plain["results"]["after"], "making the row changes nothing in the others"
    assert (found["images"], found["source_images"], found["source_part"]) == (60, 60, "validation")
    assert [point["weight"] for point in found["frontier"]] == list(WEIGHTS)
    best = [p for p in found["frontier"] if p["source_accuracy"] >= 0.95 * found["source_before"]]
    assert found["weight"] == max(best, key=lambda p: (p["accuracy"], p["weight"]))["weight"]
    assert 0 < found["weight"] < 1, "a test of a mix needs one"
    kept = load_file("new.safetensors")
    for name, tensor in mixed_by_hand(pretrained, "plain.safetensors", found["weight"]).items():
        assert torch.equal(kept[name], tensor), name
    # The recorded accuracy, what the card and the page say, and what was forgotten, are the mix's.
    own, after = report["results"]["interpolated"], report["results"]["after"]
    assert own["correct"] != after["correct"], "else nothing below shows anything"
    assert toolkit.load("new.safetensors").origin.accuracy == own["accuracy"]
    done = worked("verify", "new.safetensors", "--data", "kmnist", "--json").json
    assert {check["check"]: check["state"] for check in done["checks"]} | {"frozen": "ok"} == dict.fromkeys(
        (check["check"] for check in done["checks"]), "ok"
    )
    card = make_bundle(Path("new.safetensors"), parse_name("ada/new"), None).card
    assert f"value: {own['accuracy']}" in card and "| interpolated | source and fine-tuned weights mixed |" in card
    source, classifier = toolkit.load(pretrained), toolkit.load("new.safetensors")
    classifier.network.set_head(source.network.head)
    test = open_dataset("mnist", data).test
    inputs = torch.stack([source.preprocess(image[0].numpy()) for image in test.images[:]])
    with torch.no_grad():
        right = (classifier.network(inputs).argmax(1) == test.labels).double().mean()
    assert report["retention"]["interpolated"] == pytest.approx(float(right))


def test_a_stopped_run_goes_on_to_the_same_bytes(folder, pretrained):
    words = {"recipe": "adapt.yaml", "target": "kmnist", "settings": {"keep": "interpolated", "compare": ["scratch"]}}
    Path("adapt.yaml").write_text(MIXED)
    toolkit.adapt(pretrained, out="whole.safetensors", **words)
    with pytest.raises(Interrupted):  # once the mix is chosen
        toolkit.adapt(pretrained, out="new.safetensors", console=Impatient("phase scratch"), **words)
    toolkit.adapt(pretrained, out="new.safetensors", resume=True, **words)
    assert Path("new.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert report_of("new.safetensors")["interpolation"] == report_of("whole.safetensors")["interpolation"]


@pytest.mark.slow
def test_seeds_share_the_trained_network_and_each_chooses_its_mix(folder, pretrained):
    report = adapted(pretrained, "--seeds", 2, "--keep", "interpolated", recipe=PLAIN)
    assert list(report["interpolation"]["weights"]) == ["0", "1"]
    assert len(report["results"]["interpolated"]["per_seed"]) == 2
    assert {path.name for path in Path("runs/new/trials").iterdir()} == {
        f"{rows}-seed-{seed}" for rows in ("majority+before", "after+interpolated") for seed in range(2)
    }
    adapted(pretrained, "--keep", "interpolated", recipe=PLAIN, out="alone.safetensors")
    assert Path("new.safetensors").read_bytes() == Path("alone.safetensors").read_bytes()
    said = refused("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "adapt.yaml", "--seeds", 2,
                   "--keep", "average", "--set", "keep=interpolated")  # fmt: skip
    assert "--keep average: the recipe says keep: interpolated" in said


@pytest.mark.slow
def test_folds_each_choose_a_mix_and_so_does_the_training_on_all(folder, pretrained):
    report = adapted(pretrained, "--folds", 2, "--keep", "interpolated", recipe=PLAIN)
    assert list(report["interpolation"]["weights"]) == ["all", "fold-1-of-2", "fold-2-of-2"]
    assert report["results"]["interpolated"]["total"] == 400 and report["recipe"]["keep"] == "interpolated"
    words = ("--from", pretrained, "--target", "kmnist", "--recipe", "adapt.yaml", "--folds", 2)
    said = refused("adapt", *words, "--set", "compare=[interpolated]", "--set", "data.validation=0")
    assert "chosen on validation images" in said and "data.validation" in said


@pytest.mark.slow
def test_a_curve_goes_without_the_row(folder, pretrained):
    Path("adapt.yaml").write_text(MIXED + "retain: 0.9\nkeep: interpolated\n")
    words = ("--target", "kmnist", "--recipe", "adapt.yaml", "--shots", "1,2", "--seeds", 1, "--quiet")
    worked("curve", "--from", pretrained, *words)
    trials = {path.name for path in Path("runs").glob("*/trials/*")}
    assert trials and not [name for name in trials if "interpolated" in name]


@pytest.mark.slow
def test_without_the_sources_data_retain_is_left_out_and_that_is_said(folder, pretrained, data):
    shutil.copytree(data / "KMNIST", folder / "less" / "KMNIST")
    Path("adapt.yaml").write_text(MIXED + "retain: 0.9\n")
    words = ("--from", pretrained, "--target", "kmnist", "--recipe", "adapt.yaml", "--data-root", folder / "less")
    assert "one is chosen on 60 validation images alone, as mnist" in " ".join(worked("plan", *words).out.split())
    done = finetune("adapt", *words, "--out", "new.safetensors")
    assert done.code == 0 and "retain: 90.00 % of the source's accuracy cannot be asked for: mnist" in done.err
    found = report_of("new.safetensors")
    assert found["retention"] is None and found["interpolation"]["source_images"] is None
    alone = adapted(pretrained, out="alone.safetensors")
    assert found["results"]["interpolated"] == alone["results"]["interpolated"], "chosen as without retain"


def test_images_that_the_source_learnt_from_stand_in_for_those_it_never_saw(pretrained, data, monkeypatch):
    source = open_source(pretrained)
    alone = SimpleNamespace(runtime=SimpleNamespace(group=SINGLE_PROCESS))

    def asked(changed):
        metadata = source.metadata.model_copy(update={"data": source.metadata.data | changed})
        own = replace(source, metadata=metadata)
        found = SourceTask(own, own.classifier, (), alone, 0, data).held_out_images()
        return found and (len(found[0]), found[1], found[0].fingerprint())

    held_out = source.metadata.data["validation"]
    assert asked({}) == (60, "validation", held_out["fingerprint"])
    assert asked({"validation": {"images": 0}})[:2] == (300, "train")
    assert asked({"validation": held_out | {"fingerprint": "of another version"}})[:2] == (300, "train")
    assert asked({"test": {"fingerprint": "of other images"}}) is None
    monkeypatch.setattr("finetune.commands.source_task.MAX_IMAGES", 40)
    assert asked({})[:2] == (40, "validation")


def test_the_same_classes_mix_the_head_too(folder, pretrained):
    report = adapted(pretrained, "--keep", "interpolated", "--set", "retain=1.0", target="mnist", recipe=PLAIN)
    assert len(report["transplant"]["head_rows_reused"]) == 10
    found = report["interpolation"]
    assert found["frontier"][0]["source_accuracy"] == found["source_before"], "at 0 it is the source itself"


@pytest.mark.slow
def test_adapters_are_merged_before_weights_are_mixed(folder, backbone, orchard):
    pytest.importorskip("peft")
    lora = phase("all", "steps: 6", 8, "{name: adamw, lr: 1e-2}", "lora: {rank: 2, alpha: 4}")
    report = adapted(backbone, "--keep", "interpolated", recipe=adapt_recipe(lora), target=orchard)
    assert "does not say" not in (said := report["interpolation"]["note"]) and "meadow" in said
    assert load_file("new.safetensors").keys() == load_file(backbone).keys()
    worked("verify", "new.safetensors", "--data", orchard)


def test_what_cannot_be_chosen_is_refused_before_any_training(folder, pretrained):
    words = ("adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "adapt.yaml")
    Path("adapt.yaml").write_text(adapt_recipe(data="{validation: 0}", compare="[interpolated]"))
    assert "hold more out, for example --set data.validation=0.5" in refused(*words)
    Path("adapt.yaml").write_text(PLAIN)
    assert "it is about the row interpolated, which is not asked for" in refused(*words, "--set", "retain=0.9")
    for value in ("0", "1.5"):
        assert "must be" in refused(*words, "--keep", "interpolated", "--set", f"retain={value}")
    assert "goes with --seeds" in refused(*words, "--keep", "first")
    pulled = "phases[0].l2_sp=0.1"
    assert "lora trains adapters" in refused(*words, "--set", pulled, "--set", "phases[0].lora={rank: 2}")
    assert "only the head trains" in refused(*words, "--set", pulled, "--set", "phases[0].train=head")
    assert not Path("runs").exists()
