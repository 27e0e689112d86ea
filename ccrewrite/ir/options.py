"""Options are checked where they are given: against their type hints, and with what was expected in the message."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ccrewrite.errors import InputError


def check_options(owner: str, kind: Callable[..., object], values: Mapping[str, object]) -> None:
    """Raise ``InputError``, in the name of ``owner``, where one of ``values`` is not what the type hints of ``kind`` allow.

    They are those of its fields if it is a dataclass, of its constructor if it is another class. A value without a hint may be
    anything.

    >>> class Layer:
    ...     def __init__(self, reach: int | None = None, kind: Literal["nodes", "mlp"] = "nodes") -> None: ...
    >>> check_options("Layer", Layer, {"reach": 2, "kind": "spline"})
    Traceback (most recent call last):
    ccrewrite.errors.InputError: Layer: kind must be one of 'nodes', 'mlp', found 'spline'
    """
    hints = _hints(kind)
    for name, value in values.items():
        if name in hints and not allowed(value, hints[name]):
            raise InputError(f"{owner}: {name} must be {expected(hints[name])}, found {value!r}")


def check_arguments(function: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """``check_options`` for ``arguments`` of ``function``: those that are numbers, strings, flags, paths, functions,
    collections. What takes models, patterns or rules checks these itself.

    >>> from torch import nn
    >>> def fold(model: nn.Module, tol: float = 0.0) -> None:
    ...     check_arguments(fold, locals())
    >>> fold(nn.Linear(1, 1), "0.1")
    Traceback (most recent call last):
    ccrewrite.errors.InputError: fold: tol must be a number, found '0.1'
    """
    known = {name for name, hint in _hints(function).items() if _plain(hint)}
    check_options(function.__name__, function, {name: value for name, value in arguments.items() if name in known})


def allowed(value: object, hint: object) -> bool:
    """Whether ``hint`` allows ``value``.

    Known are ``Literal``, ``None``, ``bool``, ``int``, ``float`` (an int is one too), other classes, and tuples and unions of
    those. Any other hint allows everything."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, UnionType):
        return any(allowed(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and _items_allowed(cast("tuple[object, ...]", value), arguments)
    if hint is None or hint is NoneType:
        return value is None
    if hint is int or hint is float:
        return type(value) is not bool and isinstance(value, Integral if hint is int else Real)
    try:
        return isinstance(value, cast(type, origin or hint))
    except TypeError:  # Any, a protocol, ...
        return True


def expected(hint: object) -> str:
    """``hint`` in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(map(expected, arguments))
    if origin is tuple:
        return "a tuple of " + " and ".join(expected(one) for one in arguments if one is not ...)
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return f"one of {', '.join(map(str, hint))}"
    return _WORDS.get(origin or hint) or f"a {getattr(origin or hint, '__name__', hint)}"


_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    os.PathLike: "a path",
    Mapping: "a mapping",
    Sequence: "a sequence",
    Collection: "a collection",
    Callable: "a function",
    None: "None",
    NoneType: "None",
}


@cache
def _hints(kind: Callable[..., object]) -> dict[str, object]:
    holder: Any = kind if is_dataclass(kind) or not inspect.isclass(kind) else cast(Any, kind).__init__
    try:
        return get_type_hints(holder)
    except (NameError, AttributeError):  # one of them is imported for type checkers alone
        known = getattr(inspect.unwrap(holder), "__globals__", {})
        return {
            name: found for name, hint in inspect.get_annotations(holder).items() if (found := _known(hint, known)) is not None
        }


def _known(hint: object, names: dict[str, Any]) -> object:
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"hint": hint}), names)["hint"]
    except (NameError, AttributeError):
        return None


def _plain(hint: object) -> bool:
    """Whether ``allowed`` knows all of ``hint``. Patterns, a string or several, are checked elsewhere."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return all(map(_plain, arguments)) and not (str in arguments and any(get_origin(a) is Sequence for a in arguments))
    kinds = (bool, int, float, str, Literal, Mapping, Sequence, Collection, Callable, os.PathLike, tuple)
    return (origin or hint) in (None, NoneType, *kinds)


def _items_allowed(values: tuple[object, ...], hints: tuple[object, ...]) -> bool:
    if len(hints) == 2 and hints[1] is ...:
        return all(allowed(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(map(allowed, values, hints))
