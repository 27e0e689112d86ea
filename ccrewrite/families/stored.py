"""Callables that are kept on a model's modules and come to a rewritten module by themselves: bound methods, closures, partials.

A class given to a module changes what its methods are from then on. Those that were bound before (``self.encode =
self.backbone.encode``) would go on with the original convolution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, MutableMapping
from types import FunctionType, MethodType
from typing import Any, cast

from torch import nn

from ccrewrite.families.look import look_once_
from ccrewrite.families.methods import under_reroute
from ccrewrite.ir.reach import itself_and_tensors, reaches


class Stored:
    """``function``, whose convolutions are rerouted as each of ``hosts`` says."""

    def __init__(self, function: Callable[..., Any], hosts: list[nn.Module]) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function, self.hosts = function, hosts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.function
        for host in self.hosts:
            call = functools.partial(under_reroute, host, call)
        return call(*args, **kwargs)


def settle_(model: nn.Module) -> None:
    """What follows once layers of ``model`` were changed: its one look at a forward's beginning, and what is kept on it. In
    place."""
    look_once_(model)
    modules = list(model.modules())
    hosts = [(module, itself_and_tensors(module)) for module in modules if "ccrewrite_routes" in vars(module)]
    for slots, key in [slot for module in modules for slot in _slots(module)]:
        kept = slots[key]
        function: Any = kept.function if isinstance(kept, Stored) else kept
        reached = [host for host, wanted in hosts if reaches(function, wanted)]
        if reached:
            slots[key] = Stored(function, reached)
        elif isinstance(kept, Stored):
            slots[key] = function


def _slots(module: nn.Module) -> Iterator[tuple[MutableMapping[Any, Any], Any]]:
    """Where callables are kept on ``module``: among its attributes, and in dictionaries that are such."""
    for name, value in vars(module).items():
        if _is_kept(value):
            yield vars(module), name
        elif type(value) is dict and name not in _TORCHS:
            slots = cast("dict[Any, Any]", value)
            yield from ((slots, key) for key, inside in slots.items() if _is_kept(inside))


_TORCHS = frozenset(vars(nn.Module()))


def _is_kept(value: Any) -> bool:
    """Whether it is a function of some kind, and not a method as its object's class has it now."""
    if isinstance(value, MethodType):
        name = getattr(value.__func__, "__name__", "")  # a bound partial has none
        return getattr(type(value.__self__), name, None) is not value.__func__
    return isinstance(value, (FunctionType, functools.partial, Stored))
