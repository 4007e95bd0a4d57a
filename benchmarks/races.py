"""The registry: every race, who runs in it, and what is asked of finetune there. A new peer is one more row."""

from __future__ import annotations

import races_mnist
import races_photographs
from contest import Contestant, Race
from environments import OURS
from judging import Claim, each

START_UP = Race(
    "start-up",
    "Start-up",
    "`finetune --help` and `python -c pass` in turns, whole processes; medians of 30 each round.",
    (Contestant("finetune --help", "start_up.py", OURS, (), ("--times", "5")),),
    (
        Claim(
            "`finetune --help` above `python -c pass`",
            each(lambda one: one["finetune --help"]["extra_seconds"]),
            "s",
            at_most=0.15,
        ),
    ),
    rounds=3,
)

RACES: dict[str, Race] = {race.name: race for race in (*races_mnist.RACES, *races_photographs.RACES, START_UP)}
assert len(RACES) == len(races_mnist.RACES) + len(races_photographs.RACES) + 1, "two races of one name"
