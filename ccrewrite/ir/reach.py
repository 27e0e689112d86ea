"""What a callable holds on to: how it may come to a module or a tensor that it is not given."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Collection
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

DEPTH = 4
"""How many callables inside one another are looked into."""
_EMPTY = CellType()


def itself_and_tensors(module: nn.Module) -> set[int]:
    """``id`` of ``module`` and of each of its parameters and buffers: what ``reaches`` may be asked for."""
    return {id(module), *map(id, module.parameters()), *map(id, module.buffers())}


def reaches(value: Any, wanted: Collection[int], depth: int = DEPTH) -> bool:
    """Whether ``value`` is an object whose ``id`` is in ``wanted``, or a callable that holds one: the object that a method is
    of, what is in a closure, defaults, the arguments of a partial.

    >>> layer = nn.ReLU()
    >>> reaches(functools.partial(lambda x, inner=layer: inner(x)), [id(layer)]), reaches(nn.functional.relu, [id(layer)])
    (True, False)
    """
    return id(value) in wanted or (depth > 0 and any(reaches(part, wanted, depth - 1) for part in _held(value)))


def _held(value: Any) -> list[Any]:
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, weakref.ReferenceType):
        return [value()]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return []
