"""What a checkpoint records of its confidence: a temperature, a promise of few errors, and a novelty score."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

MAX_NOVELTY_BYTES = 1_000_000  # of a layer's reference vectors: they are in the header, which all readers parse

Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Images = Annotated[int, Field(ge=1, le=1_000_000_000)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class Promise(_Record):
    """Answers of at least probability `threshold` are wrong in at most `max_error` of cases, with `confidence`.

    Proven on `images` held-out images, of which the share `answered` reached the threshold.
    """

    max_error: Share
    confidence: Share
    threshold: Probability
    answered: Probability
    images: Images


class NoveltyLayer(_Record):
    """Reference vectors of one layer: `count` × `width` bytes in base64, each a signed number times `scale`.

    cut: the number of stages that the layer stands behind. mean, std: of held-out images' distances, to standardise by.
    """

    cut: int = Field(ge=1, le=100_000)
    count: Images
    width: Images
    scale: FiniteFloat = Field(gt=0)
    mean: FiniteFloat
    std: FiniteFloat = Field(gt=0)
    vectors: str

    @model_validator(mode="after")
    def _size_agrees(self) -> NoveltyLayer:
        if self.count * self.width > MAX_NOVELTY_BYTES or len(self.vectors) > 2 * MAX_NOVELTY_BYTES:
            raise ValueError(f"at most {MAX_NOVELTY_BYTES:,} bytes of reference vectors")
        if len(self.content()) != self.count * self.width:
            raise ValueError(f"expected {self.count} × {self.width} bytes of reference vectors")
        return self

    def content(self) -> bytes:
        """The vectors' bytes. ValueError for what is no base64."""
        try:
            return base64.b64decode(self.vectors, validate=True)
        except binascii.Error as error:
            raise ValueError(f"expected reference vectors in base64 ({error})") from None


class Novelty(_Record):
    """The layers of a novelty score, and the score above which a picture is unlike those trained on.

    share: of new pictures of the same kind, how many are expected above the threshold. images: held out, by which both
    were found.
    """

    layers: list[NoveltyLayer] = Field(min_length=1, max_length=2)
    threshold: FiniteFloat
    share: Share
    images: Images


class Confidence(_Record):
    """What is known of a network's confidence, from images it has not learnt from.

    temperature: what logits are divided by before the softmax. images: that it was fitted on; how: held out for
    validation, out of fold, or given to `calibrate`.
    """

    temperature: FiniteFloat = Field(ge=0.01, le=100)
    images: Images
    how: Literal["validation", "folds", "data"]
    promise: Promise | None = None
    novelty: Novelty | None = None
