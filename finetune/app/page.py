"""The page: a canvas or a place for pictures, and bars of probabilities for one checkpoint or two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from finetune.app.answer import Answer, answer, answer_file
from finetune.app.ink import draw, read_strokes
from finetune.app.render import WAITING, Contender, respond

_SKETCH = """<div class="sketch">
<canvas role="img" aria-label="Draw here with a mouse, a pen or a finger"></canvas>
<div class="hint">Draw here</div>
<div class="tools">
<button type="button" class="undo">Undo</button><button type="button" class="clear">Clear</button>
</div>
</div>"""


def build_page(contenders: Sequence[Contender]) -> gr.Blocks:
    """Builds the page for one checkpoint or two side by side."""
    can_draw = all(contender.can_draw for contender in contenders)
    with gr.Blocks(title="finetune app", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
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
                notice = gr.HTML("", elem_classes="notice", js_on_load=None)
                with gr.Row():
                    shown = [_answer_part(contender) for contender in contenders]
        outputs = [notice, *shown]
        how: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        if sketch is not None:
            sketch.input(_on_drawing(contenders), None, outputs, **how)
        picture.change(_on_picture(contenders), picture, outputs, **how)
    return page


def theme() -> gr.themes.Base:
    """Gradio's look with the system's own fonts, since others would come from the network."""
    return gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def style() -> str:
    """The page's own CSS."""
    return _asset("page.css")


def _asset(name: str) -> str:
    return (files("finetune.app") / name).read_text(encoding="utf-8")


def _inputs(can_draw: bool) -> tuple[gr.HTML | None, gr.Image]:
    if not can_draw:
        return None, _place_for_picture()
    with gr.Tab("Draw"):
        sketch = gr.HTML(html_template=_SKETCH, js_on_load=_asset("canvas.js"), apply_default_css=False)
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


def _answer_part(contender: Contender) -> gr.HTML:
    with gr.Column(min_width=260, elem_classes="card"):
        named = f"<h2>{escape(contender.name)}</h2><p>{escape(contender.about)}</p>"
        gr.HTML(named, elem_classes="named", js_on_load=None)
        return gr.HTML(WAITING, js_on_load=None)


def _on_drawing(contenders: Sequence[Contender]) -> Callable[[gr.EventData], list[str]]:
    def answer_drawing(event: gr.EventData) -> list[str]:
        def ask(contender: Contender) -> Answer | None:
            strokes = read_strokes(event._data.get("strokes"))
            return answer(contender.classifier, draw(strokes, contender.ink), contender.untrained) if strokes else None

        return respond(contenders, ask)

    return answer_drawing


def _on_picture(contenders: Sequence[Contender]) -> Callable[[str | None], list[str]]:
    def answer_picture(path: str | None) -> list[str]:
        return respond(
            contenders, lambda contender: answer_file(contender.classifier, path, contender.untrained) if path else None
        )

    return answer_picture
