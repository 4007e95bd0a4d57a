"""Which stages to train, and why: the answer of `finetune where` and of `train: auto`, and its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from finetune.text import listed


@dataclass(frozen=True)
class StageRow:
    """One stage: what its scores are, and whether it is to train.

    probe, ci95: accuracy of a linear probe on its outputs, over five folds, with its 95 % interval; None for the head,
    where the network cannot be cut behind the stage, and where no class has two images. gradient: the length of the
    gradient over that of the weights.
    """

    stage: str
    probe: float | None
    ci95: tuple[float, float] | None
    gradient: float
    parameters: int
    trains: bool
    why: str


@dataclass(frozen=True)
class StageAnswer:
    """Which stages to train, from the scores of `images` images to learn from.

    head_rows: of the rows of the head that training starts from, those that the source brought, and all.
    """

    stages: list[StageRow]
    images: int
    head_rows: tuple[int, int]

    @property
    def trains(self) -> list[str]:
        """The stages to train, from the input on."""
        return [row.stage for row in self.stages if row.trains]

    @property
    def trainable_parameters(self) -> int:
        return sum(row.parameters for row in self.stages if row.trains)


def answer_sentence(found: Mapping[str, Any]) -> str:
    """The answer in words, from a StageAnswer's JSON values."""
    stages, (kept, rows) = found["stages"], found["head_rows"]
    trained = [row for row in stages if row["trains"]]
    frozen = [row["stage"] for row in stages if not row["trains"]]
    parameters = sum(row["parameters"] for row in trained)
    if not frozen:
        why = "no stage's gradient is much smaller than others'" if kept == rows else "classes are new to the source"
        return f"train all stages ({parameters:,} parameters): {why}"
    if [row["stage"] for row in trained] == [stages[-1]["stage"]]:
        return f"train the head alone ({parameters:,} parameters): {trained[0]['why']}"
    names = listed(row["stage"] for row in trained)
    return f"train {names} ({parameters:,} parameters) and keep {listed(frozen)} frozen"


def stage_parts(found: Mapping[str, Any]) -> list[RenderableType]:
    """The table of a StageAnswer's JSON values, and the answer as a sentence."""
    table = Table(title=f"which stages to train, from {found['images']:,} images to learn from", title_justify="left")
    table.add_column("stage", overflow="fold")
    for column in ("probe after it (95 % interval)", "relative gradient", "parameters"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("answer", overflow="fold")
    *backbone, head = found["stages"]
    for row in found["stages"]:
        if row["probe"] is not None:
            low, high = row["ci95"]
            probe = f"{100 * row['probe']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
        elif row is head:
            probe = ""
        else:
            probe = "no class has two images" if backbone[-1]["probe"] is None else "the network has no cut here"
        answer = f"{'trains' if row['trains'] else 'frozen'}: {row['why']}"
        table.add_row(row["stage"], probe, f"{row['gradient']:.3g}", f"{row['parameters']:,}", answer)
    return [table, Text(answer_sentence(found))]
