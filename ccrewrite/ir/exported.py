"""The convolution calls of an exported graph, and of the bodies inside it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ccrewrite.ir.calls import node_call
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.nested import Bodies
from ccrewrite.ir.observe import tensor_names
from ccrewrite.ir.preserve import global_hooks_kept, unwatched
from ccrewrite.ir.program import ConvCall, Obstacle, Program
from ccrewrite.ir.threads import quiet
from ccrewrite.ir.torch_private import ConvNd
from ccrewrite.ir.typed import named_modules

if TYPE_CHECKING:
    from ccrewrite.ir.capture import Inputs


def exported(model: nn.Module, inputs: Inputs) -> Program:
    """The calls that ``torch.export`` shows. Raises what it raises."""
    # Quiet: where export refuses, torch prints the graph it has so far, thousands of lines that help nobody here. The model's
    # own warnings the user sees when the model runs.
    with unwatched([model], inputs.tensors()), global_hooks_kept(), quiet(), torch.no_grad():
        result = torch.export.export(model, inputs.args, inputs.kwargs, strict=False)
    names, signature = tensor_names(model), result.graph_signature
    modules = {id(module): name for name, module in named_modules(model)}
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    canonical = {arg: names.get(id(_tensor_at(model, path)), path) for arg, path in lifted.items()}
    bodies = Bodies(result.graph_module)
    calls: list[ConvCall] = []
    for node in bodies.nodes:
        call = node_call(node)
        if call is None:
            continue
        value, out = call.weight.meta["val"], node.meta["val"]
        weight, geometry = canonical.get(bodies.origin(call.weight).name), call.geometry([int(n) for n in value.shape])
        stack, within = bodies.stack(node), bodies.control_flow(node)
        path = list(stack.values())[-1][0] if stack else ""
        module = model.get_submodule(re.sub(r"@\d+", "", path))  # later calls of a module are marked "name@1"
        if within:  # no stack in there
            module = _layer_of(model, weight, geometry) or module
        scripted: Obstacle | None = "scripted" if isinstance(module, torch.jit.ScriptModule) else None
        calls.append(
            ConvCall(
                modules[id(module)],
                weight,
                geometry,
                tuple(int(n) for n in call.input.meta["val"].shape),
                tuple(int(n) for n in out.shape),
                out.dtype,
                out.device,
                node.name,
                "control-flow" if within else scripted,
                within,
            )
        )
    return Program(tuple(calls), "export", result.graph_module, "")


def _layer_of(model: nn.Module, weight: str | None, geometry: ConvGeometry) -> nn.Module | None:
    """The convolution layer that makes a call with this weight and geometry; None where none does."""
    owner = model.get_submodule(weight.rpartition(".")[0]) if weight else None
    is_layer = isinstance(owner, ConvNd) and ConvGeometry.from_module(owner) == geometry
    return owner if is_layer else None


def _tensor_at(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)
