"""Convolutions called inside somebody else's ``forward``, sent through a ``Sampling`` without touching that forward.

A module whose own code calls ``F.conv2d(...)`` (a weight-standardised convolution, an up-sampling block with a fixed filter)
keeps its code, its control flow and its training flags. While its forward runs, the calls that a ``Route`` names go to the
sampling instead of torch. ``TorchFunctionMode`` does it in eager mode, under export and under ``torch.compile``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from ccrewrite.ir.calls import CASTS, Call, as_call, uncast
from ccrewrite.ir.geometry import ConvGeometry, Ints, Padding


@dataclass(frozen=True)
class Route:
    """The calls that belong to one sampling: ``weight`` is the path of the tensor they use, from the module whose forward
    runs, or None where the weight is computed. Channels are left open: per-sample weights vary with the batch."""

    sampling: str
    weight: str | None
    transposed: bool
    kernel_size: Ints
    stride: Ints
    padding: Padding
    dilation: Ints

    @classmethod
    def of(cls, sampling: str, weight: str | None, geometry: ConvGeometry) -> Route:
        g = geometry
        return cls(sampling, weight, g.transposed, g.kernel_size, g.stride, g.padding, g.dilation)

    def takes(self, host: nn.Module, call: Call, weight: Any) -> bool:
        """Whether ``call`` is one of them; ``weight`` is what its weight was before any cast."""
        if (call.ndim, call.transposed) != (len(self.kernel_size), self.transposed):
            return False
        if self.weight is not None:
            if not _same(weight, at_path(host, self.weight)):
                return False
        elif isinstance(weight, nn.Parameter):
            return False
        elif not isinstance(call.weight, fx.Proxy) and tuple(call.weight.shape[2:]) != self.kernel_size:
            return False  # (a proxy has no shape to compare)
        return Route.of(self.sampling, self.weight, call.geometry((1, 1, *self.kernel_size))) == self


class Reroute(TorchFunctionMode):
    """Sends the convolution calls that a route of ``host`` takes to that route's sampling."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host
        self.casts: list[tuple[Any, Any]] = []
        """(tensor, its cast) for each of the host's weights that its forward casts, to the input's dtype say."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Operators are left alone: that is how a sampling's own convolution passes.
        call = None if isinstance(func, OpOverload) else as_call(func, args, kwargs)
        routes: tuple[Route, ...] = self.host.ccrewrite_routes  # pyright: ignore
        if call is not None:
            weight = self._uncast(call.weight)
            for route in routes:
                if route.takes(self.host, call, weight):
                    sampling = at_path(self.host, route.sampling)
                    return sampling(call.input, call.weight, call.bias, **call.torch_arguments())
        out = func(*args, **(kwargs or {}))
        if func in CASTS:
            source = self._uncast(args[0])
            if any(route.weight is not None and source is at_path(self.host, route.weight) for route in routes):
                self.casts.append((source, out))
        return out

    def _uncast(self, weight: Any) -> Any:
        for source, out in self.casts:
            if _same(weight, out):
                return source
        return weight


def _same(weight: Any, other: Any) -> bool:
    if isinstance(weight, fx.Proxy) and isinstance(other, fx.Proxy):
        return uncast(weight.node) is uncast(other.node)  # a proxy's own methods pass no mode
    return weight is other


class Rerouted(nn.Module):
    """Mixin put before a module's class: its forward runs under ``Reroute``.

    Not for direct use: ``nn.conv.adopt_`` and ``host_`` make the classes.
    """

    ccrewrite_routes: tuple[Route, ...] = ()
    """None on an object that code of the user's builds from its own class (``type(self)(...)``): it runs as the original."""


def rerouted_forward(base: type[nn.Module]) -> Callable[..., Any]:
    """``base.forward`` under ``Reroute``, with its signature (which fx tracing and Trainer classes read)."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with Reroute(self):
            return base.forward(self, *args, **kwargs)

    return forward


def at_path(root: nn.Module, path: str) -> Any:
    """The attribute of ``root`` at a dotted path, e.g. ``"conv.weight"``."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value
