"""What a replacement layer adds to a convolution: a ``Sampling``, the learnable geometry of its kernel.

A sampling turns the call's ``weight`` into the effective kernel on a dense window, ``K_eff = B(geometry) . weight``, and
convolves with that. It never owns the weight, so it serves a module's convolution and a functional one alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
import torch.overrides
from torch import _C, Tensor, nn  # pyright: ignore[reportPrivateImportUsage]
from torch._C._functorch import maybe_current_level
from torch._guards import detect_fake_mode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ccrewrite.calls import FUNCTIONS
from ccrewrite.errors import InputError
from ccrewrite.geometry import ConvGeometry, Ints, per_axis

_aten = torch.ops.aten
# The operators, not the functions of torch.nn.functional: those are what `Reroute` looks for.
CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
NAMED_PADDING = (_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding)
TRANSPOSED = (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)


class Sampling(nn.Module, ABC):
    """Learnable geometry of one convolution; called with the arguments of the torch function that it stands for.

    ``sampling(input, weight, bias, stride, padding, dilation, groups)`` in place of ``F.convNd``, and
    ``sampling(input, weight, bias, stride, padding, output_padding, groups, dilation)`` in place of ``F.conv_transposeNd``.

    While the geometry is untouched and nothing differentiates through it, the plain torch function runs: bitwise equal.
    Otherwise the effective kernel is built on the window that holds the original extent and ``margin`` samples on both sides.

    Subclasses give ``movers`` and ``kernel``.
    """

    margin: Ints
    """Samples by which the window exceeds the kernel's original extent, per axis and on both sides."""
    opaque: bool = False
    """Whether torch.compile takes what is built of the geometry as operators (``ccrewrite.forms.regions``), so that layers that
    are alike are compiled once. ``ccrewrite.lower`` sets it."""

    def __init__(self, kernel_size: Sequence[int], dilation: Sequence[int], *, transposed: bool, margin: Sequence[int]) -> None:
        super().__init__()
        self.kernel_size = tuple(kernel_size)
        self.dilation = tuple(dilation)
        self.transposed = transposed
        self.margin = tuple(margin)

    @property
    def ndim(self) -> int:
        return len(self.kernel_size)

    @property
    def window(self) -> Ints:
        """Size of the effective kernel, per axis."""
        sizes = zip(self.kernel_size, self.dilation, self.margin, strict=True)
        return tuple(d * (k - 1) + 1 + 2 * m for k, d, m in sizes)

    @classmethod
    @abstractmethod
    def of(cls, geometry: ConvGeometry, **options: Any) -> Self:
        """The sampling that starts out as a convolution of this geometry; ``options`` are the class's own, and
        ``dtype``, ``device``."""

    @abstractmethod
    def movers(self) -> list[Tensor]:
        """The tensors that are all zero as long as the layer computes what the plain convolution computes.

        An empty list: the layer never equals a plain convolution on this grid.
        """

    @abstractmethod
    def kernel(self, weight: Tensor) -> Tensor:
        """Effective kernel, ``(*weight.shape[:2], *window)``, for ``weight`` of shape ``(out, in/groups, *kernel_size)``
        (transposed: ``(in, out/groups, *kernel_size)``)."""

    def describe(self) -> str:
        """What was added, in one line for a plan's table."""
        added = sum(p.numel() for p in self.parameters())
        window = "x".join(map(str, self.window))
        return f"{type(self).__name__.removesuffix('Sampling')}, {added} parameters added, window {window}"

    def runs_plain(self) -> bool:
        """Whether a call made now may run the plain convolution: geometry at its start, and no gradient wanted for it.

        Only where values can be read: never while a graph is being traced, for what it would bake in may change later.
        """
        movers = self.movers()
        if not movers or not readable(movers):
            return False
        if torch.is_grad_enabled() and (movers[0].requires_grad or any(p.requires_grad for p in self.parameters())):
            return False
        return not _any(movers)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Flat, so that `model.to(memory_format=...)` leaves it alone: torch means the pictures' formats for every tensor of
        # four or five axes, and raises where the number is the wrong one of the two.
        return super()._apply(lambda t: fn(t.flatten()).view(t.shape), recurse)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any, **named: Any) -> Tensor:
        if self.runs_plain():
            return self._torch(input, weight, bias, *arguments, **named)
        call = bind(self.transposed, self.ndim, arguments, named)
        self.check_dilation(call["dilation"])
        return self._moved(input, weight, bias, call)

    def _torch(self, input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any, **named: Any) -> Tensor:
        """The plain convolution: torch's function, or, under a mode that may be `Reroute`, the operator."""
        if not torch.overrides._len_torch_function_stack():  # pyright: ignore
            return FUNCTIONS[self.transposed, self.ndim](input, weight, bias, *arguments, **named)
        call = bind(self.transposed, self.ndim, arguments, named)
        functions = TRANSPOSED if self.transposed else NAMED_PADDING if isinstance(call["padding"], str) else CONVOLUTIONS
        return functions[self.ndim - 1](input, weight, bias, **call)

    def check_dilation(self, dilation: Ints) -> None:
        """Raise where a call's dilation is another one than this geometry's."""
        if dilation != self.dilation:
            raise InputError(
                f"this {type(self).__name__} was made for dilation {self.dilation}, but the call says {dilation}; "
                "revert and rewrite the model if its dilation changed"
            )

    def _moved(self, input: Tensor, weight: Tensor, bias: Tensor | None, call: dict[str, Any]) -> Tensor:
        """The convolution wherever the geometry is."""
        kernel = self.kernel(weight)
        return self._transposed(input, kernel, bias, call) if self.transposed else self._plain(input, kernel, bias, call)

    def _plain(self, input: Tensor, kernel: Tensor, bias: Tensor | None, call: dict[str, Any]) -> Tensor:
        pads = tuple((low + m, high + m) for (low, high), m in zip(self._pads(call["padding"]), self.margin, strict=True))
        if any(low != high for low, high in pads):
            input = F.pad(input, [p for pair in reversed(pads) for p in pair])
            pads = ((0, 0),) * self.ndim
        padding = tuple(low for low, _ in pads)
        ones = (1,) * self.ndim
        return CONVOLUTIONS[self.ndim - 1](input, kernel, bias, call["stride"], padding, ones, call["groups"])

    def _transposed(self, input: Tensor, kernel: Tensor, bias: Tensor | None, call: dict[str, Any]) -> Tensor:
        stride, padding, extra = call["stride"], call["padding"], call["output_padding"]
        function = TRANSPOSED[self.ndim - 1]
        wide = tuple(p + m for p, m in zip(padding, self.margin, strict=True))
        if all(e < s for e, s in zip(extra, stride, strict=True)):
            return function(input, kernel, bias, stride, wide, extra, call["groups"])
        # An output padding that only the dilation allowed (the window has none): the full output, then crop or extend.
        zeros = (0,) * self.ndim
        full = function(input, kernel, None, stride, zeros, zeros, call["groups"])
        cropped = F.pad(full, [n for w, e in zip(reversed(wide), reversed(extra), strict=True) for n in (-w, e - w)])
        return cropped if bias is None else cropped + bias.view(-1, *(1,) * self.ndim)

    def _pads(self, padding: Any) -> tuple[tuple[int, int], ...]:
        # Only the padding matters to `pads`; the rest of the geometry is this sampling's own.
        ones, zeros = (1,) * self.ndim, (0,) * self.ndim
        padding = zeros if padding == "valid" else padding
        return ConvGeometry(1, 1, self.kernel_size, ones, padding, self.dilation, 1, zeros).pads


def readable(tensors: Sequence[Tensor]) -> bool:
    """Whether the values of ``tensors`` may be read now: real ones, outside every tracer, export, compilation, capture and
    transform (vmap, forward-mode derivatives)."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return False
    for t in tensors:
        if (type(t) is not nn.Parameter and type(t) is not Tensor) or t.is_meta:
            return False
    # All that traces operators is a mode; other modes (a FLOP counter) only look on.
    if _C._len_torch_dispatch_stack() and (detect_fake_mode(tensors) is not None or get_proxy_mode() is not None):
        return False
    if maybe_current_level() is not None or forward_ad._current_level >= 0:
        return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())


def _any(tensors: Sequence[Tensor]) -> bool:
    """Whether any value is not zero."""
    if tensors[0].is_cuda:
        tensors = [torch.cat([t.flatten() for t in tensors])]  # so that the device is waited for once
    return any(t.count_nonzero().item() for t in tensors)


_DEFAULTS: dict[bool, dict[str, Any]] = {
    False: {"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    True: {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1},
}


def bind(transposed: bool, ndim: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments after the bias, by name, one entry per axis, with torch's defaults."""
    defaults = _DEFAULTS[transposed]
    if len(arguments) > len(defaults) or not named.keys() <= defaults.keys():
        raise InputError(f"a convolution takes {', '.join(defaults)} after its bias; found {arguments!r} and {sorted(named)}")
    call = defaults | dict(zip(defaults, arguments, strict=False)) | named
    return {name: per_axis(v, ndim, name) if name != "groups" and not isinstance(v, str) else v for name, v in call.items()}
