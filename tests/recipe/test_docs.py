"""The generated reference leaves no key out, and its examples are recipes."""

import json
import subprocess
import sys

from finetune.recipe.docs import ADAPT_EXAMPLE, EXAMPLE, json_schema, reference_markdown
from finetune.recipe.load import KnownNames, parse_recipe
from finetune.recipe.schema import (
    OPTIMIZERS,
    SCHEDULES,
    AdaptRecipe,
    AugmentSettings,
    DataSettings,
    Phase,
    PretrainRecipe,
)

NAMES = KnownNames(models={"cnn": ("conv1", "conv2", "fc1", "head")}, datasets={"mnist": ()})
MODELS = [PretrainRecipe, AdaptRecipe, Phase, DataSettings, AugmentSettings, *OPTIMIZERS.values(), *SCHEDULES.values()]


def test_every_key_is_described():
    page = reference_markdown()
    for model in MODELS:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            row = next(
                line for line in page.splitlines() if line.startswith(f"| `{name}` |") and field.description in line
            )
            assert row.count("|") == 5


def test_the_page_is_the_same_each_time_and_shows_bounds_and_defaults():
    page = reference_markdown()
    assert page == reference_markdown()
    assert "| `momentum` | number (at least 0, below 1) | `0.9` |" in page
    assert "| `epochs` | whole number (at least 1, at most 100,000) |  |" in page
    assert "| `lr` | number (above 0) | required |" in page


def test_the_examples_are_recipes():
    assert parse_recipe(EXAMPLE, where="example", names=NAMES).kind == "pretrain"
    assert parse_recipe(ADAPT_EXAMPLE, where="example", names=NAMES).kind == "adapt"


def test_the_json_schema_tells_the_kinds_apart():
    schema = json_schema()
    assert schema["discriminator"]["propertyName"] == "kind"
    assert schema["$defs"]["Phase"]["additionalProperties"] is False
    assert len(schema["oneOf"]) == 2


def test_the_module_prints_both():
    command = [sys.executable, "-m", "finetune.recipe.docs"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == reference_markdown()
    printed = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == json_schema()
