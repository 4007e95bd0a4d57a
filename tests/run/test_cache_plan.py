"""Whole runs: each image goes through frozen stages once, wherever that is kept; what is said where it cannot be."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import opened_cache
from safetensors.torch import load_file
from small_disk import no_file_above, small_disk
from tiny import adapt_recipe, phase, refused, worked

from finetune.data.augment.affine import Augment
from finetune.data.normalize import Normalizer
from finetune.models.cnn import ArticleCNN
from finetune.models.staged import StagedNetwork
from finetune.paths import CACHE_VARIABLE
from finetune.recipe.schema import Phase
from finetune.run import context as setting
from finetune.run import setup
from finetune.run.cache_plan import CacheManager, PhaseCache
from finetune.train import activation_cache
from finetune.train.activation_cache import FILE, MEMORY, TRAIN, VALIDATION, ActivationKey, DiskTensor
from finetune.train.device import Runtime

SOLVED = "  - {train: head, solver: lbfgs, name: solved}\n"
TWO = phase("{last: 2}", more="name: two")
PLAIN = "{name: sgd, lr: 0.01, momentum: 0}"
SHIFTED = "{validation: 0.1, augment: {shift: 1}}"
NOTHING = "cache={memory: 0, disk: 0}"


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "activations"))
    return tmp_path / "activations"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images have gone through each stage; those for sizes and for the estimate of memory are not counted."""
    counted = dict.fromkeys(ArticleCNN.stages, 0)
    run_stage = ArticleCNN.run_stage

    def counting(network: ArticleCNN, stage: str, x: torch.Tensor) -> torch.Tensor:
        counted[stage] += len(x) if len(x) > 1 else 0
        return run_stage(network, stage, x)

    monkeypatch.setattr(ArticleCNN, "run_stage", counting)
    monkeypatch.setattr(setup, "check_memory", lambda *given: None)
    return counted


def adapted(source: Path, recipe: str, *words: object, target: str = "kmnist", out: str = "new.safetensors") -> str:
    """What an adapt says on standard error; its checkpoint is `out`."""
    Path("recipe.yaml").write_text(recipe)
    return worked("adapt", "--from", source, "--recipe", "recipe.yaml", "--target", target, "--out", out, *words).err


def phase_lines(said: str) -> list[str]:
    """For each phase the end of its line, on its frozen part."""
    return [line.partition(" steps, ")[2] for line in said.splitlines() if re.match(r"phase .* steps, ", line)]


def same(one: str, other: str) -> bool:
    first, second = load_file(one), load_file(other)
    return all(torch.equal(first[name], second[name]) for name in second)


def close(one: str, other: str) -> bool:
    first, second = load_file(one), load_file(other)
    return all(torch.allclose(first[name], second[name], atol=1e-5) for name in second)


# kmnist: 270 images to learn from, 30 to validate, 100 to test; 100 of mnist to see what was forgotten.
ONCE = 270 + 30 + 100 + 100
COUNTS = {
    "the head": (phase("head"), "{validation: 0.1}", "[linear_probe]", ONCE, ONCE),
    "solved, then the head twice": (SOLVED + phase("head") + phase("head"), "{validation: 0.1}", "[]", ONCE, ONCE),
    "two boundaries": (SOLVED + phase("head") + TWO, "{validation: 0.1}", "[linear_probe]", ONCE, None),
    "few steps behind class means": (phase("{last: 2}", "steps: 3"), "{validation: 0.1}", "[]", ONCE, None),
    # each view as well, and never again
    "views": (phase("head", "epochs: 7", more="views: 2"), SHIFTED, "[]", ONCE + 2 * 270, ONCE + 2 * 270),
    "the same views": (
        phase("head", "epochs: 3", more="views: 2, name: a") + phase("head", "epochs: 2", more="views: 2, name: b"),
        SHIFTED,
        "[]",
        ONCE + 2 * 270,
        ONCE + 2 * 270,
    ),
    # every step, but the validation images once
    "augmented": (phase("head", "epochs: 12"), SHIFTED, "[]", ONCE + 12 * 270, ONCE + 12 * 270),
    # after fc1 has moved it is run once more, and the stages before it are not
    "what has not moved": (TWO + phase("head"), "{validation: 0.1}", "[]", ONCE, 270 + 540 + 30 + 300 + 4 * 100),
    # a step, a row and the end for all stages; the test images go through the source and what it became
    "all stages": (
        SOLVED + phase(batch=10, more="name: all"),
        "{validation: 0.1}",
        "[]",
        ONCE + 2 * 270 + 30 + 200,
        None,
    ),
}


@pytest.mark.parametrize("case", COUNTS)
def test_each_image_goes_through_frozen_stages_once(
    case: str, folder: Path, pretrained: Path, seen: dict[str, int]
) -> None:
    phases, data, compare, conv1, fc1 = COUNTS[case]
    adapted(pretrained, adapt_recipe(phases, data, compare))
    calibrating = 300  # the trained network, whose frozen stages are run again for it, in float32
    assert seen["conv1"] == seen["conv2"] == conv1 + calibrating and fc1 in (None, seen["fc1"] - calibrating)


def test_images_that_nobody_asks_for_are_not_run(folder: Path, pretrained: Path, seen: dict[str, int]) -> None:
    """The source knows all classes, so no class means are made; 5 steps of 10 see 50 images, none twice."""
    recipe = adapt_recipe(phase("head", "steps: 5", 10))
    said = adapted(pretrained, recipe, "--set", "data.classes=[3,1,2]", target="mnist")
    assert phase_lines(said) == ["not cached: no image is seen twice"]
    assert seen["conv1"] == 50 + 9 + 30 + 100, "a row's 9 to validate, 30 to test, and 100 of the source"


# --- where it is kept changes nothing ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_a_file_and_nothing(folder: Path, pretrained: Path, cache_folder: Path) -> None:
    recipe = adapt_recipe(phase("head") + TWO + phase("head", "epochs: 4", more="name: again"))
    lines = {}
    for name, words in {
        "memory": (),
        "file": ("--set", "cache.memory=0"),
        "both": ("--set", "cache.memory=2e-4"),
        "nothing": ("--set", NOTHING),
    }.items():
        lines[name] = phase_lines(adapted(pretrained, recipe, *words, out=f"{name}.safetensors"))
        assert not cache_folder.exists() or not list(cache_folder.iterdir())
    once = "frozen part run once ({} in {})"
    sizes = ("138 kB", "3.4 MB", "138 kB")
    assert lines["memory"] == [once.format(size, "memory") for size in sizes]
    assert lines["file"] == [once.format(size, "a file") for size in sizes]
    assert lines["both"] == [once.format(*kept) for kept in zip(sizes, ("memory", "a file", "a file"), strict=True)]
    assert lines["nothing"] == [
        f"not cached: {size} of activations behind {stage}, and room for 0 bytes in memory (cache.memory) and 0 bytes "
        f"in {cache_folder} (cache.disk)"
        for size, stage in zip(sizes, ("fc1", "conv2", "fc1"), strict=True)
    ]
    assert same("memory.safetensors", "file.safetensors") and same("memory.safetensors", "both.safetensors")
    assert close("memory.safetensors", "nothing.safetensors")


@pytest.mark.slow
def test_views_that_cannot_be_kept_are_made_again_and_the_result_is_the_same(folder: Path, pretrained: Path) -> None:
    recipe = adapt_recipe(phase("{last: 2}", "epochs: 4", more="views: 3"), SHIFTED)
    for name, words in (("kept", ()), ("file", ("--set", "cache.memory=0")), ("made", ("--set", NOTHING))):
        (line,) = phase_lines(adapted(pretrained, recipe, *words, out=f"{name}.safetensors"))
        assert line.startswith(
            "frozen part run once for each of 3 views (10.2 MB in " if name != "made" else "not cached"
        )
    assert same("kept.safetensors", "file.safetensors") and close("kept.safetensors", "made.safetensors")
    worked("adapt", "--from", pretrained, "--recipe", "recipe.yaml", "--target", "kmnist", "--out", "anew.safetensors",
           "--set", "phases[0].views=null")  # fmt: skip
    assert not close("kept.safetensors", "anew.safetensors"), "the fourth epoch is another one"


# --- bad luck with the folder -----------------------------------------------------------------------------------------

BIG = adapt_recipe(phase("{last: 2}", optimizer=PLAIN))  # 3.4 MB of activations, more than any other file of the run


@pytest.fixture
def without(folder: Path, pretrained: Path) -> str:
    """A checkpoint of BIG with nothing kept."""
    adapted(pretrained, BIG, "--set", NOTHING, out="without.safetensors")
    return "without.safetensors"


@pytest.mark.parametrize("ahead", [True, False])
def test_a_full_disk_is_said_and_the_run_goes_on_to_the_same_result(
    ahead: bool, without: str, pretrained: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ahead:
        monkeypatch.setattr(activation_cache, "_reserve", lambda descriptor, size: None)
        monkeypatch.setattr("finetune.train.activation_cache.eval_batch_size", lambda pixels, device: 50)
    with no_file_above(2_500_000):
        said = adapted(pretrained, BIG, "--set", "cache.memory=0")
    (warning,) = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {cache_folder}: 3.4 MB of activations cannot be kept there (File too large); ")
    (line,) = phase_lines(said)
    assert line.startswith("not cached: 3.4 MB of activations behind conv2, and room for 0 bytes in memory")
    assert same("new.safetensors", without) and not list(cache_folder.iterdir())


def test_a_folder_that_is_none(without: str, pretrained: Path, cache_folder: Path) -> None:
    cache_folder.write_text("in the way")
    said = adapted(pretrained, BIG, "--set", "cache.memory=0", "--quiet")
    assert said.startswith(f"warning: {cache_folder}: 3.4 MB of activations cannot be kept there (")
    assert said.count("\n") == 1 and same("new.safetensors", without)


def test_a_disk_that_has_no_room_is_not_filled(
    without: str, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 4_000_000) as disk:
        monkeypatch.setenv(CACHE_VARIABLE, str(disk / "below"))
        said = adapted(pretrained, BIG, "--set", "cache.memory=0")
        assert phase_lines(said)[0].endswith(f"and 0 bytes in {disk / 'below'} (cache.disk)"), "1 GB has to stay free"
        assert "warning" not in said and same("new.safetensors", without)
        monkeypatch.setattr(setting, "RESERVED_DISK", 0)
        (line,) = phase_lines(adapted(pretrained, BIG, "--set", "cache.memory=0"))
        assert line == "frozen part run once (3.4 MB in a file)" and close("new.safetensors", without)


def test_a_run_that_lost_the_disk_still_uses_memory(folder: Path, pretrained: Path, cache_folder: Path) -> None:
    cache_folder.write_text("in the way")
    said = adapted(pretrained, adapt_recipe(TWO + phase("head")), "--set", "cache.memory=2e-4")
    assert [line.partition(" (")[0] for line in phase_lines(said)] == [
        "not cached: 3.4 MB of activations behind conv2, and room for 200 kB in memory",
        "frozen part run once",
    ]


def test_a_file_shortened_under_the_run_ends_it_in_words_and_with_a_snapshot(
    folder: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can do that by accident, as the file has no name; a failing disk can."""
    opened: list[DiskTensor] = []
    init = DiskTensor.__init__

    def noting(file: DiskTensor, *given: Any) -> None:
        init(file, *given)
        opened.append(file)

    def shorten(*_: object) -> None:
        for file in opened:
            os.truncate(f"/proc/self/fd/{file.descriptor}", 1000)

    monkeypatch.setattr(DiskTensor, "__init__", noting)
    monkeypatch.setattr("finetune.run.phases.append_metrics", shorten)
    Path("recipe.yaml").write_text(adapt_recipe(phase("{last: 2}", "epochs: 20"), "{validation: 0}"))
    words = ("adapt", "--from", pretrained, "--recipe", "recipe.yaml", "--target", "kmnist", "--quiet")
    message = refused(*words, "--set", "cache.memory=0", code=1)
    first, *rest = message.splitlines()
    assert first.endswith("--set cache.disk=0)") and "cannot be read back (it is shorter than it was); run" in first
    assert any("resume with: finetune adapt" in line and "--resume" in line for line in rest)


def test_a_machine_with_little_memory_keeps_a_quarter_of_it(
    folder: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setting, "memory_budget", lambda: 100_000)
    said = adapted(pretrained, adapt_recipe(phase("head")))
    assert phase_lines(said) == ["frozen part run once (138 kB in a file)"]
    said = adapted(pretrained, adapt_recipe(phase("head")), "--set", "cache.memory=1", out="other.safetensors")
    assert phase_lines(said) == ["frozen part run once (138 kB in memory)"]


# --- what plan says ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plan_says_what_the_run_then_says(folder: Path, pretrained: Path) -> None:
    slow = "{name: sgd, lr: 1e-4}"
    phases = (
        SOLVED
        + phase("head", optimizer=slow, more="augment: false, name: plain")
        + phase("{last: 2}", "epochs: 5", optimizer=slow, more="views: 2, name: views")
        + phase("{last: 2}", "epochs: 2", optimizer=slow, more="views: 2, name: same")
        + phase("head", optimizer=slow, more="norms: update, name: norms")
        + phase("head", optimizer=slow, more="name: anew")
        + phase("[conv1, head]", optimizer=slow, more="augment: false, name: first")
        + phase("all", optimizer=slow, more="name: all")
    )
    recipe = adapt_recipe(phases, SHIFTED)
    said = phase_lines(adapted(pretrained, recipe))
    words = ("plan", "--recipe", "recipe.yaml", "--from", pretrained, "--target", "kmnist")
    plan = worked(*words, "--json").json["phases"]
    assert [one["cache"]["says"] for one in plan] == ["frozen part run once (138 kB in memory)", *said]
    assert said == [
        "frozen part run once (138 kB in memory)",
        "frozen part run once for each of 2 views (6.8 MB in memory)",
        "frozen part run once for each of 2 views (6.8 MB in memory)",
        "not cached: norms: update moves the frozen layers",
        "not cached: images are augmented; views: K would keep K passes",
        "not cached: conv1, the first stage, trains",
        "nothing frozen",
    ]
    views = plan[2]["cache"]
    assert views["passes"] == 2 and views["bytes"] == 2 * 270 * 3136 * 4 and views["behind"] == "conv2"
    shown = worked(*words).out
    assert "plain: frozen part run once (138 kB in memory)" in shown and "all: nothing" not in shown


# --- deciding, without a run ------------------------------------------------------------------------------------------


class Widening(StagedNetwork):
    """Its second stage gives more numbers than its first: a row of 1, 8 and 2 for an image of 8 pixels."""

    stages = ("narrow", "wide", "slim", "head")

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.slim = torch.nn.Linear(8, 1), torch.nn.Linear(1, 8), torch.nn.Linear(8, 2)
        self.head = torch.nn.Linear(2, 3)

    def run_stage(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(stage)(x.flatten(1))


def manager(
    *phases: dict[str, Any],
    memory: int = 10**9,
    disk: int = 10**9,
    needs_features: bool = True,
    augmented: bool = False,
) -> CacheManager:
    """Of the phases of a Widening with 100 images to learn from and 50 to validate."""
    images, runtime = torch.zeros(100, 1, 2, 4, dtype=torch.uint8), Runtime(torch.device("cpu"), "float32")
    normalize = Normalizer((0.5,), (0.5,), runtime.device)
    cache = opened_cache(images, normalize, runtime, room=(memory, disk), **{VALIDATION: images[:50]})
    material = SimpleNamespace(train=images, validation=images[:50])
    given: Any = SimpleNamespace(
        data=material, augment=Augment(shift=1) if augmented else None, needs_features=needs_features, cache=cache
    )
    sgd = {"name": "sgd", "lr": 0.1}
    every = [Phase.model_validate({"optimizer": sgd, "batch_size": 10, "epochs": 2, **one}) for one in phases]
    return CacheManager(Widening(), every, given)


def decided(*phases: dict[str, Any], **given: Any) -> list[PhaseCache]:
    return manager(*phases, **given).planner.plan()


SLIM, WIDE = {"train": ["slim", "head"]}, 100 * 8 * 4


def test_where_the_last_boundary_does_not_fit_an_earlier_one_that_does_is_taken() -> None:
    (roomy,) = decided(SLIM)
    assert (roomy.start, roomy.where, roomy.size, roomy.why) == (2, MEMORY, WIDE, "")
    (small,) = decided(SLIM, memory=2_000, disk=2_000)
    assert (small.start, small.where, small.size) == (1, MEMORY, 400)
    assert str(small) == (
        "frozen part run once (400 bytes in memory), not all of it: 3.2 kB of activations behind wide, and room for "
        "2.0 kB in memory (cache.memory) and 2.0 kB in nowhere (cache.disk)"
    )
    (filed,) = decided(SLIM, memory=2_000)
    assert (filed.start, filed.where) == (2, FILE), "a file behind all of it comes first"
    (none,) = decided(SLIM, memory=399, disk=399)
    assert (none.start, none.where, none.wanted) == (0, None, {}) and none.why.startswith(
        "3.2 kB of activations behind"
    )


def test_memory_goes_to_the_phases_in_their_order_and_is_counted_once() -> None:
    head = {"train": "head"}
    first, second, third = decided(SLIM, head, SLIM, memory=WIDE + 100)
    assert (first.where, second.where, third.where) == (MEMORY, FILE, MEMORY), "the third uses the first's"
    assert first.wanted == third.wanted == {ActivationKey(TRAIN, 2): MEMORY, ActivationKey(VALIDATION, 2): FILE}
    assert second.wanted == {ActivationKey(TRAIN, 3): FILE, ActivationKey(VALIDATION, 3): FILE}
    first, _, third = decided(SLIM, {"train": "all"}, SLIM, memory=WIDE + WIDE // 2)
    assert (first.where, third.where) == (MEMORY, FILE), "after all stages have moved it is another one"


@pytest.mark.parametrize(
    ("change", "needs_features", "start", "where"),
    [
        ({"epochs": None, "steps": 10}, False, 0, None),  # 100 images: each once
        ({"epochs": None, "steps": 11}, False, 2, MEMORY),
        ({"epochs": None, "steps": 1}, True, 2, MEMORY),  # class means have made the pass
        ({"views": 2}, False, 0, None),  # two epochs of two views
        ({"views": 2, "epochs": 3}, False, 2, MEMORY),
        ({"views": 2}, True, 0, None),  # class means are not of these views
    ],
)
def test_a_pass_is_made_when_it_saves_others(
    change: dict[str, Any], needs_features: bool, start: int, where: str
) -> None:
    (found,) = decided({**SLIM, **change}, needs_features=needs_features, augmented="views" in change)
    assert (found.start, found.where) == (start, where)
    assert start or found.why == f"no {'view' if 'views' in change else 'image'} is seen twice"


def test_a_file_is_not_worth_it_for_few_steps_even_if_the_pass_is_made() -> None:
    (found,) = decided({**SLIM, "epochs": None, "steps": 1}, memory=100)
    assert found.start == 0


def test_validation_images_are_kept_in_front_of_what_trains_also_where_training_images_are_augmented() -> None:
    (found,) = decided(SLIM, augmented=True)
    assert found.start == 0 and found.wanted == {ActivationKey(VALIDATION, 2): MEMORY}
    (found,) = decided({**SLIM, "norms": "update"})
    assert found.start == 0 and found.wanted == {}


# --- and doing it -----------------------------------------------------------------------------------------------------


def test_a_phase_that_is_over_leaves_in_the_cache_only_what_later_ones_can_use() -> None:
    last, slim = {"train": "head"}, [ActivationKey(TRAIN, 2), ActivationKey(VALIDATION, 2)]
    head = [ActivationKey(TRAIN, 3), ActivationKey(VALIDATION, 3)]
    caches = manager(SLIM, last, {"train": "all"})
    assert caches.enter_phase(0).wanted.keys() == set(slim) == caches.cache.kept.keys()
    caches.exit_phase(0)
    assert caches.cache.kept.keys() == set(slim), "what the head sees is computed from there"
    caches.enter_phase(1)
    assert caches.cache.kept.keys() == {*slim, *head}
    caches.exit_phase(1)
    assert not caches.cache.kept, "all stages have moved by the time there is another phase"
    caches = manager(SLIM, {"train": "all"})
    caches.enter_phase(0)
    caches.exit_phase(0)
    assert not caches.cache.kept and caches.enter_phase(1).wanted == {} and not caches.cache.kept
