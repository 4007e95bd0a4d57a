"""The pictures of a page: a run's surest mistakes, and where their answers come from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from finetune.data.image_dataset import ImageSet
from finetune.errors import SettingError
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model
from finetune.report.console import Console
from finetune.report.page import Material, Picture, report_page
from finetune.report.predictions import image_names
from finetune.report.report import Report
from finetune.run.output_paths import OutputPaths
from finetune.run.report_page import ENDING, files_beside, surest_mistakes, write_page
from finetune.text import first_line, places_of
from finetune.train.device import seeded
from finetune.train.heatmap import heated, heatmaps

MAX_PNG = 64  # pixels a side of a picture that is stored without loss
PICTURE_SIDE = 224  # pixels of a picture on the page, at most


def write_run_page(
    report: Report, outputs: OutputPaths, classifier: Classifier, test: ImageSet, console: Console
) -> None:
    """Writes NAME.report.html of a run whose other files are written. test: as it was measured. OutputError."""
    found = with_pictures(files_beside(outputs.report), classifier, test, report.own_row)
    write_page(outputs.report.with_suffix(ENDING), report_page(report, found), console)


def with_pictures(material: Material, classifier: Classifier, images: ImageSet, row: str | None = None) -> Material:
    """The material with the pictures of a row's surest mistakes among these images, and their heatmaps."""
    predictions = material.predictions
    if predictions is None or not (chosen := surest_mistakes(predictions, row)):
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


def heated_pictures(
    classifier: Classifier, images: Tensor, answered: Mapping[str, str]
) -> tuple[dict[str, Picture], list[str]]:
    """Pictures for a page by name, with heatmaps of the classes that were answered, and what has to be said of them.

    images: uint8, N×C×H×W. answered: the class that each of them, by name, was taken for.
    """
    names, answers = list(answered), places_of(answered.values(), classifier.class_names)
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
    warm = [picture_file(heated(*pair)) for pair in zip(shown, found.maps, strict=True)]
    said = f"heatmaps: {found.method}; rank correlation with those of random weights {found.correlation:.2f}"
    return dict(zip(names, map(Picture, plain, warm), strict=True)), [said]


def picture_file(image: Tensor) -> bytes:
    """An image, uint8, C×H×W, as a file of at most PICTURE_SIDE pixels a side: PNG, or JPEG for a photograph."""
    from PIL import Image

    image = _small(image)
    file, pixels = io.BytesIO(), (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()
    kind: dict[str, Any] = {"format": "JPEG", "quality": 85} if max(image.shape[-2:]) > MAX_PNG else {"format": "PNG"}
    Image.fromarray(pixels).save(file, **kind)
    return file.getvalue()


def _small(image: Tensor) -> Tensor:
    """The picture with at most PICTURE_SIDE pixels a side."""
    side = max(image.shape[-2:])
    if side <= PICTURE_SIDE:
        return image
    step = PICTURE_SIDE / side
    small = torch.nn.functional.interpolate(image[None].float(), scale_factor=step, mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).byte()
