"""What a module keeps in its attributes, and a run may change: containers, random generators, counters in plain objects."""

from __future__ import annotations

import random
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

LIMIT = 100_000
"""Containers, generators and objects looked at: whoever keeps more in attributes keeps data there."""
_LEFT_ALONE = {"torch", "numpy", *sys.stdlib_module_names}
"""Packages whose objects aren't looked into: from a logger, say, all others can be reached."""
_WITHOUT_STATE = (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType, str, bytes, int, float)


class OwnState:
    """The contents of ``roots``, modules' attributes, and of all containers and plain objects below them.

    ``tensors`` are those found there, whose values others keep. What can't be looked into (iterators, open files, C extensions)
    isn't kept.

    >>> attributes = {"steps": [0], "generator": random.Random(0)}
    >>> state = OwnState([attributes])
    >>> attributes["steps"][0] += 1
    >>> drawn = attributes["generator"].random()
    >>> state.restore()
    >>> attributes["steps"], attributes["generator"].random() == drawn
    ([0], True)
    """

    def __init__(self, roots: Iterable[dict[str, object]]) -> None:
        self.tensors: list[Tensor] = []
        self._undo: list[Callable[[], object]] = []
        seen: set[int] = set()
        waiting: list[object] = [*roots]
        while waiting and len(seen) < LIMIT:
            value = waiting.pop()
            if id(value) not in seen:
                seen.add(id(value))
                inside = self._keep(value)
                self.tensors += (v for v in inside if isinstance(v, Tensor))
                waiting += (v for v in inside if v is not None and not isinstance(v, _WITHOUT_STATE))

    def restore(self) -> None:
        for undo in self._undo:
            undo()

    def _keep(self, value: object) -> list[object]:
        """Remember ``value``; what is inside it."""
        # Exact types: a subclass may forbid changes (diffusers' FrozenDict), so it keeps its own contents.
        if type(value) in (dict, OrderedDict, defaultdict):
            mapping = cast("dict[object, object]", value)
            contents = dict(mapping)
            self._undo.append(lambda: (mapping.clear(), mapping.update(contents)))
            return list(contents.values())
        if type(value) in (list, deque):
            sequence = cast("list[object] | deque[object]", value)
            items = list(sequence)
            self._undo.append(lambda: (sequence.clear(), sequence.extend(items)))
            return items
        if type(value) is set:
            collection = cast("set[object]", value)
            members = set(collection)
            self._undo.append(lambda: (collection.clear(), collection.update(members)))
            return []
        if isinstance(value, tuple):
            return list(cast("tuple[object, ...]", value))
        if isinstance(value, np.ndarray):
            self._keep_array(cast("np.ndarray[tuple[int, ...], np.dtype[np.generic]]", value))
            return []
        setter = _generator(value)
        if setter is not None:
            self._undo.append(setter)
            return []
        return [vars(value)] if _plain_object(value) else []

    def _keep_array(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        if array.size > LIMIT or array.dtype.hasobject or not array.flags.writeable:
            return
        values = array.copy()
        self._undo.append(lambda: np.copyto(array, values))


def _generator(value: object) -> Callable[[], object] | None:
    """Puts a random generator back to where it is now; None for anything else."""
    if isinstance(value, torch.Generator):
        drawn = value.get_state()
        return lambda: value.set_state(drawn)
    if isinstance(value, random.Random):
        python = value.getstate()
        return lambda: value.setstate(python)
    if isinstance(value, np.random.Generator):
        bits, numbers = value.bit_generator, value.bit_generator.state
        return lambda: setattr(bits, "state", numbers)
    if isinstance(value, np.random.RandomState):
        older = value.get_state()
        return lambda: value.set_state(older)
    return None


def _plain_object(value: object) -> bool:
    """Whether ``value`` is an object of somebody's own class."""
    return type(getattr(value, "__dict__", None)) is dict and type(value).__module__.partition(".")[0] not in _LEFT_ALONE
