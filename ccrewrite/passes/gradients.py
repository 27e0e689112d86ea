"""Gradients of a rewritten model against the original's: of its inputs and weights, in one backward pass of each.

With gradients wanted, kernels are built from the geometry, as in training; so this also looks at what outputs without them
don't show: calls that autograd doesn't see, or makes again without the geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import COMPILED, OutputCheck
from ccrewrite.ir.preserve import WriteGuard, unwatched
from ccrewrite.ir.threads import quiet
from ccrewrite.ir.typed import manual_seed
from ccrewrite.passes.noise import with_noise
from ccrewrite.passes.substitute import copied
from ccrewrite.passes.verify import compare_outputs, leaves

Gradients = Mapping[str, Tensor]


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of ``model`` that want a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients_of(model: nn.Module, inputs: Inputs, wanted: Mapping[str, Tensor]) -> tuple[Gradients, str]:
    """By name, the gradients of ``wanted`` and of the floating-point inputs, for a fixed random sum of the outputs; empty, and
    why, where there are none. In evaluation mode; ``.grad``, random states and buffers are as before.
    """
    bases: dict[str, Tensor] = {}

    def with_gradient(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        base = bases[f"gradient of input {len(bases)}"] = tensor.detach().clone().requires_grad_()
        return base.clone()  # no leaf: a model may write into its input

    given = Inputs(*tree_map_only(Tensor, with_gradient, (inputs.args, inputs.kwargs)))
    bases |= {f"gradient of {name}": tensor for name, tensor in wanted.items()}
    if not bases:
        return {}, "no input is floating-point, and no parameter wants one"
    try:
        with ExitStack() as stack:
            own = stack.enter_context(unwatched([model], inputs.tensors()))
            for context in (torch.inference_mode(False), torch.enable_grad(), quiet()):
                stack.enter_context(context)
            watching = stack.enter_context(ExitStack())
            writes = watching.enter_context(WriteGuard(model, (*inputs.tensors(), *own)))
            manual_seed(0)
            loss = _sum(value for _, value in leaves(given.run(model), "output"))
            if loss is None:
                return {}, "no output can be differentiated"
            if not writes.saved:  # nor will it, where a checkpoint runs it again
                watching.close()
            found = cast("tuple[Tensor | None, ...]", torch.autograd.grad(loss, list(bases.values()), allow_unused=True))
    except Exception as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [""])[0][:200]
        return {}, f"a run with gradients raised {type(cause).__name__}: {reason}"
    return {name: g.detach() for name, g in zip(bases, found, strict=True) if g is not None}, ""


def _sum(outputs: Iterable[object]) -> Tensor | None:
    """Of all that can be differentiated, each element times a number of its own."""
    total: Tensor | None = None
    for index, value in enumerate(outputs):
        if isinstance(value, Tensor) and value.requires_grad and value.is_floating_point():
            generator = torch.Generator().manual_seed(index)
            part = (value * torch.randn(value.shape, generator=generator).to(value)).sum().to("cpu", torch.float64)
            total = part if total is None else total + part
    return total


class Reference:
    """The gradients of the original, to compare others with; and why there are none, where there are none.

    ``plain`` gives a copy of the original, also where ``model`` is rewritten in place by then.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, plain: Callable[[], nn.Module]) -> None:
        self.model, self.inputs, self.plain = model, inputs, plain
        self.last: tuple[OutputCheck, ...] = ()
        self.shapes = {name: p.shape for name, p in trained(model).items()}
        self.gradients, self.missing = gradients_of(model, inputs, trained(model))

    def compared(self, model: nn.Module, samplings: Mapping[str, nn.Module]) -> tuple[tuple[OutputCheck, ...], str]:
        """One answer for each gradient that either model has; and what is wrong with ``samplings``, the rewritten sites."""
        wanted = {n: p for n, p in trained(model).items() if self.shapes.get(n, p.shape) == p.shape}
        found, raised = gradients_of(model, self.inputs, wanted)
        if raised:
            return (), raised
        paths = {id(p): name for name, p in wanted.items()}
        for name, sampling in samplings.items():
            own = [f"gradient of {paths[id(p)]}" for p in sampling.parameters() if id(p) in paths]
            weight = next((f"gradient of {n}" for n in (f"{name}.weight", name) if f"gradient of {n}" in found), None)
            if own and weight and not any(path in found for path in own):
                return (), f"the geometry of {name} gets no gradient, its weight does: autograd doesn't see its call"
        theirs = {path: g for path, g in found.items() if self._has(path)}
        outputs = compare_outputs(self.gradients, theirs, COMPILED)
        outputs, _ = with_noise(outputs, lambda i: gradients_of(self.model, i, trained(self.model))[0], self.inputs)
        return (outputs, "") if all(o.ok for o in outputs) else (self._in_float64(model, outputs), "")

    def failure(self, model: nn.Module, samplings: Mapping[str, nn.Module]) -> str:
        """What is wrong with the gradients of ``model``; empty where nothing is, or there are none to compare with."""
        if self.missing or not samplings:
            return ""
        self.last, fault = self.compared(model, samplings)
        wrong = max((g for g in self.last if not g.ok), key=lambda g: g.max_rel_error, default=None)
        if fault or wrong is None:
            return fault
        return f"the {wrong.path} changed" + (f": {wrong.note}" if wrong.note else f" by {wrong.max_rel_error:.1e}")

    def _in_float64(self, model: nn.Module, outputs: tuple[OutputCheck, ...]) -> tuple[OutputCheck, ...]:
        """``outputs``, or those of both models in float64, where these are right: a rounding turns the sign of a value before
        a ReLU, and with it a whole share of the gradients, by more or less than another rounding does."""
        if all(o.dtype == "float64" for o in outputs):
            return outputs
        given = (self.inputs.args, self.inputs.kwargs)
        doubled = Inputs(*tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, given))
        found, original = (self._of_copy(make, doubled) for make in (lambda: copied(model), self.plain))
        theirs = {path: g for path, g in found.items() if self._has(path)}
        again = compare_outputs(original, theirs, COMPILED)
        if len(again) != len(outputs) or not all(o.ok for o in again):
            return outputs
        return tuple(replace(o, note="compared in float64: signs that rounding turns hide it in less") for o in again)

    @staticmethod
    def _of_copy(make: Callable[[], nn.Module], inputs: Inputs) -> Gradients:
        model = make().double()
        return gradients_of(model, inputs, trained(model))[0]

    def _has(self, path: str) -> bool:
        return path.startswith("gradient of input ") or path.removeprefix("gradient of ") in self.shapes
