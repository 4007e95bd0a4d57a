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
def rarest(monkeypatch):
    """A row that always gives the last class."""

    def predict(adaptation, grading):
        data = adaptation.context.data
        last = torch.nn.functional.one_hot(torch.tensor(len(data.class_names) - 1), len(data.class_names))
        return grading.answers(9.0 * last.expand(len(data.test), -1))

    entry = Row("rarest", "always the last class", compared=True, cause="looking at the images")
    monkeypatch.setitem(rows.ADAPT_ROWS, "rarest", entry)
    monkeypatch.setitem(baselines.ROW_MAKERS, "rarest", RowMaker(predict))


def test_a_new_row_is_in_report_table_sentence_card_and_documentation(rarest, pretrained, folder):
    Path("adapt.yaml").write_text(adapt_recipe(phase(length="epochs: 3")))
    done = worked(
        "adapt", "--from", pretrained, "--target", "kmnist", "--recipe", "adapt.yaml", "--out", "new.safetensors"
    )
    report = report_of("new.safetensors")
    right = report["results"]["rarest"]["correct"]
    assert right == 10 and report["results"]["rarest"]["total"] == 100
    gain = report["results"]["after"]["accuracy"] - 0.1
    assert report["comparisons"]["after_vs_rarest"]["difference"] == pytest.approx(gain)
    shown = " ".join(done.out.split())
    assert "always the last class" in shown and "whether looking at the images helps takes" in shown
    card = make_bundle(Path("new.safetensors"), parse_name("ada/new"), None).card
    assert "| rarest | always the last class |" in card and "whether looking at the images helps takes" in card
    assert "| `rarest` | rarest | always the last class |" in rows_markdown()


def test_a_row_of_a_later_version_is_shown_by_its_key():
    assert rows.row_of("interpolated_weights") == Row("interpolated weights", "")


def test_every_row_has_a_maker():
    assert baselines.ROW_MAKERS.keys() == rows.ADAPT_ROWS.keys()
