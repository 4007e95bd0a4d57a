"""What an exported file says of itself: its labels, what it takes, and the metadata of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from pydantic import ValidationError

from finetune.checkpoint.format import Metadata
from finetune.checkpoint.limits import MAX_VALUES
from finetune.errors import CheckpointError
from finetune.io.strict_json import parse_json
from finetune.models.spec import InputSpec

KEY, LABELS, TAKES = "finetune", "labels", "input"  # of the texts in an exported file
Takes = Literal["pictures", "tensors"]
INPUT_NAMES: dict[Takes, str] = {"pictures": "pictures", "tensors": "pixel_values"}
OUTPUT_NAME = "logits"


@dataclass(frozen=True)
class ExportFacts:
    """Where an exported file came from and what it takes: decoded "pictures", or normalized "tensors".

    sha256: of the checkpoint. metadata: the checkpoint's own.
    """

    metadata: Metadata
    takes: Takes
    sha256: str
    precision: Literal["float32", "int8"] = "float32"

    @property
    def input_text(self) -> str:
        """What goes in, in a sentence for whoever opens the file."""
        given = self.metadata.input
        if self.takes == "pictures":
            return "pictures: uint8, N×H×W×3, decoded, red, green, blue, of any size; all else is done inside"
        shape = f"N×{given.channels}×{given.size}×{given.size}"
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (given.mean, given.std))
        return f"pixel_values: float32, {shape}, values of 0 to 1 less the mean ({mean}), over the deviation ({std})"

    def texts(self) -> dict[str, str]:
        """The texts that a file holds by their keys: labels as a JSON list, the input in words, and all as JSON."""
        own = {"takes": self.takes, "sha256": self.sha256, "precision": self.precision}
        values = {**own, "checkpoint": self.metadata.model_dump()}
        return {
            LABELS: json.dumps(self.metadata.classes, ensure_ascii=False),
            TAKES: self.input_text,
            KEY: json.dumps(values, ensure_ascii=False, allow_nan=False),
        }

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], where: str) -> ExportFacts:
        """Reads what `texts` wrote. CheckpointError, which begins with `where`, for anything else."""
        if KEY not in texts:
            raise CheckpointError(
                f"{where}: an ONNX file without finetune's metadata, so its labels and input are not known; expected "
                "one written by `finetune export`"
            )
        try:
            values: dict[str, Any] = parse_json(texts[KEY], MAX_VALUES)
            takes, precision = values["takes"], values["precision"]
            if takes not in get_args(Takes) or precision not in ("float32", "int8"):
                raise ValueError(f"takes {takes!r}, precision {precision!r}")
            metadata = Metadata.model_validate(values["checkpoint"])
            return cls(metadata, cast(Takes, takes), str(values["sha256"]), precision)
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise CheckpointError(f"{where}: its metadata is not what `finetune export` writes ({said})") from None


def input_spec(facts: ExportFacts) -> InputSpec:
    """How pictures become the network's input, as the checkpoint says."""
    values = facts.metadata.input.model_dump()
    return InputSpec(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
