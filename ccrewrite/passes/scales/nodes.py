"""What is read off the nodes of an exported graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, fx
from torch._ops import OpOverload

from ccrewrite.ir.calls import node_call
from ccrewrite.ir.torch_private import schema_of


def packet_of(node: fx.Node) -> str:
    """``aten.max_pool2d.default`` -> ``max_pool2d``."""
    target = node.target
    return (
        schema_of(cast("OpOverload[..., object]", target)).name.split("::")[-1]
        if isinstance(target, OpOverload)
        else str(target)
    )


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by the names of its operator's schema."""
    schema = schema_of(cast("OpOverload[..., object]", node.target))
    return {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | dict(node.kwargs)


def shape_of(node: object) -> Sequence[int]:
    """() for what is no node, or gives no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.shape if isinstance(value, Tensor) else ()


def modules_of(node: fx.Node) -> list[str]:
    """Paths of the modules whose forward makes the node, from the outermost on. A module's second call ends in ``@1``."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]


def module_of(node: fx.Node) -> str:
    """The path of the innermost of them."""
    return without_call((modules_of(node) or [""])[-1])


def without_call(path: str) -> str:
    """The path alone, of which call of the module it may be."""
    return path.split("@")[0]


def window_axes(node: fx.Node) -> int:
    """Spatial axes of a convolution or pool; 0 for any other operation."""
    call = node_call(node)
    if call is not None:
        return len(shape_of(call.weight)) - 2
    name = packet_of(node)
    return int(name[-2]) if "_pool" in name and name.endswith("d") and name[-2].isdigit() else 0
