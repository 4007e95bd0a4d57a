"""Makes int8 models of float ones with onnxruntime: static for convolutional networks, dynamic for transformers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from finetune.errors import ExportError
from finetune.exports.facts import INPUT_NAMES
from finetune.exports.onnx_file import quiet_exporters
from finetune.text import first_line

Method = Literal["static", "dynamic"]
_BATCH = 16  # images calibrated with at once


@dataclass(frozen=True)
class Quantized:
    """An int8 model (ONNX), how it was made, and from how many images its ranges were taken."""

    model: Any
    method: Method
    images: int


def quantize(model: Any, images: npt.NDArray[np.float32]) -> Quantized:
    """Quantizes a network's ONNX model to int8. ExportError where onnxruntime cannot.

    Where most weights are convolutions': weights per channel and activations, whose ranges are those that `images`
    (normalized, N×C×size×size) have in the network (Nagel et al. 2021, "A White Paper on Neural Network Quantization").
    Else the weights of matrix products alone, with ranges of activations taken as they come.
    """
    from onnxruntime import quantization

    method: Method = "static" if _convolution_share(model) > 0.5 else "dynamic"
    with tempfile.TemporaryDirectory() as folder, quiet_exporters():
        source, made = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(model.SerializeToString())
        try:
            quantization.shape_inference.quant_pre_process(source, source, skip_symbolic_shape=True)
            if method == "static":
                quantization.quantize_static(
                    source,
                    made,
                    _reader(images),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                )
            else:
                quantization.quantize_dynamic(
                    source,
                    made,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    weight_type=quantization.QuantType.QInt8,
                )
            import onnx

            found = onnx.load(made)
        except Exception as error:  # onnxruntime's errors have no common base
            raise ExportError(f"cannot be quantized to int8 ({first_line(error)}); leave --int8 out") from None
    return Quantized(found, method, len(images) if method == "static" else 0)


def _convolution_share(model: Any) -> float:
    """The share of weights that are convolutions', of all in convolutions and matrix products."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    held = {"Conv": 0, "MatMul": 0, "Gemm": 0}
    for node in model.graph.node:
        if node.op_type in held:
            held[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    return held["Conv"] / max(1, sum(held.values()))


def _reader(images: npt.NDArray[np.float32]) -> Any:
    """Batches of images as onnxruntime asks for them while it calibrates."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(images), _BATCH)
            self.batches = iter([{INPUT_NAMES["tensors"]: images[i : i + _BATCH]} for i in starts])

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            return next(self.batches, None)

    return Reader()
