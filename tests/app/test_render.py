"""Answers as HTML: names are text, and a broken picture is a message."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from album import put

import finetune as toolkit
from finetune.app.answer import Answer, answer, answer_file
from finetune.app.ink import MNIST
from finetune.app.render import Contender, answer_html, respond
from finetune.checkpoint.confidence import Promise
from finetune.models.classifier import Prediction

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "mnist.safetensors"
GREY = np.zeros((28, 28), np.uint8)


@pytest.fixture(scope="module")
def contender(pretrained: Path) -> Contender:
    return Contender("mnist", "a cnn", toolkit.load(pretrained), MNIST)


def told(*rows: tuple[str, float]) -> Answer:
    best, share = max(rows, key=lambda row: row[1])
    return Answer(Prediction(best, share, tuple(value for _, value in rows)), dict(rows), GREY)


def test_class_names_are_text_not_html() -> None:
    html = answer_html(told(("<script>alert(1)</script>", 0.75), ("a & b", 0.25)))
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "a &amp; b" in html


def test_few_classes_keep_their_order_and_of_many_the_best_are_shown() -> None:
    few = answer_html(told(("one", 0.1), ("two", 0.7), ("three", 0.2)))
    assert few.index(">one<") < few.index(">two</span>") < few.index(">three<")
    assert few.count('class="best"') == 1 and '<li class="best"><span class="name" dir="auto" title="two">' in few
    many = answer_html(told(*((f"class {i}", i / 4950) for i in range(100))))
    assert many.count("<li") == 10 and many.index(">class 99<") < many.index(">class 90<") and ">class 89<" not in many


def test_an_unsure_answer_and_an_unlike_picture_are_said_to_be_so(contender: Contender) -> None:
    classifier = toolkit.load(SHIPPED)
    classifier.trust(None, "a test")
    plain = answer_html(answer(classifier, GREY))
    assert "caution" not in plain and "unsure" not in plain, "nothing is promised"
    record = contender.classifier.confidence
    assert record is not None and record.novelty is not None
    promise = Promise(max_error=0.01, confidence=0.95, threshold=1.0, answered=0.5, images=299)
    strict = record.novelty.model_copy(update={"threshold": -1e9})
    own = copy.copy(contender.classifier)
    own.trust(record.model_copy(update={"promise": promise, "novelty": strict}), "a test")
    found = answer(own, GREY)
    html = answer_html(found)
    assert f'unsure: best guess <strong dir="auto">{found.prediction.label}' in html
    assert html.count('<p class="caution">') == 2 and "Unlike the pictures it was trained on" in html
    assert "from 100.0% on, at most 1 % of answers are wrong, as promised with 95 % confidence" in html
    assert f"{found.prediction.probability:.1%}" in html and sum(found.probabilities.values()) == pytest.approx(1)


def test_a_broken_picture_is_a_message(contender: Contender, tmp_path: Path) -> None:
    broken = tmp_path / "<b>broken.png"
    broken.write_bytes(put(tmp_path / "whole.png").read_bytes()[:60])
    notice, *answers = respond([contender, contender], lambda each: answer_file(each.classifier, str(broken)))
    assert notice.startswith('<p role="alert">&lt;b&gt;broken.png: cannot be read as an image')
    assert "<b>" not in notice and answers == [answer_html(None)] * 2


def test_an_answer_takes_the_message_away(contender: Contender, tmp_path: Path) -> None:
    picture = put(tmp_path / "whole.png")
    notice, shown = respond([contender], lambda each: answer(each.classifier, picture))
    assert notice == "" and shown == answer_html(answer(contender.classifier, picture))
    _, nothing = respond([contender], lambda each: None)
    assert nothing == answer_html(None) and "<img" not in nothing


def test_only_grey_networks_of_28_pixels_are_drawn_for(contender: Contender, backbone: Path) -> None:
    photos = Contender("meadow", "a network for photographs", toolkit.load(backbone), MNIST)
    assert contender.can_draw and not photos.can_draw
