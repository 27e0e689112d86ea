"""Metadata that says where a node comes from, in place of what torch left."""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass

import onnx_ir as ir

from ccrewrite.families.adopt import HOSTED
from ccrewrite.families.onnx import DOMAIN

MODULE = "ccrewrite.module"
"""Metadata key: the site that a node belongs to, or else the path of the module whose forward made it."""
FROM = "ccrewrite.from"
"""Metadata key: what was there before."""
THROUGH = ("Identity", "Cast", "DequantizeLinear", "Transpose", "Mul")
"""Operators behind which a weight still is that weight."""
TORCH_KEYS = ("pkg.torch.", "pkg.onnxscript.", "namespace")
"""Beginnings of the metadata keys that torch leaves: stack traces with local paths, mostly."""


@dataclass(frozen=True)
class Origin:
    """What nodes say of the site that they come from: its ``name``, and in words what was there and what became of it."""

    name: str
    words: str


def annotate_(model: ir.Model, origins: Mapping[str, Origin]) -> None:
    """Nodes say which site, or else which module, they come from (``MODULE``), and the convolutions of sites what was there
    (``FROM``). ``origins`` is by the paths of modules: layers, or samplings of functional calls. What torch noted goes."""
    sites = {origin.name: origin for origin in origins.values()}
    weights = {name.rpartition(".")[0] for name in model.graph.initializers}
    for node in model.graph.all_nodes():
        origin = sites.get(node.metadata_props.get(MODULE, ""))
        path = None if origin is not None else module_of(node, weights)
        origin = origin if path is None else _around(path, origins)
        name = origin.name if origin is not None else None if path is None else _without_ours(path)
        _strip(node.metadata_props)
        if name is not None:
            node.metadata_props[MODULE] = name
        if origin is not None and (node.op_type in ("Conv", "ConvTranspose") or node.domain == DOMAIN):
            node.metadata_props[FROM] = origin.words
            node.name = f"{origin.name}/{node.op_type}"
    _distinct(model.graph.all_nodes())
    values = itertools.chain(
        model.graph.inputs, model.graph.initializers.values(), *(n.outputs for n in model.graph.all_nodes())
    )
    for owner in (model, model.graph, *values, *model.functions.values()):
        _strip(owner.metadata_props)
    model.doc_string = model.graph.doc_string = None


def root_of(weight: ir.Value) -> ir.Value:
    """What a weight is made of, where a node or several change its values, type or order alone."""
    while (node := weight.producer()) is not None and node.op_type in THROUGH:
        if node.inputs[0] is None:
            break
        weight = node.inputs[0]
    return weight


def module_of(node: ir.Node, weights: set[str]) -> str | None:
    """The path of the module whose forward made the node: that of its weight, for a batch norm merged into a convolution
    gives its own."""
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = root_of(node.inputs[1]) if node.inputs[1] is not None else None
        owner, _, name = ((weight.name if weight else None) or "").rpartition(".")
        if name == "weight" and owner in weights:
            return owner
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is None:
        return None
    *modules, _ = ast.literal_eval(scopes)
    return modules[-1] if modules else ""


def _around(path: str, origins: Mapping[str, Origin]) -> Origin | None:
    """Of the innermost site around the module at ``path``, which may be a part of its layer."""
    while path not in origins:
        if not path:
            return None
        path = path.rpartition(".")[0]
    return origins[path]


def _without_ours(path: str) -> str:
    """The path of the module of the user's that one of ours, for a functional call, belongs to."""
    return f".{path}".partition(f".{HOSTED}.")[0].removeprefix(".")


def _strip(properties: MutableMapping[str, str]) -> None:
    for key in [k for k in properties if k.startswith(TORCH_KEYS)]:
        del properties[key]


def _distinct(nodes: Iterable[ir.Node]) -> None:
    seen: Counter[str] = Counter()
    for node in nodes:
        name = node.name or node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
