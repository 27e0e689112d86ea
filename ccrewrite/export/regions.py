"""The sites of a file: what goes into each and comes out of it, seen while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor

from ccrewrite.export.branch import taken
from ccrewrite.export.copies import in_float32_
from ccrewrite.export.files import load
from ccrewrite.export.metadata import MODULE
from ccrewrite.export.probed import Probed

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

Calls = dict[str, list[tuple[list[Tensor], Tensor]]]
Ends = list[tuple[list[ir.Value], ir.Value]]


def seen_in(path: Path, sites: Iterable[str], fed: Mapping[str, np.ndarray], directory: Path, *, in_float32: bool) -> Calls:
    """What goes into each call of ``sites``, the input and a computed weight, and what comes out, when the file at ``path``
    runs on ``fed``, ``in_float32`` or in its own types. A site whose nodes have other ends than these is left out."""
    model = load(path)
    if in_float32:
        in_float32_(model)
    asked = {name for name, value in model.graph.initializers.items() if value in model.graph.inputs}
    flat = taken(model, changed=any(fed[name].any() for name in asked & fed.keys()))
    constants = _constants(flat.graph)
    found = {site: _ends(flat.graph, site, constants) for site in sites}
    known = {site: ends for site, ends in found.items() if ends}
    values = [value for ends in known.values() for ins, out in ends for value in (*ins, out)]
    tensors = iter(Probed(flat, values, fed, (), directory).run()[1])
    return {site: [([next(tensors) for _ in ins], next(tensors)) for ins, _ in ends] for site, ends in known.items()}


def _ends(graph: ir.Graph, site: str, constants: set[ir.Value]) -> Ends:
    """What goes into each call of ``site`` and comes out of it; none where one has other ends."""
    ends: Ends = []
    for nodes in _calls(graph, site):
        made = {value for node in nodes for value in node.outputs}
        ins = {v for n in nodes for v in n.inputs if v is not None and v not in made and v not in constants}
        ins = {value for value in ins if value.dtype in FLOATS or value.dtype is None}
        outs = [v for v in made if v.is_graph_output() or any(user not in nodes for user, _ in v.uses())]
        outs = [value for value in outs if value.dtype in FLOATS]
        if len(ins) not in (1, 2) or len(outs) != 1:
            return []
        ends.append((list(ins), outs[0]))
    return ends


def _constants(graph: ir.Graph) -> set[ir.Value]:
    """What is known when the file is loaded."""
    found = set(graph.initializers.values())
    for node in graph:  # in order, so that what a node takes has been looked at
        if all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _calls(graph: ir.Graph, site: str) -> list[set[ir.Node]]:
    """The nodes of ``site``, those of each call together, in order."""
    groups: list[set[ir.Node]] = []
    for node in (n for n in graph if n.metadata_props.get(MODULE) == site):
        sources = {value.producer() for value in node.inputs if value is not None}
        joined = [group for group in groups if group & sources]
        groups = [group for group in groups if group not in joined]
        groups.append({node}.union(*joined))
    return groups
