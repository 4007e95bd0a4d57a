"""Public functions take paths and numpy's numbers, and name an argument of another kind, whichever function it is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import finetune
from finetune.arguments import check_arguments
from finetune.errors import SettingError

FUNCTIONS = [name for name in finetune.__all__ if inspect.isfunction(getattr(finetune, name))]


@check_arguments
def takes(
    text: str, numbers: str | Sequence[int | str] = (), rate: float = 1.0, flag: bool = False
) -> tuple[object, ...]:
    return text, numbers, rate, flag


def test_paths_and_numpy_numbers_become_texts_and_numbers() -> None:
    found = takes(Path("a/b"), np.array([1, 2]), rate=np.float32(0.5), flag=np.bool_(True))
    assert found == ("a/b", [1, 2], 0.5, True)
    assert [type(value) for value in found[1:]] == [list, float, bool]
    assert takes("a", (np.int64(3), "all"), 2)[1:3] == ([3, "all"], 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"text": 3}, r"text: expected a text, found 3 \(int\)"),
        ({"text": "a", "rate": True}, r"rate: expected a number, found True"),
        ({"text": "a", "numbers": [1.5]}, r"numbers\[0\]: expected a whole number or a text, found 1.5"),
        ({"text": "a", "numbers": b"ab"}, r"numbers: expected a text or a list, found b'ab'"),
        ({"text": "a", "rate": np.float32("nan")}, r"rate: expected a finite number, found nan"),
        ({"text": "a", "numbers": [float("inf")]}, r"numbers\[0\]: expected a whole number or a text, found inf"),
        ({"text": "a", "flag": 1}, r"flag: expected True or False, found 1"),
        ({"text": None}, r"text: expected a text, found None"),
    ],
)
def test_another_kind_is_named(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        takes(**arguments)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_public_function_takes_a_strange_object(name: str) -> None:
    function = getattr(finetune, name)
    first, *rest = inspect.signature(function).parameters.values()
    given = {p.name: "mnist" for p in rest if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    with pytest.raises(SettingError, match=f"{first.name}: expected .*found (3|int)"):
        function(3, **given)
    with pytest.raises(SettingError, match="no option 'dvice'"):
        function("mnist", **given, dvice="cpu")


@pytest.mark.parametrize(
    ("option", "value"), [("out", 3), ("seed", "1"), ("seed", 1.5), ("settings", 3), ("quiet", 1), ("recipe", 3)]
)
def test_options_are_checked_too(option: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"{option}: expected .*found"):
        finetune.adapt("mnist", "digits", **{option: value})
