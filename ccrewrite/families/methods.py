"""The methods of a module whose convolutions a sampling takes: all that its own classes define, not only its forward.

What a method calls can't be read off its code: a convolution may come from an attribute, an argument or another module's
function, and so may the weight. So none is chosen. ``stored.py`` does the same for callables that are kept on objects.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

import torch
from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket

from ccrewrite.families.reroute import Reroute
from ccrewrite.ir.calls import SIGNATURES
from ccrewrite.ir.torch_private import current_function_mode


class Rerouted(nn.Module):
    """Mixin put before a module's class whose forward runs under ``Reroute``.

    Not for direct use: ``adopt_`` and ``host_`` make the classes.
    """


def under_reroute(host: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, its convolutions rerouted as ``host`` says; also those that a generator or coroutine makes
    later."""
    compiling = torch.compiler.is_compiling()
    if not compiling and getattr(current_function_mode(), "host", None) is host:
        return function(*args, **kwargs)
    with Reroute(host) as mode:
        out = function(*args, **kwargs)
    if compiling:
        return out
    if isinstance(out, types.GeneratorType):
        return _stepped(host, cast("Generator[Any, Any, Any]", out))
    if isinstance(out, types.CoroutineType):
        return types.coroutine(_stepped)(host, cast(Any, out))
    proxy = next((a for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy)), None)
    if proxy is not None:
        mode.refuse_hidden_calls(proxy)
    return out


def _stepped(host: nn.Module, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """``steps``, each under ``Reroute``, which ends before whoever asked for it goes on."""
    step: Callable[[], Any] = functools.partial(steps.send, None)
    while True:
        try:
            with Reroute(host):
                item = step()
        except StopIteration as end:
            return end.value
        try:
            sent = yield item
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:
            step = functools.partial(steps.throw, error)
        else:
            step = functools.partial(steps.send, sent)


def rerouted(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` under ``Reroute``, with its signature (which fx tracing and Trainer classes read)."""

    @functools.wraps(method)
    def with_reroute(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return under_reroute(self, method, self, *args, **kwargs)

    return with_reroute


def rerouted_methods(base: type[nn.Module]) -> dict[str, Any]:
    """By name, what a class on top of ``base`` puts in the place of the methods, properties and the like that are somebody's
    own: the same under ``Reroute``. ``forward`` is among them where that isn't torch's; what else overrides one of
    ``nn.Module``'s own is not, but for ``__call__``."""
    own: dict[str, Any] = {}
    for kind in reversed(base.__mro__):
        if kind.__module__.partition(".")[0] not in ("builtins", "torch"):
            own |= vars(kind)
    kept = {*dir(nn.Module), "__del__"} - {"forward", "__call__"}
    return {n: made for n, value in own.items() if n not in kept and (made := _under_reroute(n, value)) is not None}


def calling_operator(base: type[nn.Module]) -> str:
    """The first of ``base``'s own methods whose code names an operator of torch's for convolutions; empty where none does. A
    sampling calls operators itself, so these are never rerouted."""
    for name, method in rerouted_methods(base).items():
        function = inspect.unwrap(getattr(method, "fget", method))
        if isinstance(function, types.FunctionType) and _names_operator(function.__code__, function.__globals__):
            return name
    return ""


_OPERATORS = {cast("OpOverload[..., object]", f) for f in SIGNATURES if isinstance(f, OpOverload)}
_PACKETS = {f.overloadpacket for f in _OPERATORS}
_NAMES = {packet.__name__ for packet in _PACKETS}


def _names_operator(code: types.CodeType, known: Mapping[str, Any]) -> bool:
    if "aten" in code.co_names and not _NAMES.isdisjoint(code.co_names):
        return True
    values = [known.get(name) for name in code.co_names]
    if any(isinstance(v, (OpOverload, OpOverloadPacket)) and (v in _OPERATORS or v in _PACKETS) for v in values):
        return True
    return any(isinstance(inside, types.CodeType) and _names_operator(inside, known) for inside in code.co_consts)


def _under_reroute(name: str, value: Any) -> Any:
    """What stands for ``value``, an entry of a class; None for what runs no code on an object of that class."""
    if isinstance(value, types.FunctionType):
        return rerouted(value)
    if isinstance(value, property):
        return property(value.fget and rerouted(value.fget), value.fset, value.fdel, value.__doc__)
    if isinstance(value, functools.cached_property):
        return functools.cached_property(rerouted(cast(Any, value).func))
    if isinstance(value, (functools.partialmethod, functools.singledispatchmethod)) or _binds(value):
        return _rebound(name, value)
    return None


def _binds(value: object) -> bool:
    """Whether ``value`` is a callable that is given the object, as ``functools.lru_cache`` makes them."""
    kind = type(value)
    return callable(value) and hasattr(kind, "__get__") and not isinstance(value, (type, staticmethod, classmethod))


def _rebound(name: str, value: Any) -> Callable[..., Any]:
    def with_reroute(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return under_reroute(self, value.__get__(self, type(self)), *args, **kwargs)

    with_reroute.__name__ = name
    vars(with_reroute).update({n: getattr(value, n) for n in dir(value) if not n.startswith("_")})
    return with_reroute
