"""What the modules of a model are called with while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import preserved


class Like(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class ModuleCall(NamedTuple):
    """What a module was called with. Where a tensor was, there is a ``Like``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def calls_of(model: nn.Module, inputs: Inputs, modules: Mapping[str, nn.Module]) -> dict[str, list[ModuleCall]]:
    """How each of ``modules`` is called while ``model`` runs once, in evaluation mode and without gradients; by name, in order.

    >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
    >>> calls_of(model, Inputs.of(torch.ones(2, 3, 4)), {"flat": model[1]})["flat"][0].args[0].shape
    (2, 3, 4)
    """
    calls: dict[str, list[ModuleCall]] = {name: [] for name in modules}

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[name].append(ModuleCall(*tree_map_only(Tensor, _like, (args, kwargs))))

    if modules:
        with preserved(model, inputs.tensors()), torch.no_grad(), watched(modules, before):
            torch.manual_seed(0)
            inputs.run(model)
    return calls


@contextmanager
def watched(
    modules: Mapping[str, nn.Module],
    before: Callable[[str, tuple[Any, ...], dict[str, Any]], object],
    after: Callable[[str, tuple[Any, ...], dict[str, Any], Any], object] | None = None,
) -> Generator[None]:
    """Inside, ``before(name, args, kwargs)`` is told of every call of one of ``modules``, and ``after`` of its output too."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                before(name, args, kwargs)

            def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str = name) -> None:
                if after is not None:
                    after(name, args, kwargs, output)

            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if after is not None:
                stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield


def _like(tensor: Tensor) -> Like:
    return Like(tuple(tensor.shape), tensor.dtype, tensor.device)
