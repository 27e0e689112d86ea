"""What a target doesn't take of an ONNX file."""

from __future__ import annotations

import onnx_ir as ir

from ccrewrite.export.convolutions import PLAIN, convolutions
from ccrewrite.passes.targets import NotTaken, Target


def not_taken(model: ir.Model, target: Target) -> tuple[NotTaken, ...]:
    """Of the nodes of ``model``: operators that ``target`` lacks, calls of functions, and convolutions beyond its limits."""
    found: list[NotTaken] = []
    for node in model.graph.all_nodes():
        where = f"{node.op_type} {node.name or ''}".strip()
        if node.domain not in PLAIN and not target.functions:
            found.append(NotTaken(where, "a call of a function in the file", target.sources.get("functions", "")))
        elif node.op_type in target.lacks:
            found.append(NotTaken(where, "this operator", target.sources["lacks"]))
    for conv in convolutions(model):
        half, where = len(conv.pads) // 2, f"{conv.node.op_type} {conv.site.name}"
        found += [NotTaken(where, words, source) for words, source in target.refused(conv.site.geometry)]
        if conv.site.geometry.transposed and half not in target.transposed.uneven and conv.pads[:half] != conv.pads[half:]:
            found.append(NotTaken(where, f"pads that differ, {conv.pads}", target.transposed.sources["uneven"]))
    return tuple(found)
