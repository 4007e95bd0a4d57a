"""What a race is: contestants that do the same work in turns, and what is asked of finetune there."""

from __future__ import annotations

from dataclasses import dataclass

from judging import Claim


@dataclass(frozen=True)
class Contestant:
    """One script of contestants/ in one environment, under the name that rows and tables have.

    `small` is added to the arguments to try things out in a short time.
    """

    name: str
    script: str
    environment: str
    arguments: tuple[str, ...] = ()
    small: tuple[str, ...] = ()


@dataclass(frozen=True)
class Race:
    """`about` says what is done and what the figures are. `rounds`: how often all run; the round's number is the seed.

    `limit`: seconds that one run may take. `mnist`, `photographs`: which images it needs.
    """

    name: str
    title: str
    about: str
    contestants: tuple[Contestant, ...]
    claims: tuple[Claim, ...]
    rounds: int = 5
    limit: int = 1800
    mnist: bool = False
    photographs: bool = False
