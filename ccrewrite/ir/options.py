"""Options are checked where they are given: against their type hints, and with what was expected in the message."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ccrewrite.errors import InputError


def check_options(owner: str, kind: type, values: Mapping[str, object]) -> None:
    """Raise ``InputError``, in the name of ``owner``, where one of ``values`` is not what the type hints of ``kind`` allow.

    They are those of its fields if it is a dataclass, else those of its constructor. A value without a hint may be anything.

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
    words = {int: "an integer", float: "a number", str: "a string", bool: "True or False", None: "None", NoneType: "None"}
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(map(expected, arguments))
    if origin is tuple:
        return "a tuple of " + " and ".join(expected(one) for one in arguments if one is not ...)
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return f"one of {', '.join(map(str, hint))}"
    return words[hint] if hint in words else f"a {getattr(origin or hint, '__name__', hint)}"


@cache
def _hints(kind: type) -> dict[str, object]:
    try:
        return get_type_hints(kind if is_dataclass(kind) else cast(Any, kind).__init__)
    except NameError:  # a hint that is imported for type checkers alone
        return {}


def _items_allowed(values: tuple[object, ...], hints: tuple[object, ...]) -> bool:
    if len(hints) == 2 and hints[1] is ...:
        return all(allowed(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(map(allowed, values, hints))
