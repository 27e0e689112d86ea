"""DCLS layers: convolutions whose taps have learnable positions (arXiv 2112.03740; Gaussian and triangle: arXiv 2306.00817).

    K_eff[s] = sum_t weight_t prod_axis phi(s - p_t),      p_t = start_t + offset_t

``s`` runs over the kernel's window, ``t`` over its taps, one axis after the other (row first). A layer made of a trained
convolution has a tap per weight, which starts on the dilated grid; its ``offset`` is zero, so the effective kernel is the
weight on that grid. A layer with ``elements`` has that many taps, whose offsets are counted from the window's centre. Positions
are kept inside the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ccrewrite.errors import InputError
from ccrewrite.forms import operators, regions
from ccrewrite.geometry import ConvGeometry, Ints, per_axis
from ccrewrite.nn import placement, shifting
from ccrewrite.nn.conv import RewrittenConv
from ccrewrite.nn.interpolation import INTERPOLATIONS, MIN_WIDTH, SCRATCH_WIDTH, sharp_width
from ccrewrite.nn.placement import Axis, positions_of, widths_of
from ccrewrite.nn.sampling import Sampling, bind

SHARINGS = ("tap", "group", "out", "in", "full")
POSITION_INITS = ("normal", "uniform")


class DclsSampling(Sampling):
    """Learnable positions of one convolution's taps.

    Args:
        geometry: the convolution's; with ``elements``, its ``kernel_size`` is the window.
        interpolation: "linear", "gaussian" or "triangle" (formulas in ``ccrewrite.nn.interpolation``).
        sharing: which channels share a tap's position: all ("tap"), those of one group ("group"), output channel ("out") or
            input channel ("in"), or none ("full", the paper's). "auto" is "full" for depthwise convolutions and "tap" for
            others.
        reach: samples by which the window is wider than the original kernel, on both sides. At 0 no tap leaves the original
            extent, so a causal convolution stays causal and the outermost taps can only move inwards.
        axes: the axes along which taps move; None: those with more than one tap.
        width: start width of a Gaussian (its standard deviation) or triangle (its half-width, at least 1), in samples. None:
            the width that starts out exact (``sharp_width``), or with ``elements`` the papers' (0.5 and 1).
        elements: number of taps, placed freely in the window. None: one per weight, on the kernel's grid.
        position_init: with ``elements``, "normal" (standard deviation 0.5 around the centre, the papers') or "uniform" over the
            window.

    Parameters: ``offset``, ``(len(axes), A, B, *taps)``, in samples, with ``A`` 1, groups or out and ``B`` 1 or in/groups as
    ``sharing`` says; ``taps`` is ``kernel_size``, or ``(elements, *window along the other axes)``. Not for "linear":
    ``widening``, of the same shape and zero at the start: the logarithm of each tap's width over ``width``.

    Raises ``InputError`` for a transposed geometry, and for options out of their range.

    >>> sampling = DclsSampling(ConvGeometry.from_module(nn.Conv2d(4, 8, 3, dilation=2)), sharing="out")
    >>> sampling.offset.shape, sampling.window, sampling.kernel(torch.ones(8, 4, 3, 3)).shape
    (torch.Size([2, 8, 1, 3, 3]), (5, 5), torch.Size([8, 4, 5, 5]))
    """

    offset: nn.Parameter
    widening: nn.Parameter | None
    form: str | None
    """How the convolution is evaluated, one of ``forms``; None: ``default_form``. ``ccrewrite.lower`` sets it."""

    def __init__(
        self,
        geometry: ConvGeometry,
        *,
        interpolation: str = "linear",
        sharing: str = "auto",
        reach: int = 0,
        axes: Sequence[int] | None = None,
        width: float | None = None,
        elements: int | None = None,
        position_init: str = "normal",
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        g = geometry
        if sharing == "auto":
            sharing = "full" if g.depthwise else "tap"
        _one_of("sharing", sharing, ("auto", *SHARINGS))
        _one_of("interpolation", interpolation, INTERPOLATIONS)
        _one_of("position_init", position_init, POSITION_INITS)
        if reach < 0:
            raise InputError(f"reach must be at least 0 samples, found {reach}")
        if g.transposed:
            raise InputError("DCLS samples the input of a convolution; for a transposed one use a CC layer")
        if elements is not None and (elements < 1 or set(g.dilation) != {1}):
            raise InputError(f"elements must be at least 1, in an undilated window; found {elements} and dilation {g.dilation}")
        wide = [n + 2 * reach for n in g.extent]
        self.axes: Ints = tuple(a for a, k in enumerate(g.kernel_size) if k > 1) if axes is None else tuple(sorted(axes))
        if not self.axes or any(a not in range(g.ndim) or wide[a] < 2 for a in self.axes):
            raise InputError(f"axes must name at least one axis of a window {tuple(wide)} with room to move, found {self.axes}")
        margin = tuple(reach if a in self.axes else 0 for a in range(g.ndim))
        super().__init__(g.kernel_size, g.dilation, transposed=False, margin=margin)
        self.geometry = g
        self.sharing = sharing
        self.interpolation = interpolation
        self.elements = elements
        self.position_init = position_init
        self.width = _start_width(interpolation, width, elements, dtype or torch.get_default_dtype())
        exact = interpolation == "linear" or self.width <= sharp_width(interpolation, dtype or torch.get_default_dtype())
        self.starts_exact = exact and elements is None
        self.placement = self._placement()
        self.coded = placement.coded(self.placement, interpolation, self.width)
        shared = sharing in ("tap", "out") and g.groups == 1
        bands = shared and shifting.pays(math.prod(self.taps), self.window, g.stride, g.in_channels)
        self.forms = ("window", *(("bands",) if shared else ()), *self._compiled_forms(g))
        self.default_form = "bands" if bands else "window"
        self.form = None
        rows = {"group": g.groups, "out": g.out_channels, "full": g.out_channels}.get(sharing, 1)
        columns = g.in_channels // g.groups if sharing in ("in", "full") else 1
        shape = (len(self.axes), rows, columns, *self.taps)
        self.offset = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
        wider = None if interpolation == "linear" else nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
        self.register_parameter("widening", wider)
        self.reset_parameters()

    def _compiled_forms(self, g: ConvGeometry) -> tuple[str, ...]:
        if self.interpolation != "linear":
            return ()
        sets = {"tap": 1, "in": 1, "group": g.groups}.get(self.sharing, g.out_channels)
        own = 1 if self.sharing not in ("in", "full") else g.in_channels // g.groups
        return operators.applicable(g.groups, (g.out_channels, g.in_channels // g.groups), (sets, own), g.stride)

    def _placement(self) -> tuple[Axis, ...]:
        window, fixed = self.window, [a for a in range(self.ndim) if a not in self.axes]
        rows = {a: row for row, a in enumerate(self.axes)}
        if self.elements is None:
            grid = zip(window, self.margin, self.dilation, strict=True)
            return tuple(Axis(size, a, float(m), d, rows.get(a, -1)) for a, (size, m, d) in enumerate(grid))
        return tuple(
            Axis(size, 0, self.margin[a] + (self.kernel_size[a] - 1) / 2, 0, rows[a])
            if a in rows
            else Axis(size, 1 + fixed.index(a), 0.0, 1, -1)
            for a, size in enumerate(window)
        )

    @classmethod
    def of(cls, geometry: ConvGeometry, **options: Any) -> Self:
        return cls(geometry, **options)

    @property
    def taps(self) -> Ints:
        """Shape of one filter's taps: ``weight.shape[2:]``."""
        if self.elements is None:
            return self.kernel_size
        return self.elements, *(k for a, k in enumerate(self.kernel_size) if a not in self.axes)

    def reset_parameters(self) -> None:
        """Start again: on the grid, or with ``elements`` where ``position_init`` draws them; widths at ``width``."""
        if self.elements is None:
            nn.init.zeros_(self.offset)
        elif self.position_init == "normal":
            nn.init.normal_(self.offset, 0, 0.5)
        else:
            for offset, axis in zip(self.offset, self.axes, strict=True):
                half = (self.window[axis] - 1) / 2
                nn.init.uniform_(offset, -half, half)
        if self.widening is not None:
            nn.init.zeros_(self.widening)

    def cells(self) -> list[Tensor]:
        """Where the taps are on each axis, ``(A, B, prod(taps))`` in samples from the window's first cell, inside it."""
        return positions_of(self.placement, self.taps, self.offset)

    def positions(self) -> Tensor:
        """Where the taps are: ``(len(axes), A, B, *taps)``, in samples from the window's centre, inside the window."""
        found = self.cells()
        return torch.stack([found[a] - (self.window[a] - 1) / 2 for a in self.axes]).view(self.offset.shape)

    def widths(self) -> Tensor | None:
        """Width of every tap, of ``offset``'s shape, in samples; None for "linear"."""
        found = widths_of(self.placement, self.interpolation, self.width, self.widening)
        return None if self.widening is None else torch.stack([w for w in found if w is not None]).view(self.offset.shape)

    def movers(self) -> list[Tensor]:
        if not self.starts_exact:
            return []
        return [self.offset] if self.widening is None else [self.offset, self.widening]

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any, **named: Any) -> Tensor:
        call = bind(False, self.ndim, arguments, named)
        form = self.form_of(call, weight)
        if form == "window" or self.runs_plain():
            return super().forward(input, weight, bias, **call)
        self.check_dilation(call["dilation"])
        pads = tuple((low + m, high + m) for (low, high), m in zip(self._pads(call["padding"]), self.margin, strict=True))
        opaque = self.opaque and regions.called()
        if form == "bands" and opaque:
            tensors = *operators.autocast(input, weight), *self.parameters()
            out = regions.region("dcls_bands", tensors, self.coded, (*call["stride"], *(n for pair in pads for n in pair)))
            return out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * self.ndim)
        if form == "bands":
            places = self.offset, self.widening, self.placement, self.interpolation, self.width
            return shifting.dcls_conv_shifted(input, weight, bias, *places, call["stride"], pads)
        offset = self.offset.to(torch.promote_types(self.offset.dtype, torch.float32))
        if opaque:
            positions = regions.region("dcls_positions", (offset,), self.coded)[:, :, 0]
        else:
            positions = torch.stack([along[:, 0] for along in positions_of(self.placement, self.taps, offset)])
        batched = input if input.dim() == 2 + self.ndim else input[None]
        out = operators.dcls_conv(batched, weight.flatten(2), positions, form, self.window, pads)
        out = out if batched is input else out[0]
        return out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * self.ndim)

    def form_of(self, call: dict[str, Any], weight: Tensor) -> str:
        """How a call is evaluated: "window" (build the effective kernel), "bands" (``ccrewrite.nn.shifting``) or one of
        ``ccrewrite.forms``, which are for torch.compile alone and give way to ``default_form`` elsewhere."""
        form = self.form
        if form not in (None, "window", "bands"):
            compiles = torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()
            sets = self.offset.shape[1], self.offset.shape[2]
            if compiles and form in operators.applicable(call["groups"], weight.shape, sets, call["stride"]):
                return form
            form = None
        form = form or self.default_form
        return form if call["groups"] == 1 else "window"

    def kernel(self, weight: Tensor) -> Tensor:
        if self.opaque and regions.called():
            return regions.region("dcls_kernel", (weight, *self.parameters()), self.coded)
        # By its module: symbolic_trace makes a leaf of the name there, not of one imported here.
        return placement.dcls_kernel(weight, self.offset, self.widening, self.placement, self.interpolation, self.width)

    def extra_repr(self) -> str:
        grid = f"dilation={self.dilation}" if self.elements is None else f"elements={self.elements}"
        width = "" if self.widening is None else f", width={self.width:.3g}"
        return (
            f"window={self.window}, {grid}, interpolation={self.interpolation}, sharing={self.sharing}, axes={self.axes}{width}"
        )


def share_positions(*layers: nn.Module) -> None:
    """Let DCLS layers share one set of positions (and widths), the first one's, as the stages of ConvNeXt-dcls do. In place.

    The parameters become the same objects: copies, pickles, optimizers and ``state_dict`` keep the tie. Raises ``InputError``
    where the layers' positions differ in shape, start, interpolation or window.

    >>> a, b = (DclsConv2d(8, 8, elements=5, window=7, padding="same", groups=8) for _ in range(2))
    >>> share_positions(a, b)
    >>> a.sampling.offset is b.sampling.offset
    True
    """
    samplings = [getattr(layer, "sampling", layer) for layer in layers]
    for index, sampling in enumerate(samplings):
        if not isinstance(sampling, DclsSampling):
            raise InputError(f"share_positions takes DCLS layers, found {type(layers[index]).__name__} at index {index}")
    first, *others = cast(list[DclsSampling], samplings)
    for index, other in enumerate(others, 1):
        for name in ("interpolation", "width", "placement"):
            _same(name, getattr(first, name), getattr(other, name), index)
        _same("offset's shape", tuple(first.offset.shape), tuple(other.offset.shape), index)
    for other in others:
        other.offset, other.widening = first.offset, first.widening


class DclsConv(RewrittenConv):
    """What the DCLS layers of all dimensions have in common; use ``DclsConv1d``, ``DclsConv2d``, ``DclsConv3d``."""

    sampling_class = DclsSampling
    weight_init = "kaiming"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        elements: int | None = None,
        window: int | Sequence[int] | None = None,
        weight_init: str = "kaiming",
        **options: Any,
    ) -> None:
        ndim = int(self.torch_class.__name__[-2])
        _one_of("weight_init", weight_init, ("kaiming", "trunc_normal"))
        self.weight_init = weight_init
        if (elements is None) != (window is None) or (elements is None) == (kernel_size is None):
            raise InputError(
                f"{type(self).__name__} takes either kernel_size (taps on a grid) or elements and window (taps placed freely); "
                f"found kernel_size={kernel_size}, elements={elements}, window={window}"
            )
        size = per_axis(
            window if kernel_size is None else kernel_size, ndim, "window" if kernel_size is None else "kernel_size"
        )
        # On the meta device: with `elements` the weight has another shape than torch would give it.
        super().__init__(in_channels, out_channels, size, stride, padding, dilation, groups, bias, padding_mode, "meta", dtype)  # pyright: ignore
        conv = cast(_ConvNd, self)
        factory: dict[str, Any] = {"device": device or torch.get_default_device(), "dtype": conv.weight.dtype}
        sampling = DclsSampling(ConvGeometry.from_module(conv), elements=elements, **options, **factory)
        conv.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *sampling.taps, **factory))
        if conv.bias is not None:
            conv.bias = nn.Parameter(torch.empty(out_channels, **factory))
        self.sampling = sampling
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, and the positions as ``DclsSampling.reset_parameters`` does."""
        conv = cast(_ConvNd, self)
        _ConvNd.reset_parameters(conv)
        if self.weight_init == "trunc_normal":
            nn.init.trunc_normal_(conv.weight, std=0.02)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        sampling = self._modules.get("sampling")
        if sampling is not None:  # torch's own constructor calls this before there is one
            cast(DclsSampling, sampling).reset_parameters()


class DclsConv1d(DclsConv, nn.Conv1d, replaces=nn.Conv1d):
    """A 1-d convolution with learnable tap positions; arguments as ``DclsConv2d``'s.

    Input ``(N, C_in, L)`` or ``(C_in, L)``, output as ``nn.Conv1d``'s.

    >>> delays = DclsConv1d(4, 4, elements=2, window=31, padding="same", interpolation="gaussian", position_init="uniform")
    >>> delays(torch.randn(1, 4, 50)).shape, delays.sampling.positions().shape
    (torch.Size([1, 4, 50]), torch.Size([1, 1, 1, 2]))
    """


class DclsConv2d(DclsConv, nn.Conv2d, replaces=nn.Conv2d):
    """A 2-d convolution whose taps have learnable positions (arXiv 2112.03740; formula in ``ccrewrite.nn.dcls``).

    From scratch, either ``elements`` taps placed freely in a ``window`` (the papers' layer), or a grid of ``kernel_size`` taps
    with a ``dilation``. ``weight`` is ``(out, in/groups, elements)`` or ``(out, in/groups, *kernel_size)``; taps placed freely
    along some ``axes`` only are ``(out, in/groups, elements, *window along the others)``. ``weight_init`` is "kaiming" (torch's
    and the reference's) or "trunc_normal" (standard deviation 0.02 and zero bias, ConvNeXt's). The other arguments are those of
    ``nn.Conv2d`` (``padding="same"`` too) and, by name, of ``DclsSampling``.

    Input ``(N, C_in, H, W)`` or ``(C_in, H, W)``, output as ``nn.Conv2d``'s for a kernel of the window's size.

    >>> layer = DclsConv2d(16, 16, padding="same", groups=16, elements=34, window=17)
    >>> layer(torch.randn(1, 16, 32, 32)).shape, layer.weight.shape, layer.sampling.offset.shape
    (torch.Size([1, 16, 32, 32]), torch.Size([16, 1, 34]), torch.Size([2, 16, 1, 34]))

    Made from a trained layer, it computes the same:

    >>> conv = nn.Conv2d(3, 8, 3, padding=4, dilation=4)
    >>> layer, x = DclsConv2d.from_conv(conv), torch.randn(1, 3, 9, 9)
    >>> torch.allclose(layer(x), conv(x), atol=1e-5), layer.sampling.offset.shape
    (True, torch.Size([2, 1, 1, 3, 3]))
    """


class DclsConv3d(DclsConv, nn.Conv3d, replaces=nn.Conv3d):
    """A 3-d convolution with learnable tap positions; arguments as ``DclsConv2d``'s.

    Input ``(N, C_in, D, H, W)`` or ``(C_in, D, H, W)``, output as ``nn.Conv3d``'s. Taps that move in time alone:

    >>> layer = DclsConv3d(2, 4, padding="same", elements=3, window=(9, 3, 3), axes=(0,))
    >>> layer.weight.shape, layer(torch.randn(1, 2, 9, 8, 8)).shape
    (torch.Size([4, 2, 3, 3, 3]), torch.Size([1, 4, 9, 8, 8]))
    """


def _start_width(interpolation: str, width: float | None, elements: int | None, dtype: torch.dtype) -> float:
    if interpolation == "linear":
        if width is not None:
            raise InputError(f"interpolation 'linear' has no width, found {width}; use 'gaussian' or 'triangle'")
        return 1.0
    if width is None:
        return sharp_width(interpolation, dtype) if elements is None else SCRATCH_WIDTH[interpolation]
    if not (math.isfinite(width) and width >= MIN_WIDTH[interpolation]):
        raise InputError(f"width of a {interpolation} must be at least {MIN_WIDTH[interpolation]} samples, found {width}")
    return float(width)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}, found {value!r}")


def _same(name: str, expected: Any, found: Any, index: int) -> None:
    if expected != found:
        raise InputError(
            f"layers that share positions must agree in {name}: {expected} in the first, {found} in number {index}"
        )
