"""The convolutions of one run, call by call: what went in, what came out, and how to make each of them again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import named_samplings, rewritten_sites
from ccrewrite.ir.calls import as_call
from ccrewrite.ir.capture import Inputs, _module_stack, tensor_names
from ccrewrite.ir.preserve import preserved


@dataclass(frozen=True, eq=False)
class ConvRun:
    """One convolution of a run. ``site`` is its name where it goes through a sampling, ``module`` the path of the module that
    calls it (of the one that has the sampling), ``weight_name`` that of its weight, None where it is computed. ``again(x)``
    makes the same call on another input."""

    site: str | None
    module: str
    weight_name: str | None
    weight: Tensor
    sampling: Sampling | None
    input: Tensor
    output: Tensor
    again: Callable[[Tensor], Tensor]


def convolutions_of(model: nn.Module, inputs: Inputs) -> list[ConvRun]:
    """The convolutions that ``model`` calls from Python, in order, in evaluation mode and without gradients.

    A call that goes through a ``Sampling`` is one of them, what the sampling does inside is not. Tensors are copies.
    """
    observer = _Observer(model)
    with preserved(model, inputs.tensors()), torch.no_grad(), ExitStack() as stack:
        torch.manual_seed(0)
        observer.stack = stack.enter_context(_module_stack(model))
        paths = {name: site.path for name, site in rewritten_sites(model).items()}
        for name, sampling in named_samplings(model).items():
            stack.enter_context(observer.watched(name, paths.get(name, name), sampling))
        stack.enter_context(observer)
        inputs.run(model)
    return observer.runs


@contextmanager
def built(model: nn.Module) -> Generator[None]:
    """Inside, every sampling of ``model`` builds its kernel, as it does once its geometry has moved."""
    samplings = [m for m in model.modules() if isinstance(m, Sampling)]
    for sampling in samplings:
        vars(sampling)["runs_plain"] = _never
    try:
        yield
    finally:
        for sampling in samplings:
            del vars(sampling)["runs_plain"]


def _never() -> bool:
    return False


class _Observer(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = tensor_names(model)
        self.stack: list[tuple[str, nn.Module]] = []
        self.runs: list[ConvRun] = []
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        call = None if self.inside else as_call(func, args, kwargs)
        if call is None:
            return func(*args, **(kwargs or {}))
        rest = {k: v for k, v in (kwargs or {}).items() if k != "input"}
        others = args[1:]
        input = call.input.clone()
        self.inside += 1
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self.inside -= 1
        path = self.stack[-1][0]
        weight = self.names.get(id(call.weight))

        def again(x: Tensor) -> Tensor:
            return func(x, *others, **rest)

        self.runs.append(ConvRun(None, path, weight, call.weight, None, input, out.clone(), again))
        return out

    @contextmanager
    def watched(self, name: str, path: str, sampling: Sampling) -> Generator[None]:
        inputs: list[Tensor] = []

        def enter(module: nn.Module, args: Any) -> None:
            self.inside += 1
            inputs.append(args[0].clone())

        def leave(module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
            self.inside -= 1
            others, weight = args[1:], args[1]
            weight_name = self.names.get(id(weight))

            def again(x: Tensor) -> Tensor:
                return sampling(x, *others, **kwargs)

            self.runs.append(ConvRun(name, path, weight_name, weight, sampling, inputs.pop(), out.clone(), again))

        with ExitStack() as stack:
            stack.callback(sampling.register_forward_pre_hook(enter).remove)
            stack.callback(sampling.register_forward_hook(leave, with_kwargs=True).remove)
            yield
