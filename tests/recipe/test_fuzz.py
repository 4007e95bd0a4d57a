"""Recipes and settings that are nearly right: each is read, or refused in plain words, soon."""

import json
import tempfile
from pathlib import Path

import pytest
from fuzzing import SCALARS, VALUES, answered, changed, damaged, fuzzed, places
from hypothesis import event, given
from hypothesis import strategies as st
from tiny import finetune

from finetune.recipe.load import dump_recipe, resolve_recipe, shipped_recipes
from finetune.recipe.yaml_loader import read_yaml
from finetune.run.setup import open_recipe

FILE = Path(tempfile.mkdtemp(prefix="finetune-fuzz-"), "r.yaml")


@pytest.fixture(scope="module", autouse=True)
def place():
    yield
    FILE.unlink(missing_ok=True)
    FILE.parent.rmdir()


def opened(recipe, overrides=()):
    """The recipe, if it is one; it then comes back the same from its own text, and from its own values."""
    found = answered(lambda: open_recipe(recipe, overrides))
    event("read" if found is not None else "refused")
    if found is not None:
        FILE.write_text(dump_recipe(found), encoding="utf-8")
        assert open_recipe(FILE, ()) == found == open_recipe(resolve_recipe(found), ())
    return found


SHIPPED = {name: path.read_text(encoding="utf-8") for name, path in shipped_recipes().items()}
PLAIN = {name: read_yaml(text).data for name, text in SHIPPED.items()}
WORDS = "pretrain adapt cnn timm/test_resnet timm/nope timm/hf-hub:a/b mnist kmnist head all conv1 fc1 sgd adamw step"
WORDS += " cosine one_cycle best last scratch linear_probe lbfgs photo digits none hold update fail skip 0 no 1e-3 .inf"
IN_RECIPES = VALUES | st.sampled_from(
    [*WORDS.split(), 10**6, 10**9, 10**12, 0.5, 1, {"last": 2}, {"name": "sgd", "lr": 1}]
)
STRANGE = [
    "\0",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x1b",
    "\n",
    "\t",
    ": ",
    "\n  ",
    "\n- ",
    "--- ",
    "... ",
    "|9\n",
    "\\ud800",
    "\\x",
]
YAML = ["&a ", "*a", "<<: ", "!!python/name:os.system ", "%YAML 1.1\n", "%TAG ! !x\n", "!" * 6000, ".nan", "null", "~"]
LONG = ["1" * 300, "- " * 30, "[" * 30, "1e999", "0x" + "f" * 40, "'" * 3]
PIECES = st.lists(st.sampled_from([*"[]{},:-?&*!|>'\"%@`#", *STRANGE, *YAML, *LONG]), max_size=4).map("".join)


@fuzzed(50)
@given(name=st.sampled_from(sorted(PLAIN)), data=st.data(), indent=st.sampled_from([None, 1]))
def test_values(name, data, indent):
    values = data.draw(changed(PLAIN[name], IN_RECIPES))
    FILE.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    opened(FILE)
    opened(values) if isinstance(values, dict) else None


@fuzzed(50)
@given(name=st.sampled_from(sorted(SHIPPED)), data=st.data())
def test_texts(name, data):
    text = SHIPPED[name]
    for _ in range(data.draw(st.integers(1, 3))):
        start, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 30))
        text = text[:start] + data.draw(PIECES) + text[start + cut :]
    FILE.write_text(text, encoding=data.draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"])))
    opened(FILE)


@fuzzed(60)
@given(content=st.sampled_from(sorted(SHIPPED)).flatmap(lambda name: damaged(SHIPPED[name].encode())))
def test_bytes(content):
    FILE.write_bytes(content)
    opened(FILE)


def key_of(place):
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


KEYS = sorted({key_of(place) for recipe in PLAIN.values() for place in places(recipe) if place})
SETTINGS = st.builds(
    lambda key, more, equals, value: f"{key}{more}{equals}{value}",
    st.sampled_from(KEYS) | st.text(max_size=8),
    st.sampled_from(["", "", "", ".x", "[0]", "[999999]", ".a" * 30, "[-1]"]),
    st.sampled_from(["=", "=", "=", "==", ":", ""]),
    (SCALARS | IN_RECIPES).map(lambda value: json.dumps(value, ensure_ascii=False))
    | PIECES
    | st.sampled_from(WORDS.split()),
)


GOOD = [
    "seed=3",
    "phases[0].batch_size=7",
    "data.shots=5",
    "data.validation=0.1",
    "precision=float32",
    "input={size: 28}",
]
GOOD += [
    "phases[0].clip_norm=1",
    "data.classes=['1', '0']",
    "data.augment=photo",
    "phases[0].ema=0.5",
    "model.name=cnn",
]


@fuzzed(50)
@given(name=st.sampled_from(sorted(PLAIN)), settings=st.lists(st.sampled_from(GOOD) | SETTINGS, min_size=1, max_size=3))
def test_settings(name, settings):
    opened(shipped_recipes()[name], settings)


@fuzzed(20)
@given(name=st.sampled_from(["mnist", "adapt"]), data=st.data())
def test_whole_commands(name, data):
    """`plan` reads a recipe first; with one that is right it would go on and open the data."""
    values = data.draw(changed(PLAIN[name], IN_RECIPES))
    FILE.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    if answered(lambda: open_recipe(FILE, ())) is None:
        done = finetune("plan", "--recipe", FILE, *(("--from", "none.safetensors") if name == "adapt" else ()))
        assert done.code == 2 and done.out == "" and done.err.startswith("finetune: ")
