"""A recipe given as Python data is held to what a file could say: text, numbers, true, false, None, lists, mappings."""

from __future__ import annotations

from collections.abc import Mapping

from finetune.recipe.document import DEEPEST, MOST_VALUES, Document
from finetune.recipe.faults import Place, found
from finetune.recipe.scalars import unusable


def from_python(data: object) -> Document:
    """Returns a copy of `data` as plain dicts and lists; what a recipe cannot hold becomes a fault and None."""
    document = Document()
    counted = [0]  # one counter for the whole walk: data can refer to itself and never end

    def copied(value: object, place: Place) -> object:
        counted[0] += 1
        if len(place) > DEEPEST or counted[0] > MOST_VALUES:
            if document.whole:
                document.refuse(place[:3], f"is nested deeper than {DEEPEST} levels or has over {MOST_VALUES} values")
            document.whole = False
            return None
        if isinstance(value, Mapping):
            entries = {}
            for key, item in value.items():
                if isinstance(key, str) and not unusable(key):
                    entries[str(key)] = copied(item, (*place, key))
                else:
                    document.refuse(place, f"a key must be plain text, found {found(key)}")
            return entries
        if isinstance(value, list | tuple):
            return [copied(item, (*place, index)) for index, item in enumerate(value)]
        if value is None or isinstance(value, bool):
            return value
        for kind in (int, float, str):
            if isinstance(value, kind):
                plain = kind(value) if not isinstance(value, str) else str.__str__(value)
                why = unusable(plain)
                if why is None:
                    return plain
                document.refuse(place, why, broken=True)
                return None
        document.refuse(place, f"expected text, a number, a list or a mapping, found {found(value)}", broken=True)
        return None

    document.data = copied(data, ())
    return document
