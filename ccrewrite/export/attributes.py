"""Attributes of a file's convolutions and poolings as a model: they are read only once they are known to fit."""

from __future__ import annotations

from typing import Annotated, Literal

import onnx_ir as ir
from pydantic import Field

from ccrewrite.errors import InputError
from ccrewrite.ir.documents import Count, Natural, OpenDocument, checked
from ccrewrite.ir.json_types import JsonObject

Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Naturals = tuple[Natural, ...]
WINDOWED = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool")


class WindowAttributes(OpenDocument):
    """What says where a node's window goes. None: not given."""

    kernel_shape: Counts | None = None
    strides: Counts | None = None
    dilations: Counts | None = None
    pads: Naturals | None = None
    output_padding: Naturals | None = None
    group: Count | None = None
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"] | None = None


def check_attributes(node: ir.Node) -> None:
    """Raise ``InputError`` where an attribute of a windowed ``node`` has another type or length than its operator says, or
    contradicts its weight. The message names node and attribute."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in WINDOWED:
        return
    where = f"the {node.op_type} {node.name or node.outputs[0].name!r}"
    told: JsonObject = {}
    for name in WindowAttributes.model_fields:
        if name in node.attributes and not node.attributes[name].is_ref():
            told[name] = node.attributes[name].value
    found = checked(WindowAttributes, told, where)
    place = 3 if node.op_type == "QLinearConv" else 1
    weight = node.inputs[place] if node.op_type not in ("MaxPool", "AveragePool") and len(node.inputs) > place else None
    kernel = found.kernel_shape
    if weight is not None and weight.shape is not None:
        sizes = tuple(weight.shape[2:])
        if kernel is not None and (
            len(kernel) != len(sizes) or any(isinstance(n, int) and n != k for n, k in zip(sizes, kernel, strict=False))
        ):
            raise InputError(f"{where}: kernel_shape must be that of its weight, {sizes}, found {kernel}")
        ndim = len(sizes)
    elif kernel is not None:
        ndim = len(kernel)
    else:
        return
    for name, length in {"strides": ndim, "dilations": ndim, "output_padding": ndim, "pads": 2 * ndim}.items():
        values = getattr(found, name)
        if values is not None and len(values) != length:
            raise InputError(f"{where}: {name} must have {length} entries, found {values}")
