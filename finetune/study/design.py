"""Which trials a study has: seeds, shots and rows, crossed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import SettingError
from finetune.recipe.load import resolve_recipe
from finetune.recipe.schema import AdaptRecipe
from finetune.report.rows import INTERPOLATED, MIN_SEEDS
from finetune.run.options import RunCall
from finetune.run.setup import RecipeLike, expect_kind, find_source, open_recipe
from finetune.study.trial import Trial
from finetune.text import first_line

MAX_SEEDS = 1_000
TRAINED_ROWS = ("after", "scratch")  # each is a trial of its own; the others come together
MADE_FROM = {INTERPOLATED: "after"}  # a row that is made in the trial that trains another


def parse_seeds(given: int | str | Sequence[int]) -> tuple[int, ...]:
    """The seeds of a study: 5 or "5" for 0 to 4, or the seeds themselves as in "0,1,2,7". SettingError."""
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            raise SettingError(f"--seeds {first_line(given)}: expected a count such as 5, or seeds such as 0,1,2,7")
        numbers = [int(part) for part in parts]
        given = numbers[0] if len(numbers) == 1 else numbers
    if isinstance(given, int):
        if not 1 <= given <= MAX_SEEDS:
            raise SettingError(f"--seeds {given}: expected a count from 1 to {MAX_SEEDS:,}, or seeds such as 0,1,2,7")
        return tuple(range(given))
    if not isinstance(given, Sequence) or any(type(seed) is not int for seed in given):
        raise SettingError(f"seeds: expected a count or whole numbers, found {first_line(given)}")
    seeds: tuple[int, ...] = tuple(int(seed) for seed in given)
    if not 1 <= len(seeds) <= MAX_SEEDS or any(not 0 <= seed < 2**63 for seed in seeds):
        raise SettingError(f"--seeds: expected 1 to {MAX_SEEDS:,} seeds, each from 0 to 2^63 - 1")
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise SettingError(f"--seeds: {', '.join(map(str, twice))} is given twice, which is the same training twice")
    return seeds


def refuse_seed(call: RunCall) -> None:
    """SettingError for the recipe's seed, in place of which a study has seeds of its own."""
    if given := [each for each in call.settings if each.partition("=")[0].strip() == "seed"]:
        raise SettingError(f"{given[-1]}: a study's seeds are those of --seeds, for example --seeds 3,7")


def few_seeds_note(seeds: Sequence[int]) -> str | None:
    """What so few seeds cannot show, for the person; None where there are enough."""
    if len(seeds) >= MIN_SEEDS:
        return None
    found = "1 seed says" if len(seeds) == 1 else f"{len(seeds)} seeds say"
    return (
        f"{found} next to nothing of how much training again moves the result, so that no verdict says `helps` or "
        f"`hurts`; at least {MIN_SEEDS}, better 5: --seeds 5"
    )


def refuse_torchrun(call: RunCall) -> None:
    """SettingError for a study in several processes that train together."""
    if call.group.size > 1:
        raise SettingError("torchrun trains one network in several processes; for many trainings at once use --jobs")


def open_study_recipe(
    source: str | Path, recipe: RecipeLike, overrides: tuple[Mapping[str, Any], Mapping[str, Any]], call: RunCall
) -> AdaptRecipe:
    """The checked recipe that all trials of a study start from. SettingError under torchrun."""
    refuse_torchrun(call)
    located = find_source(source, call)
    return expect_kind(AdaptRecipe, open_recipe(recipe, call.overrides(*overrides), located.architecture), recipe)


def with_run(recipe: AdaptRecipe, *, seed: int, shots: int | None) -> dict[str, Any]:
    """The resolved recipe of one trial."""
    values: dict[str, Any] = resolve_recipe(recipe)
    return {**values, "seed": seed, "data": {**values["data"], "shots": shots}}


def row_trials(
    source: str,
    recipe: AdaptRecipe,
    rows: Sequence[str],
    seeds: Sequence[int],
    *,
    shots: int | None,
    same_shots: bool = False,
    keep_all: bool = False,
    answers_only: bool = False,
    label: str = "",
) -> list[Trial]:
    """The trials of these rows over seeds: one for each row that is trained, with what is made from it, and one for the
    others.

    same_shots: all seeds learn from the images that the first one chooses. keep_all: the weights of every seed are
    kept, else those of the first. answers_only: no weights are kept, and what was forgotten is not measured.
    """
    untrained = tuple(row for row in rows if row not in (*TRAINED_ROWS, *MADE_FROM))
    groups = [(row, *(own for own in rows if MADE_FROM.get(own) == row)) for row in rows if row in TRAINED_ROWS]
    return [
        Trial(
            source,
            with_run(recipe, seed=seed, shots=shots),
            group,
            shots_seed=seeds[0] if same_shots else seed,
            source_label=label,
            keeps_weights="after" in group and not answers_only and (keep_all or seed == seeds[0]),
            measures_retention="after" in group and not answers_only and seed == seeds[0],
        )
        for seed in seeds
        for group in ([untrained] if untrained else []) + groups
    ]
