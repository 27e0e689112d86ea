"""Batch norms in evaluation mode folded into the convolutions before them, in place; each one answered.

The exported graph says which calls there are: a convolution that is called twice, or whose output goes elsewhere too, has no
norm of its own to take in (torch's own fusion of such a one is wrong: pytorch #104593).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ccrewrite.families.adopt import TORCH_LAYERS
from ccrewrite.folded.padded import Crop, PaddedConv
from ccrewrite.folded.sparse import SPARSE, whole_kernels
from ccrewrite.ir.capture import Inputs, capture
from ccrewrite.ir.nested import Bodies
from ccrewrite.ir.program import Program
from ccrewrite.ir.torch_private import BatchNorm, ConvNd, forward_hooks_of, forward_pre_hooks_of, parameters_of
from ccrewrite.ir.typed import named_modules
from ccrewrite.passes.fold.sites import FoldedNorm

PLAIN = (*TORCH_LAYERS, *SPARSE.values())
"""Layers whose weight can be scaled along its output channels."""

CONDITIONAL = 0


@torch.no_grad()
def fold_norms_(model: nn.Module, inputs: Inputs) -> tuple[FoldedNorm, ...]:
    """Fold what can be folded of ``model``'s batch norms, in place."""
    norms = {name: m for name, m in named_modules(model) if isinstance(m, BatchNorm)}
    if not norms:
        return ()
    with whole_kernels(model):
        program = capture(model, inputs)
    if program.how != "export" or program.graph is None:
        return tuple(FoldedNorm(name, "not-exported") for name in norms)
    calls = _norm_calls(model, Bodies(program.graph))
    missing = "control-flow" if CONDITIONAL in calls else "never-called"
    return tuple(
        _answer_(model, program, name, norm, nodes) if (nodes := calls.get(id(norm))) else FoldedNorm(name, missing)
        for name, norm in norms.items()
    )


def _norm_calls(model: nn.Module, bodies: Bodies) -> dict[int, list[fx.Node]]:
    """``id`` of each batch norm -> the nodes that call it; ``CONDITIONAL`` -> those in branches and loops."""
    found: dict[int, list[fx.Node]] = {}
    for node in bodies.nodes:
        if node.op == "call_function" and "batch_norm" in str(node.target):
            # A traced branch doesn't say which module made the node.
            key = CONDITIONAL if bodies.control_flow(node) else id(_owner(model, node))
            found.setdefault(key, []).append(node)
    return found


def _owner(model: nn.Module, node: fx.Node) -> nn.Module:
    """The module whose forward makes this node."""
    stack: dict[str, tuple[str, object]] = node.meta.get("nn_module_stack", {})
    return model.get_submodule(re.sub(r"@\d+", "", next(reversed(stack.values()))[0]) if stack else "")


def _answer_(model: nn.Module, program: Program, name: str, norm: BatchNorm, nodes: list[fx.Node]) -> FoldedNorm:
    way = [cast(fx.Node, nodes[0].args[0])]  # from the norm back to the convolution
    while way[-1].op == "call_function" and isinstance(_owner(model, way[-1]), Crop):
        way.append(cast(fx.Node, way[-1].args[0]))
    conv = _owner(model, way[-1]) if way[-1].op == "call_function" else None
    call = next((c for c in program.calls if model.get_submodule(c.module) is conv), None)
    if call is None or type(conv) not in PLAIN or "weight" not in parameters_of(cast(nn.Module, conv)):
        return FoldedNorm(name, "no-convolution")
    conv = cast(ConvNd, conv)
    code = _obstacle(model, program, norm, conv, nodes, way)
    if not code:
        _fold_into_(conv, norm)
        for path, module in list(named_modules(model, remove_duplicate=False)):
            if module is norm:
                owner, _, attribute = path.rpartition(".")
                setattr(model.get_submodule(owner), attribute, nn.Identity().train(norm.training))
    return FoldedNorm(name, code or "folded", call.module)


def _obstacle(
    model: nn.Module, program: Program, norm: BatchNorm, conv: ConvNd, nodes: list[fx.Node], way: list[fx.Node]
) -> str:
    modules = [model.get_submodule(c.module) for c in program.calls]
    if len(nodes) > 1 or sum(m is conv for m in modules) > 1:
        return "several-calls"
    if any(len(node.users) > 1 for node in way):
        return "several-users"
    owners = Counter(id(p) for m in model.modules() for p in parameters_of(m).values() if p is not None)
    if parametrize.is_parametrized(conv) or any(owners[id(p)] > 1 for p in (conv.weight, conv.bias) if p is not None):
        return "shared-weight"
    if norm.running_mean is None or norm.running_var is None:
        return "no-statistics"
    around = [m for m in model.modules() if isinstance(m, PaddedConv) and m.conv is conv]
    if any(forward_hooks_of(m) or forward_pre_hooks_of(m) for m in (conv, norm, *around)):
        return "hooked"
    return ""


def _fold_into_(conv: ConvNd, norm: BatchNorm) -> None:
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = (variance + norm.eps).rsqrt()
    scale = scale * norm.weight if norm.affine else scale
    shift = (norm.bias if norm.affine else 0) - mean * scale
    weight = conv.weight.to(scale.dtype)
    if conv.transposed:  # (in, out/groups, ...)
        groups, each = conv.groups, conv.out_channels // conv.groups
        scaled = torch.unflatten(weight, 0, (groups, -1)) * scale.view(groups, 1, each, *(1,) * (weight.dim() - 2))
        scaled = scaled.flatten(0, 1)
    else:
        scaled = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
    shift = shift if conv.bias is None else shift + conv.bias * scale
    trains = conv.weight.requires_grad
    conv.weight = nn.Parameter(scaled.to(conv.weight.dtype), requires_grad=trains)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=trains)
