"""What is private in Inductor: the pass that turns ``ccrewrite::dcls_conv`` into its ATen code, after the partitioner.

Before the partitioner the operators are opaque, so that it keeps for the backward what they say. After it they are expanded,
so that Inductor fuses what they are made of. ``CustomGraphPass`` and ``post_grad_custom_pre_pass`` exist in torch 2.11 to 2.15;
where they don't, the operators run their code eagerly inside the compiled model: right, but slow.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ccrewrite import forms
from ccrewrite.forms.operators import backward_of, forward_of

try:
    from torch._inductor import config
    from torch._inductor.custom_graph_pass import CustomGraphPass
    from torch._inductor.decomposition import select_decomp_table
except ImportError:  # pragma: no cover
    config = CustomGraphPass = select_decomp_table = None

CODE: dict[Any, Callable[..., Any]] = {
    torch.ops.ccrewrite.dcls_conv.default: forward_of,
    torch.ops.ccrewrite.dcls_conv_backward.default: backward_of,
}


def options() -> dict[str, Any]:
    """For ``torch.compile(..., options=)`` and AOTInductor's ``inductor_configs``."""
    known = CustomGraphPass is not None and hasattr(config, "post_grad_custom_pre_pass")
    return {"post_grad_custom_pre_pass": _expansion()} if known else {}


def code_hash() -> str:
    """Of the forms' code: changes with it."""
    code = hashlib.sha256()
    for file in sorted(Path(forms.__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def expand_(graph: fx.Graph) -> int:
    """Replace every operator of ours by its code, in place, for the shapes of the fake values in ``meta["val"]``. Returns how
    many there were."""
    found = [node for node in graph.nodes if node.op == "call_function" and node.target in CODE]
    for node in found:
        outputs = _inlined(graph, node)
        for user in list(node.users):
            assert user.target is operator.getitem, user  # both operators return tuples
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
    if found:
        graph.eliminate_dead_code()  # what the forward keeps, where nothing differentiates
        graph.lint()
    return len(found)


def _inlined(graph: fx.Graph, node: fx.Node) -> Any:
    """The nodes that compute ``node``'s outputs, inserted before it."""
    tensors = [i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and isinstance(a.meta.get("val"), Tensor)]
    values: list[Any] = [a.meta["val"] if isinstance(a, fx.Node) else a for a in node.args]

    def code(*given: Tensor) -> Any:
        arguments = list(values)
        for i, tensor in zip(tensors, given, strict=True):
            arguments[i] = tensor
        return CODE[node.target](*arguments)

    mode = values[tensors[0]].fake_mode
    assert select_decomp_table is not None
    with mode:
        traced = make_fx(code, decomposition_table=select_decomp_table())(*(values[i] for i in tensors))
    given = iter(node.args[i] for i in tensors)
    copies: dict[fx.Node, Any] = {}
    outputs: Any = ()
    with graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(given)
            elif inner.op == "output":
                outputs = fx.map_arg(inner.args[0], lambda a: copies[a])
            else:
                copies[inner] = graph.node_copy(inner, lambda a: copies[a])
    return outputs


def _expansion() -> Any:
    assert CustomGraphPass is not None

    class Expansion(CustomGraphPass):
        """The pass as Inductor takes it; its identity goes into the key of Inductor's cache."""

        def __call__(self, graph: fx.Graph) -> None:
            expand_(graph)

        def uuid(self) -> Any:
            return code_hash()

    return Expansion()
