"""What counts as a convolution call: torch functions and aten operators, brought to one notation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ccrewrite.ir.geometry import ConvArguments, ConvGeometry
from ccrewrite.ir.torch_private import convolution

CONV = ("stride", "padding", "dilation", "groups")
CONV_TRANSPOSE = ("stride", "padding", "output_padding", "groups", "dilation")
CONVOLUTION = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
"""Argument names after (input, weight, bias) of ``F.convNd``, ``F.conv_transposeNd`` and ``aten.convolution``."""

T = TypeVar("T", Tensor, fx.Node)

FUNCTIONS: dict[tuple[bool, int], Callable[..., Tensor]] = {
    (False, 1): F.conv1d,
    (False, 2): F.conv2d,
    (False, 3): F.conv3d,
    (True, 1): F.conv_transpose1d,
    (True, 2): F.conv_transpose2d,
    (True, 3): F.conv_transpose3d,
}
"""(transposed, number of spatial axes) -> torch's function."""

_aten = torch.ops.aten
SIGNATURES: dict[object, tuple[str, tuple[str, ...]]] = {
    **{f: (f.__name__, CONV) for f in (F.conv1d, F.conv2d, F.conv3d)},
    **{f: (f.__name__, CONV_TRANSPOSE) for f in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)},
    **{
        getattr(packet, overload): (name, CONV)
        for name, packet in (("conv1d", _aten.conv1d), ("conv2d", _aten.conv2d), ("conv3d", _aten.conv3d))
        for overload in ("default", "padding")
    },
    _aten.conv_transpose1d.default: ("conv_transpose1d", CONV_TRANSPOSE),
    _aten.conv_transpose2d.input: ("conv_transpose2d", CONV_TRANSPOSE),
    _aten.conv_transpose3d.input: ("conv_transpose3d", CONV_TRANSPOSE),
    torch.convolution: ("convolution", CONVOLUTION),
    _aten.convolution.default: ("convolution", CONVOLUTION),
    # What torch.jit.trace records; the switches of cuDNN that follow are left to torch.
    convolution: ("convolution", CONVOLUTION),
    _aten._convolution.default: ("convolution", CONVOLUTION),
    _aten._convolution.deprecated: ("convolution", CONVOLUTION),
}
"""Convolution function or operator -> (its short name, its argument names)."""

CAST_METHODS = ("to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "cpu", "cuda")
CASTS: dict[object, str] = {
    **{getattr(Tensor, name): name for name in CAST_METHODS},
    **{getattr(_aten.to, overload): "to" for overload in ("dtype", "dtype_layout", "device", "other")},
    _aten._to_copy.default: "to",
    _aten.type_as.default: "type_as",
    _aten.contiguous.default: "contiguous",
}
"""Functions whose result is the same weight in another dtype, device or layout -> the name of the method."""


def uncast(node: fx.Node) -> fx.Node:
    """The node that ``node`` is a cast of (of a cast of ...), or ``node`` itself."""
    while (node.op == "call_method" and node.target in CAST_METHODS) or (node.op == "call_function" and node.target in CASTS):
        node = cast(fx.Node, node.args[0])
    return node


@dataclass(frozen=True)
class Call(Generic[T]):
    """One convolution call's arguments, whatever its spelling: tensors, or in a graph the nodes that stand for them."""

    name: str
    input: T
    weight: T
    bias: T | None
    arguments: Mapping[str, object]

    @property
    def ndim(self) -> int:
        return int(self.name[-2]) if self.name.endswith("d") else len(cast("Sequence[int]", self.arguments["stride"]))

    @property
    def transposed(self) -> bool:
        return bool(self.arguments.get("transposed", "transpose" in self.name))

    def geometry(self, weight_shape: Sequence[int]) -> ConvGeometry:
        return ConvGeometry.from_call(self.name, weight_shape, self.arguments)

    def torch_arguments(self) -> dict[str, object]:
        """The arguments given, by name, as ``F.convNd`` or ``F.conv_transposeNd`` takes them."""
        names = CONV_TRANSPOSE if self.transposed else CONV
        return {n: self.arguments[n] for n in names if n in self.arguments}


class CallShapes(NamedTuple):
    """One convolution call without its values, as far as it decides how long the call takes."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    bias: bool
    dtype: torch.dtype
    """The input's."""
    device: torch.device
    arguments: ConvArguments
    """torch's arguments after the bias, by name, one entry per axis."""


def as_call(function: object, args: Sequence[object], kwargs: Mapping[str, object] | None = None) -> Call[Tensor] | None:
    """``function(*args, **kwargs)`` as a ``Call``, or None where it is no convolution.

    >>> as_call(F.conv1d, (torch.ones(1, 1, 4), torch.ones(1, 1, 3)), {"dilation": 2}).arguments
    {'dilation': 2}
    """
    signature = SIGNATURES.get(function)
    if signature is None:
        return None
    name, bound = _bound(signature, args, kwargs or {})
    input, weight, bias = bound.pop("input"), bound.pop("weight"), bound.pop("bias", None)
    return Call(name, cast(Tensor, input), cast(Tensor, weight), cast("Tensor | None", bias), bound)


def node_call(node: fx.Node) -> Call[fx.Node] | None:
    """``node`` of a graph as a ``Call``, or None where it is no convolution."""
    signature = SIGNATURES.get(node.target) if node.op == "call_function" else None
    if signature is None:
        return None
    name, bound = _bound(signature, node.args, node.kwargs)
    input, weight, bias = bound.pop("input"), bound.pop("weight"), bound.pop("bias", None)
    return Call(name, cast(fx.Node, input), cast(fx.Node, weight), cast("fx.Node | None", bias), bound)


def _bound(
    signature: tuple[str, tuple[str, ...]], args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[str, dict[str, object]]:
    """A convolution's short name, and its arguments by name."""
    name, names = signature
    return name, {**dict(zip(("input", "weight", "bias", *names), args, strict=False)), **kwargs}
