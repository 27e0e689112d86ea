"""How a family's layers are written to ONNX files as operators of their own: ``OnnxForm`` and ``OnnxOperator``.

``Sampling.onnx_form`` gives an ``OnnxForm``, or None: then a layer is folded before its model is exported, and its file has a
plain convolution. A layer with a form can stay open in the file. While torch traces the model, it sees one opaque operator for
each call of such a layer; afterwards the operator's ``body`` writes the nodes that compute it, or a function of the file.

This module needs no package of the extra ``onnx``. What a family writes nodes with, ``ccrewrite.ir.onnx_nodes``, does: import
it inside ``onnx_form``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ccrewrite.ir.geometry import ConvGeometry, Ints

if TYPE_CHECKING:
    import onnx_ir as ir

    from ccrewrite.ir.onnx_nodes import Nodes

DOMAIN = "ccrewrite"
"""Of our operators, in ONNX files."""


@dataclass(frozen=True)
class OnnxCall:
    """One call of a sampling, as its operator has to compute it.

    ``geometry`` is the call's, with the sampling's own ``kernel_size``. Its ``padding`` is that at the low ends; ``pads`` has
    (low, high) of each axis. ``weight`` is the weight's shape. ``dtype`` is float32 or float16.
    """

    geometry: ConvGeometry
    pads: tuple[tuple[int, int], ...]
    weight: Ints
    dtype: torch.dtype


class OnnxOperator(ABC):
    """An operator of the domain ``ccrewrite``. Subclasses are frozen dataclasses: calls whose operators are equal share one
    function in the file."""

    name: ClassVar[str]

    @abstractmethod
    def body(self, op: Nodes, x: ir.Value, weight: ir.Value, bias: ir.Value | None, more: Mapping[str, ir.Value]) -> ir.Value:
        """Write the nodes that compute the operator with ``op``; the value that they end in.

        ``more`` has the form's tensors by their names. Where the form is ``sized``, it has ``"native"`` and ``"asked"`` as
        well: int64, for each axis the output size that the convolution makes of ``x``, and the one that is wanted.
        """


class OnnxForm(ABC):
    """How one sampling is written to ONNX. Made before torch traces the model, while values can be read."""

    sized: ClassVar[bool] = False
    """Whether the operator takes output sizes.

    False: ``export_onnx(functions=True)`` keeps the layer, as a call of a function with its tensors beside it. True, for a
    ``ResizableSampling``: ``export_onnx`` keeps it where ``sizes`` leaves its output size open.
    """

    tensors: Mapping[str, Tensor]
    """What was learned, by name. In the file they are initializers ``<site>.<name>``."""

    @abstractmethod
    def operator(self, call: OnnxCall) -> OnnxOperator:
        """What computes ``call``."""

    def memory(self, call: OnnxCall, input: Ints, native: Ints, asked: Ints) -> int:
        """Bytes that one run of a ``sized`` operator takes at the most, estimated; 0: no more than a convolution.

        ``input``: the shape of x. ``native`` and ``asked``: output sizes, as the operator gets them. Exports are refused above
        their limit, before anything is written or run.
        """
        return 0
