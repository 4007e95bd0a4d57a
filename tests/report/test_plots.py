"""The pictures that are written: readable PNGs of the size meant, the same bytes each time, whatever the names."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.commands.plan import augment_grid
from finetune.data.augment.affine import Augment
from finetune.data.image_dataset import ImageSet
from finetune.data.loader import Batches
from finetune.data.normalize import Normalizer
from finetune.errors import OutputError
from finetune.report.plots import (
    COLOURS,
    DOTS,
    Curve,
    ForestRow,
    confusion_picture,
    curve_pictures,
    drawable,
    forest_figure,
    grid_picture,
    pictures,
)
from finetune.report.statistics import Confusion

CPU = torch.device("cpu")


def read(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert set(picture.info) <= {"dpi"}, "no time, no software"
        return np.asarray(picture.convert("RGB"))


def counts(classes, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 4, (classes, classes)) + np.diag(generator.integers(20, 900, classes))


@pytest.mark.parametrize("classes", [2, 10, pytest.param(2_000, marks=pytest.mark.slow)])
def test_a_confusion_is_drawn_for_few_and_for_many_classes(classes, tmp_path):
    path = tmp_path / "new" / "confusion.png"
    names, matrix = [f"class {k}" for k in range(classes)], Confusion.of_rows(counts(classes).tolist())
    confusion_picture(matrix, names, path)
    picture = read(path)
    height, width = picture.shape[:2]
    assert 200 < height < 2600 and 200 < width < 2600
    assert min(height, width) > 0.17 * min(classes, 100) * DOTS, "room for every class that is drawn"
    assert [entry.name for entry in path.parent.iterdir()] == ["confusion.png"]
    first = path.read_bytes()
    confusion_picture(matrix, names, path)
    assert path.read_bytes() == first


def test_rows_are_true_classes_and_the_colour_is_the_share_of_the_row(tmp_path):
    """Class 0 is always taken for 1, class 1 half of the time for 0: dark above right, equal below."""
    confusion_picture(Confusion.of_rows([[0, 900], [3, 3]]), ["a", "b"], tmp_path / "c.png")
    picture = read(tmp_path / "c.png").astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 60).astype(int)  # dark and medium fields; the empty one is nearly white
    rows, columns = np.nonzero(blue)
    top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
    fields = {}
    for y, name in ((0.2, "above"), (0.7, "below")):
        for x, side in ((0.2, "left"), (0.7, "right")):
            fields[name, side] = picture[int(top + y * (bottom - top)), int(left + x * (right - left))].sum()
    assert fields["above", "right"] < fields["below", "left"] == fields["below", "right"] < fields["above", "left"]


def test_a_class_without_images_is_drawn_too(tmp_path):
    confusion_picture(Confusion.of_rows([[0, 0], [0, 0]]), ["a", "b"], tmp_path / "c.png")
    read(tmp_path / "c.png")


@pytest.mark.parametrize("name", ["猫", "$x_1", "a\nb", "", "été", "x" * 300, "😀", "#0", "\u202e", "{}%"])
def test_any_name_can_be_drawn(name, tmp_path):
    confusion_picture(
        Confusion.of_rows([[3, 1], [1, 3]]), [name, "other"], tmp_path / "c.png"
    )  # a missing glyph would warn, and so fail
    read(tmp_path / "c.png")


def test_names_the_font_lacks_become_numbers():
    assert drawable(["猫", "dog", "犬", "été"]) == (["#0", "dog", "#2", "été"], True)
    assert drawable(["a", "b"]) == (["a", "b"], False)
    assert len(drawable(["x" * 300])[0][0]) == 24


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a name for each of 1 classes, found 2"):
        confusion_picture(Confusion.of_rows([[1]]), ["a", "b"], tmp_path / "c.png")
    with pytest.raises(ValueError, match="expected uint8"):
        grid_picture(np.zeros((1, 1, 4, 4, 2), np.uint8), ["a"], tmp_path / "c.png")
    with pytest.raises(ValueError, match="expected 1 labels, found 2"):
        grid_picture(np.zeros((1, 1, 4, 4, 3), np.uint8), ["a", "b"], tmp_path / "c.png")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "c.png", tmp_path):
        with pytest.raises(OutputError, match="cannot be written"):
            confusion_picture(Confusion.of_rows([[1]]), ["a"], path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"], "nothing is left behind"


def test_drawing_touches_no_setting_of_the_program():
    code = (
        "import sys, tempfile, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "from finetune.report.plots import confusion_picture\n"
        "from finetune.report.statistics import Confusion\n"
        "confusion_picture(Confusion.of_rows([[1]]), ['a'], tempfile.mkdtemp() + '/c.png')\n"
        "assert matplotlib.rcParams.copy() == before and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the grid of augmented images -------------------------------------------------------------------------------------


def training(channels, side=20, count=30):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 3, ("cat", "dog", "猫"), "made")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [None, Augment(crop=0.4, flip=True, colour=0.3), Augment(shift=2, mixup=0.4)])
def test_the_grid_is_what_training_sees(channels, augment, tmp_path):
    train = training(channels)
    normalize = Normalizer((0.5,) * channels, (0.25,) * channels, CPU, size=16, working=20)
    grid, labels = augment_grid(train, normalize, augment, 5, rows=4, versions=3)
    assert grid.shape == (4, 3, 16, 16, channels) and grid.dtype == np.uint8
    assert labels == ["cat", "dog", "猫", "cat"]
    view = train.images[:, :, 2:18, 2:18].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(grid[:, 0], view[:4])
    batches = Batches(train.images, train.labels, batch_size=7, seed=5, normalize=normalize, augment=augment, classes=3)
    for epoch in (0, 1):
        order = torch.cat(
            [labels for _, labels in Batches(train.images, torch.arange(30), batch_size=7, seed=5).epoch(epoch)]
        )
        images = torch.cat([inputs for inputs, _ in batches.epoch(epoch)])
        expected = normalize.denormalize(images)[order.argsort()[:4]].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(grid[:, 1 + epoch], expected)
    grid_picture(grid, labels, tmp_path / "g.png")
    first = (tmp_path / "g.png").read_bytes()
    grid_picture(grid, labels, tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes() == first
    assert read(tmp_path / "g.png").shape[1] > 3 * DOTS


def test_a_grid_of_few_images_has_few_rows():
    normalize = Normalizer((0.5,), (0.25,), CPU)
    grid, labels = augment_grid(training(1).subset([0, 2]), normalize, Augment(flip=True), 0)
    assert grid.shape[:2] == (2, 8) and labels == ["cat", "猫"]


def test_the_images_of_a_grid_stand_in_rows(tmp_path):
    """Two rows of three flat images: their six colours are found in their order."""
    colours = np.array(
        [[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 250, 250], [250, 0, 250]]], np.uint8
    )
    grid_picture(np.tile(colours[:, :, None, None], (1, 1, 8, 8, 1)), ["a", "b"], tmp_path / "g.png")
    picture = read(tmp_path / "g.png")
    centres = np.array([[np.argwhere((picture == colour).all(2)).mean(0) for colour in row] for row in colours])
    down, along = centres[:, :, 0], centres[:, :, 1]
    assert np.allclose(down, down[:, :1], atol=2) and np.allclose(along, along[:1], atol=2)
    assert (np.diff(down, axis=0) > 50).all() and (np.diff(along, axis=1) > 50).all()


# --- forest plots and learning curves ---------------------------------------------------------------------------------


def test_a_forest_plot_has_a_line_for_each_row_in_its_order():
    rows = [
        ForestRow("猫", 0.9, (0.8, 0.95), (0.88, 0.92)),
        ForestRow("$dog", 0.5, (0.4, 0.6)),
        ForestRow("worse", -0.2, (-0.3, -0.1)),
        ForestRow("equal", 0.01, (-0.1, 0.2)),
    ]
    axes = forest_figure(rows, "points", zero=True).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "#0\n+90.00",
        "$dog\n+50.00",
        "worse\n-20.00",
        "equal\n+1.00",
    ]
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert [list(line.get_xdata()) for line in bars] == [
        pytest.approx([100 * end for end in row.interval]) for row in rows
    ]
    assert [line.get_ydata()[0] for line in bars] == [3, 2, 1, 0], "the first row on top"
    assert [line.get_color() for line in bars] == ["C1", "C1", "C1", "C0"], "what leaves out zero is a difference shown"
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"] == [pytest.approx([88, 92])]


def test_plots_are_pngs_and_svgs_of_the_same_bytes_in_colours_that_can_be_told_apart():
    rows = [ForestRow("a < b & c", 0.9, (0.8, 0.95))]
    found, again = (pictures(lambda: forest_figure(rows, "accuracy, %"), ("png", "svg")) for _ in range(2))
    assert found == again and found["png"].startswith(b"\x89PNG") and b"</svg>" in found["svg"]
    assert COLOURS[0].encode() in found["svg"] and b"<dc:date>" not in found["svg"]
    curve = Curve(
        "scratch",
        [5, 50],
        [0.5, 0.9],
        [(0.4, 0.6), (0.8, 0.95)],
        [[0.5], [0.9]],
        [(50, 0.9, 0.8, 0.95), (500, 0.97, 0.9, 1)],
    )
    drawn = curve_pictures([curve, curve], "moths")
    assert drawn == curve_pictures([curve, curve], "moths") and set(drawn) == {"png", "svg"}
    assert all(colour.encode() in drawn["svg"] for colour in COLOURS[:2])
