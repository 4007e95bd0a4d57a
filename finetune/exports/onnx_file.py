"""Writes and opens ONNX files, with the extra `onnx`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from finetune.data.image_dataset import Images
from finetune.errors import CheckpointError, ExportError, SettingError
from finetune.exports.facts import INPUT_NAMES, OUTPUT_NAME, ExportFacts, input_spec
from finetune.exports.picture_input import PictureInput
from finetune.io.safe_open import read_regular
from finetune.models.spec import InputSpec
from finetune.text import first_line, install_hint

SUFFIX = ".onnx"
BATCH_PIXELS = 2**19  # of the images that go through the network at once
OPSET = 20  # of onnxruntime 1.17 (2024) and later
MAX_BYTES = 2**31 - 1  # of a file, as its format allows
_EXAMPLE = (2, 40, 50, 3)  # of pictures: N, height, width and channels, of which the first three may change


def need_onnx() -> None:
    """SettingError with the command that installs the extra, where it is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SettingError(f"ONNX files need {error.name or 'onnx'}: {install_hint('onnx')}") from None


def network_model(network: nn.Module, facts: ExportFacts) -> Any:
    """The ONNX model of a network in evaluation mode: pixel_values (float32, N×C×size×size) to logits. ExportError."""
    given = facts.metadata.input
    example = torch.zeros(2, given.channels, given.size, given.size)
    names = (INPUT_NAMES["tensors"], OUTPUT_NAME)
    return _traced(network, example, ({0: torch.export.Dim("batch")},), names, facts.metadata.model)


def picture_model(facts: ExportFacts) -> Any:
    """The ONNX model that makes decoded pictures a network's input. ExportError."""
    sides = {axis: torch.export.Dim(name) for axis, name in enumerate(("batch", "height", "width"))}
    names = (INPUT_NAMES["pictures"], INPUT_NAMES["tensors"])
    return _traced(PictureInput(input_spec(facts)), torch.zeros(_EXAMPLE, dtype=torch.uint8), (sides,), names, "input")


def _traced(module: nn.Module, example: Tensor, dims: tuple[dict[int, Any]], names: tuple[str, str], what: str) -> Any:
    """One module as an ONNX model of one named input and output."""
    with quiet_exporters():
        try:
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                input_names=names[:1],
                output_names=names[1:],
                opset_version=OPSET,
                dynamic_shapes=dims,
                verbose=False,
            )
            assert program is not None
            model = program.model_proto
        except Exception as error:  # the exporter's errors have no common base
            cause = error.__cause__ or error
            raise ExportError(f"{what}: cannot be exported to ONNX ({first_line(cause)})") from None
    for node in model.graph.node:  # lines of this machine's files among them
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    return model


def with_pictures(pictures: Any, network: Any) -> Any:
    """One model of two: what makes pictures its input, then the network."""
    from onnx import compose

    inner = INPUT_NAMES["tensors"]
    first = compose.add_prefix(pictures, "input/", rename_inputs=False, rename_outputs=False)
    return compose.merge_models(first, network, io_map=[(inner, inner)])


def encode(model: Any, facts: ExportFacts) -> bytes:
    """The file's bytes, with the labels and the checkpoint's metadata among them. ExportError if too large."""
    from onnx import helper

    model.producer_name, model.producer_version = "finetune", ""
    del model.metadata_props[:]
    helper.set_model_props(model, facts.texts())
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except ValueError as error:  # over 2 GB
        raise ExportError(f"{facts.metadata.model}: does not fit into an ONNX file ({first_line(error)})") from None
    return content


class OnnxFile:
    """An open ONNX file of `finetune export`. CheckpointError where it is none."""

    def __init__(self, content: bytes, where: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise CheckpointError(f"{where}: onnxruntime cannot open it ({first_line(error)})") from None
        texts: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.facts, self.where = ExportFacts.from_texts(texts, where), where
        inputs, outputs = (
            [one.name for one in ends] for ends in (self.session.get_inputs(), self.session.get_outputs())
        )
        expected = ([INPUT_NAMES[self.facts.takes]], [OUTPUT_NAME])
        if (inputs, outputs) != expected:
            raise CheckpointError(f"{where}: expected input and output {expected}, found {(inputs, outputs)}")

    @classmethod
    def read(cls, path: Path) -> OnnxFile:
        """Opens a file. CheckpointError where it is no export of ours; SettingError without the extra."""
        need_onnx()
        try:
            return cls(read_regular(path, MAX_BYTES), str(path))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The labels, in the order of the logits."""
        return tuple(self.facts.metadata.classes)

    @property
    def input(self) -> InputSpec:
        """How pictures become what the network inside takes."""
        return input_spec(self.facts)

    def logits(self, images: Images) -> Tensor:
        """Logits (float32, N×classes) of images as data sets store them: uint8, N×C×H×W."""
        size = max(1, BATCH_PIXELS // self.input.size**2)
        normalize, found = self.input.normalizer(torch.device("cpu")), []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            if self.facts.takes == "tensors":
                found.append(self.run(normalize(batch).numpy()))
            else:
                found.append(self.run(batch.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()))
        return torch.from_numpy(np.concatenate(found))

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Logits (float32, N×classes) of pictures or of tensors, as the file takes them."""
        try:
            (logits,) = self.session.run([OUTPUT_NAME], {INPUT_NAMES[self.facts.takes]: batch})
        except Exception as error:
            raise CheckpointError(f"{self.where}: onnxruntime cannot run it ({first_line(error)})") from None
        found: npt.NDArray[np.float32] = logits
        return found


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keeps torch's and onnxscript's remarks on their own future from the person who exports."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
