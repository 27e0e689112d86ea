"""Ways to int8: each gives how many convolutions it quantized, and the quantized model as a function.

A folded model is torch's own convolutions, so a quantizer finds as many as in the original.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, nn

import ccrewrite
from ccrewrite.export.sizes import Mode
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.passes.targets import Target, target_of

Run = Callable[[Tensor], Tensor]


class Int8(NamedTuple):
    """``quantized`` of ``convolutions`` have int8 data and weights. ``exact``: what ``run`` should give, where that isn't what
    the model gives."""

    quantized: int
    convolutions: int
    run: Run
    exact: nn.Module | None = None


def dense(target: str) -> Target:
    """The target, with dense kernels alone: quantizers know convolutions, and ranges of sums of filters are wider."""
    return replace(target_of(target), forms=())


def folded(model: nn.Module, x: Tensor, target: str) -> nn.Module:
    """``model`` folded for the target; one that was never rewritten as it is."""
    plain = ccrewrite.fold(model, x, target=dense(target)).model if rewritten_sites(model) else copy.deepcopy(model)
    return plain.eval()


def onnxruntime_qdq(model: nn.Module, data: Tensor, directory: Path, *, sizes: Mode = "fixed") -> Int8:
    """Static, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = directory / "float.onnx"
    ccrewrite.export_onnx(model, path, data[:2], dynamic={0: "batch"}, sizes=sizes, target=dense("onnxruntime-cpu"))
    quant_pre_process(path, directory / "ready.onnx", skip_symbolic_shape=sizes != "fixed")
    name = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{name: batch[None].numpy()} for batch in data])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    types: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(
        directory / "ready.onnx", directory / "int8.onnx", Batches(), quant_format=QuantFormat.QDQ, per_channel=True, **types
    )  # fmt: skip
    session = onnxruntime.InferenceSession(directory / "int8.onnx", providers=["CPUExecutionProvider"])
    counted = _dequantized(onnx.load(directory / "int8.onnx"))
    return Int8(*counted, lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]))


def _dequantized(model: ModelProto) -> tuple[int, int]:
    """How many convolutions take dequantized data and weights, and how many there are."""
    made = {out: node.op_type for node in model.graph.node for out in node.output}
    convs = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    return sum(all(made.get(n) == "DequantizeLinear" for n in c.input[:2]) for c in convs), len(convs)


def pt2e(model: nn.Module, data: Tensor, quantizer: Any, target: str) -> Int8:
    """torchao's quantization of exported programs."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(folded(model, data, target), (data[:2],), dynamic_shapes=batch, strict=False).module()
    prepared = prepare_pt2e(program, quantizer)
    for images in data.split(8):
        prepared(images)
    converted = convert_pt2e(prepared)
    convs = [n for n in converted.graph.nodes if n.op == "call_function" and "aten.conv" in str(n.target)]
    quantized = sum(all("dequantize" in str(a.target) for a in n.args[:2]) for n in convs)
    return Int8(quantized, len(convs), converted)


def pt2e_x86(model: nn.Module, data: Tensor, directory: Path) -> Int8:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    return pt2e(model, data, quantizer, "executorch-xnnpack")


def pt2e_xnnpack(model: nn.Module, data: Tensor, directory: Path) -> Int8:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    return pt2e(model, data, quantizer, "executorch-xnnpack")


def nncf(model: nn.Module, data: Tensor, directory: Path) -> Int8:
    """OpenVINO's, of the ONNX file."""
    import nncf
    import openvino

    path = directory / "float.onnx"
    ccrewrite.export_onnx(model, path, data[:2], dynamic={0: "batch"}, target=dense("openvino"))
    core = openvino.Core()
    calibration = nncf.Dataset([image[None].numpy() for image in data])
    quantized = nncf.quantize(core.read_model(path), calibration, subset_size=len(data))
    convs = [op for op in quantized.get_ops() if "Convolution" in op.get_type_name()]
    inputs = [[op.input_value(i).get_node().get_type_name() for i in range(2)] for op in convs]
    taken = sum(a == "FakeQuantize" and b in ("FakeQuantize", "Multiply", "Subtract", "Reshape") for a, b in inputs)
    compiled = core.compile_model(quantized, "CPU", {"INFERENCE_NUM_THREADS": 1})
    return Int8(taken, len(convs), lambda x: torch.from_numpy(compiled(x.numpy())[0]))


def torchao_linear(model: nn.Module, data: Tensor, directory: Path) -> Int8:
    """torchao's ``quantize_``, which takes linear layers alone: the convolutions of a folded model are left as they were."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    plain = folded(model, data, "onnxruntime-cpu")
    quantize_(plain, Int8WeightOnlyConfig())
    linear = [m for m in plain.modules() if isinstance(m, nn.Linear)]
    return Int8(sum("Int8" in type(m.weight).__name__ for m in linear), len(linear), plain)


def onnxruntime_open(model: nn.Module, data: Tensor, directory: Path) -> Int8:
    """A file whose internal sizes follow its input's, at 3/4 of the native ones. (One whose sizes are inputs has its graph in
    an ``If``, and onnxruntime's quantizer leaves alone what is in there.)"""
    resized = copy.deepcopy(model)
    strided = [name for name, site in rewritten_sites(model).items() if "strided" in site.sampling.geometry.kinds]
    try:
        ccrewrite.resize_(resized, {strided[0]: 0.75}, data[:2])
    except (IndexError, ccrewrite.CcrewriteError):  # nothing in it can be resized: there is nothing open
        return onnxruntime_qdq(model, data, directory)
    return onnxruntime_qdq(resized, data, directory, sizes="ratio")._replace(exact=resized)


WAYS: dict[str, Callable[[nn.Module, Tensor, Path], Int8]] = {
    "onnxruntime, QDQ": onnxruntime_qdq,
    "onnxruntime, QDQ, open sizes": onnxruntime_open,
    "PT2E, X86InductorQuantizer": pt2e_x86,
    "PT2E, XNNPACKQuantizer": pt2e_xnnpack,
    "OpenVINO, NNCF": nncf,
    "torchao, quantize_": torchao_linear,
}


def quantized(way: str, model: nn.Module, data: Tensor, directory: Path) -> Int8:
    """``model``, rewritten or not, in int8, its ranges measured on ``data``."""
    directory.mkdir(parents=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the quantizers' about themselves
        return WAYS[way](model.eval(), data, directory)
