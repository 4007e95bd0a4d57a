"""`finetune app`: a page to draw on, or to show pictures to one checkpoint or two."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from socket import socket

import numpy as np
import torch

from finetune.app.answer import answer
from finetune.app.ink import ink_style
from finetune.app.render import Contender
from finetune.app.server import address_of, is_loopback, listen, private_gradio, serve
from finetune.errors import Interrupted, SettingError
from finetune.models.classifier import Classifier
from finetune.models.registry import build_model
from finetune.models.staged import StagedNetwork
from finetune.run.interrupt import StopRequests, StopSignal
from finetune.sources.resolve import Source, locate, open_source
from finetune.text import install_hint
from finetune.train.device import choose_runtime, seeded


def app(
    checkpoints: Sequence[str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    note: Callable[[str], None] = print,
) -> None:
    """Serves the page until Ctrl-C.

    checkpoints: one, or two to compare, each as in `evaluate`. host: who can reach it, by default this machine only.
    port: 0 is any free one. note: is called with the page's address, and with a warning where other machines reach it.

    SettingError without gradio, for a port in use, and for weights without a head; CheckpointError; Interrupted when
    another signal than Ctrl-C ends it.
    """
    if find_spec("gradio") is None:
        raise SettingError(f"the page needs gradio, which is not installed: {install_hint('app')}")
    listener = listen(host, port)
    with listener, private_gradio(), StopRequests():
        try:
            sources = [_open(checkpoint, device) for checkpoint in checkpoints]
            _serve(_named(sources, checkpoints), listener, host, note)
        except StopSignal as stop:
            if stop.number != signal.SIGINT:
                raise Interrupted(f"stopped by {stop}", stop.exit_code) from None


def _serve(contenders: Sequence[Contender], listener: socket, host: str, note: Callable[[str], None]) -> None:
    from finetune.app.page import build_page, style, theme

    page = build_page(contenders)
    if not is_loopback(host):
        note(f"--host {host}: everybody who can reach this machine can use the page and see pictures shown to it")
    note(f"the page is at {address_of(listener, host)} until Ctrl-C")
    serve(page, theme(), style(), listener, host)


def _open(checkpoint: str | Path, device: str) -> Source:
    """Loads a checkpoint, and answers once so that the first picture need not wait for it."""
    source = open_source(locate(checkpoint, bars=True))
    classifier = source.classifier
    if not classifier.class_names:
        raise SettingError(f"{checkpoint}: these weights have no head, so they name no class; adapt makes one")
    choose_runtime(device, "float32").place(classifier.network)
    spec = classifier.input
    classifier.predict_preprocessed(torch.zeros(1, spec.channels, spec.size, spec.size))
    return source


def _named(sources: Sequence[Source], checkpoints: Sequence[str | Path]) -> list[Contender]:
    """The checkpoints under their short names, or as they were typed where short names do not tell them apart."""
    short = [source.name for source in sources]
    names = short if len(set(short)) == len(short) else list(map(str, checkpoints))
    return [
        Contender(name, _about(source), source.classifier, ink_style(source.dataset), _untrained(source.classifier))
        for name, source in zip(names, sources, strict=True)
    ]


def _untrained(classifier: Classifier) -> StagedNetwork | None:
    """The same network with random weights, for heatmaps; None without captum.

    It is used once, so that the first picture need not wait for what a heatmap imports.
    """
    if find_spec("captum") is None:
        return None
    with seeded(0):
        network = build_model(classifier.model, len(classifier.class_names), classifier.arguments)
    network = network.to(next(classifier.parameters()).device)
    answer(classifier, np.zeros((classifier.input.size, classifier.input.size), np.uint8), network)
    return network


def _about(source: Source) -> str:
    """A line on the checkpoint: its model, its data, and its test accuracy where it says one."""
    classes = f"{len(source.classifier.class_names):,} classes"
    accuracy = f"{source.accuracy:.1%} on its test images" if source.accuracy is not None else ""
    return ", ".join(part for part in (source.classifier.model, source.dataset or "", classes, accuracy) if part)
