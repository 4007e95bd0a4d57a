"""Pictures in, labels out: every form that a picture has, and what is no picture."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import NormNet
from PIL import Image
from torchvision.transforms import Normalize

from finetune.data.normalize import Normalizer
from finetune.errors import DataError, SettingError
from finetune.models.classifier import PREDICT_BATCH, Classifier
from finetune.models.spec import InputSpec

SIDE = 8
GREY = InputSpec(1, SIDE, (0.13,), (0.31,))
COLOUR = InputSpec(3, SIDE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def classifier(spec=GREY, classes=("null", "eins", "zwei")):
    torch.manual_seed(0)
    network = NormNet(len(classes)).eval()
    return Classifier(network, "normnet", {}, classes, spec).eval()


def grey(seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def colour(seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def normal(pixels, spec):
    """The reference: torchvision's Normalize of H×W or H×W×C pixels."""
    planes = torch.from_numpy(pixels.copy())
    planes = planes[None] if pixels.ndim == 2 else planes.permute(2, 0, 1)
    return Normalize(spec.mean, spec.std)(planes.float() / 255)


def same(found, expected):
    assert found.shape == expected.shape and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_grey_pictures_in_every_form_give_the_same(tmp_path):
    pixels, path = grey(), tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels)
    forms = [Image.fromarray(pixels), pixels, pixels[:, :, None], tensor, tensor[None], path, str(path)]
    forms += [np.asfortranarray(pixels), pixels[::-1][::-1]]
    for form in forms:
        same(classifier().preprocess(form), normal(pixels, GREY))


def test_colour_pictures_in_every_form_give_the_same(tmp_path):
    pixels, path = colour(), tmp_path / "a.bmp"
    Image.fromarray(pixels).save(path)
    for form in (Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1), path):
        same(classifier(COLOUR).preprocess(form), normal(pixels, COLOUR))


def test_colour_is_turned_grey_and_grey_colour_as_pillow_does():
    pixels = colour()
    same(classifier().preprocess(pixels), normal(np.array(Image.fromarray(pixels).convert("L")), GREY))
    same(classifier(COLOUR).preprocess(grey()), normal(np.stack([grey()] * 3, -1), COLOUR))


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "PA"])
@pytest.mark.parametrize("spec", [GREY, COLOUR])
def test_other_modes_are_converted(mode, spec):
    picture = Image.fromarray(colour()).convert("L" if mode in ("LA", "PA") else "RGB").convert(mode)
    expected = np.array(picture.convert("L" if spec is GREY else "RGB"))
    same(classifier(spec).preprocess(picture), normal(expected, spec))
    if mode == "P":
        assert len(picture.getcolors()) > 20  # palette indices are not taken for pixels
        assert not np.array_equal(np.array(picture), expected)


def test_an_alpha_channel_of_an_array_is_left_out():
    pixels = np.dstack([colour(), np.full((SIDE, SIDE), 255, np.uint8)])
    same(classifier(COLOUR).preprocess(pixels), normal(pixels[..., :3], COLOUR))


def test_sixteen_bits_become_eight_and_are_not_cut_off(tmp_path):
    deep = grey().astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for form in (Image.fromarray(deep), tmp_path / "deep.png"):
        same(classifier().preprocess(form), normal(grey(), GREY))
    for kind in (np.int32, np.float32):
        with pytest.raises(DataError, match="expected pixels of 8 or 16 bits"):
            classifier().preprocess(Image.fromarray(grey().astype(kind)))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_other_sizes_are_resized_as_the_input_says(interpolation):
    spec = InputSpec(1, SIDE, (0.0,), (1.0,), interpolation)
    for height, width in ((13, 13), (5, 20), (1, 1)):
        pixels = grey(side=20)[:height, :width]
        small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling[interpolation.upper()])
        same(classifier(spec).preprocess(pixels), normal(np.array(small), spec))


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_photographs_are_turned_as_the_camera_says(tmp_path, orientation, turn):
    exif, pixels = Image.Exif(), grey()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    same(classifier().preprocess(tmp_path / "a.png"), normal(np.rot90(pixels, turn), GREY))
    same(classifier().preprocess(Image.open(tmp_path / "a.png")), normal(np.rot90(pixels, turn), GREY))


def test_the_first_picture_of_several_is_taken_and_the_file_closed(tmp_path):
    pages = [Image.fromarray(grey(seed)) for seed in (0, 1)]
    for name in ("a.gif", "a.tiff"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        same(classifier().preprocess(tmp_path / name), normal(grey(), GREY))  # an open file is a warning, so an error


def test_preprocessing_is_what_training_does():
    pixels = torch.from_numpy(np.stack([grey(seed) for seed in range(4)]))[:, None]
    trained = Normalizer(GREY.mean, GREY.std, torch.device("cpu"))(pixels)
    same(torch.stack([classifier().preprocess(p) for p in pixels]), trained)


# --- what is no picture ----------------------------------------------------------------------------------------------


def test_files_that_are_no_pictures_are_named(tmp_path):
    (tmp_path / "text.png").write_text("this is not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(grey(side=64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "token.ppm").write_bytes(b"P6 8x 8 255 ")
    with pytest.raises(DataError, match=r"none\.png: there is no such image file"):
        classifier().preprocess(tmp_path / "none.png")
    for name in ("text.png", "empty.png", "cut.png", "token.ppm", ""):
        with pytest.raises(DataError) as caught:
            classifier().preprocess(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read as an image (")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.fromarray(grey(side=64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="decompression bomb"):
        classifier().preprocess(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((SIDE, SIDE)),
        np.zeros((SIDE, SIDE), np.uint16),
        np.zeros((SIDE, SIDE), bool),
        np.zeros(SIDE, np.uint8),
        np.zeros((2, SIDE, SIDE, 3), np.uint8),
        np.zeros((SIDE, SIDE, 5), np.uint8),
        np.zeros((0, SIDE), np.uint8),
        torch.zeros(1, SIDE, SIDE),
        torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8),
        torch.zeros((), dtype=torch.uint8),
    ],
    ids=lambda image: f"{image.dtype}{tuple(image.shape)}",
)
def test_arrays_that_are_no_pictures_are_refused(image):
    with pytest.raises(DataError, match="expected uint8 pixels of shape H×W"):
        classifier().preprocess(image)


@pytest.mark.parametrize("image", [None, 5, [[1, 2]]])
def test_other_things_are_refused(image):
    with pytest.raises(DataError, match=f"expected a path, bytes, a PIL image, .* found {type(image).__name__}"):
        classifier().preprocess(image)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_a_picture_or_a_data_error(tmp_path, data):
    kind = data.draw(st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"]))
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if kind in ("png", "jpeg", "tiff", "webp") else {}
    Image.fromarray(colour()).save(buffer, kind, **more)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "damaged").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert classifier().preprocess(tmp_path / "damaged").shape == (1, SIDE, SIDE)
        except DataError as error:
            assert str(error).startswith(f"{tmp_path / 'damaged'}: ")


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predictions_are_the_networks_softmax_with_the_names_in_order():
    given, pictures = classifier(), [grey(seed) for seed in range(5)]
    logits = given(torch.stack([given.preprocess(p) for p in pictures]))
    found = given.predict(pictures)
    assert len(found) == 5
    for row, prediction in zip(logits.softmax(1).tolist(), found, strict=True):
        assert prediction.probabilities == pytest.approx(tuple(row))
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-6)
        assert prediction.probability == max(prediction.probabilities)
        assert prediction.label == given.class_names[int(np.argmax(row))]


def test_each_class_can_be_the_answer():
    given = classifier()
    for index, name in enumerate(given.class_names):
        with torch.no_grad():
            given.network.head.weight.zero_()
            given.network.head.bias.copy_(torch.eye(3)[index] * 5)
        assert given.predict([grey()])[0].label == name


def test_predictions_do_not_depend_on_the_company_and_take_any_iterable():
    given = classifier()
    pictures = [grey(seed) for seed in range(PREDICT_BATCH + 3)]
    together = given.predict(iter(pictures))
    assert len(together) == len(pictures)
    for index in (0, 1, PREDICT_BATCH - 1, PREDICT_BATCH, PREDICT_BATCH + 2):
        alone = given.predict([pictures[index]])[0]
        assert alone.label == together[index].label
        assert alone.probabilities == pytest.approx(together[index].probabilities, abs=1e-6)
    stacked = torch.from_numpy(np.stack(pictures[:4]))[:, None]
    assert [p.label for p in given.predict(stacked)] == [p.label for p in together[:4]]
    assert given.predict([]) == []


def test_pictures_are_opened_a_batch_at_a_time():
    """A long list of files does not have to fit into memory."""
    given, opened, most = classifier(), 0, []
    forward = given.network.forward
    given.network.forward = lambda x: (most.append(opened), forward(x))[1]

    def pictures():
        nonlocal opened
        for _ in range(2 * PREDICT_BATCH):
            opened += 1
            yield grey()

    given.predict(pictures())
    assert most == [PREDICT_BATCH, 2 * PREDICT_BATCH]


def test_one_path_alone_is_not_taken_for_a_list_of_letters(tmp_path):
    for one in ("a.png", tmp_path / "a.png"):
        with pytest.raises(SettingError, match="put it in a list"):
            classifier().predict(one)


@pytest.mark.parametrize("fails", [False, True])
def test_predicting_is_in_evaluation_mode_and_puts_every_mode_back(fails):
    given = classifier()
    given.train()
    given.network.stem.eval()  # as a frozen part is held during training
    modes = {name: module.training for name, module in given.named_modules()}
    before = copy.deepcopy(given.state_dict())
    expected = classifier().predict([grey()])
    if fails:
        with pytest.raises(DataError):
            given.predict([grey(), "nothing.png"])
    else:
        assert given.predict([grey()]) == expected == given.predict([grey()])
    assert {name: module.training for name, module in given.named_modules()} == modes
    assert all(torch.equal(before[name], t) for name, t in given.state_dict().items())


def test_predicting_leaves_no_gradients_and_no_trace():
    given = classifier()
    given.predict([grey()])
    assert all(p.grad is None for p in given.parameters())
    assert given.class_names == ("null", "eins", "zwei")
