"""`finetune rank`: which of several sources to start from, for one target."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from finetune.commands.adapt import DEFAULT_RECIPE
from finetune.errors import FinetuneError, SettingError
from finetune.io.atomic import prepared_files, write_atomic
from finetune.io.outputs import move_files_aside
from finetune.io.safe_open import read_regular
from finetune.models.registry import build_model
from finetune.recipe.schema import AdaptRecipe
from finetune.report.comparison import compare_over_seeds, groups_line
from finetune.report.page import rank_page
from finetune.report.plots import forest_figure, pictures
from finetune.report.ranking import (
    FAILED,
    FINE_TUNED,
    NOT_FINE_TUNED,
    AgainstBest,
    Candidate,
    CheapScores,
    RankReport,
    adjusted,
    agreement,
    conclude,
    is_tied,
    rank_forest,
    rank_parts,
)
from finetune.report.report import MAX_REPORT_BYTES, Result, TargetSummary
from finetune.report.statistics import group_count
from finetune.report.tables import percent
from finetune.run.finalize import public_recipe
from finetune.run.ledger import digest_of, record_opening
from finetune.run.options import RunCall, RunOptions, start_run
from finetune.run.output_paths import StudyPaths, check_study_outputs, same_results
from finetune.run.report_page import write_page
from finetune.run.setup import AdaptSetup, RecipeLike, expect_kind, open_recipe
from finetune.study.analysis import result_over_seeds, rights
from finetune.study.contenders import Contender, RankDesign, name_contenders, open_contenders
from finetune.study.design import few_seeds_note, parse_seeds, refuse_seed, refuse_torchrun
from finetune.study.runner import StudyFolder, TrialOptions, run_trials
from finetune.study.task import FailedTrial, Outcome
from finetune.study.trial import Trial, TrialResult, TrialRunner
from finetune.text import first_line, listed
from finetune.train.device import seeded
from finetune.train.inference import outputs as network_outputs
from finetune.train.transfer_scores import sample_to_score, transfer_scores

ENDINGS = ("png", "svg")  # of the plots beside NAME.rank.json
SCORES = "scores.json"  # in the study's folder


def rank(
    sources: Sequence[str | Path],
    target: str | None = None,
    recipe: RecipeLike = DEFAULT_RECIPE,
    *,
    top: int = 2,
    seeds: int | str | Sequence[int] = 3,
    shots: int | None = None,
    same_shots: bool = False,
    jobs: int = 1,
    engine: str | None = None,
    **options: Unpack[RunOptions],
) -> RankReport:
    """Scores all sources cheaply, fine-tunes the best of them on `target`, and says which one to start from.

    sources: as for `finetune.adapt`; also "random" (the first other source's network with random weights) and
    "random:MODEL". top: how many are fine-tuned over `seeds`, by the cheap scores; random weights always are, besides.
    A source that cannot be opened or fine-tuned is in the report's `failed`, and the others go on. Writes
    studies/NAME.rank.json, or `out`; no weights are kept. The rest is as for `finetune.adapt_seeds`. SettingError for
    a source given twice, and where fewer than two can be used.
    """
    with start_run(options, *sources, target, recipe) as call:
        refuse_torchrun(call)
        refuse_seed(call)
        overrides = call.overrides({}, {"data.name": target, "data.shots": shots})
        checked = expect_kind(AdaptRecipe, open_recipe(recipe, overrides), recipe)
        if top < 1:
            raise SettingError(f"--top {top}: expected at least 1, the number of sources to fine-tune")
        if same_shots and checked.data.shots is None:
            raise SettingError("--same-shots: goes with --shots; without it all seeds learn from all images there are")
        names = tuple(map(str, sources))
        design = RankDesign(names, checked.without_rows(), parse_seeds(seeds), same_shots, top)
        return _rank(design, TrialOptions(jobs, engine, call.logs), call)


def _rank(design: RankDesign, options: TrialOptions, call: RunCall) -> RankReport:
    runner, console = TrialRunner(call), call.console
    contenders = name_contenders(design.sources)
    usable = open_contenders(contenders, design, runner, call)
    setup = runner.setup(usable[0].trials[0])
    notes = [*setup.data.notes, *([few] if (few := few_seeds_note(design.seeds)) else [])]
    if (grouped := groups_line(len(setup.data.test), group_count(setup.data.test.group_indices()))) is not None:
        notes.append(grouped)
    for note in notes:
        console.note(note)
    paths = check_study_outputs(call.out, setup.data.name, "rank", ENDINGS, (*call.reads, design.recipe.data.name))
    with StudyFolder(paths.run_folder, design.as_json(), call) as folder:
        score_contenders(usable, design, runner, folder)
        chosen = choose([contender for contender in usable if contender.error is None], design.top)
        console.note(f"to be fine-tuned: {listed(contender.name for contender in chosen)}")
        test = setup.data.describe()["test"]
        assert isinstance(test, dict)
        use = record_opening(
            paths.run_folder.parent,
            test["fingerprint"],
            command="rank",
            name=paths.stem,
            run=digest_of([design.as_json(), design.seeds]),
            choice=digest_of(design.choice()),
        )
        outcomes = run_trials([trial for own in chosen for trial in own.trials], folder, options, runner)
        report = _report(contenders, chosen, outcomes, design, runner, notes)
        report = replace(report, test_set=use)
        save_ranking(report, paths, call)
        if call.html:
            write_page(paths.beside("html"), rank_page(report), console)
    return report


def score_contenders(
    contenders: Sequence[Contender], design: RankDesign, runner: TrialRunner, folder: StudyFolder
) -> None:
    """Gives each source its cheap scores, from the training images alone; those of an earlier attempt are read."""
    path, console = folder.folder / SCORES, folder.call.console
    stored = _stored_scores(path)
    for contender in contenders:
        trials = contender.trials if design.shots_vary else contender.trials[:1]
        key = digest_of([runner.fingerprint(trial) for trial in trials])
        found = stored.get(key)
        if found is None:
            try:
                found = _score(trials, runner)
            except FinetuneError as error:
                contender.error = error
                console.warn(f"{contender.name}: {first_line(error)}; the others go on")
                continue
            stored[key] = found
            values = {own: asdict(scores) for own, scores in stored.items()}
            write_atomic(path, (json.dumps(values, indent=1) + "\n").encode())
        contender.scores = found
        probe = "" if found.probe is None else f", probe {percent(found.probe)}"
        console.note(f"{contender.name}: LogME {found.logme:.3f}{probe}, {found.seconds:.1f} s")


def _stored_scores(path: Path) -> dict[str, CheapScores]:
    try:
        found = json.loads(read_regular(path, MAX_REPORT_BYTES))
        return {key: CheapScores(**values) for key, values in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _score(trials: Sequence[Trial], runner: TrialRunner) -> CheapScores:
    """The mean scores of a source over these trials' choices of images; each choice is one pass of its network."""
    started, found = time.perf_counter(), []
    for trial in trials:
        setup = runner.setup(trial)
        train = sample_to_score(setup.data.train)
        found.append(transfer_scores(_features(trial, setup, train.images), train.labels, len(train.class_names)))

    def mean(key: str) -> float | None:
        values = [getattr(scores, key) for scores in found]
        return None if None in values else sum(values) / len(values)

    logme = mean("logme")
    assert logme is not None
    return CheapScores(mean("knn"), mean("probe"), logme, time.perf_counter() - started)


def _features(trial: Trial, setup: AdaptSetup, images: Any) -> Tensor:
    """The head's input for these images (float, N×F), by the network that the trial starts from."""
    network, device = setup.classifier.network, setup.runtime.device
    if trial.rows == ("scratch",):
        with seeded(trial.seed):
            network = build_model(setup.model, len(setup.data.class_names), setup.arguments)
    setup.runtime.place(network)
    return network_outputs(network, images.to(device), setup.spec.normalizer(device), stop=-1)


def choose(contenders: Sequence[Contender], top: int) -> list[Contender]:
    """The sources to fine-tune: the best `top` by their cheap scores, and random weights besides, in the order given.

    Random weights always take part: what they make of images before they are trained says nothing of what they learn.
    """
    scored = [own for own in contenders if own.scores is not None and not own.random]
    best = sorted(scored, key=lambda own: own.scores.order if own.scores else (-math.inf, 0.0), reverse=True)[:top]
    return [own for own in contenders if own in best or own.random]


def _report(
    contenders: Sequence[Contender],
    chosen: Sequence[Contender],
    outcomes: Mapping[str, Outcome],
    design: RankDesign,
    runner: TrialRunner,
    notes: list[str],
) -> RankReport:
    """Sorts the sources by what came of them. FinetuneError where nothing came of any."""
    finished: dict[str, list[TrialResult]] = {}
    for contender in chosen:
        own = [outcomes[trial.name] for trial in contender.trials]
        if lost := next((found for found in own if isinstance(found, FailedTrial)), None):
            contender.error = lost.error()
        else:
            finished[contender.label] = [found for found in own if isinstance(found, TrialResult)]
    if not finished:
        raise FinetuneError("rank: no source could be fine-tuned: " + "; ".join(_failures(contenders)))
    setup = runner.setup(next(own for own in chosen if own.label in finished).trials[0])
    fine_tuned = _compare(chosen, finished, design, setup)
    done = [candidate.source for candidate in fine_tuned]
    left = [_candidate(own) for own in contenders if own.source not in done]
    left.sort(key=lambda own: own.scores.order if own.scores else (-math.inf, 0.0), reverse=True)
    waiting = [own for own in left if own.state == NOT_FINE_TUNED]
    failed = [own for own in left if own.state == FAILED]
    waiting = [replace(own, place=place) for place, own in enumerate(waiting, len(fine_tuned) + 1)]
    data, facts = setup.data, next(iter(finished.values()))[0].facts
    pairs = len(fine_tuned) * (len(fine_tuned) - 1) // 2
    return RankReport(
        target=TargetSummary(
            data.name, list(data.class_names), len(data.train), len(data.validation), len(data.test), list(data.notes)
        ),
        recipe=public_recipe(design.recipe),
        seeds=list(design.seeds),
        shots_vary=design.shots_vary,
        top=design.top,
        candidates=[*fine_tuned, *waiting, *failed],
        best=fine_tuned[0].name,
        tied=[own.name for own in fine_tuned if own.tied],
        comparisons=pairs,
        kendall=agreement(fine_tuned),
        conclusion=conclude(fine_tuned, data.name, seeds=design.seeds, left_out=len(waiting)),
        seconds={
            "scores": sum(own.scores.seconds for own in contenders if own.scores is not None),
            "fine_tuning": sum(own.seconds or 0.0 for own in fine_tuned),
        },
        device=str(setup.runtime.device),
        environment=facts.environment,
        notes=notes,
    )


def _failures(contenders: Sequence[Contender]) -> Iterator[str]:
    return (f"{own.name}: {first_line(own.error)}" for own in contenders if own.error is not None)


def _candidate(contender: Contender) -> Candidate:
    """A contender's line in the report, before it is known to be fine-tuned."""
    return Candidate(
        source=contender.source,
        name=contender.name,
        random=contender.random,
        state=NOT_FINE_TUNED if contender.error is None else FAILED,
        model=contender.model,
        parameters=contender.parameters,
        bytes=contender.bytes,
        scores=contender.scores,
        error=None if contender.error is None else str(contender.error),
    )


def _compare(
    chosen: Sequence[Contender],
    finished: Mapping[str, Sequence[TrialResult]],
    design: RankDesign,
    setup: AdaptSetup,
) -> list[Candidate]:
    """The fine-tuned candidates, best first, each compared with the best on the same test images."""
    test, tables, results = setup.data.test, {}, {}
    for contender in chosen:
        if contender.label in finished:
            row = contender.trials[0].rows[0]
            answers = [result.answers[row] for result in finished[contender.label]]
            tables[contender.label] = rights(test, answers)
            results[contender.label] = result_over_seeds(test, answers, design.seeds, row)

    def order(contender: Contender) -> tuple[float, tuple[float, float]]:
        assert contender.scores is not None
        return results[contender.label].accuracy, contender.scores.order

    ranked = sorted((own for own in chosen if own.label in finished), key=order, reverse=True)
    pairs = {
        (first.label, second.label): compare_over_seeds(
            tables[first.label], tables[second.label], test.group_indices(), shots_vary=design.shots_vary
        )
        for first, second in combinations(ranked, 2)
    }
    p_values, best = adjusted(pairs), ranked[0].label
    found = []
    for place, own in enumerate(ranked, 1):
        result: Result = results[own.label]
        against = None
        if own.label != best:
            pair = pairs[best, own.label]
            against = AgainstBest(pair.difference, pair.ci95, pair.p_value, p_values[best, own.label], pair.detectable)
        found.append(
            replace(
                _candidate(own),
                state=FINE_TUNED,
                place=place,
                accuracy=result.accuracy,
                ci95=result.ci95,
                per_seed=result.per_seed or [],
                against_best=against,
                tied=against is None or is_tied(against.adjusted_p_value),
                seconds=sum(trained.facts.seconds for trained in finished[own.label]),
            )
        )
    return found


def save_ranking(report: RankReport, paths: StudyPaths, call: RunCall) -> None:
    """Writes report and plots, and shows the outcome. Older files that say something else are moved aside."""
    rows = rank_forest(report)
    plots = pictures(lambda: forest_figure(rows, f"accuracy on {report.target.name}, %"), ENDINGS) if rows else {}
    contents = {paths.report: report.to_json().encode()}
    contents |= {paths.beside(ending): content for ending, content in plots.items()}
    with prepared_files(contents):
        if same_results(paths.report, report.to_dict()):
            call.console.note(f"{paths.report}: the same results as the run before")
        else:
            move_files_aside(list(contents), paths.stem, call.console.note)
    for part in rank_parts(report):
        call.console.show(part)
    beside = f", and beside it {', '.join(path.name for path in list(contents)[1:])}" if plots else ""
    call.console.say(f"wrote {paths.report}{beside}")
