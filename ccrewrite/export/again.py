"""Files that have two branches already (``branch.py``), taken back to the native one: ``native_``."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from ccrewrite.errors import InputError
from ccrewrite.export.branch import CHOICE, taken
from ccrewrite.export.graph import constant_of


def native_(model: ir.Model, name: str) -> ir.Model:
    """``model``, which ``rewrite_onnx`` or ``export_onnx`` wrote, as the graph that it was before: without what asks for sizes
    and what was learned. Other models stay as they are.

    Raises ``InputError`` where what was learned has been edited, for that would be lost.
    """
    if not any(node.name == CHOICE for node in model.graph):
        return model
    edited = _edited(model.graph)
    if edited:
        raise InputError(
            f"{name} was rewritten before, and {', '.join(edited)} were edited since, which rewriting it again would lose; "
            "rewrite the file that it was made of, with all kinds at once, and edit that"
        )
    asked = [value for value in model.graph.inputs if value.name in model.graph.initializers]
    model = taken(model, changed=False)
    for node in list(model.graph):  # see branch.py: constants, once more for the branch
        data = node.inputs[0] if node.op_type == "Reshape" else None
        if data is not None and data.const_value is not None and constant_of(node.inputs[1]) == list(data.const_value.shape):
            node.outputs[0].replace_all_uses_with(data, replace_graph_outputs=True)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    used = {id(value) for node in model.graph.all_nodes() for value in node.inputs}  # uses() knows the other branch as well
    for name, value in list(model.graph.initializers.items()):
        if id(value) not in used and not value.is_graph_output():
            del model.graph.initializers[name]
            if value in asked:
                model.graph.inputs.remove(value)
    return model


def _edited(graph: ir.Graph) -> list[str]:
    """The initializers that make the file compute another branch than the native one as it is."""
    found: list[str] = []
    for node in graph:
        value = node.inputs[0] if node.op_type == "Equal" else None
        before = ir.convenience.get_const_tensor(node.inputs[1]) if value is not None and node.inputs[1] is not None else None
        now = value.const_value if value is not None else None
        if value is not None and now is not None and before is not None and (now.numpy() != before.numpy()).any():
            found.append(str(value.name))
    asked = (v for v in graph.inputs if v.const_value is not None and str(v.name).endswith("size"))
    return found + [str(v.name) for v in asked if v.const_value is not None and v.const_value.numpy().any()]
