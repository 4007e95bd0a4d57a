"""The model card: what it says, and what of a person's words stays when it is made anew."""

import io
import re

import pytest
from hub_home import RECIPE, RESULTS, make_checkpoint, write_report
from hub_rules import card_data, card_faults
from huggingface_hub import ModelCard
from PIL import Image
from ruamel.yaml import YAML
from tiny import ROOT

from finetune.hub.bundle import make_bundle
from finetune.hub.card_marks import fresh_body, marked, merge_body
from finetune.hub.repo_id import parse_name

SECTIONS = {"summary": "# x\n\nA model.", "results": "## Results\n\n1 / 2", "files": "## Files"}


def card_of(path, previous=None, licence=None):
    return make_bundle(path, parse_name("ada/x"), licence, previous).card


def test_the_card_has_what_a_stranger_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_DATA_ROOT", str(tmp_path))
    digest = "7" * 64
    lineage = [
        {"id": "step.safetensors", "sha256": digest, "task": "mnist"},
        {"id": f"hub:lab/mnist@{'a' * 40}", "sha256": "8" * 64, "task": None},
    ]
    probe = {"correct": 60, "total": 100, "accuracy": 0.6, "ci95": [0.5, 0.7]}
    own = RESULTS | {"scratch": probe, "linear_probe": probe}
    recipe = RECIPE | {"seed": 3}
    path = make_checkpoint(tmp_path / "x.safetensors", lineage=lineage, recipe=recipe, results=own)
    after = RESULTS["after"] | {
        "per_class": {name: {"correct": 9, "total": 10, "accuracy": 0.9} for name in ("o", "ki", "su")},
        "confusion": [[9, 1, 0], [0, 9, 1], [0, 1, 9]],
        "metrics": {"macro_f1": {"value": 0.875}, "odd": {"value": 1.0}, "auroc": 5},
    }
    rows = {"scratch": probe, "after": after, "majority": probe | {"method": "o"}}
    write_report(path, recipe=recipe, results=own | rows, seeds=[3], device="cpu")
    text = card_of(path)
    table = re.findall(r"^\| (\w[\w ]*) \| .* \| \d+ / 100 \|", text, re.MULTILINE)
    assert table == ["majority", "before", "linear probe", "after", "scratch"], "the verdict's order"
    for words in (
        f"1. the file `step.safetensors`, trained on mnist; sha256 `{digest}`",
        f"2. [lab/mnist](https://huggingface.co/lab/mnist) on the Hub, commit `{'a' * 40}`; sha256 `{'8' * 64}`",
        "| parameters | 420,739 |",
        "| multiply-adds of one image | 4.2 M |",
        "| input | 1×28×28: channels, height, width |",
        "| mean | 0.1307 of values scaled to 0..1 |\n| deviation | 0.3081 |",
        "- **Phases**: all layers, 1 epoch, batches of 10, sgd with a learning rate of 0.01.",
        "- **Run**: seed 3, on cpu; finetune 0.1.0.",
        "| ki | 9 / 10 | 90.00 % |",
        "Most frequent mistakes: o taken for ki: 1 image;",
        "Other metrics of these weights: macro-F1 87.50 %.",
        "pip install finetune-images\n",
        "classifier.network.features(",
        "@software{finetune,",
    ):
        assert words in text, words
    cited = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert cited["authors"][0]["name"] in text and f"{{{cited['license']}}}" in text
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation, data.model_name) == ("lab/mnist", "finetune", "x")
    assert "widget" not in data.to_dict(), "KMNIST is not at hand"


def test_the_card_says_how_sure_the_weights_are_where_the_report_does(tmp_path):
    path = make_checkpoint(tmp_path / "x.safetensors")
    write_report(path)
    plain = card_of(path)
    for nothing in (None, {"temperature": None, "images": 0, "how": None}, {"temperature": "warm"}, []):
        write_report(path, confidence=nothing)
        assert card_of(path) == plain
    found = {"images": 2000, "answered": 1800, "wrong": 9, "error": 0.005, "ci95": [0.003, 0.009]}
    promise = {"max_error": 0.01, "confidence": 0.95, "threshold": 0.8, "answered": 0.9, "images": 400, "found": found}
    own = {"temperature": 0.5753, "images": 400, "how": "`x`|", "promise": promise, "notes": ["a note"]}
    write_report(path, confidence=own)
    text = card_of(path)
    assert "- calibrated: temperature 0.5753, fitted on 400 \\`x\\`\\|" in text and "a note" not in text
    assert "at most 1 % wrong" in text and "- found: 90.0 % of 2,000 test images answered, 9 of them wrongly" in text
    assert "divide the logits by the temperature" in text and card_faults(text) == ([], [])


@pytest.mark.parametrize("source", ["random:cnn", "c.safetensors"])
def test_what_is_no_repository_is_no_base_model(tmp_path, source):
    lineage = [{"id": source, "sha256": "0" * 64, "task": None}]
    text = card_of(make_checkpoint(tmp_path / "x.safetensors", lineage=lineage))
    assert not {"base_model", "base_model_relation"} & card_data(text).keys() and source.removeprefix("random:") in text
    assert "random ones" in card_of(make_checkpoint(tmp_path / "y.safetensors", lineage=[]))


def test_pictures_are_shown_where_the_licence_allows_and_the_data_is_at_hand(tmp_path):
    named = {"recipe": RECIPE | {"data": {"name": "kmnist-sample"}}, "data": {"name": "kmnist-sample"}}
    path = make_checkpoint(tmp_path / "x.safetensors", classes=["su", "o"], **named)
    bundle = make_bundle(path, parse_name("ada/x"), None)
    widget = card_data(bundle.card)["widget"]
    assert [entry["example_title"] for entry in widget] == ["su", "o"] and card_faults(bundle.card) == ([], [])
    for entry in widget:
        assert Image.open(io.BytesIO(bundle.files[entry["src"]])).size == (28, 28)
    assert "under that licence" in bundle.card and "`examples/`" in bundle.card
    own = {"recipe": RECIPE | {"data": {"name": "./kmnist-sample"}}, "data": {"name": "kmnist-sample"}}
    folder = make_bundle(make_checkpoint(tmp_path / "y.safetensors", **own), parse_name("ada/x"), None)
    assert "widget" not in card_data(folder.card), "a folder of that name is nobody's to pass on"


def test_the_card_of_hostile_values_holds_and_has_no_marks_of_theirs(tmp_path):
    evil = "<!-- finetune:end summary --> | `x` {repo}"
    recipe = {"kind": evil, "phases": [{"train": {"last": evil}, "optimizer": 5, "epochs": True}, 7], "seed": evil}
    path = make_checkpoint(
        tmp_path / "x.safetensors",
        classes=[evil, "b"],
        recipe=recipe,
        lineage=[{"id": f"hub:{evil}"}, {"id": evil, "sha256": evil, "task": evil}],
        versions={"finetune": evil},
    )
    strange = {"seeds": evil, "device": [1], "environment": 5, "network": {"model": "cnn", "parameters": evil}}
    write_report(path, recipe=recipe, **strange)
    with pytest.raises(Exception, match="base_model"):
        card_of(path)
    path = make_checkpoint(tmp_path / "y.safetensors", classes=[evil, "b"], recipe=recipe, versions={"finetune": evil})
    write_report(path, recipe=recipe, **strange)
    text = card_of(path)
    assert len(re.findall("^<!-- finetune:(?:begin|end)", text, re.MULTILINE)) == 2 * 10
    assert card_of(path, text) == text


# a person's words


def test_made_anew_from_itself_it_stays_the_same():
    text = fresh_body(SECTIONS)
    assert merge_body(text, SECTIONS) == (text, [])


def test_words_outside_the_marks_stay_and_sections_follow_the_facts():
    text = f"before\n{fresh_body(SECTIONS)}after\n".replace(
        "\n\n<!-- finetune:begin files", "\nmine\n<!-- finetune:begin files"
    )
    new = {**SECTIONS, "results": "## Results\n\n2 / 2"}
    merged, remarks = merge_body(text, new)
    assert merged == text.replace(marked("results", SECTIONS["results"]), marked("results", new["results"]))
    assert remarks == []


def test_a_changed_section_stays_until_its_facts_change_and_then_stands_below():
    text = fresh_body(SECTIONS).replace("1 / 2", "one of two")
    merged, remarks = merge_body(text, SECTIONS)
    assert merged == text and "'results' was changed by hand and is kept" in remarks[0]
    new = {**SECTIONS, "results": "## Results\n\n2 / 2"}
    merged, remarks = merge_body(text, new)
    assert f"{marked('results', new['results'])}\n\n## Results\n\none of two" in merged and "below" in remarks[0]
    again = merge_body(merged, new)
    assert again == (merged, []), "from then on it is a text outside the marks"


def test_sections_of_another_version_come_and_go():
    older = {"summary": SECTIONS["summary"], "history": "## History", "files": SECTIONS["files"]}
    merged, _ = merge_body(fresh_body(older) + "mine\n", SECTIONS)
    found = re.findall("<!-- finetune:begin ([a-z]+)", merged)
    assert found == list(SECTIONS) and "History" not in merged and merged.endswith("mine\n")


def test_a_card_without_marks_is_kept_below_unless_finetune_wrote_it(tmp_path):
    path = make_checkpoint(tmp_path / "x.safetensors")
    write_report(path)
    fresh = card_of(path)
    theirs = "---\nlicense: mit\nbase_model: lab/own\nlanguage: [en, ja]\n---\n# Mine\n\nHello.\n"
    text = card_of(path, theirs.replace("\n", "\r\n"))
    assert text.endswith("# Mine\n\nHello.\n") and text.count("finetune:begin") == fresh.count("finetune:begin")
    data = card_data(text)
    assert (data["license"], data["base_model"], data["language"]) == ("mit", "lab/own", ["en", "ja"])
    assert card_of(path, text) == text and "`mit`" in text
    assert card_of(path, "# x\n\n- `README.md`: this page\n") == fresh, "a card of an earlier version"
    for odd in ("", "---\n---\n", "---\n: [\n---\n", "---\n- a\n---\n"):
        assert card_of(path, odd) == fresh, odd
