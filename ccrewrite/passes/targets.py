"""What runtimes take, as data: ``TARGETS``. Each limit has its source.

A target that runs here is checked by running (``make deploy``); of the others this is what their documentation or code says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ccrewrite.errors import InputError, likely
from ccrewrite.ir.geometry import ConvGeometry

ANY = (1, 2, 3)
EVERY_FORM = ("shifted", "gathered", "sparse", "filtered", "geometry", "resized")


@dataclass(frozen=True)
class Limits:
    """What a target takes of one kind of convolution. ``sources`` say where each limit, by its name here, is from.

    ``dims``: numbers of axes. ``strides``: None where any will do. ``extent``: the most samples from the first tap to the last
    along the first axis of a picture, ``area`` along both. ``uneven``: the numbers of axes for which the pads of a transposed
    convolution in a file may differ from side to side.
    """

    dims: tuple[int, ...] = ANY
    dilated: bool = True
    grouped: bool = True
    output_padding: bool = True
    strides: tuple[int, ...] | None = None
    extent: int | None = None
    area: int | None = None
    uneven: tuple[int, ...] = ANY
    sources: Mapping[str, str] = field(default_factory=dict[str, str])

    def refused(self, g: ConvGeometry) -> list[tuple[str, str]]:
        """What it doesn't take of ``g``, in words, and the source of each."""
        extent = [d * (k - 1) + 1 for d, k in zip(g.dilation, g.kernel_size, strict=True)]
        tall, area = extent[0] if g.ndim == 2 else 1, extent[0] * extent[-1] if g.ndim == 2 else extent[0]
        wrong = {
            "dims": (g.ndim not in self.dims, f"{g.ndim}-d"),
            "dilated": (not self.dilated and "dilated" in g.kinds, f"dilation {g.dilation}"),
            "grouped": (not self.grouped and g.groups > 1, f"{g.groups} groups"),
            "output_padding": (not self.output_padding and any(g.output_padding), f"output padding {g.output_padding}"),
            "strides": (self.strides is not None and not set(g.stride) <= set(self.strides), f"stride {g.stride}"),
            "extent": (self.extent is not None and tall > self.extent, f"a kernel of {tall} rows"),
            "area": (self.area is not None and area > self.area, f"a kernel of {area} samples"),
        }
        return [(words, self.sources[name]) for name, (holds, words) in wrong.items() if holds]


@dataclass(frozen=True)
class Target:
    """A runtime, and what it takes.

    ``reads``: ONNX files, or programs of torch.export (for ``fold``; ``how`` says by what they are converted). ``forms``: codes
    of folded layers that stay on it, besides torch's own convolutions. ``opsets``: first and last ONNX operator set.
    ``lacks``: ONNX operators that it doesn't have. ``runs_here``: whether ``make deploy`` runs it.
    """

    name: str
    reads: Literal["onnx", "torch"]
    how: str
    conv: Limits = Limits()
    transposed: Limits = Limits()
    forms: tuple[str, ...] = EVERY_FORM
    functions: bool = False
    opsets: tuple[int, int] | None = None
    lacks: frozenset[str] = frozenset()
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    runs_here: bool = False

    def refused(self, g: ConvGeometry) -> list[tuple[str, str]]:
        """What it doesn't take of a convolution, in words, and the source of each."""
        return (self.transposed if g.transposed else self.conv).refused(g)


@dataclass(frozen=True)
class NotTaken:
    """``where``: a site, layer or node. ``what``: what the target doesn't take of it, and the ``source`` that says so."""

    where: str
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.source})"


MEASURED = "make deploy: reports/deploy/runtimes.md"
ORT_CUDA = "https://github.com/microsoft/onnxruntime/issues/11312: pads that differ: the node goes to the CPU"
TRT = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md (TensorRT 10.0)"
TRT_3D = "https://github.com/NVIDIA/TensorRT/issues/2095: 3-d deconvolutions with pads that differ, on some GPUs"
XNN = "executorch 1.5.1, backends/xnnpack/partition/config/gemm_configs.py: only 1-d and 2-d convolutions"
XNN_FORMS = "executorch 1.5.1: what XnnpackPartitioner leaves to the portable kernels; tests/deploy/test_targets.py"
COREML = "https://github.com/apple/coremltools, converters/mil/mil/ops/defs/iOS15/conv.py"
LITERT = "https://github.com/google-ai-edge/litert-torch, backend/lowerings/_convolution.py"
SCHEMA = "TFLite's schema (ethos-u-vela 5.2.0, tflite/TransposeConvOptions.py)"
VELA = "ethos-u-vela 5.2.0, tflite_supported_operators.py"

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("onnxruntime-cpu", "onnx", "onnxruntime", functions=True, runs_here=True),
        Target(
            "onnxruntime-cuda",
            "onnx",
            "onnxruntime, CUDAExecutionProvider",
            transposed=Limits(uneven=(), sources={"uneven": ORT_CUDA}),
            functions=True,
        ),
        Target(
            "tensorrt",
            "onnx",
            "trtexec --onnx",
            transposed=Limits(uneven=(1, 2), sources={"uneven": TRT_3D}),
            opsets=(9, 20),
            lacks=frozenset(
                (
                    *("AffineGrid", "BitShift", "CenterCropPad", "Col2Im", "Compress", "ConvInteger", "DFT", "Det"),
                    *("DynamicQuantizeLinear", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "Multinomial", "Optional"),
                    *("QLinearConv", "QLinearMatMul", "STFT", "SequenceAt", "SequenceConstruct", "SplitToSequence", "Unique"),
                )
            ),
            sources={"opsets": TRT, "lacks": TRT, "functions": TRT},
        ),
        Target(
            "openvino",
            "onnx",
            "openvino.Core().read_model",
            sources={"functions": "OpenVINO 2026.4.1 rejects functions of a file; " + MEASURED},
            runs_here=True,
        ),
        Target(
            "coreml",
            "torch",
            "coremltools.convert(torch.export.export(folded, example_inputs))",
            transposed=Limits(output_padding=False, sources={"output_padding": f"{COREML}: conv_transpose has pads alone"}),
        ),
        Target(
            "litert",
            "torch",
            "litert_torch.convert(folded, example_inputs)",
            transposed=Limits(
                dims=(1, 2),
                dilated=False,
                grouped=False,
                output_padding=False,
                sources={
                    "dims": f"{LITERT}: TFLite's TRANSPOSE_CONV is 2-d",
                    "dilated": f"{SCHEMA}: TransposeConvOptions has no dilation",
                    "grouped": f"{SCHEMA}: TransposeConvOptions has no groups",
                    "output_padding": f"{LITERT}: output padding is filled with zeros",
                },
            ),
        ),
        Target(
            "executorch-xnnpack",
            "torch",
            "to_edge_transform_and_lower(torch.export.export(folded, example_inputs), partitioner=[XnnpackPartitioner()])",
            conv=Limits(dims=(1, 2), sources={"dims": XNN}),
            transposed=Limits(dims=(1, 2), sources={"dims": XNN}),
            forms=(),
            sources={"forms": XNN_FORMS},
            runs_here=True,
        ),
        Target(
            "ethos-u",
            "torch",
            "int8 (docs/deploy.md), then Vela or ExecuTorch's Arm backend",
            conv=Limits(
                dims=(1, 2),
                strides=(1, 2, 3),
                extent=64,
                area=64 * 64,
                sources={
                    "dims": f"{VELA}: CONV_2D and DEPTHWISE_CONV_2D",
                    "strides": f"{VELA}: strides of 1 to 3",
                    "extent": f"{VELA}: dilated kernel height of 1 to 64",
                    "area": f"{VELA}: product of dilated kernel width and height of 1 to 4096",
                },
            ),
            transposed=Limits(
                dims=(2,),
                dilated=False,
                grouped=False,
                output_padding=False,
                strides=(1, 2),
                extent=64,
                area=64 * 64,
                sources={
                    "dims": f"{VELA}: TRANSPOSE_CONV is 2-d",
                    "dilated": "executorch 1.5.1, backends/arm/operator_support/convolution_support.py: no dilation",
                    "grouped": "the same: no groups where weights are quantized per channel",
                    "output_padding": "the same: output padding of convolutions",
                    "strides": f"{VELA}: strides of 1x1 or 2x2",
                    "extent": f"{VELA}: dilated kernel height of 1 to 64",
                    "area": f"{VELA}: product of dilated kernel width and height of 1 to 4096",
                },
            ),
            forms=(),
            sources={"forms": f"{VELA}: what isn't a convolution, pooling or elementwise operator runs on the CPU"},
        ),
    )
}
"""By name, what ``fold(target=)`` and ``export_onnx(target=)`` take."""


def target_of(target: str | Target) -> Target:
    """The target of this name, or that one. Raises ``InputError`` where there is none.

    >>> target_of("tensorrt").opsets
    (9, 20)
    """
    if isinstance(target, Target):
        return target
    if target not in TARGETS:
        raise InputError(f"target is one of {', '.join(TARGETS)}, or a Target; found {target!r}{likely(target, TARGETS)}")
    return TARGETS[target]


def for_files(target: str | Target, opset: int) -> Target:
    """The target, which reads ONNX files of this operator set. Raises ``InputError`` where it doesn't."""
    known = target_of(target)
    if known.reads != "onnx":
        raise InputError(f"{known.name} reads no ONNX files: fold(target={known.name!r}), then {known.how}")
    first, last = known.opsets or (0, opset)
    if not first <= opset <= last:
        raise InputError(f"{known.name} takes operator sets {first} to {last} ({known.sources['opsets']}), found opset={opset}")
    return known
