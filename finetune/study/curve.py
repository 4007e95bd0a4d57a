"""`finetune curve`: accuracy against labelled images, and how many labels starting from these weights is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import numpy as np

from finetune.commands.adapt import DEFAULT_RECIPE
from finetune.errors import SettingError
from finetune.io.atomic import prepared_files
from finetune.io.outputs import move_files_aside
from finetune.recipe.schema import AdaptRecipe
from finetune.report.comparison import compare_over_seeds, distinct, groups_line
from finetune.report.console import Console
from finetune.report.curve_report import (
    CurveForecast,
    CurvePoint,
    CurveReport,
    curve_parts,
    drawn_curves,
    no_difference_from,
)
from finetune.report.learning_curve import FORM, MIN_POINTS, Floats, forecast, label_worth, resampled_means
from finetune.report.page import curve_page
from finetune.report.plots import curve_pictures
from finetune.report.report import Result, TargetSummary
from finetune.report.statistics import group_count
from finetune.run.finalize import open_test_set, public_recipe
from finetune.run.options import RunCall, RunOptions, start_run
from finetune.run.output_paths import StudyPaths, check_study_outputs, same_results
from finetune.run.report_page import write_page
from finetune.run.setup import AdaptSetup, RecipeLike
from finetune.study.analysis import result_over_seeds, rights
from finetune.study.design import few_seeds_note, open_study_recipe, parse_seeds, refuse_seed, row_trials
from finetune.study.runner import StudyFolder, TrialOptions, completed, run_trials
from finetune.study.trial import Trial, TrialResult, TrialRunner

SHOTS = "5,10,20,50,100,all"
ALL = "all"
AFTER, SCRATCH = ROWS = ("after", "scratch")
ENDINGS = ("csv", "png", "svg")  # of what is written beside NAME.curve.json
FARTHER = (2, 4)  # times the most labels measured: where the curves are foretold


def curve(
    source: str | Path,
    target: str | None = None,
    recipe: RecipeLike = DEFAULT_RECIPE,
    *,
    shots: str | Sequence[int | str] = SHOTS,
    seeds: int | str | Sequence[int] = 5,
    jobs: int = 1,
    engine: str | None = None,
    model: str | None = None,
    **options: Unpack[RunOptions],
) -> CurveReport:
    """Fine-tunes `source` on more and more labelled images of `target`, and trains from scratch on the same.

    shots: numbers of labelled images a class, "all" for all there are; with one seed fewer are part of more. seeds: a
    count, or the seeds themselves; each chooses its own images. jobs: trainings at once. engine: dask://HOST:PORT of a
    cluster that trains. Writes studies/NAME.curve.json, or `out`, and beside it a table (.csv) and a picture (.png,
    .svg); no weights are kept. The rest, and errors, are as for `finetune.adapt`.
    """
    with start_run(options, source, target, recipe) as call:
        refuse_seed(call)
        chosen, wanted = parse_seeds(seeds), parse_shots(shots)
        checked = open_study_recipe(source, recipe, ({"model.name": model}, {"data.name": target}), call)
        checked = checked.without_rows()
        return _curve(str(source), checked, wanted, chosen, TrialOptions(jobs, engine, call.logs), call)


def parse_shots(given: str | Sequence[int | str]) -> tuple[int | None, ...]:
    """The shots of a curve, ascending, None for all there are, from "5,10,all" or [5, 10, "all"]. SettingError."""
    parts = [part.strip() for part in given.split(",")] if isinstance(given, str) else [str(part) for part in given]
    shown = ",".join(parts)
    expected = f"--shots {shown}: expected numbers of labelled images a class, each from 1 on, or all, such as {SHOTS}"
    if not parts or any(part != ALL and not (part.isascii() and part.isdigit() and len(part) < 12) for part in parts):
        raise SettingError(expected)
    found = [None if part == ALL else int(part) for part in parts]
    if 0 in found:
        raise SettingError(expected)
    if twice := [part for place, part in enumerate(found) if part in found[:place]]:
        raise SettingError(f"--shots {shown}: {ALL if twice[0] is None else twice[0]} is given twice")
    return tuple(sorted(found, key=lambda part: (part is None, part or 0)))


@dataclass(frozen=True)
class LabelCount:
    """One number of labelled images a class: as asked for (None: all), the mean over classes, and images in all."""

    shots: int | None
    images_per_class: float
    labelled: int


def label_counts(wanted: Sequence[int | None], counts: Sequence[int]) -> tuple[list[LabelCount], list[str]]:
    """What these numbers of shots come to where classes have so many images, each once, and what a person should know.

    A number that no class has more images than is all there are.
    """
    most, notes, found = max(counts), [], {}
    beyond = [shots for shots in wanted if shots is not None and shots >= most]
    if beyond and (beyond != [most] or None in wanted):
        same = ", ".join(f"{shots:,}" for shots in beyond)
        notes.append(f"--shots {same}: no class has more than {most:,} images to learn from; all there are, once")
    for shots in wanted:
        taken = [count if shots is None else min(shots, count) for count in counts]
        own = None if shots is None or shots >= most else shots
        found[own] = LabelCount(own, sum(taken) / len(taken), sum(taken))
    return list(found.values()), notes


def _curve(
    source: str,
    recipe: AdaptRecipe,
    wanted: Sequence[int | None],
    seeds: Sequence[int],
    options: TrialOptions,
    call: RunCall,
) -> CurveReport:
    runner, console = TrialRunner(call), call.console
    every = row_trials(source, recipe, ROWS, (0,), shots=None, answers_only=True)[0]
    setup = runner.setup(every)
    paths = check_study_outputs(
        call.out,
        f"{setup.source.name}-{setup.data.name}",
        "curve",
        ENDINGS,
        (*call.reads, recipe.data.name, setup.source.path),
    )
    assert setup.data.splits is not None
    counts, notes = label_counts(wanted, list(setup.data.splits.train.counts().values()))
    trials = {count: row_trials(source, recipe, ROWS, seeds, shots=count.shots, answers_only=True) for count in counts}
    notes = [*setup.data.notes, *notes, *_notes(trials, runner, setup), *([few] if (few := _few(seeds)) else [])]
    if (grouped := groups_line(len(setup.data.test), group_count(setup.data.test.group_indices()))) is not None:
        notes.append(grouped)
    for note in notes:
        console.note(note)
    fingerprint = {key: value for key, value in runner.fingerprint(every).items() if key != "rows"}
    with StudyFolder(paths.run_folder, {"study": "curve", **fingerprint}, call) as folder:
        use = open_test_set(paths.run_folder, "curve", fingerprint)
        results = completed(run_trials([trial for own in trials.values() for trial in own], folder, options, runner))
        report = replace(_report(recipe, setup, trials, results, seeds, notes), test_set=use)
        save_curve(report, paths, console)
        if call.html:
            write_page(paths.beside("html"), curve_page(report), console)
    return report


def _few(seeds: Sequence[int]) -> str | None:
    """What so few seeds cannot show."""
    note = few_seeds_note(seeds)
    if note is not None and len(seeds) == 1:
        return f"{note}; with one seed the intervals are about these trainings, over other test images only"
    return note


def _notes(trials: Mapping[LabelCount, Sequence[Trial]], runner: TrialRunner, setup: AdaptSetup) -> Iterator[str]:
    """What is said of the images of each number of labels; opening them finds what is wrong before all training."""
    for own in trials.values():
        yield from (note for note in runner.setup(own[0]).data.notes if note not in setup.data.notes)


def _report(
    recipe: AdaptRecipe,
    setup: AdaptSetup,
    trials: Mapping[LabelCount, Sequence[Trial]],
    results: Mapping[str, TrialResult],
    seeds: Sequence[int],
    notes: Sequence[str],
) -> CurveReport:
    data, first = setup.data, next(iter(results.values())).facts
    assert data.splits is not None
    found = {
        count: {row: [results[t.name].answers[row] for t in own if row in t.rows] for row in ROWS}
        for count, own in trials.items()
    }
    tables = {row: [rights(data.test, answers[row]) for answers in found.values()] for row in ROWS}
    groups = data.test.group_indices()
    draws = np.split(resampled_means([*tables[AFTER], *tables[SCRATCH]], groups), 2, axis=1)
    labels = np.array([count.images_per_class for count in trials])
    means = {row: np.array([table.mean() for table in own]) for row, own in tables.items()}
    worths = label_worth(labels, means[AFTER], means[SCRATCH], (draws[0], draws[1]))
    points = [
        CurvePoint(
            shots=count.shots,
            images_per_class=count.images_per_class,
            labelled=count.labelled,
            results={row: _plain(result_over_seeds(data.test, own[row], seeds, row)) for row in ROWS},
            comparison=compare_over_seeds(
                distinct(tables[SCRATCH][place]), tables[AFTER][place], groups, shots_vary=count.shots is not None
            ),
            worth=worths[place],
        )
        for place, (count, own) in enumerate(found.items())
    ]
    train, available = len(data.splits.train), len(data.splits.train) / len(data.class_names)
    return CurveReport(
        kind="curve",
        recipe=public_recipe(recipe),
        seeds=list(seeds),
        device=str(setup.runtime.device),
        environment=first.environment,
        seconds=sum(result.facts.seconds for result in results.values()),
        source=first.source,
        target=TargetSummary(
            data.name, list(data.class_names), train, len(data.validation), len(data.test), list(data.notes)
        ),
        notes=list(notes),
        points=points,
        no_difference_from=no_difference_from(points),
        form=FORM,
        forecasts=foretell(labels, means, dict(zip(ROWS, draws, strict=True)), len(data.test), available),
    )


def _plain(result: Result) -> Result:
    return replace(result, per_class=None, confusion=None)


def foretell(
    labels: Floats, means: Mapping[str, Floats], draws: Mapping[str, Floats], images: int, available: float
) -> list[CurveForecast]:
    """Each row's forecasts at the FARTHER numbers; none where too few were measured.

    labels, means, draws and images as `learning_curve.forecast` has them; available: images a class that there are.
    """
    if len(labels) < MIN_POINTS:
        return []
    at = [float(labels[-1] * times) for times in FARTHER]
    rows = {row: forecast(labels, means[row], draws[row], at, images) for row in means}
    return [
        CurveForecast(place, place <= available, {row: own[order] for row, own in rows.items()})
        for order, place in enumerate(at)
    ]


def save_curve(report: CurveReport, paths: StudyPaths, console: Console) -> None:
    """Writes report, table and picture, and shows the outcome. Older files that say something else are moved aside."""
    pictures = curve_pictures(drawn_curves(report), report.target.name)
    contents = {
        paths.report: report.to_json().encode(),
        paths.beside("csv"): report.to_csv().encode(),
        **{paths.beside(ending): picture for ending, picture in pictures.items()},
    }
    with prepared_files(contents):
        if same_results(paths.report, report.to_dict()):
            console.note(f"{paths.report}: the same results as the run before")
        else:
            move_files_aside(list(contents), paths.stem, console.note)
    for part in curve_parts(report):
        console.show(part)
    console.say(f"wrote {paths.report}, and beside it {', '.join(paths.beside(e).name for e in ENDINGS)}")
