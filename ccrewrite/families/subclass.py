"""Classes made of somebody's own, and objects given them."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def subclass(name: str, bases: tuple[type[Any], ...], names: dict[str, Any]) -> type[Any]:
    """``type(name, bases, names)`` without a word to ``bases``: what their ``__init_subclass__`` or metaclass does (a registry,
    a rule that there be no subclasses) is meant for classes that people write.

    >>> class Registered(nn.Module):
    ...     def __init_subclass__(cls) -> None:
    ...         raise TypeError(f"a class {cls.__name__}")
    >>> subclass("Quietly", (Registered,), {}).__mro__[1].__name__
    'Registered'
    """
    kinds = [type(base) for base in bases]
    kind = next(k for k in kinds if all(issubclass(k, other) for other in kinds))
    # As a subclass of nn.Module, which does nothing then; afterwards it gets its bases.
    make: Callable[..., type[Any]] = ABCMeta.__new__ if issubclass(kind, ABCMeta) else type.__new__
    made = make(kind, name, (nn.Module,), names)
    made.__bases__ = bases
    return made


def change_class_(module: nn.Module, change: Callable[[type[Any]], type[Any]]) -> None:
    """Give ``module`` the class ``change(its class)``, below the one that ``torch.nn.utils.parametrize`` puts on top.

    Methods that are kept on the object itself are bound anew: accelerate's hooks keep the forward that they stand before.
    """
    parametrized = parametrize.is_parametrized(module)
    before = type(module).__bases__[0] if parametrized else type(module)
    after = change(before)
    if parametrized:
        names = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        given = subclass(f"Parametrized{after.__name__}", (after,), names)
    else:
        given = after
    object.__setattr__(module, "__class__", given)  # a class may forbid changes to its objects
    for name, value in vars(module).items():
        method = getattr(value, "__func__", None)
        if method is not None and value.__self__ is module and getattr(before, method.__name__, None) is method:
            vars(module)[name] = getattr(after, method.__name__).__get__(module)
