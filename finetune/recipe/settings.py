"""The base class of all recipe settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Settings(BaseModel):
    """Base of every part of a recipe. Strict: true is not 1 and "1" is not 1; only a whole number may stand for 1.0."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Decay = Annotated[float, Field(ge=0, lt=1)]

Text = Annotated[str, Field(min_length=1, max_length=4096)]


def expected(what: str) -> PydanticCustomError:
    """The error of a value of the wrong kind; the reader adds what was found."""
    return PydanticCustomError("expected", "expected {what}", {"what": what})
