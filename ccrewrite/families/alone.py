"""One layer compiled by itself, in a model that else runs eagerly.

What is compiled are functions that take a layer, or its tensors, as arguments. So layers that are alike share it, and no layer
holds any of it: it can be copied, pickled and saved as before. Inductor's cache on disk knows these functions from one
process to the next.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental import _config as shapes_config

from ccrewrite.ir import typed
from ccrewrite.ir.geometry import ConvArguments
from ccrewrite.ir.torch_private import patched

if TYPE_CHECKING:
    from ccrewrite.families.sampling import Sampling

R = TypeVar("R")
_compiled: dict[tuple[object, Hashable], Any] = {}
_seen: set[Hashable] = set()


def run(function: Callable[..., R], key: Hashable, *arguments: object) -> R:
    """``function(*arguments)``, compiled for their sizes once for each ``key``."""
    return _of(function, key, dynamic=False)(*arguments)


def run_open(function: Callable[..., R], key: Hashable, sizes: Hashable, *arguments: object) -> R:
    """The same, but compiled for all sizes and numbers but 0 and 1, which ``key`` must tell apart. ``sizes`` are those of this
    call."""
    compiled = _of(function, key, dynamic=True)
    if (function, key, sizes) in _seen:
        return compiled(*arguments)
    # Sizes that are equal by chance must not be taken for the same one: what runs would depend on which call came first.
    with patched(shapes_config, {"use_duck_shape": False}):
        found = compiled(*arguments)
    _seen.add((function, key, sizes))
    return found


def few(numbers: Iterable[int]) -> tuple[int, ...]:
    """``numbers``, as far as compiled code for all sizes differs by them.

    >>> few([-3, 0, 1, 2, 56])
    (-1, 0, 1, 2, 2)
    """
    return tuple(max(-1, min(n, 2)) for n in numbers)


def moved(sampling: Sampling, input: Tensor, weight: Tensor, bias: Tensor | None, call: ConvArguments) -> Tensor:
    """``sampling.moved``, compiled."""
    key = type(sampling), sampling.geometry, sampling.form, tuple(input.shape), input.dtype, torch.is_grad_enabled()
    return run(_moved, key, sampling, input, weight, bias, call)


def _moved(sampling: Sampling, input: Tensor, weight: Tensor, bias: Tensor | None, call: ConvArguments) -> Tensor:
    return sampling.moved(input, weight, bias, call)


def _of(function: Callable[..., R], key: Hashable, dynamic: bool) -> Callable[..., R]:
    found = _compiled.get((function, key))
    if found is None:
        # torch.compile counts recompilations by code object, and gives up after eight.
        code = getattr(function, "__code__")  # noqa: B009
        copy = types.FunctionType(code.replace(), function.__globals__)
        found = _compiled.setdefault((function, key), typed.compiled(copy, dynamic=dynamic))
    return found
