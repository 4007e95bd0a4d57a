"""Answers as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from finetune.app.answer import Answer, png_address
from finetune.app.ink import SIDE, InkStyle
from finetune.errors import DataError
from finetune.models.classifier import Classifier
from finetune.models.staged import StagedNetwork

BARS = 10  # classes shown
HEAT = "What the answer hangs on, brighter for more"
SMALL = 64  # pixels; a picture up to here is shown in large pixels
WAITING = '<div class="waiting">The answer appears here.</div>'


@dataclass(frozen=True)
class Contender:
    """A checkpoint on the page. `about` is a line below its name; `ink` says how to draw for it.

    untrained: the same network with random weights, which heatmaps are compared with; None without heatmaps.
    """

    name: str
    about: str
    classifier: Classifier
    ink: InkStyle
    untrained: StagedNetwork | None = None

    @property
    def can_draw(self) -> bool:
        """Whether its network takes grey pictures of the size in which handwriting is drawn."""
        return self.classifier.input.channels == 1 and self.classifier.input.size == SIDE


def respond(contenders: Sequence[Contender], ask: Callable[[Contender], Answer | None]) -> list[str]:
    """What the page shows as HTML: a notice, then each checkpoint's answer; on a DataError the notice alone."""
    try:
        answers = [ask(contender) for contender in contenders]
    except DataError as error:
        return [f'<p role="alert">{escape(str(error))}</p>', *[WAITING] * len(contenders)]
    return ["", *map(answer_html, answers)]


def answer_html(found: Answer | None) -> str:
    """What the network saw, the most probable class, what is to be said against it, and bars of probabilities."""
    if found is None:
        return WAITING
    height, width = found.seen.shape[:2]
    kind = "small" if width <= SMALL else "large"
    best, share = escape(found.prediction.label), f"{found.prediction.probability:.1%}"
    heat = "" if found.heated is None else f'<img class="{kind}" src="{png_address(found.heated)}" alt="{HEAT}">'
    guess = "unsure: best guess " if found.prediction.unsure else ""
    cautions = "".join(f'<p class="caution">{escape(line)}</p>' for line in found.cautions)
    bars = "".join(_bar(name, value, name == found.prediction.label) for name, value in _most_probable(found))
    return (
        f'<div aria-live="polite"><div class="seen"><img class="{kind}" src="{png_address(found.seen)}" '
        f'alt="The picture as the network sees it, {width}×{height} pixels">'
        f'{heat}<p>{guess}<strong dir="auto">{best}</strong><br>{share}<br>'
        f"<small>seen as {width}×{height} pixels</small></p></div>"
        f'{cautions}<ul class="bars">{bars}</ul></div>'
    )


def _most_probable(found: Answer) -> list[tuple[str, float]]:
    """The classes to show: all where they are few, in their own order so that bars stay in place; else the best."""
    rows = list(found.probabilities.items())
    return rows if len(rows) <= BARS else sorted(rows, key=lambda row: -row[1])[:BARS]


def _bar(name: str, share: float, best: bool) -> str:
    kind, text = "best" if best else "other", escape(name)
    return (
        f'<li class="{kind}"><span class="name" dir="auto" title="{text}">{text}</span>'
        f'<span class="track"><i style="width:{share:.2%}"></i></span><span class="share">{share:.1%}</span></li>'
    )
