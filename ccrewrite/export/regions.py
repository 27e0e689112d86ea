"""The sites of a file: what goes into each and comes out of it, seen while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor

from ccrewrite.export.branch import taken
from ccrewrite.export.files import load
from ccrewrite.export.metadata import MODULE
from ccrewrite.export.probed import Probed

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

Calls = dict[str, list[tuple[Tensor, Tensor]]]


def seen_in(path: Path, sites: Iterable[str], fed: Mapping[str, np.ndarray], directory: Path) -> Calls:
    """Input and output of each call of ``sites`` when the file at ``path`` runs on ``fed``. A site whose nodes have other ends
    than these is left out."""
    model = load(path)
    asked = {name for name, value in model.graph.initializers.items() if value in model.graph.inputs}
    flat = taken(model, changed=any(fed[name].any() for name in asked & fed.keys()))
    found = {site: _ends(flat.graph, site) for site in sites}
    known = {site: ends for site, ends in found.items() if ends}
    values = [value for ends in known.values() for pair in ends for value in pair]
    tensors = iter(Probed(flat, values, fed, (), directory).run()[1])
    return {site: [(next(tensors), next(tensors)) for _ in ends] for site, ends in known.items()}


def _ends(graph: ir.Graph, site: str) -> list[tuple[ir.Value, ir.Value]]:
    """What goes into each call of ``site`` and comes out of it; none where one has other ends."""
    ends: list[tuple[ir.Value, ir.Value]] = []
    for nodes in _calls(graph, site):
        made = {value for node in nodes for value in node.outputs}
        ins = {v for n in nodes for v in n.inputs if v is not None and v not in made and not _constant(v)}
        ins = {value for value in ins if value.dtype in FLOATS or value.dtype is None}
        outs = [v for v in made if v.is_graph_output() or any(user not in nodes for user, _ in v.uses())]
        outs = [value for value in outs if value.dtype in FLOATS]
        if len(ins) != 1 or len(outs) != 1:
            return []
        ends.append((ins.pop(), outs[0]))
    return ends


def _constant(value: ir.Value) -> bool:
    """Whether it is known when the file is loaded."""
    node = value.producer()
    if node is None:
        return value.const_value is not None
    return all(v is None or _constant(v) for v in node.inputs)


def _calls(graph: ir.Graph, site: str) -> list[set[ir.Node]]:
    """The nodes of ``site``, those of each call together, in order."""
    groups: list[set[ir.Node]] = []
    for node in (n for n in graph if n.metadata_props.get(MODULE) == site):
        sources = {value.producer() for value in node.inputs if value is not None}
        joined = [group for group in groups if group & sources]
        groups = [group for group in groups if group not in joined]
        groups.append({node}.union(*joined))
    return groups
