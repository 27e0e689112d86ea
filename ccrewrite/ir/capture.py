"""Every convolution call of one run of a model, with its provenance: ``capture(model, inputs) -> Program``.

An ``nn.Module`` is exported without strictness first (``torch.export.export(strict=False)``), and run once on fake tensors,
which cost nothing, while its calls are observed: that says who makes a call, and whether the graph holds the calls of an eager
run. Where it doesn't, or export refuses, the observed run counts, so a model that runs is never refused. A ``GraphModule`` or
``ExportedProgram`` is taken as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves, tree_map_only

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.ir.calls import as_call
from ccrewrite.ir.exported import exported
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.observe import ConvolutionMode, SeenCall, convolutions_seen
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.preserve import WriteGuard, preserved
from ccrewrite.ir.program import ConvCall, Obstacle, Program
from ccrewrite.ir.threads import quiet
from ccrewrite.ir.typed import DispatchMode, Operator, called, named_modules

log = logging.getLogger(__name__)
Model = GivenModel | ExportedProgram
How = Literal["auto", "export", "observe"]


@dataclass(frozen=True)
class Inputs:
    """Example inputs, brought to the positional and keyword arguments of ``model(...)``."""

    args: tuple[object, ...]
    kwargs: dict[str, object] = field(default_factory=dict[str, object])

    @classmethod
    def of(cls, example_inputs: object) -> Inputs:
        """A tensor, a tuple or list of positional arguments, or a mapping of keyword arguments."""
        if isinstance(example_inputs, Inputs):
            return example_inputs
        if isinstance(example_inputs, Mapping):
            return cls((), dict(cast("Mapping[str, object]", example_inputs)))
        if isinstance(example_inputs, (tuple, list)):
            return cls(tuple(cast("tuple[object, ...]", example_inputs)))
        if example_inputs is None:
            raise InputError(
                "example inputs are needed to see which convolutions run; found None. "
                "Pass what the model is called with: a tensor, a tuple, or a dict of keyword arguments"
            )
        return cls((example_inputs,))

    def tensors(self) -> list[Tensor]:
        leaves: list[object] = tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def run(self, model: nn.Module) -> object:
        """Raises ``ModelRunError`` where the model raises."""
        try:
            return model(*self.args, **self.kwargs)
        except Exception as error:
            raise ModelRunError(
                f"{type(model).__name__} raised {type(error).__name__} on the example inputs "
                f"({', '.join(str(tuple(t.shape)) for t in self.tensors()) or 'no tensors'}): {error}. "
                "Check that model(*example_inputs) runs by itself"
            ) from error


def as_module(model: Model) -> nn.Module:
    """The module to run and rewrite: ``model_of`` what is given, or an exported program's graph as a module."""
    if isinstance(model, ExportedProgram):
        return model.module()
    return model_of(model)


def capture(model: nn.Module, example_inputs: object, how: How = "auto") -> Program:
    """The convolution calls that ``model(example_inputs)`` makes, in evaluation mode. Leaves the model as it was.

    Raises ``InputError`` for inputs or modules that can't be used, ``ModelRunError`` where the model itself raises.
    """
    if how not in get_args(How):
        raise InputError(f"how must be 'auto', 'export' or 'observe', found {how!r}")
    inputs = Inputs.of(example_inputs)
    _refuse_uninitialised(model)
    note = ""
    graph = next((n for n, m in named_modules(model) if isinstance(m, fx.GraphModule)), None)
    if graph and how == "auto":
        # Export would show the calls of an inner graph as its parent's.
        how, note = "observe", f"{graph} is a GraphModule"
    if how != "observe" and graph != "":
        try:
            shown = exported(model, inputs)
        except Exception as refusal:
            # Whatever export dislikes, the model may still run; if not, the observation raises with the model's own error.
            note = f"{type(refusal).__name__}: {str(refusal).strip().splitlines()[0] if str(refusal).strip() else ''}"
            if how == "export":
                raise InputError(
                    f"torch.export refused {type(model).__name__} ({note}); how='auto' observes it instead"
                ) from refusal
            log.info("torch.export refused %s, observing the run instead (%s)", type(model).__name__, note)
        else:
            return _with_callers(shown, model, inputs, how)
    calls, hidden = _observe(model, inputs)
    if hidden:
        note = "; ".join(filter(None, (note, f"what torch.{', torch.'.join(hidden)} runs is hidden from the observed run")))
    is_graph = isinstance(model, fx.GraphModule)
    return Program(calls, "graph" if is_graph else "observed", model if is_graph else None, note, hidden)


def _with_callers(shown: Program, model: nn.Module, inputs: Inputs, how: How) -> Program:
    """``shown`` with what only a run shows: the module whose method makes each call, and autograd functions around it."""
    if any(call.obstacle == "control-flow" for call in shown.calls):
        return shown  # eager traces branches and loops too, with nothing of ours around
    try:
        seen, _ = _observe(model, inputs, fake=True)
    except Exception as error:  # of fake tensors, which not every operator takes
        log.info("%s doesn't run on fake tensors (%s)", type(model).__name__, error)
        seen, _ = _observe(model, inputs)
    if list(map(_likeness, seen)) == list(map(_likeness, shown.calls)):
        calls = (replace(s, node=e.node) for s, e in zip(seen, shown.calls, strict=True))
        return replace(shown, calls=tuple(calls))
    found = f"torch.export shows {_count(shown.calls)}, the run itself makes {_count(seen)}"
    if how == "export":
        return replace(shown, note=f"{found}; listed are those of torch.export")
    return Program(seen, "observed", None, f"{found}; listed are those of the run")


def _likeness(call: ConvCall) -> tuple[object, ...]:
    return call.weight, call.geometry, call.input_shape, call.output_shape, call.dtype


def _count(calls: Sequence[ConvCall]) -> str:
    return "1 convolution" if len(calls) == 1 else f"{len(calls)} convolutions"


def _refuse_uninitialised(model: nn.Module) -> None:
    for name, module in named_modules(model):
        if isinstance(module, LazyModuleMixin) and cast(Any, module).has_uninitialized_params():
            raise InputError(
                f"{name or 'the model'} is a {type(module).__name__} without weights yet: run the model once first"
            )


def _observe(model: nn.Module, inputs: Inputs, fake: bool = False) -> tuple[tuple[ConvCall, ...], tuple[str, ...]]:
    """The calls of a run, and the control-flow operators met in it, which hide what they call."""
    calls: list[ConvCall] = []

    def record(
        path: str,
        weight: str | None,
        geometry: ConvGeometry,
        input: Tensor,
        out: Tensor,
        obstacle: Obstacle | None = None,
        within: str = "",
    ) -> None:
        shapes = tuple(input.shape), tuple(out.shape)
        calls.append(ConvCall(path, weight, geometry, *shapes, out.dtype, out.device, None, obstacle, within))

    def seen(call: SeenCall) -> None:
        geometry = call.call.geometry(call.call.weight.shape)
        record(call.path, call.weight, geometry, call.call.input, call.output, call.obstacle, call.within)

    with ExitStack() as stack:
        own = stack.enter_context(preserved(model, None if fake else inputs.tensors()))
        stack.enter_context(torch.no_grad())
        if fake:
            mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            inputs = Inputs(*tree_map_only(Tensor, mode.from_tensor, (inputs.args, inputs.kwargs)))
            # What meets no fake tensor is computed: a buffer that counts runs.
            stack.enter_context(WriteGuard(model, own))
            stack.enter_context(quiet())  # the user sees the model's own warnings when it runs
        observer = stack.enter_context(convolutions_seen(model, seen))
        operators = stack.enter_context(_Operators(observer, record))
        inputs.run(model)
    return tuple(calls), tuple(operators.control_flow)


class _Operators(DispatchMode):
    """Records the convolutions that no Python function was seen to call: inside TorchScript, quantized or native code."""

    supports_higher_order_operators = True

    def __init__(self, observer: ConvolutionMode, record: Callable[..., None]) -> None:
        super().__init__()
        self.observer = observer
        self.record = record
        self.control_flow: dict[str, None] = {}

    def __torch_dispatch__(
        self, func: Operator, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        if isinstance(func, HigherOrderOperator):
            self.control_flow[func.name()] = None
            return called(func, args, kwargs or {})
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
