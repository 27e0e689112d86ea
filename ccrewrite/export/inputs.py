"""Inputs of an ONNX graph that choose sizes: put in for the numbers that torch exported, with what holds where they are 0."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ccrewrite.export.sizes import SizeInput


def ask_for_sizes_(model: ir.Model, inputs: Sequence[SizeInput]) -> None:
    """``model``'s last inputs are the sizes, a scalar each, and its last outputs what these are by themselves: in their places,
    the inputs ``inputs``, of which a number of 0 means that size."""
    graph = model.graph
    count = sum(len(x.axes) for x in inputs)
    scalars, natural = list(graph.inputs[-count:]), list(graph.outputs[-count:])
    del graph.inputs[-count:]
    del graph.outputs[-count:]
    pairs = iter(zip(scalars, natural, strict=True))
    for one in inputs:
        value = ir.Value(name=one.name, shape=ir.Shape([len(one.axes)]), type=ir.TensorType(ir.DataType.INT64))
        graph.inputs.append(value)
        for i in range(len(one.axes)):
            scalar, otherwise = next(pairs)
            index, zero = (ir.node("Constant", [], attributes={"value": ir.tensor(np.array(n))}) for n in (i, 0))
            entry = ir.node("Gather", [value, index.outputs[0]], attributes={"axis": 0})
            asked = ir.node("Greater", [entry.outputs[0], zero.outputs[0]])
            size = ir.node("Where", [asked.outputs[0], entry.outputs[0], otherwise])
            size.outputs[0].shape, size.outputs[0].type = ir.Shape([]), ir.TensorType(ir.DataType.INT64)
            for node in (index, zero, entry, asked, size):
                graph.append(node)
            scalar.replace_all_uses_with(size.outputs[0])
    graph.sort()


def name_axes_(model: ir.Model, axes: Sequence[Mapping[int, str]]) -> None:
    """Give the open axes of ``model``'s inputs their names (``axes``, one entry for each input), here and wherever a size is
    said by them."""
    names: dict[str, str] = {}
    for value, named in zip(model.graph.inputs, axes, strict=False):
        for axis, name in named.items():
            size = value.shape[axis] if value.shape is not None else None
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                names.setdefault(size.value, name)
    if not names:
        return
    known = re.compile("|".join(rf"\b{re.escape(n)}\b" for n in names))
    nodes = (v for n in model.graph.all_nodes() for v in n.outputs)
    for value in itertools.chain(model.graph.inputs, nodes):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, known, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, known: re.Pattern[str], names: Mapping[str, str]) -> int | ir.SymbolicDim:
    if isinstance(size, int) or size.value is None:
        return size
    return ir.SymbolicDim(known.sub(lambda m: names[m.group()], size.value))
