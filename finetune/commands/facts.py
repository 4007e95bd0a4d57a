"""What a snapshot says beside its tensors, and how a run is to keep and use snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune.reporting.report import EpochRow, PhaseSummary


@dataclass(frozen=True)
class Keeping:
    """Whether to go on with an earlier attempt, the seconds between two snapshots, and what to type to go on."""

    resume: bool = False
    every: float = 60.0
    again: str = "the same call with resume=True"


AFRESH = Keeping()


class LegFacts(BaseModel):
    """One network's phases that are over, and the epochs they took in all."""

    model_config = ConfigDict(extra="forbid")

    phases: list[PhaseSummary] = []
    epochs: int = 0


class PhaseFacts(BaseModel):
    """The phase under way: its rows so far, and the numbers of its training's state; proof: of its frozen tensors."""

    model_config = ConfigDict(extra="forbid")

    history: list[EpochRow]
    numbers: dict[str, int | float]
    proof: dict[str, str]


class Facts(BaseModel):
    """What a snapshot says beside its tensors. `leg` is the network under way; `phase` None between two phases.

    `moment` says in words when it was taken.
    """

    model_config = ConfigDict(extra="forbid")

    run: dict[str, Any]
    machine: dict[str, Any]
    seconds: float
    rows: list[dict[str, Any]]
    legs: dict[str, LegFacts]
    leg: str
    phase: PhaseFacts | None
    moment: str
