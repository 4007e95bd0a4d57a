"""The HTML page of a run: its report, the files beside it, and the pictures of its surest mistakes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.data.image_dataset import ImageSet
from finetune.errors import DataError, OutputError, SettingError
from finetune.io.atomic import prepared_files
from finetune.io.safe_open import sha256_of
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model
from finetune.report.console import Console
from finetune.report.page import Material, Picture, report_page, sure_and_wrong
from finetune.report.predictions import Predictions, image_names, read_predictions
from finetune.report.report import Report
from finetune.report.rows import OWN_ROWS
from finetune.run.output_paths import STUDIES, SUFFIX, OutputPaths, check_writable, move_file_aside
from finetune.text import first_line
from finetune.train.device import seeded
from finetune.train.heatmap import heatmaps

ENDING = ".html"
MAX_PNG = 64  # pixels a side of a picture that is stored without loss
PICTURE_SIDE = 224  # pixels of a picture on the page, at most
MASK = 0.45  # of the picture below its heatmap


def write_run_page(
    report: Report, outputs: OutputPaths, classifier: Classifier, test: ImageSet, console: Console
) -> None:
    """Writes NAME.report.html of a run whose other files are written. test: as it was measured. OutputError."""
    found = with_pictures(files_beside(outputs.report), classifier, test)
    write_page(outputs.report.with_suffix(ENDING), report_page(report, found), console)


def write_page(path: Path, page: str | bytes, console: Console) -> None:
    """Writes a page or a picture; another one that was there is moved aside. OutputError."""
    content = page.encode(errors="backslashreplace") if isinstance(page, str) else page
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected a file name that is free or a file")
    with prepared_files({path: content}):
        move_file_aside(path, content, console)
    console.say(f"wrote {path}")


def page_path(name: str, kind: str) -> Path:
    """Where a command that writes no report writes its page: studies/NAME.KIND.html. OutputError."""
    path = STUDIES / f"{name}.{kind}{ENDING}"
    check_writable(path.parent, "run finetune in a folder that can be written")
    return path


def files_beside(report: Path) -> Material:
    """The answers in the file beside a report, and the hashes of the files of its run."""
    stem = report.name.removesuffix(".json").removesuffix(".report")
    checkpoint, answers = (report.with_name(stem + ending) for ending in (SUFFIX, ".predictions.csv"))
    sha256 = {own.name: sha256_of(own) for own in (report, checkpoint, answers) if own.is_file()}
    try:
        return Material(read_predictions(answers), sha256=sha256)
    except DataError as error:
        return Material(notes=[f"without answers image by image: {first_line(error)}"], sha256=sha256)


def with_pictures(material: Material, classifier: Classifier, images: ImageSet) -> Material:
    """The material with the pictures of the surest mistakes that are among these images, and their heatmaps."""
    predictions = material.predictions
    if predictions is None or not (chosen := surest_mistakes(predictions)):
        return material
    place = {image: index for index, image in enumerate(image_names(images.files, len(images)))}
    answered = {image: answer for image, answer in chosen.items() if image in place}
    if not answered:
        return replace(
            material, notes=[*material.notes, "without pictures: those of the data set have other names now"]
        )
    found = images.images[torch.tensor([place[image] for image in answered])]
    pictures, said = heated_pictures(classifier, found, answered)
    return replace(material, pictures=pictures, notes=[*material.notes, *said])


def surest_mistakes(predictions: Predictions) -> dict[str, str]:
    """The images that a run's own row was surest and wrong about, and the class that it answered."""
    row = next((key for key in (*OWN_ROWS, *predictions.rows) if key in predictions.rows), "")
    if not (chosen := sure_and_wrong(predictions, row)):
        return {}
    column = predictions.columns[(row, predictions.seeds(row)[0])]
    return {predictions.images[index]: predictions.class_names[int(column.predicted[index])] for index in chosen}


def heated_pictures(
    classifier: Classifier, images: Tensor, answered: Mapping[str, str]
) -> tuple[dict[str, Picture], list[str]]:
    """Pictures for a page by name, with heatmaps of the classes that were answered, and what has to be said of them.

    images: uint8, N×C×H×W. answered: the class that each of them, by name, was taken for.
    """
    names, answers = list(answered), [classifier.class_names.index(own) for own in answered.values()]
    normalize = classifier.input.normalizer(torch.device("cpu"))
    shown = normalize.center_view(images).round().byte()
    plain = [picture_file(image) for image in shown]
    classifier.network.cpu().float().to(memory_format=torch.contiguous_format)  # where it trained it may differ
    try:
        with seeded(0):
            untrained = build_model(classifier.model, len(classifier.class_names), classifier.arguments)
        found = heatmaps(classifier.network, untrained, images, normalize, answers)
    except SettingError as error:
        return dict(zip(names, map(Picture, plain), strict=True)), [f"without heatmaps: {first_line(error)}"]
    if not found.depend_on_weights:
        said = (
            f"heatmaps are left out: {found.method} of the same network with random weights shows the same (rank "
            f"correlation {found.correlation:.2f})"
        )
        return dict(zip(names, map(Picture, plain), strict=True)), [said]
    heated = [picture_file(_heated(*pair)) for pair in zip(shown, found.maps, strict=True)]
    said = f"heatmaps: {found.method}; rank correlation with those of random weights {found.correlation:.2f}"
    return dict(zip(names, map(Picture, plain, heated), strict=True)), [said]


def _heated(image: Tensor, heat: Tensor) -> Tensor:
    """The picture, dark, with its heatmap over it: uint8, 3×H×W."""
    from matplotlib import colormaps

    grey = image.float().mean(0)
    colours = torch.from_numpy(colormaps["inferno"](heat.numpy())[..., :3]).permute(2, 0, 1) * 255
    return (MASK * grey + (1 - MASK) * colours).round().clamp(0, 255).byte()


def _small(image: Tensor) -> Tensor:
    """The picture with at most PICTURE_SIDE pixels a side."""
    side = max(image.shape[-2:])
    if side <= PICTURE_SIDE:
        return image
    step = PICTURE_SIDE / side
    small = torch.nn.functional.interpolate(image[None].float(), scale_factor=step, mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).byte()


def picture_file(image: Tensor) -> bytes:
    """An image, uint8, C×H×W, as a file of at most PICTURE_SIDE pixels a side: PNG, or JPEG for a photograph."""
    from PIL import Image

    image = _small(image)
    file, pixels = io.BytesIO(), (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()
    kind: dict[str, Any] = {"format": "JPEG", "quality": 85} if max(image.shape[-2:]) > MAX_PNG else {"format": "PNG"}
    Image.fromarray(pixels).save(file, **kind)
    return file.getvalue()
