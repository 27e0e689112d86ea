"""Convolutions called inside somebody else's ``forward``, sent through a ``Sampling`` without touching that forward.

A module whose own code calls ``F.conv2d(...)`` (a weight-standardised convolution, an up-sampling block with a fixed filter)
keeps its code, its control flow and its training flags. While its forward runs, or another of its methods (``methods.py``), the
calls that a ``Route`` names go to the sampling instead of torch. ``TorchFunctionMode`` does it in eager mode, under export and
under ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from ccrewrite.errors import InputError
from ccrewrite.ir.calls import CASTS, Call, as_call, uncast
from ccrewrite.ir.geometry import ConvGeometry, Ints, Padding


@dataclass(frozen=True)
class Route:
    """The calls that belong to one sampling: ``weight`` is the path of the tensor they use, from the module whose forward
    runs, or None where the weight is computed. Channels are left open: per-sample weights vary with the batch. So is
    ``padding`` where it is None."""

    sampling: str
    weight: str | None
    transposed: bool
    kernel_size: Ints
    stride: Ints
    padding: Padding | None
    dilation: Ints

    @classmethod
    def of(cls, sampling: str, weight: str | None, geometry: ConvGeometry, *, any_padding: bool = False) -> Route:
        g = geometry
        return cls(sampling, weight, g.transposed, g.kernel_size, g.stride, None if any_padding else g.padding, g.dilation)

    def takes(self, host: nn.Module, call: Call[Tensor], weight: object) -> bool:
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
        geometry = call.geometry((1, 1, *self.kernel_size))
        return Route.of(self.sampling, self.weight, geometry, any_padding=self.padding is None) == self


class Reroute(TorchFunctionMode):
    """Sends the convolution calls that a route of ``host`` takes to that route's sampling."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host
        self.casts: list[tuple[Any, Any]] = []
        """(tensor, its cast) for each of the host's weights that its forward casts, to the input's dtype say."""
        self.taken: set[str] = set()
        """The samplings that calls traced by fx went to."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Operators are left alone: that is how a sampling's own convolution passes.
        call = None if issubclass(type(func), OpOverload) else as_call(func, args, kwargs)
        routes = routes_of(self.host)
        if call is not None:
            weight = self._uncast(call.weight)
            for route in routes:
                if route.takes(self.host, call, weight):
                    sampling = at_path(self.host, route.sampling)
                    if isinstance(call.input, fx.Proxy):
                        self.taken.add(route.sampling)
                    return sampling(call.input, call.weight, call.bias, **call.torch_arguments())
        out = func(*args, **(kwargs or {}))
        if func in CASTS:
            source = self._uncast(args[0])
            if any(route.weight is not None and source is at_path(self.host, route.weight) for route in routes):
                self.casts.append((source, out))
        return out

    def refuse_hidden_calls(self, proxy: fx.Proxy) -> None:
        """Raise where a method was traced by fx, and a function that stays whole in the graph got what a route waits for."""
        tracer = cast(fx.Tracer, proxy.tracer)
        whole = [node for node in tracer.graph.nodes if node.op == "call_function" and _stays_whole(node.target)]
        for route in routes_of(self.host):
            if route.weight is None:
                hidden = [] if route.sampling in self.taken else whole
            else:
                weight = at_path(self.host, route.weight)
                hidden = [n for n in whole if any(_value(tracer, uncast(i)) is weight for i in n.all_input_nodes)]
            if hidden:
                raise InputError(
                    f"fx can't trace this {type(self.host).__name__}: its convolution of {route.weight or 'a computed weight'} "
                    f"is rewritten, and the function {hidden[0].name}, which torch.fx.wrap keeps whole, would run the original "
                    "one. Trace the model before it is rewritten, or take the mark off that function"
                )

    def _uncast(self, weight: Any) -> Any:
        for source, out in self.casts:
            if _same(weight, out):
                return source
        return weight


def _same(weight: Any, other: Any) -> bool:
    if isinstance(weight, fx.Proxy) and isinstance(other, fx.Proxy):
        return uncast(weight.node) is uncast(other.node)  # a proxy's own methods pass no mode
    return weight is other


def _stays_whole(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "builtins").partition(".")[0] not in _TRACED


_TRACED = ("ccrewrite", "torch", "_operator", "operator", "builtins", "math")
"""Where the functions come from that may be in a graph; another one is there since ``torch.fx.wrap`` marks it."""


def _value(tracer: fx.Tracer, node: fx.Node) -> Any:
    return at_path(tracer.root, cast(str, node.target)) if node.op == "get_attr" else None


def routes_of(host: nn.Module) -> tuple[Route, ...]:
    """None on an object that code of the user's builds from its own class (``type(self)(...)``), or whose methods somebody kept
    from before it was reverted: it runs as the original."""
    return getattr(host, "ccrewrite_routes", ())


def at_path(root: nn.Module, path: str) -> Any:
    """The attribute of ``root`` at a dotted path, e.g. ``"conv.weight"``."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value
