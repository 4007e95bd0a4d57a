"""Learning-rate schedules: pure functions from the part of a phase that is done (0..1) to a multiplier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

Schedule = Callable[[float], float]

START_DIVISOR = 25.0  # a rise starts at lr / 25, as in torch's OneCycleLR; from 0, the first step would be lost


def constant(done: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(done: float, *, warmup: float) -> float:
    """A straight rise from 1/25 over the `warmup` fraction, then half a cosine to 0 (Loshchilov and Hutter 2017)."""
    if done < warmup:
        return 1 / START_DIVISOR + (1 - 1 / START_DIVISOR) * done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def one_cycle(done: float, *, warmup: float, shape: str = "cosine") -> float:
    """From 1/25 up to 1 over the `warmup` fraction, then down to 0; both ways half a cosine or straight lines."""
    rising = done < warmup
    part = done / warmup if rising else (done - warmup) / (1 - warmup)
    if shape == "cosine":
        part = 0.5 * (1 - math.cos(math.pi * part))
    return 1 / START_DIVISOR + (1 - 1 / START_DIVISOR) * part if rising else 1 - part


def step(done: float, *, at: Sequence[float], factor: float) -> float:
    """Multiplied by `factor` at each fraction in `at`."""
    return factor ** sum(done >= border for border in at)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "step": step,
}


def schedule(name: str, **settings: object) -> Schedule:
    """The schedule called `name` with its settings filled in."""
    return partial(SCHEDULES[name], **settings)
