"""Every convolution call of one run of a model, with its provenance: ``capture(model, inputs) -> Program``.

An ``nn.Module`` is exported without strictness first (``torch.export.export(strict=False)``): the graph holds exactly the calls
that eager would make. Where export refuses, the run itself is observed, so a model that runs is never refused. A
``GraphModule`` or ``ExportedProgram`` is taken as it is.
"""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.ir.calls import as_call, uncast
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.observe import ConvolutionMode, SeenCall, convolutions_seen, tensor_names
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.preserve import global_hooks_kept, preserved
from ccrewrite.ir.threads import quiet

log = logging.getLogger(__name__)
Model = GivenModel | ExportedProgram
How = Literal["auto", "export", "observe"]
Obstacle = Literal["scripted", "quantized", "opaque"]


@dataclass(frozen=True)
class Inputs:
    """Example inputs, brought to the positional and keyword arguments of ``model(...)``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, example_inputs: Any) -> Inputs:
        """A tensor, a tuple or list of positional arguments, or a mapping of keyword arguments."""
        if isinstance(example_inputs, Inputs):
            return example_inputs
        if isinstance(example_inputs, Mapping):
            return cls((), dict(cast(Mapping[str, Any], example_inputs)))
        if isinstance(example_inputs, (tuple, list)):
            return cls(tuple(cast("tuple[Any, ...]", example_inputs)))
        if example_inputs is None:
            raise InputError(
                "example inputs are needed to see which convolutions run; found None. "
                "Pass what the model is called with: a tensor, a tuple, or a dict of keyword arguments"
            )
        return cls((example_inputs,))

    def tensors(self) -> list[Tensor]:
        leaves: list[Any] = tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def run(self, model: nn.Module) -> Any:
        """Raises ``ModelRunError`` where the model raises."""
        try:
            return model(*self.args, **self.kwargs)
        except Exception as error:
            raise ModelRunError(
                f"{type(model).__name__} raised {type(error).__name__} on the example inputs "
                f"({', '.join(str(tuple(t.shape)) for t in self.tensors()) or 'no tensors'}): {error}. "
                "Check that model(*example_inputs) runs by itself"
            ) from error


@dataclass(frozen=True)
class ConvCall:
    """One convolution call of the run.

    ``module`` is the path of the module whose forward makes the call. ``weight`` is the name of the parameter or buffer used as
    the weight, None where the weight is computed. ``obstacle`` says why the call can't be reached from Python, else None.
    """

    module: str
    weight: str | None
    geometry: ConvGeometry
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    node: str | None = field(default=None, compare=False)
    """Name of the call's node in the program's graph, where the graph shows it."""
    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Program:
    """What ``capture`` saw: the calls in the order of the run, and the graph where there is one."""

    calls: tuple[ConvCall, ...]
    how: Literal["export", "observed", "graph"]
    graph: fx.GraphModule | None
    note: str
    """Why export was not used, where it was not."""


def as_module(model: Model) -> nn.Module:
    """The module to run and rewrite: ``model_of`` what is given, or an exported program's graph as a module."""
    if isinstance(model, ExportedProgram):
        return model.module()
    return model_of(model)


def capture(model: nn.Module, example_inputs: Any, how: How = "auto") -> Program:
    """The convolution calls that ``model(example_inputs)`` makes, in evaluation mode. Leaves the model as it was.

    Raises ``InputError`` for inputs or modules that can't be used, ``ModelRunError`` where the model itself raises.
    """
    if how not in get_args(How):
        raise InputError(f"how must be 'auto', 'export' or 'observe', found {how!r}")
    inputs = Inputs.of(example_inputs)
    _refuse_uninitialised(model)
    note = ""
    graph = next((n for n, m in model.named_modules() if isinstance(m, fx.GraphModule)), None)
    if graph and how == "auto":
        # Export would show the calls of an inner graph as its parent's.
        how, note = "observe", f"{graph} is a GraphModule"
    if how != "observe" and graph != "":
        try:
            return _export(model, inputs)
        except Exception as refusal:
            # Whatever export dislikes, the model may still run; if not, the observation raises with the model's own error.
            note = f"{type(refusal).__name__}: {str(refusal).strip().splitlines()[0] if str(refusal).strip() else ''}"
            if how == "export":
                raise InputError(
                    f"torch.export refused {type(model).__name__} ({note}); how='auto' observes it instead"
                ) from refusal
            log.info("torch.export refused %s, observing the run instead (%s)", type(model).__name__, note)
    calls = _observe(model, inputs)
    is_graph = isinstance(model, fx.GraphModule)
    return Program(calls, "graph" if is_graph else "observed", model if is_graph else None, note)


def _refuse_uninitialised(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and cast(Any, module).has_uninitialized_params():
            raise InputError(
                f"{name or 'the model'} is a {type(module).__name__} without weights yet: run the model once first"
            )


def _export(model: nn.Module, inputs: Inputs) -> Program:
    # Quiet: where export refuses, torch prints the graph it has so far, thousands of lines that help nobody here. The model's
    # own warnings the user sees when the model runs.
    with preserved(model, None), global_hooks_kept(), quiet(), torch.no_grad():
        exported = torch.export.export(model, inputs.args, inputs.kwargs, strict=False)
    names, signature = tensor_names(model), exported.graph_signature
    modules = {id(module): name for name, module in model.named_modules()}
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    canonical = {arg: names.get(id(_tensor_at(model, path)), path) for arg, path in lifted.items()}
    calls: list[ConvCall] = []
    for node in exported.graph.nodes:
        call = as_call(node.target, node.args, node.kwargs) if node.op == "call_function" else None
        if call is None:
            continue
        value, out = call.weight.meta["val"], node.meta["val"]
        stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack", {})
        path = next(reversed(stack.values()))[0] if stack else ""
        module = model.get_submodule(re.sub(r"@\d+", "", path))  # later calls of a module are marked "name@1"
        calls.append(
            ConvCall(
                modules[id(module)],
                canonical.get(_source(call.weight).name),
                call.geometry([int(n) for n in value.shape]),
                tuple(int(n) for n in call.input.meta["val"].shape),
                tuple(int(n) for n in out.shape),
                out.dtype,
                out.device,
                node.name,
                "scripted" if isinstance(module, torch.jit.ScriptModule) else None,
            )
        )
    return Program(tuple(calls), "export", exported.graph_module, "")


def _source(node: fx.Node) -> fx.Node:
    """The node that ``node`` is a cast of, also where export has put the cast into a region's own graph (autocast, no_grad)."""
    node = uncast(node)
    region, index = node.args[:2] if node.target is operator.getitem else (None, None)
    if not (isinstance(region, fx.Node) and isinstance(region.target, HigherOrderOperator)):
        return node
    first = next((i for i, a in enumerate(region.args) if isinstance(a, fx.Node) and a.op == "get_attr"), None)
    if first is None:
        return node
    graph: fx.Graph = getattr(region.graph.owning_module, cast(fx.Node, region.args[first]).target).graph  # pyright: ignore
    outputs = cast("tuple[fx.Node, ...]", graph.output_node().args[0])
    within = uncast(outputs[cast(int, index)])
    inputs = graph.find_nodes(op="placeholder")
    return _source(cast(fx.Node, region.args[first + 1 + inputs.index(within)])) if within in inputs else node


def _tensor_at(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _observe(model: nn.Module, inputs: Inputs) -> tuple[ConvCall, ...]:
    calls: list[ConvCall] = []

    def record(
        path: str, weight: str | None, geometry: ConvGeometry, input: Tensor, out: Tensor, obstacle: Obstacle | None = None
    ) -> None:
        shapes = tuple(input.shape), tuple(out.shape)
        calls.append(ConvCall(path, weight, geometry, *shapes, out.dtype, out.device, None, obstacle))

    def seen(call: SeenCall) -> None:
        record(call.path, call.weight, call.call.geometry(call.call.weight.shape), call.call.input, call.output)

    with preserved(model, inputs.tensors()), torch.no_grad(), convolutions_seen(model, seen) as mode, _Operators(mode, record):
        inputs.run(model)
    return tuple(calls)


class _Operators(TorchDispatchMode):
    """Records the convolutions that no Python function was seen to call: inside TorchScript, quantized or native code."""

    def __init__(self, observer: ConvolutionMode, record: Callable[..., None]) -> None:
        super().__init__()
        self.observer = observer
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        inside, self.observer.inside = self.observer.inside, 1  # an operator run from here is itself a call from Python
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self.observer.inside = inside
        if inside or "conv" not in func.name() or not isinstance(out, Tensor):
            return out
        path, module = self.observer.stack[-1]
        call = as_call(func, args, kwargs)
        if call is not None:
            obstacle = "scripted" if isinstance(module, torch.jit.ScriptModule) else "opaque"
            geometry = call.geometry(call.weight.shape)
            self.record(path, self.observer.names.get(id(call.weight)), geometry, call.input, out, obstacle)
        elif func.namespace == "quantized" and hasattr(module, "kernel_size"):
            geometry = ConvGeometry.from_module(cast(Any, module))
            self.record(path, None, geometry, args[0], out, "quantized")
        return out
