"""Layers at another output size, folded: exported at the input size at hand, everything but the input's way computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.methods import Rerouted
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.folded.resized import ResizedConv
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.observe import Like, ModuleCall, module_calls
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.torch_private import drop_forward_pre_hook_, forward_hooks_of, forward_pre_hooks_of
from ccrewrite.passes.fold.constants import constants_computed
from ccrewrite.passes.fold.weights import evaluating
from ccrewrite.passes.scales.sizes import ChoosesSizes

Shapes = dict[str, Ints]
"""Site of a layer that asks for a size -> the shape that it is called with; absent where there is none, or several."""


def settle_sizes_(model: nn.Module, inputs: Inputs) -> None:
    """Where a hook chooses output sizes for the inputs at hand (``ccrewrite.resize_``), let it choose them once, for good."""
    for key, hook in list(forward_pre_hooks_of(model).items()):
        if isinstance(hook, ChoosesSizes):
            hook(model, inputs.args, inputs.kwargs)  # pyright: ignore[reportCallIssue]
            drop_forward_pre_hook_(model, key)


def resized_shapes(model: nn.Module, inputs: Inputs) -> Shapes:
    """What the layers that ask for a size are called with."""
    layers = {n: s.module for n, s in rewritten_sites(model).items() if s.key is None and s.sampling.resized}
    shapes: Shapes = {}
    for name, calls in module_calls(model, inputs, layers).items():
        layer, found = layers[name], {_shape(call) for call in calls}
        hooked = forward_hooks_of(layer) or forward_pre_hooks_of(layer)
        if len(found) == 1 and (shape := found.pop()) is not None and not hooked and not isinstance(layer, Rerouted):
            shapes[name] = shape
    return shapes


def _shape(call: ModuleCall) -> Ints | None:
    """The shape of a call's only argument."""
    only = call.args[0] if len(call.args) == 1 and not call.kwargs else None
    return only.shape if isinstance(only, Like) else None


def resized_layer(layer: RewrittenConv, shape: Sequence[int]) -> ResizedConv | None:
    """What ``layer`` computes for inputs of this shape (any batch), as plain operators; None where torch can't export it."""
    ndim = layer.sampling.ndim
    batched = len(shape) == ndim + 2
    like = next(layer.sampling.parameters())
    example = torch.zeros(2, *shape[1:], dtype=like.dtype, device=like.device) if batched else like.new_zeros(tuple(shape))
    dynamic = ({0: torch.export.Dim.DYNAMIC},) if batched else None
    try:
        with one_at_a_time(), evaluating(layer):
            program = torch.export.export(layer, (example,), dynamic_shapes=dynamic, strict=False)
    except Exception:  # whatever export dislikes: the layer stays as it is, and the caller says so
        return None
    size: Ints = tuple(shape[-ndim:])
    return ResizedConv(constants_computed(program.module()), size).train(layer.training)
