"""`finetune rank`: which of several sources to start from, for one target."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from finetune.commands.adapt import DEFAULT_RECIPE
from finetune.errors import DataError, DownloadError, FinetuneError, Interrupted, SettingError
from finetune.io.atomic import prepared_files, write_atomic
from finetune.io.safe_open import read_regular
from finetune.models.registry import build_model
from finetune.recipe.schema import AdaptRecipe
from finetune.report.comparison import compare_over_seeds
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
    rank_parts,
)
from finetune.report.report import MAX_REPORT_BYTES, Result, TargetSummary
from finetune.report.tables import percent
from finetune.run.finalize import public_recipe
from finetune.run.ledger import digest_of, record_opening
from finetune.run.options import RunCall, RunOptions, start_run
from finetune.run.output_paths import StudyPaths, check_study_outputs, move_files_aside
from finetune.run.setup import AdaptSetup, RecipeLike, expect_kind, open_recipe
from finetune.sources.resolve import RANDOM as RANDOM_MODEL
from finetune.study.analysis import result_over_seeds, rights
from finetune.study.design import few_seeds_note, parse_seeds, refuse_torchrun, row_trials
from finetune.study.runner import StudyFolder, TrialOptions, run_trials
from finetune.study.task import FailedTrial, Outcome
from finetune.study.trial import Trial, TrialResult, TrialRunner
from finetune.text import first_line, json_diff, listed
from finetune.train.device import seeded
from finetune.train.inference import outputs as network_outputs
from finetune.train.transfer_scores import sample_to_score, transfer_scores

RANDOM = "random"
SCORES = "scores.json"  # in the study's folder
MAX_LABEL = 60  # characters of a source's name in the names of its trials
TIMES = ("seconds",)  # keys of the report that differ from run to run


@dataclass(frozen=True)
class RankDesign:
    """What is ranked, and how."""

    sources: tuple[str, ...]
    recipe: AdaptRecipe
    seeds: tuple[int, ...]
    same_shots: bool
    top: int

    @property
    def shots_vary(self) -> bool:
        return self.recipe.data.shots is not None and not self.same_shots

    def as_json(self) -> dict[str, Any]:
        """What --resume requires to be the same; more seeds and a larger `top` go on with what there is."""
        recipe = {key: value for key, value in public_recipe(self.recipe).items() if key != "seed"}
        return {"study": "rank", "sources": list(self.sources), "recipe": recipe, "same_shots": self.same_shots}


@dataclass
class Contender:
    """A source in the ranking, as far as it has come; `error` says why it goes no further."""

    source: str
    name: str
    label: str
    trials: list[Trial] = field(default_factory=list)
    model: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    scores: CheapScores | None = None
    error: FinetuneError | None = None

    @property
    def random(self) -> bool:
        return self.source == RANDOM or self.source.startswith(RANDOM_MODEL)


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
    with start_run(options) as call:
        refuse_torchrun(call)
        overrides = call.overrides({}, {"data.name": target, "data.shots": shots})
        checked = expect_kind(AdaptRecipe, open_recipe(recipe, overrides), recipe)
        if top < 1:
            raise SettingError(f"--top {top}: expected at least 1, the number of sources to fine-tune")
        names = tuple(map(str, sources))
        design = RankDesign(names, checked.model_copy(update={"compare": ()}), parse_seeds(seeds), same_shots, top)
        return _rank(design, TrialOptions(jobs, engine), call)


def _rank(design: RankDesign, options: TrialOptions, call: RunCall) -> RankReport:
    runner, console = TrialRunner(call), call.console
    contenders = name_contenders(design.sources)
    usable = open_contenders(contenders, design, runner, call)
    setup = runner.setup(usable[0].trials[0])
    notes = [*setup.data.notes, *([few] if (few := few_seeds_note(design.seeds)) else [])]
    for note in notes:
        console.note(note)
    paths = check_study_outputs(call.out, setup.data.name, "rank", ())
    with StudyFolder(paths.run_folder, design.as_json(), call) as folder:
        score_contenders(usable, design, runner, folder)
        chosen = choose([contender for contender in usable if contender.error is None], design.top)
        console.note(f"to be fine-tuned: {listed(contender.name for contender in chosen)}")
        test = setup.data.describe()["test"]
        assert isinstance(test, dict)
        values = design.as_json()
        use = record_opening(
            paths.run_folder.parent,
            test["fingerprint"],
            command="rank",
            name=paths.stem,
            run=digest_of([values, design.seeds]),
            choice=digest_of(values),
        )
        outcomes = run_trials([trial for own in chosen for trial in own.trials], folder, options, runner)
        report = _report(contenders, chosen, outcomes, design, runner, notes)
        report = replace(report, test_set=use)
        save_ranking(report, paths, call)
    return report


def name_contenders(sources: Sequence[str]) -> list[Contender]:
    """The sources by short names. SettingError for fewer than two, and for one that is given twice."""
    if len(sources) < 2:
        raise SettingError(f"rank: {len(sources)} source, expected at least two to choose from")
    places = [source if _is_name(source) else os.path.realpath(source) for source in sources]
    for first, second in combinations(range(len(sources)), 2):
        if places[first] == places[second]:
            raise SettingError(f"rank: {sources[second]} is given twice")
    short = [source if _is_name(source) else Path(source).stem for source in sources]
    names = [own if short.count(own) == 1 else source for own, source in zip(short, sources, strict=True)]
    found: list[Contender] = []
    for number, (source, name) in enumerate(zip(sources, names, strict=True), 1):
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:MAX_LABEL].strip(".-")
        taken = any(other.label == label for other in found)
        found.append(Contender(source, name, f"{label}-{number}" if taken or not label else label))
    return found


def _is_name(source: str) -> bool:
    return source == RANDOM or source.startswith((RANDOM_MODEL, "timm:", "hub:"))


def open_contenders(
    contenders: Sequence[Contender], design: RankDesign, runner: TrialRunner, call: RunCall
) -> list[Contender]:
    """Opens all sources; returns those that could be. SettingError where these are fewer than two.

    DataError and DownloadError of the target, which is the same for all of them, end it at once.
    """
    if design.recipe.data.name is None:
        raise SettingError("rank: no target: name a data set or a folder of pictures with --target")
    opened: list[Contender] = []
    for contender in sorted(contenders, key=lambda own: own.source == RANDOM):  # which needs another one's network
        try:
            _open(contender, opened, design, runner)
            opened.append(contender)
        except (DataError, DownloadError, Interrupted):
            raise
        except FinetuneError as error:
            contender.error = error
            call.console.warn(f"{contender.name}: {first_line(error)}; the others go on")
    _refuse_same(opened, runner)
    if len(opened) < 2:
        lost = [contender for contender in contenders if contender.error is not None]
        reasons = "".join(f"\n  {contender.source}: {contender.error}" for contender in lost)
        found = SettingError(f"rank: expected at least two sources that can be used, found {len(opened)}{reasons}")
        codes = [contender.error.exit_code for contender in lost if contender.error is not None]
        found.exit_code = min(codes, default=2)
        raise found
    return [contender for contender in contenders if contender.error is None]


def _open(contender: Contender, opened: Sequence[Contender], design: RankDesign, runner: TrialRunner) -> None:
    """Opens one source on the target, as its trials will, and measures its size."""
    source, recipe = contender.source, design.recipe
    if source == RANDOM:
        others = [own for own in opened if not own.random]
        if not others:
            raise SettingError("no other source whose network could get random weights; random:MODEL names one")
        source = others[0].source
    row = "scratch" if contender.random else "after"
    shots, same_shots = recipe.data.shots, design.same_shots
    trials = row_trials(
        source,
        recipe,
        (row,),
        design.seeds,
        shots=shots,
        same_shots=same_shots,
        answers_only=True,
        label=contender.label,
    )
    chooser = opened[0].trials[0].source if opened else None
    contender.trials = [replace(trial, chooser=chooser) for trial in trials]
    setup = runner.setup(contender.trials[0])
    if opened:
        _check_same_pictures(setup, runner.setup(opened[0].trials[0]), contender.name)
    network = setup.classifier.network
    head = network.head.weight, network.head.bias
    body = [t for name, t in network.state_dict().items() if name not in network.head_tensors()]
    own_head = (network.head.in_features + 1) * len(setup.data.class_names)
    trained = (t.numel() for t in network.parameters() if not any(t is own for own in head))
    contender.model = setup.model
    contender.parameters = sum(trained) + own_head
    contender.bytes = sum(t.numel() * t.element_size() for t in body) + 4 * own_head


def _check_same_pictures(setup: AdaptSetup, first: AdaptSetup, name: str) -> None:
    """DataError unless two sources learn from, and are tested on, the same pictures, however each decodes them."""
    same = setup.data.class_names == first.data.class_names
    for part in ("train", "validation", "test"):
        own, other = getattr(setup.data, part), getattr(first.data, part)
        same = same and own.files == other.files and torch.equal(own.labels, other.labels)
    if not same:
        raise DataError(f"{first.data.name}: {name} does not see the same pictures as the other sources")


def _refuse_same(opened: Sequence[Contender], runner: TrialRunner) -> None:
    """SettingError for two sources of the same weights under two names."""
    seen: dict[object, str] = {}
    for contender in opened:
        setup = runner.setup(contender.trials[0])
        network = (setup.model, json.dumps(dict(setup.arguments), sort_keys=True), setup.spec)
        key: object = network if contender.random else setup.source.sha256
        if key in seen:
            raise SettingError(f"rank: {seen[key]} and {contender.source} are the same weights under two names")
        seen[key] = contender.source


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
        conclusion=conclude(fine_tuned, data.name, seeds=len(design.seeds), left_out=len(waiting)),
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
            tables[first.label], tables[second.label], shots_vary=design.shots_vary
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
    """Writes the report and shows it. An older one that says something else is moved aside."""
    with prepared_files({paths.report: report.to_json().encode()}):
        if _same_results(paths.report, report):
            call.console.note(f"{paths.report}: the same results as the run before")
        else:
            move_files_aside([paths.report], paths.stem, call.console)
    for part in rank_parts(report):
        call.console.show(part)
    call.console.say(f"wrote {paths.report}")


def _same_results(path: Path, report: RankReport) -> bool:
    """Whether the report that is there says the same, times aside."""
    try:
        found = json.loads(read_regular(path, MAX_REPORT_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not json_diff(
        found | dict.fromkeys(TIMES), report.to_dict() | dict.fromkeys(TIMES)
    )
