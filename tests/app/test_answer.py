"""What the page answers is what `predict` answers, and the drawn digits are what they are."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from album import scene
from digit_strokes import DIGITS
from PIL import Image

import finetune as toolkit
from finetune.app.answer import answer, png_address
from finetune.app.ink import MNIST, draw
from finetune.commands.predict import predict
from finetune.models.registry import build_model
from finetune.train.device import seeded

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "mnist.safetensors"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colour JPEG that lies on its side, so that it is cropped, resized and turned."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    pixels = np.kron(scene("ant", "a"), np.ones((4, 6, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_it_equals_predict(photo: Path, backbone: Path, pretrained: Path) -> None:
    for checkpoint in (backbone, pretrained):
        classifier = toolkit.load(checkpoint)
        found = answer(classifier, photo)
        assert found.prediction == classifier.predict([photo])[0]
        assert tuple(found.probabilities.values()) == found.prediction.probabilities
        (told,) = predict(checkpoint, [photo], top=len(classifier.class_names), device="cpu")
        assert dict(told.top) == pytest.approx(found.probabilities, abs=1e-6)
        assert told.top[0][0] == found.prediction.label


def test_what_was_seen_is_the_networks_input(photo: Path, backbone: Path) -> None:
    classifier = toolkit.load(backbone)
    found = answer(classifier, photo)
    assert found.seen.shape == (classifier.input.size, classifier.input.size, 3)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (classifier.input.mean, classifier.input.std))
    inputs = (torch.from_numpy(found.seen).permute(2, 0, 1) / 255 - mean) / std
    (again,) = classifier.predict_preprocessed(inputs[None])
    assert again.probabilities == pytest.approx(found.prediction.probabilities, abs=1e-5)
    content = base64.b64decode(png_address(found.seen).removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.array(Image.open(io.BytesIO(content))), found.seen)


def test_a_drawn_digit_is_that_digit() -> None:
    classifier = toolkit.load(SHIPPED)
    answers = {digit: answer(classifier, draw([np.array(s) for s in DIGITS[digit]])) for digit in DIGITS}
    assert {digit: found.prediction.label for digit, found in answers.items()} == {digit: digit for digit in DIGITS}
    assert np.array_equal(answers["7"].seen, draw([np.array(s) for s in DIGITS["7"]]))


def test_an_untidy_hand_is_read_too() -> None:
    classifier, rng = toolkit.load(SHIPPED), np.random.default_rng(0)
    right, as_drawn = [], []
    for digit in [*DIGITS] * 20:
        turn, slant, width = rng.uniform(-0.26, 0.26), rng.uniform(-0.25, 0.25), rng.uniform(0.65, 1.3)
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        hand = np.diag([width, 1]) @ [[1, slant], [0, 1]] @ turned
        strokes = [(np.array(stroke) - 0.5) @ hand.T for stroke in DIGITS[digit]]
        right.append(answer(classifier, draw(strokes)).prediction.label == digit)
        small = replace(MNIST, box=int(rng.integers(12, 28)))  # what comes of it without scaling and centring
        moved = np.roll(draw(strokes, small), rng.integers(-4, 5, 2), axis=(0, 1))
        as_drawn.append(answer(classifier, moved).prediction.label == digit)
    assert np.mean(right) >= 0.98 > 0.95 > np.mean(as_drawn)


def test_a_heatmap_is_shown_where_it_depends_on_the_weights() -> None:
    pytest.importorskip("captum")
    classifier = toolkit.load(SHIPPED)
    picture = draw([np.array(s) for s in DIGITS["7"]])
    with seeded(0):
        untrained = build_model(classifier.model, 10, {})
    found = answer(classifier, picture, untrained)
    assert found.heated is not None and found.heated.shape == (28, 28, 3)
    assert found.prediction == answer(classifier, picture).prediction
    assert answer(classifier, picture, classifier.network).heated is None, "its own map is the same"
