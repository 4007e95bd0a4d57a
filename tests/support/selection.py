"""Which parameters of a module's tests are in this session, so that a fixture they share makes no more than those."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def selected(request: pytest.FixtureRequest, names: Iterable[str]) -> list[str]:
    """Of these names, those that are a parameter of a test that runs, in the module of the fixture."""
    items = [item for item in request.session.items if item.path == request.path]
    values = [value for item in items if hasattr(item, "callspec") for value in item.callspec.params.values()]
    return [name for name in names if name in values]
