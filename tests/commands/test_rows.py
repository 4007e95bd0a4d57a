"""A row of the verdict is one entry of what it is called and one of how it is made; all else follows."""

from pathlib import Path

import pytest
import torch
from tiny import adapt_recipe, phase, report_of, worked

from finetune.commands import baselines
from finetune.commands.baselines import RowMaker
from finetune.hub.bundle import make_bundle
from finetune.hub.repo_id import parse_name
from finetune.report import rows
from finetune.report.rows import Row, rows_markdown


@pytest.fixture
def majority(monkeypatch):
    """A row that always gives the commonest class of the training images."""

    def predict(adaptation):
        data = adaptation.context.data
        commonest = int(torch.bincount(data.train.labels).argmax())
        return torch.full((len(data.test),), commonest), None

    entry = Row("majority", "always the commonest class", compared=True, cause="looking at the images")
    monkeypatch.setitem(rows.ADAPT_ROWS, "majority", entry)
    monkeypatch.setitem(baselines.ROW_MAKERS, "majority", RowMaker(predict))


def test_a_new_row_is_in_report_table_sentence_card_and_documentation(majority, pretrained, folder):
    Path("adapt.yaml").write_text(adapt_recipe(phase(length="epochs: 3")))
    done = worked(
        "adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "adapt.yaml", "--out", "new.safetensors"
    )
    report = report_of("new.safetensors")
    right = report["results"]["majority"]["correct"]
    assert right == 10 and report["results"]["majority"]["total"] == 100
    gain = report["results"]["after"]["accuracy"] - 0.1
    assert report["comparisons"]["after_vs_majority"]["difference"] == pytest.approx(gain)
    shown = " ".join(done.out.split())
    assert "always the commonest class" in shown and "looking at the images helps" in shown
    card = make_bundle(Path("new.safetensors"), parse_name("ada/new"), None).card
    assert "majority: always the commonest class" in card and "looking at the images helps" in card
    assert "| `majority` | majority | always the commonest class |" in rows_markdown()


def test_a_row_of_a_later_version_is_shown_by_its_key():
    assert rows.row_of("interpolated_weights") == Row("interpolated weights", "")


def test_every_row_has_a_maker():
    assert baselines.ROW_MAKERS.keys() == rows.ADAPT_ROWS.keys()
