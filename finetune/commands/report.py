"""`finetune report`: the HTML page of a report, with the pictures and files that are still there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from finetune.data.image_dataset import ImageSet, join
from finetune.data.openers import is_hub_data
from finetune.data.registry import DATASETS
from finetune.errors import DataError, FinetuneError, SettingError
from finetune.io.safe_open import read_regular
from finetune.models.classifier import Classifier
from finetune.paths import data_root as resolve_data_root
from finetune.report.console import Console
from finetune.report.curve_report import CurveReport
from finetune.report.page import Material, check_page, curve_page, rank_page, report_page
from finetune.report.ranking import RankReport
from finetune.report.report import MAX_REPORT_BYTES, Report
from finetune.run.data import open_test
from finetune.run.measured import LearntFrom, choose_measured
from finetune.run.output_paths import SUFFIX
from finetune.run.report_page import ENDING, files_beside, surest_mistakes, with_pictures, write_page
from finetune.sources.resolve import locate, open_source
from finetune.text import first_line


def html_report(
    report: str | Path,
    out: str | Path | None = None,
    *,
    data: str | None = None,
    data_root: str | Path | None = None,
    console: Console | None = None,
) -> Path:
    """Writes the HTML page of a report, and returns its path.

    report: NAME.report.json, NAME.curve.json, NAME.rank.json, or what `check --json` prints. out: by default the same
    name with .html. data: where the pictures of a person's own data set are now; without it those of a registered data
    set are shown, and no others. data_root: as in `finetune.adapt`. What is not there any more is left out, and the
    page says so. SettingError for what is no report; OutputError.
    """
    path, console = Path(report), console or Console(quiet=True, results=False)
    target = Path(out) if out is not None else path.with_suffix(ENDING)
    if target.suffix != ENDING or target == path:
        raise SettingError(f"--out {target}: expected a file name that ends in {ENDING}")
    page = _page(path, data, resolve_data_root(data_root))
    write_page(target, page, console)
    return target


def _page(path: Path, data: str | None, root: Path) -> str:
    values = _read(path)
    try:
        match values.get("kind"):
            case "curve":
                return curve_page(TypeAdapter(CurveReport).validate_python(values))
            case "rank":
                return rank_page(TypeAdapter(RankReport).validate_python(values))
            case "pretrain" | "adapt":
                found = TypeAdapter(Report).validate_python(values)
                return report_page(found, _with_pictures(files_beside(path), found, path, data, root))
            case None if {"data", "findings", "parts", "classes", "features"} <= values.keys():
                return check_page(values, Material(notes=["pictures are in the page that `check --html` makes"]))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "its beginning"
        raise SettingError(f"{path}: not a report of this version: at {at}: {first['msg'].lower()}") from None
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SettingError(f"{path}: no page can be made of this report ({type(error).__name__}: {error})") from None
    raise SettingError(
        f"{path}: expected a report of pretrain, adapt, curve, rank or check --json, found kind {values.get('kind')!r}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(path, MAX_REPORT_BYTES), parse_constant=_no_number)
    except OSError as error:
        raise SettingError(f"{path}: the report cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}: not a report: it is no JSON, or cut short ({first_line(str(error))})") from None
    if not isinstance(found, dict):
        raise SettingError(f"{path}: not a report: expected a JSON object")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of a report")


def _with_pictures(material: Material, report: Report, path: Path, data: str | None, root: Path) -> Material:
    """The material with pictures of the data set, where that is still what was measured."""
    if material.predictions is None or not surest_mistakes(material.predictions):
        return material
    try:
        classifier, images = _measured_images(report, path, data, root)
    except (FinetuneError, OSError) as error:
        return replace(material, notes=[*material.notes, f"without pictures: {first_line(error)}"])
    return with_pictures(material, classifier, images)


def _measured_images(report: Report, path: Path, data: str | None, root: Path) -> tuple[Classifier, ImageSet]:
    """The classifier beside a report, and the images that it was measured on. DataError where they are others now."""
    name = data or report.recipe["data"].get("name") or report.target.name
    if data is None and not is_hub_data(name) and name not in DATASETS:
        raise DataError("reports hold no paths; --data PICTURES says where they are")
    checkpoint = path.with_name(path.name.removesuffix(".json").removesuffix(".report") + SUFFIX)
    source = open_source(locate(checkpoint))
    classifier, learnt = source.classifier, LearntFrom.of(source.metadata)
    console = Console(quiet=True, results=False)
    short, found = open_test(name, root, classifier.input, console, on_bad_image="skip", like=learnt.reading(name))
    if report.folds is not None:  # all images are test images
        parts = [part for part in (found.train, found.validation, found.test) if part is not None]
        return classifier, join(parts, short)
    whole, _, _ = choose_measured(found, short, str(checkpoint), learnt)
    if not learnt.has_test(whole):
        raise DataError(f"those of {name} are not the ones that were measured")
    return classifier, whole.with_classes(classifier.class_names, empty=True)
