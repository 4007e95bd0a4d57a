"""`finetune report`: the HTML page of a report, with the pictures and files that are still there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from finetune.data.openers import is_hub_data
from finetune.data.registry import DATASETS
from finetune.errors import DataError, FinetuneError, SettingError
from finetune.io.outputs import check_output
from finetune.io.safe_open import is_file, is_folder
from finetune.io.text_path import to_path
from finetune.paths import data_root as resolve_data_root
from finetune.report.check_report import CheckReport
from finetune.report.console import Console
from finetune.report.curve_report import CurveReport, drawn_curves
from finetune.report.page import Material, check_page, curve_page, rank_page, report_forest, report_page
from finetune.report.plots import curve_figure, forest_figure, pictures
from finetune.report.ranking import RankReport, rank_forest
from finetune.report.report import Report, Result, read_report_values
from finetune.run.output_paths import SUFFIX
from finetune.run.report_page import ENDING, files_beside, surest_mistakes, write_page
from finetune.text import first_line

if TYPE_CHECKING:
    from finetune.data.image_dataset import ImageSet
    from finetune.models.classifier import Classifier

Made = TypeVar("Made")
PLOTS = (".svg", ".png")
MAX_NUMBER = 1e15  # of a report


def html_report(
    report: str | Path,
    out: str | Path | None = None,
    *,
    plot: str | Path | None = None,
    data: str | None = None,
    data_root: str | Path | None = None,
    console: Console | None = None,
) -> Path:
    """Writes the HTML page of a report, and returns its path.

    report: NAME.report.json, NAME.curve.json, NAME.rank.json, or what `check --json` prints. out: by default the same
    name with .html. plot: also write the plot of its accuracies, or its curve, to a .svg or .png. data: where the
    pictures of a person's own data set are now; without it those of a registered data set are shown, and no others.
    data_root: as in `finetune.adapt`. What is not there any more is left out, and the page says so. SettingError for
    what is no report; OutputError.
    """
    path, console = to_path(report), console or Console(quiet=True, results=False)
    if path.is_dir() or not path.name:
        raise SettingError(f"{report}: is a folder; expected the file of a report, such as NAME.report.json in it")
    reads, root = (path, data), resolve_data_root(data_root)
    if data is not None and not (data and (is_hub_data(data) or data in DATASETS or is_file(data) or is_folder(data))):
        raise SettingError(f"--data {data}: expected pictures or a data set's name, and there is nothing of that name")
    target = check_output(out if out is not None else path.with_suffix(ENDING), "--out", [ENDING], inputs=reads)
    picture = check_output(plot, "--plot", PLOTS, inputs=reads) if plot is not None else None
    values = read_report_values(path)
    page = _checked(path, lambda: _page(values, path, data, root))
    drawn = _checked(path, lambda: _plot(values, picture)) if picture is not None else b""
    write_page(target, page, console)
    if picture is not None:
        write_page(picture, drawn, console)
    return target


def _plot(values: dict[str, Any], path: Path) -> bytes:
    """The picture of a report's accuracies. ValueError where it has none."""
    match values.get("kind"):
        case "curve":
            curve = TypeAdapter(CurveReport).validate_python(values)
            figure = partial(curve_figure, drawn_curves(curve), curve.target.name)
        case "rank":
            ranking = TypeAdapter(RankReport).validate_python(values)
            figure = partial(forest_figure, rank_forest(ranking), f"accuracy on {ranking.target.name}, %")
        case "pretrain" | "adapt":
            found = TypeAdapter(Report).validate_python(values)
            figure = partial(forest_figure, report_forest(found), f"accuracy on {found.target.name}, %")
        case _:
            raise ValueError("it has no accuracies to plot")
    ending = path.suffix[1:]
    return pictures(figure, [ending])[ending]


def _checked(path: Path, make: Callable[[], Made]) -> Made:
    """What is made of a report. SettingError for what is none, or has what no run has."""
    try:
        return make()
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "its beginning"
        raise SettingError(f"{path}: not a report of this version: at {at}: {first['msg'].lower()}") from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise SettingError(f"{path}: no page can be made of this report: {first_line(error)}") from None


def _page(values: dict[str, Any], path: Path, data: str | None, root: Path) -> str:
    _check_numbers({key: own for key, own in values.items() if key not in ("recipe", "environment")})
    match values.get("kind"):
        case "curve":
            return curve_page(TypeAdapter(CurveReport).validate_python(values))
        case "rank":
            return rank_page(TypeAdapter(RankReport).validate_python(values))
        case "pretrain" | "adapt":
            found = TypeAdapter(Report).validate_python(values)
            for result in found.results.values():
                _check_counts(result, len(found.target.classes))
            return report_page(found, _with_pictures(files_beside(path), found, path, data, root))
        case None if {"data", "findings", "parts", "classes", "features"} <= values.keys():
            checked = TypeAdapter(CheckReport).validate_python(values)
            return check_page(checked.to_dict(), Material(notes=["pictures are in the page that `check --html` makes"]))
    raise SettingError(
        f"{path}: expected a report of pretrain, adapt, curve, rank or check --json, found {_kind(values)}"
    )


def _kind(values: dict[str, Any]) -> str:
    return f"kind {values['kind']!r}" if "kind" in values else "JSON that does not say its kind"


def _check_numbers(value: Any, at: str = "") -> None:
    """ValueError for numbers that no run has: shares outside 0 to 1, intervals the wrong way round, beyond all size."""
    if isinstance(value, dict):
        if isinstance(share := value.get("accuracy"), int | float) and not 0 <= share <= 1:
            raise ValueError(f"{at}.accuracy: expected 0 to 1, found {share:.6g}")
        match value.get("ci95"):
            case [int() | float() as low, int() | float() as high] if low > high:
                raise ValueError(f"{at}.ci95: expected the lower end first, found {low:.6g} and {high:.6g}")
    if isinstance(value, dict | list):
        for key, own in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(own, f"{at}.{key}" if at else str(key))
    elif isinstance(value, int | float) and abs(value) > MAX_NUMBER:
        raise ValueError(f"{at}: a number beyond {MAX_NUMBER:.0e}")


def _check_counts(result: Result | None, classes: int) -> None:
    """ValueError where the counts of a result do not fit each other or the classes."""
    if result is None:
        return
    for name, score in (result.per_class or {}).items():
        match score:
            case {"correct": int(correct), "total": int(total)} if 0 <= correct <= total:
                continue
        raise ValueError(f"per_class of {name!r}: expected `correct` of `total` images, found {score}")
    if result.confusion is not None and result.confusion.classes != classes:
        raise ValueError(f"confusion: expected {classes} classes, found {result.confusion.classes}")


def _with_pictures(material: Material, report: Report, path: Path, data: str | None, root: Path) -> Material:
    """The material with pictures of the data set, where that is still what was measured."""
    if material.predictions is None or not surest_mistakes(material.predictions, report.own_row):
        return material
    from finetune.run.page_pictures import with_pictures

    try:
        classifier, images = _measured_images(report, path, data, root)
    except (FinetuneError, OSError) as error:
        return replace(material, notes=[*material.notes, f"without pictures: {first_line(error)}"])
    return with_pictures(material, classifier, images, report.own_row)


def _measured_images(report: Report, path: Path, data: str | None, root: Path) -> tuple[Classifier, ImageSet]:
    """The classifier beside a report, and the images that it was measured on. DataError where they are others now."""
    from finetune.data.image_dataset import join
    from finetune.run.data import open_test
    from finetune.run.measured import LearntFrom, choose_measured
    from finetune.sources.resolve import locate, open_source

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
