"""The page: a canvas or a place for pictures, and bars of probabilities for one checkpoint or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from finetune.app.answer import Answer, answer
from finetune.app.ink import SIDE, InkStyle, draw, read_strokes
from finetune.errors import DataError
from finetune.models.classifier import Classifier

BARS = 10  # classes shown, the most probable first
SMALL = 64  # pixels; a picture up to here is shown in large pixels

_SKETCH = """<div class="sketch">
<canvas role="img" aria-label="Draw here with a mouse, a pen or a finger"></canvas>
<div class="hint">Draw here</div>
<div class="tools">
<button type="button" class="undo">Undo</button><button type="button" class="clear">Clear</button>
</div>
</div>"""
_WAITING = '<div class="seen"><p>{}</p></div>'


@dataclass(frozen=True)
class Contender:
    """A checkpoint on the page. `about` is a line below its name; `ink` says how to draw for it."""

    name: str
    about: str
    classifier: Classifier
    ink: InkStyle

    @property
    def can_draw(self) -> bool:
        """Whether its network takes grey pictures of the size in which handwriting is drawn."""
        return self.classifier.input.channels == 1 and self.classifier.input.size == SIDE


def build_page(contenders: Sequence[Contender]) -> gr.Blocks:
    """Builds the page for one checkpoint or two side by side."""
    can_draw = all(contender.can_draw for contender in contenders)
    with gr.Blocks(title="finetune app", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            f"<h1>finetune</h1><p>{'Draw, or show a picture' if can_draw else 'Show a picture'}; "
            "it stays on this machine.</p>",
            elem_classes="title",
            js_on_load=None,
        )
        with gr.Row():
            with gr.Column(min_width=300):
                sketch, picture = _inputs(can_draw)
            with gr.Column(min_width=300, scale=len(contenders)):
                notice = gr.HTML(visible=False, elem_classes="notice", js_on_load=None)
                with gr.Row():
                    shown = [part for contender in contenders for part in _answer_parts(contender)]
        outputs = [notice, *shown]
        how: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        if sketch is not None:
            sketch.input(_on_drawing(contenders), None, outputs, **how)
        picture.change(_on_picture(contenders), picture, outputs, **how)
    return page


def theme() -> gr.themes.Base:
    """Gradio's look with the system's own fonts, since others would come from the network."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def style() -> str:
    """The page's own CSS."""
    return _asset("page.css")


def _asset(name: str) -> str:
    return (files("finetune.app") / name).read_text(encoding="utf-8")


def _inputs(can_draw: bool) -> tuple[gr.HTML | None, gr.Image]:
    if not can_draw:
        return None, _place_for_picture()
    with gr.Tab("Draw"):
        sketch = gr.HTML(html_template=_SKETCH, js_on_load=_asset("canvas.js"))
    with gr.Tab("Picture"):
        picture = _place_for_picture()
    return sketch, picture


def _place_for_picture() -> gr.Image:
    """A place to drop, paste or photograph a picture, which gives the path of the file as it came.

    Gradio would decode the file first: without our limits, and to other pixels than `finetune predict` sees.
    """
    sources = ["upload", "clipboard", "webcam"]
    place = gr.Image(label="Picture", sources=sources, type="filepath", height=360, buttons=[])
    place.preprocess = lambda payload: None if payload is None else payload.path
    return place


def _answer_parts(contender: Contender) -> tuple[gr.HTML, gr.Label]:
    with gr.Column(min_width=260):
        gr.HTML(
            f"<h2>{escape(contender.name)}</h2><p>{escape(contender.about)}</p>", elem_classes="named", js_on_load=None
        )
        seen = gr.HTML(_WAITING.format("What the network sees appears here."), js_on_load=None)
        bars = gr.Label(label="Probability", num_top_classes=BARS, elem_classes="bars")
    return seen, bars


def _on_drawing(contenders: Sequence[Contender]) -> Callable[[gr.EventData], list[Any]]:
    def answer_drawing(event: gr.EventData) -> list[Any]:
        def ask(contender: Contender) -> Answer | None:
            strokes = read_strokes(event._data.get("strokes"))
            return answer(contender.classifier, draw(strokes, contender.ink)) if strokes else None

        return _shown(contenders, ask)

    return answer_drawing


def _on_picture(contenders: Sequence[Contender]) -> Callable[[str | None], list[Any]]:
    def answer_picture(path: str | None) -> list[Any]:
        return _shown(contenders, lambda contender: answer(contender.classifier, path) if path else None)

    return answer_picture


def _shown(contenders: Sequence[Contender], ask: Callable[[Contender], Answer | None]) -> list[Any]:
    """What the page shows: the notice, then each checkpoint's view and bars; on an error the notice alone."""
    try:
        answers = [ask(contender) for contender in contenders]
    except DataError as error:
        return [gr.HTML(f'<p role="alert">{escape(str(error))}</p>', visible=True), *["", None] * len(contenders)]
    parts = [part for found in answers for part in ((_view(found), found and dict(found.probabilities)))]
    return [gr.HTML("", visible=False), *parts]


def _view(found: Answer | None) -> str:
    if found is None:
        return _WAITING.format("What the network sees appears here.")
    height, width = found.seen.shape[:2]
    size = f"{width}×{height} pixels"
    kind = ' class="small"' if width <= SMALL else ""
    return (
        f'<div class="seen"><img{kind} src="{found.seen_as_png()}" alt="The picture as the network sees it, {size}">'
        f"<p>What the network sees:<br>{size}</p></div>"
    )
