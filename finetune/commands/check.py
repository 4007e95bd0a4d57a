"""`finetune check`: looks at pictures, labels and file names before anything is trained on them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune.data.image_dataset import ImageSet
from finetune.data.openers import is_image_path, short_name
from finetune.data.quality import (
    Grouping,
    contradicted,
    equal_pixels,
    group_names,
    likeliest_other,
    likely_grouping,
    odd_pictures,
    plain_pictures,
    same_but_for_case,
    scarce_classes,
)
from finetune.data.twins import TwinPairs, descriptors, find_twins, fit_model, thumbnails
from finetune.errors import DataError, SettingError
from finetune.io.outputs import check_file_name, check_output, replace_file
from finetune.io.safe_open import is_file
from finetune.models.classifier import Classifier
from finetune.models.spec import InputSpec
from finetune.paths import data_root as resolve_data_root
from finetune.report.check_report import KINDS, CheckReport, Finding
from finetune.report.console import Console
from finetune.report.page import MAX_PICTURES, Material, Picture, check_page
from finetune.run.data import RunData, open_run_data
from finetune.run.page_pictures import picture_file
from finetune.run.report_page import page_path, write_page
from finetune.run.setup import open_recipe
from finetune.sources.resolve import locate, open_source
from finetune.train.device import choose_runtime
from finetune.train.inference import outputs
from finetune.train.out_of_fold import folds_by_hash, out_of_fold

PIXELS = InputSpec(3, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pictures without a source
MAX_LABELS = 50_000  # pictures whose labels are looked at
MAX_FEATURES = 2_048  # numbers of an image; more are projected to so many
AGREES = 0.75  # share of labels that the probe must name before it may contradict any
GREY = torch.tensor([0.299, 0.587, 0.114])  # of red, green and blue
PARTS = ("train", "validation", "test")
CSV_COLUMNS = ("path", "label", "split")

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pictures:
    """All images of a data set, the parts one after the other. names: of files, or numbers. part: 0 to 2 (PARTS)."""

    data: RunData
    sets: tuple[ImageSet, ...]
    thumbs: Tensor
    labels: Tensor
    names: tuple[str, ...]
    part: Integers

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.data.class_names

    def image(self, index: int) -> Tensor:
        """An image's pixels: uint8, C×H×W."""
        for part in self.sets:
            if index < len(part):
                return part.images[index : index + 1][0]
            index -= len(part)
        raise IndexError(index)

    def picture(self, index: int, **more: Any) -> dict[str, Any]:
        """A picture as JSON values."""
        label = self.class_names[int(self.labels[index])]
        return {"image": self.names[index], "part": PARTS[self.part[index]], "label": label, **more}


def check(
    target: str,
    source: str | Path | None = None,
    *,
    model: str | None = None,
    settings: Sequence[str] = (),
    write: str | Path | None = None,
    html: bool = False,
    data_root: str | Path | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> CheckReport:
    """Checks the pictures, labels and file names of a data set; trains nothing and changes no picture.

    target: a data set's name, a folder of pictures or a CSV file. source: as in adapt; its features tell labels better
    than pixels do. settings: KEY=VALUE changes of a recipe's data, such as data.group=folder. write: a CSV to write of
    the pictures without the suspects; an older one is moved aside. html: also write a page with the pictures,
    studies/TARGET.check.html. Other arguments are as for `evaluate`.

    DataError, SettingError and OutputError, and the other errors of `finetune.errors`.
    """
    console = console or Console(quiet=True, results=False)
    if write is not None:
        _check_write(write, target, source)
    if html:
        page_path(short_name(target), "check")
    if foreign := [setting for setting in settings if not setting.startswith("data.")]:
        raise SettingError(f"check: --set {foreign[0]}: expected a key of data, such as data.group or data.classes")
    classifier = None
    if source is not None:
        located = locate(source, note=console.note, bars=not console.quiet)
        classifier = open_source(located, model).classifier
    spec = classifier.input if classifier is not None else PIXELS
    recipe = open_recipe(_bare_recipe(target), list(settings))
    data = open_run_data(recipe.data, resolve_data_root(data_root), 0, spec, console, any_channels=True)
    pictures = _pictures(data)
    features, what = _features(pictures, classifier, device)
    report = _report(pictures, features, what, str(source) if source is not None else None, classifier)
    if write is not None:
        _write_clean(Path(write), target, pictures, report, console)
    if html:
        page = check_page(report.to_dict(), Material(pictures=_shown_pictures(report, pictures)))
        write_page(page_path(report.data, "check"), page, console)
    return report


def _shown_pictures(report: CheckReport, pictures: Pictures) -> dict[str, Picture]:
    """The pictures of the findings that a page shows, by name."""
    shown = [own for finding in report.findings for own in finding.pictures[:MAX_PICTURES]]
    names = dict.fromkeys(name for own in shown for name in (own["image"], own.get("twin")) if name is not None)
    places = {name: index for index, name in enumerate(pictures.names)}
    return {name: Picture(picture_file(pictures.image(places[name]))) for name in names}


def _bare_recipe(target: str) -> dict[str, Any]:
    """The least recipe that can open these data."""
    phase = {"name": "none", "train": "all", "epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}}
    return {"kind": "pretrain", "model": {"name": "cnn"}, "data": {"name": target}, "phases": [phase]}


def _pictures(data: RunData) -> Pictures:
    sets = (data.train, data.validation, data.test)
    return Pictures(
        data,
        sets,
        torch.cat([thumbnails(part.images) for part in sets if len(part)]),
        torch.cat([part.labels for part in sets]),
        tuple(name for part, own in zip(PARTS, sets, strict=True) for name in own.files or _numbered(part, len(own))),
        np.repeat(np.arange(3), [len(part) for part in sets]),
    )


def _numbered(part: str, count: int) -> list[str]:
    return [f"{part} {index}" for index in range(count)]


def _features(pictures: Pictures, classifier: Classifier | None, device: str) -> tuple[dict[str, Tensor], str]:
    """What labels may be told by: the head's input and that of the stage before it, or pixels; and what that is."""
    if classifier is None:
        return {"pixels": pictures.thumbs.flatten(1)}, "pixels"
    runtime, found = choose_runtime(device, "float32"), {}
    network = classifier.network
    runtime.place(network)
    normalize = classifier.input.normalizer(runtime.device)
    stages = len(network.stages)
    for cut in [cut for cut in network.cuts if stages - 2 <= cut < stages and cut > 0]:
        blocks = []
        for images in (part.images for part in pictures.sets if len(part)):
            for start in range(0, len(images), 1_000):
                block = _fit_channels(images[start : start + 1_000], classifier.input.channels)
                rows = outputs(network, block.to(runtime.device), normalize, stop=cut).float().cpu()
                blocks.append(projected(rows.flatten(2).mean(2) if rows[0].numel() > 16_384 else rows.flatten(1)))
        found[network.stages[cut - 1]] = torch.cat(blocks)
    return found, "features of the source"


def _fit_channels(images: Tensor, channels: int) -> Tensor:
    """Colour images turned grey where a network takes grey ones."""
    if images.shape[1] == 3 and channels == 1:
        return (images.float() * GREY[:, None, None]).sum(1, keepdim=True).round().to(torch.uint8)
    return images


def projected(rows: Tensor) -> Tensor:
    """Rows (N×F) of more than MAX_FEATURES numbers in so many random directions, always the same ones."""
    if rows.shape[1] <= MAX_FEATURES:
        return rows
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(rows.shape[1], MAX_FEATURES, generator=generator) / MAX_FEATURES**0.5
    found: Tensor = rows @ directions
    return found


def _report(
    pictures: Pictures, features: Mapping[str, Tensor], what: str, source: str | None, classifier: Classifier | None
) -> CheckReport:
    data = pictures.data
    vectors, everything = descriptors(pictures.thumbs), np.arange(len(pictures.names))
    model = fit_model(pictures.thumbs, pictures.labels)
    twins = find_twins(pictures.thumbs, pictures.labels, vectors, everything, everything, model)
    equal = equal_pixels([part.images for part in pictures.sets if len(part)])
    grouping = None
    if data.train.files and not any(data.train.groups):
        grouping = likely_grouping(pictures.names, pictures.labels.numpy(), vectors, pictures.class_names)
    together = _together(pictures, equal, twins, grouping)
    findings, agreement = _label_findings(pictures, features, together)
    findings += _twin_findings(pictures, equal, twins)
    findings += [Finding("grouping", grouping.sentence(data.name), grouping.groups)] if grouping is not None else []
    findings += _picture_findings(pictures, next(iter(features.values())))
    findings += _class_findings(pictures, classifier)
    by_group = _held_out_by_group(data, grouping)
    learnt_twins = [] if by_group else _learnt_twins(pictures, _together(pictures, equal, twins, None))
    order = list(KINDS)
    findings.sort(key=lambda finding: order.index(finding.kind))
    counts = np.bincount(pictures.labels.numpy(), minlength=len(pictures.class_names)).tolist()
    return CheckReport(
        data=data.name,
        source=source,
        parts={part: len(own) for part, own in zip(PARTS, pictures.sets, strict=True)},
        classes=dict(zip(pictures.class_names, counts, strict=True)),
        size=list(data.train.images.shape[1:]),
        features=what,
        agreement=agreement,
        group=grouping.pattern if grouping is not None else None,
        findings=findings,
        suspects=_suspects(findings, learnt_twins),
    )


def _together(pictures: Pictures, equal: Sequence[Integers], twins: TwinPairs, grouping: Grouping | None) -> list[str]:
    """A key for each picture, the same for pictures that belong together: twins, and those of one group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [twins.pairs, *(np.stack([own[:-1], own[1:]], 1) for own in equal)]
    known = [name for part in pictures.sets for name in part.groups or ("",) * len(part)]
    if grouping is not None:
        known = group_names(grouping.pattern, pictures.names, pictures.labels.numpy(), pictures.class_names)
    first: dict[str, int] = {}
    same = [(first.setdefault(name, index), index) for index, name in enumerate(known) if name]
    pairs.append(np.array(same, dtype=np.int64).reshape(-1, 2))
    one, other = np.concatenate(pairs).T
    size = len(pictures.names)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(size, size))
    return [str(part) for part in connected_components(graph, directed=False)[1].tolist()]


def _label_findings(
    pictures: Pictures, features: Mapping[str, Tensor], together: Sequence[str]
) -> tuple[list[Finding], dict[str, float] | None]:
    """Labels that pictures of other folds contradict, and how much twins flatter."""
    step = max(1, -(-len(together) // MAX_LABELS))
    chosen = np.arange(0, len(together), step)
    labels, classes = pictures.labels[chosen], len(pictures.class_names)
    if len(chosen) < 2 * classes or int((torch.bincount(labels, minlength=classes) > 0).sum()) < 2:
        return [], None
    keys = [together[index] for index in chosen.tolist()]
    truth = labels.numpy()

    def asked(rows: Tensor, keys: Sequence[str]) -> tuple[Floats, float]:
        found = out_of_fold(rows[chosen], labels, folds_by_hash(keys), classes)
        return found, float((found.argmax(1) == truth).mean())

    answers = {name: asked(rows, keys) for name, rows in features.items()}
    best = max(answers, key=lambda name: answers[name][1])
    probabilities, agreement = answers[best]
    found: list[Finding] = []
    shares = {"together": agreement}
    if len(set(keys)) < len(keys):
        shares["apart"] = asked(features[best], [str(index) for index in range(len(keys))])[1]
        if shares["apart"] - agreement > 0.01:
            found.append(
                Finding(
                    "flattery",
                    f"a probe on {best} names {100 * shares['apart']:.1f} % of the labels where each picture is by "
                    f"itself, and {100 * agreement:.1f} % where twins and groups are kept together",
                    len(keys) - len(set(keys)),
                )
            )
    if agreement < AGREES:
        hint = "" if best != "pixels" else "; --from SOURCE tells them better"
        says = f"not looked for, as a probe on {best} names only {100 * agreement:.0f} % of the labels{hint}"
        found.append(Finding("labels", says, 0))
        return found, shares
    method, named = label_issues(truth, probabilities)
    likelier = likeliest_other(truth, probabilities)
    shown = [
        pictures.picture(
            int(chosen[place]),
            likelier=pictures.class_names[likelier[place]],
            score=round(float(probabilities[place, truth[place]] - probabilities[place, likelier[place]]), 4),
        )
        for place in named.tolist()
    ]
    if shown:
        says = f"{len(shown):,} of {len(chosen):,} labels, by a probe on {best} that did not learn from them ({method})"
        found.append(Finding("labels", says, len(shown), shown))
    return found, shares


def label_issues(labels: Integers, probabilities: Floats) -> tuple[str, Integers]:
    """By what labels are judged, cleanlab where it is installed, else our own margin; and those contradicted, in order.

    labels: int64, N. probabilities: out of fold, N×C. The worst picture comes first.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return "own margin", contradicted(labels, probabilities)
    found = find_label_issues(labels, probabilities, return_indices_ranked_by="normalized_margin")
    return "cleanlab", np.asarray(found, dtype=np.int64)


def _twin_findings(pictures: Pictures, equal: Sequence[Integers], twins: TwinPairs) -> list[Finding]:
    labels, test = pictures.labels.numpy(), pictures.part == PARTS.index("test")
    two: list[dict[str, Any]] = []
    across: dict[str, dict[str, Any]] = {}
    within: list[dict[str, Any]] = []
    told = {pair: 2.0 for own in equal for pair in _pairs(own)}
    pairs = map(tuple, twins.pairs.tolist())
    told |= {pair: e for pair, e in zip(pairs, twins.evidence.tolist(), strict=True) if pair not in told}
    for (one, other), evidence in told.items():
        twin = pictures.picture(
            other if test[other] else one,
            twin=pictures.names[one if test[other] else other],
            exact=evidence == 2.0,
            score=round(evidence, 4),
        )
        if labels[one] != labels[other]:
            label = pictures.class_names[labels[one if test[other] else other]]
            two.append(twin | {"twin_label": label})
        elif test[one] == test[other]:
            within.append(twin)
        if test[one] != test[other]:
            across.setdefault(twin["image"], twin)
    found = []
    if two:
        found.append(Finding("two_labels", f"{len(two):,} pairs of twins have different labels", len(two), two))
    if across:
        says = f"{len(across):,} of {int(test.sum()):,}; accuracy on them flatters"
        found.append(Finding("twins_across_parts", says, len(across), list(across.values())))
    if within:
        found.append(Finding("twins", f"{len(within):,} pairs", len(within), within))
    return found


def _pairs(own: Integers) -> list[tuple[int, int]]:
    """Pairs the first of a group of equal pictures with each of the others."""
    return [(int(own[0]), int(other)) for other in own[1:]]


def _picture_findings(pictures: Pictures, features: Tensor) -> list[Finding]:
    found = []
    plain = plain_pictures(pictures.thumbs)
    if len(plain):
        shown = [pictures.picture(index) for index in plain.tolist()]
        found.append(Finding("plain", f"{len(plain):,} pictures are of one grey value", len(plain), shown))
    odd = np.setdiff1d(odd_pictures(features), plain, assume_unique=True)
    if len(odd):
        shown = [pictures.picture(index) for index in odd.tolist()]
        found.append(Finding("odd", f"{len(odd):,} pictures; do they belong here?", len(odd), shown))
    return found


def _class_findings(pictures: Pictures, classifier: Classifier | None) -> list[Finding]:
    data = pictures.data
    same = same_but_for_case(pictures.class_names)
    found = []
    if same:
        names = "; ".join(", ".join(own) for own in same)
        found.append(Finding("class_names", f"{names}: are they one class?", len(same)))
    few, uneven = scarce_classes(data.train)
    if few:
        found.append(Finding("few", f"fewer than 5 pictures to learn from: {', '.join(few)}", len(few)))
    if uneven is not None:
        found.append(Finding("uneven", f"{uneven}; --set balance=logit_adjustment may help the rare ones", 1))
    colourful = data.channels == 3 and classifier is not None and classifier.input.channels == 1
    if colourful:
        found.append(Finding("colour", "the pictures have colours, and the source takes grey ones only", 1))
    return found + [Finding("notes", note, 1) for note in data.notes]


def _held_out_by_group(data: RunData, grouping: Grouping | str | None) -> bool:
    """Whether a clean table has groups, which decide what is tested: names show them, and no test part is given."""
    return grouping is not None and data.splits is not None and data.splits.held_out


def _learnt_twins(pictures: Pictures, together: Sequence[str]) -> list[str]:
    """The pictures to learn from that are twins of a test picture, or twins of such twins, and so on."""
    keys, test = np.array(together), pictures.part == PARTS.index("test")
    return [pictures.names[index] for index in np.flatnonzero(np.isin(keys, keys[test]) & ~test).tolist()]


def _suspects(findings: Sequence[Finding], learnt_twins: Sequence[str]) -> list[str]:
    """Pictures that a clean table leaves out: two labels, labels contradicted, plain, and twins to learn from of tests.

    A test picture stays though its label is contradicted: without those that a model finds hard, accuracy flatters.
    """
    found = dict.fromkeys(learnt_twins)
    for finding in findings:
        for picture in finding.pictures:
            if finding.kind == "two_labels":
                found |= dict.fromkeys([picture["image"], picture["twin"]])
            elif finding.kind == "plain" or (finding.kind == "labels" and picture["part"] != "test"):
                found[picture["image"]] = None
    return list(found)


def _check_write(path: str | Path, target: str, source: str | Path | None) -> None:
    check_file_name(path, "--write", [".csv"])
    if not is_image_path(target):
        raise DataError(f"--write {path}: {target} has no picture files that a table could name; leave --write out")
    check_output(path, "--write", [".csv"], inputs=(target, source))


def _write_clean(path: Path, target: str, pictures: Pictures, report: CheckReport, console: Console) -> None:
    """Writes the table of all pictures but the suspects, with paths from the table's own folder."""
    root = Path(target) if Path(target).is_dir() else Path(target).parent
    suspects, groups = set(report.suspects), [name for part in pictures.sets for name in part.groups]
    if missing := next((name for name in pictures.names if not is_file(root / name)), None):
        raise DataError(f"--write {path}: {missing} of {target} is no file of its own, so no table can name it")
    by_group = _held_out_by_group(pictures.data, report.group)
    if by_group:
        assert report.group is not None
        groups = group_names(report.group, pictures.names, pictures.labels.numpy(), pictures.class_names)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*(CSV_COLUMNS[:2] if by_group else CSV_COLUMNS), *(["group"] if groups else [])])
    folder = path.resolve().parent
    for index, name in enumerate(pictures.names):
        if name not in suspects:
            place = Path(os.path.relpath((root / name).resolve(), folder)).as_posix()
            label = pictures.class_names[int(pictures.labels[index])]
            part = [] if by_group else [PARTS[pictures.part[index]]]
            rows.writerow([place, label, *part, *([groups[index]] if groups else [])])
    content = text.getvalue().encode("utf-8", "surrogateescape")
    replace_file(path, content, console.note)
    with_groups = ", with their groups, of which whole ones will be tested" if by_group else ""
    kept = len(pictures.names) - len(suspects)
    console.note(f"wrote {path}: {kept:,} of {len(pictures.names):,} pictures{with_groups}")
