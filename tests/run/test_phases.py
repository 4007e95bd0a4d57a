"""From a recipe's words to the loop's values: stages, lengths, budgets."""

import pytest

from finetune.commands.baselines import scratch_phase
from finetune.recipe.schema import AdaptRecipe, AugmentSettings, LastStages, Phase
from finetune.run.context import augmentation

SGD = {"name": "sgd", "lr": 0.1}
STAGES = ("conv1", "conv2", "fc1", "head")


def phase(**changes):
    return Phase.model_validate({"train": "all", "optimizer": SGD, **changes})


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("all", STAGES),
        ("head", ("head",)),
        (LastStages(last=2), ("fc1", "head")),
        (LastStages(last=4), STAGES),
        (("head", "conv1"), ("conv1", "head")),
    ],
)
def test_what_trains_is_in_the_networks_order(train, expected):
    assert phase(train=train, steps=1).trained_stages(STAGES) == expected


@pytest.mark.parametrize(
    ("length", "images", "steps"),
    [
        ({"epochs": 3, "batch_size": 10}, 25, 9),
        ({"epochs": 3, "batch_size": 10}, 30, 9),
        ({"steps": 7}, 25, 7),
        ({"epochs": 40, "batch_size": 128, "min_steps": 160, "max_steps": 3000}, 90, 160),
        ({"epochs": 40, "batch_size": 128, "min_steps": 160, "max_steps": 3000}, 900, 320),
        ({"epochs": 40, "batch_size": 128, "min_steps": 160, "max_steps": 3000}, 54_000, 3000),
        ({"epochs": 1, "batch_size": 128, "max_steps": 3000}, 1, 1),
    ],
)
def test_lengths_become_steps(length, images, steps):
    assert phase(**length).steps_for(images) == steps


def test_scratch_gets_the_budget_of_all_phases_and_its_own_optimizer():
    recipe = AdaptRecipe.model_validate(
        {
            "kind": "adapt",
            "phases": [
                {"train": "head", "steps": 20, "batch_size": 50, "optimizer": SGD, "augment": False},
                {"train": "all", "epochs": 4, "batch_size": 100, "optimizer": SGD, "layer_decay": 0.5, "ema": 0.9},
            ],
            "scratch": {"optimizer": {"name": "adamw", "lr": 1}, "schedule": {"name": "cosine"}},
        }
    )
    found = scratch_phase(recipe, 1000)
    assert found.steps_for(1000) * found.batch_size == 20 * 50 + 4 * 1000
    assert (found.train, found.layer_decay, found.ema, found.augment) == ("all", 1.0, 0.9, True)
    assert (found.optimizer.name, found.schedule.name) == ("adamw", "cosine")
    small = scratch_phase(recipe, 30)  # a batch is then the whole set
    assert small.steps_for(30) == 20 + 4


def test_augmentation_that_changes_nothing_is_none():
    assert augmentation(None) is None and augmentation(AugmentSettings()) is None
    assert augmentation(AugmentSettings(shift=2)).shift == 2


def test_scratch_settings_replace_only_what_they_name():
    recipe = AdaptRecipe.model_validate(
        {
            "kind": "adapt",
            "phases": [{"train": "all", "epochs": 4, "optimizer": SGD, "schedule": {"name": "one_cycle"}}],
            "scratch": {"optimizer": {"name": "adamw", "lr": 1}},
        }
    )
    found = scratch_phase(recipe, 1000)
    assert (found.optimizer.name, found.schedule.name) == ("adamw", "one_cycle")
