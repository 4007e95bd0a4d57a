"""What a report costs does not grow with the square of the number of classes."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from reports import adapt_report

from finetune.data.image_dataset import ImageSet
from finetune.data.manifest import MAX_SHOWN, alike_classes
from finetune.data.split import choose_test
from finetune.errors import SettingError
from finetune.models.head import class_means
from finetune.report.confidence import summarize_confidence
from finetune.report.metrics import METRICS, Answers, measure_all
from finetune.report.page import Material, report_page
from finetune.report.report import read_report, read_report_values
from finetune.report.statistics import MAX_DENSE
from finetune.report.tables import MAX_CLASSES, class_table, confusion_lines, evaluation_parts, mapping_lines
from finetune.run.finalize import Grading, check_metric, metric_answers, score
from finetune.train.linear_probe import stratified_folds

CLASSES, EACH = 2_000, 2
NAMES = tuple(f"class-{k:05}" for k in range(CLASSES))


def image_set(classes=CLASSES, each=EACH):
    labels = torch.arange(classes).repeat_interleave(each)
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return ImageSet(images, labels, NAMES[:classes], "many")


def graded(images, monkeypatch, most=None):
    """Answers to these images from logits that come in batches, and these logits."""
    if most is not None:
        monkeypatch.setattr("finetune.run.finalize.MAX_PROBABILITIES", most)
    grading, classes = Grading.of(images), len(images.class_names)
    logits = torch.randn(len(images), classes, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(len(images)), images.labels] += 3
    numbers = [grading.reduce(logits[i : i + 7], i) for i in range(0, len(logits), 7)]
    found = grading.answers(logits)
    again = found.of_numbers(torch.cat(numbers))
    assert all(torch.equal(own, again.tensors()[name]) for name, own in found.tensors().items())
    return found, logits


def test_answers_read_batch_by_batch_are_those_of_the_softmax(monkeypatch):
    images = image_set(50, 3)
    found, logits = graded(images, monkeypatch)
    chances = logits.double().softmax(1).float()
    assert torch.equal(found.probabilities, chances) and torch.equal(found.predicted, logits.argmax(1))
    assert torch.equal(found.confidence, chances.amax(1))
    assert torch.equal(found.true_probability, chances.gather(1, images.labels[:, None])[:, 0])

    few, _ = graded(images, monkeypatch, most=len(images) * 50 - 1)
    assert few.probabilities is None and few.subset(np.array([3])).tensors().keys() == few.tensors().keys()
    whole, parts = (measure_all(metric_answers(images, own), images.class_names) for own in (found, few))
    assert {parts.pop(name).note for name in ("auroc", "brier")} == {"not measured: 150 images × 50 classes"}
    assert parts == {name: value for name, value in whole.items() if name not in ("auroc", "brier")}
    record = {"temperature": 2.0, "images": 60, "how": "validation"}
    summary = summarize_confidence(record, metric_answers(images, few), [])
    assert summary.before == summary.after == {} and "150 images × 50 classes" in summary.notes[0]
    with pytest.raises(SettingError, match=r"150 test images × 50 classes.*log_loss"):
        check_metric("auroc", images)

    majority = Grading.of(images).majority(images.subset([0, 3, 3, 6]))
    assert majority.method == NAMES[1] and set(majority.predicted.tolist()) == {1}
    assert majority.true_probability[:9].tolist() == [0.25] * 3 + [0.5] * 3 + [0.25] * 3


def test_areas_with_ties_are_scikit_learn_s():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    labels, chances = random.integers(0, 6, 200), random.integers(1, 5, (200, 6)).astype(np.float64)
    answers = Answers.of(labels, chances / chances.sum(1, keepdims=True))
    areas = [roc_auc_score(labels == c, answers.probabilities[:, c]) for c in range(6)]
    assert answers.placements[0] == pytest.approx(areas, abs=1e-12)
    assert METRICS["auroc"].influence(answers).sum() == pytest.approx(0, abs=1e-12)


def test_thousands_of_classes_cost_little(monkeypatch, tmp_path):
    images = image_set()
    answers, _ = graded(images, monkeypatch, most=1)
    report, path = adapt_report(("ant", "bee")), tmp_path / "many.report.json"
    target = replace(report.target, classes=list(NAMES))
    score(image_set(), answers, row="after")  # imports scikit-learn
    tracemalloc.start()
    try:
        result = score(images, answers, row="after")
        report = replace(report, target=target, results={"after": result}, comparisons={})
        path.write_text(report.to_json())
        table, lines = class_table(result), confusion_lines(result.confusion, NAMES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6, "a matrix of all pairs takes 32 MB, and as lists and JSON many times that"
    assert path.stat().st_size < 600_000 and read_report(path) == report
    assert read_report_values(path)["results"]["after"]["confusion"].keys() == {
        *("classes", "true", "predicted", "images")
    }
    page = report_page(report, Material())
    assert len(page) < 300_000 and "and 1,000 more" in page and "Of 2,000 classes the 20 with the most" in page
    assert table.row_count == MAX_CLASSES and "the first 40 of 2,000" in table.title
    assert sum(result.confusion.images) == len(images) and len(lines) == 5
    dense = score(image_set(MAX_DENSE, 1), graded(image_set(MAX_DENSE, 1), monkeypatch)[0], row="after")
    assert len(dense.confusion.to_json()) == MAX_DENSE


def test_what_is_done_for_each_class_is_as_it_was_one_class_after_the_other():
    random = np.random.default_rng(0)
    labels = random.permutation(np.concatenate([np.arange(60), random.integers(0, 60, 140)]))
    keys = random.integers(0, 2**63, 200).astype(np.uint64)
    sets = random.integers(0, 150, 200)
    chosen = choose_test(keys, sets, labels, 0.3)
    assert np.array_equal(chosen, one_after_the_other(keys, sets, labels, 0.3))
    assert {len(np.unique(chosen[sets == own])) for own in np.unique(sets)} == {1}

    features = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    means = class_means(features, torch.from_numpy(labels), 60)
    nearest = (features.double() @ means.weight.T + means.bias).argmax(1)
    every = torch.stack([features.double()[labels == c].mean(0) for c in range(60)])
    assert torch.equal(nearest, torch.cdist(features.double(), every).argmin(1))
    folds = stratified_folds(torch.from_numpy(labels))
    assert all(folds[labels == c].tolist() == [k % 5 for k in range((labels == c).sum())] for c in range(60))


def one_after_the_other(keys, sets, labels, fraction):
    """What `choose_test` does, class by class."""
    keys = np.array([keys[sets == own].max() for own in sets])
    chosen, count = keys < np.uint64(fraction * 2**64), np.bincount(labels)
    for label in np.flatnonzero((np.bincount(labels[~chosen], minlength=len(count)) == 0) & (count > 0)):
        chosen &= keys != keys[labels == label].max()
    for label in np.flatnonzero((np.bincount(labels[~chosen], minlength=len(count)) == count) & (count > 0)):
        lowest = keys == keys[labels == label].min()
        if set(labels[lowest].tolist()) == {label} and lowest.sum() < count[label]:
            chosen |= lowest
    return chosen


def test_no_line_names_thousands_of_classes(monkeypatch):
    images = image_set(500, 1)
    result = score(images, graded(images, monkeypatch)[0], row="after")
    shown = evaluation_parts(result, "many", images.class_names, None, not_offered=NAMES)
    lines = [*map(str, shown), *mapping_lines({"classes": list(NAMES)})]
    assert max(map(len, lines)) < 700 and sum("class-00029 and 1970 more" in line for line in lines) == 2
    alike = alike_classes("many", {name: [name, f"{name} "] for name in NAMES})
    assert len(alike) == MAX_SHOWN + 1 and alike[-1] == f"many: so it is with {CLASSES - MAX_SHOWN:,} more classes"
