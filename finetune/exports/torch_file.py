"""Writes programs of torch.export, which run without this package or the network's own code."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from finetune.errors import ExportError
from finetune.exports.facts import ExportFacts, input_spec
from finetune.exports.picture_input import PictureInput
from finetune.text import first_line

SUFFIX = ".pt2"
_NAMES: tuple[str, ...] = ("batch", "height", "width")  # of the sides of a batch of pictures that may change
_MACHINE = (
    "stack_trace",
    "nn_module_stack",
    "source_fn_stack",
    "torch_fn",
    "from_node",
)  # of a node: lines of files here


def encode(network: nn.Module, facts: ExportFacts) -> bytes:
    """The file's bytes, with its texts as extra files (labels.json, ...). ExportError."""
    spec = input_spec(facts)
    if facts.takes == "pictures":
        module: nn.Module = nn.Sequential(PictureInput(spec), network)
        example, names = torch.zeros(2, 40, 50, 3, dtype=torch.uint8), _NAMES
    else:
        module, example, names = network, torch.zeros(2, spec.channels, spec.size, spec.size), _NAMES[:1]
    dims = {axis: torch.export.Dim(name) for axis, name in enumerate(names)}
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        try:
            program = torch.export.export(module.eval(), (example,), dynamic_shapes=(dims,))
            for node in program.graph.nodes:
                for key in _MACHINE:
                    node.meta.pop(key, None)
            torch.export.save(
                program, content, extra_files={f"{key}.json": text for key, text in facts.texts().items()}
            )
        except Exception as error:  # the exporter's errors have no common base
            cause = f"{facts.metadata.model}: cannot be exported by torch.export ({first_line(error)})"
            raise ExportError(cause) from None
    return content.getvalue()


class TorchFile:
    """An open program of `encode`."""

    def __init__(self, content: bytes, facts: ExportFacts) -> None:
        with warnings.catch_warnings(action="ignore"):
            self.module, self.facts = torch.export.load(io.BytesIO(content)).module(), facts

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Logits (float32, N×classes) of pictures or of tensors, as the file takes them."""
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = self.module(torch.from_numpy(batch)).numpy()
        return logits
