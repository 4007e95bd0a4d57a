"""The result of `finetune where`: the answer, and the recipe that carries it out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from finetune.report.report import SourceSummary, TargetSummary, json_values
from finetune.report.stage_answer import StageAnswer, answer_sentence


@dataclass(frozen=True)
class WhereReport:
    """Which stages of `source` to train for `target`, and the recipe for `adapt`, resolved, that was written to `out`.

    seconds: what the scores took.
    """

    source: SourceSummary
    target: TargetSummary
    where: StageAnswer
    recipe: dict[str, Any]
    out: str
    seconds: float

    @property
    def conclusion(self) -> str:
        """Which stages to train, as a sentence."""
        return answer_sentence(self.to_dict()["where"])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return json_values(asdict(self))
