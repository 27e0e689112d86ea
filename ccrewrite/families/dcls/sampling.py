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
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families import regions
from ccrewrite.families.dcls import fold as folding
from ccrewrite.families.dcls import kernel
from ccrewrite.families.dcls.forms import bands, estimate, opaque, operators, slices
from ccrewrite.families.dcls.grid import Grid
from ccrewrite.families.dcls.positions import TapPositions, check_reach
from ccrewrite.families.interpolation import MIN_WIDTH, SCRATCH_WIDTH, Interpolation, sharp_width
from ccrewrite.families.look import readable
from ccrewrite.families.onnx import OnnxForm
from ccrewrite.folded.alternative import Alternative
from ccrewrite.gathering.places import Layout
from ccrewrite.ir.calls import CallShapes
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import autocast, bind
from ccrewrite.ir.options import check_options

SLOWER = 3.0
"""A depthwise layer's slices in eager mode take so many times longer, beyond the compiled form's time."""
Sharing = Literal["tap", "group", "out", "in", "full"]
MOST_CELLS = 1 << 24
"""Samples of the largest window that ``reach`` may make of a kernel."""
SHARINGS: tuple[Sharing, ...] = get_args(Sharing)


class DclsSampling(TapPositions):
    """Learnable positions of one convolution's taps.

    Args:
        geometry: the convolution's; with ``elements``, its ``kernel_size`` is the window.
        interpolation: "linear", "gaussian" or "triangle" (formulas in ``ccrewrite.families.interpolation``).
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

    attributes = ("starts_exact",)

    def __init__(
        self,
        geometry: ConvGeometry,
        *,
        interpolation: Interpolation = "linear",
        sharing: Literal["auto", Sharing] = "auto",
        reach: int = 0,
        axes: Sequence[int] | None = None,
        width: float | None = None,
        elements: int | None = None,
        position_init: Literal["normal", "uniform"] = "normal",
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        g, owner = geometry, type(self).__name__
        options = {"interpolation": interpolation, "sharing": sharing, "reach": reach, "axes": axes, "width": width}
        check_options(owner, DclsSampling, options | {"elements": elements, "position_init": position_init})
        check_reach(owner, reach)
        if sharing == "auto":
            sharing = "full" if g.depthwise else "tap"
        if g.transposed:
            raise InputError("DCLS samples the input of a convolution; for a transposed one use a CC layer")
        if elements is not None and (elements < 1 or set(g.dilation) != {1}):
            raise InputError(f"elements must be at least 1, in an undilated window; found {elements} and dilation {g.dilation}")
        wide = [n + 2 * reach for n in g.extent]
        self.axes: Ints = tuple(a for a, k in enumerate(g.kernel_size) if k > 1) if axes is None else tuple(sorted(axes))
        if not self.axes or any(a not in range(g.ndim) or wide[a] < 2 for a in self.axes):
            raise InputError(f"axes must name at least one axis of a window {tuple(wide)} with room to move, found {self.axes}")
        if reach and math.prod(wide) > MOST_CELLS:
            raise InputError(f"{owner}: reach {reach} makes a window of {tuple(wide)}, more than {MOST_CELLS} samples")
        margin = tuple(reach if a in self.axes else 0 for a in range(g.ndim))
        super().__init__(g, margin=margin)
        self.sharing = sharing
        self.interpolation = interpolation
        self.elements = elements
        self.position_init = position_init
        self.width = _start_width(interpolation, width, elements, dtype or torch.get_default_dtype())
        exact = interpolation == "linear" or self.width <= sharp_width(interpolation, dtype or torch.get_default_dtype())
        self.starts_exact = exact and elements is None
        grid_of = Grid.of_taps if elements is None else Grid.of_elements
        self.grid = grid_of(g, self.margin, self.axes, interpolation, self.width)
        self.coded = self.grid.to_text()  # now, for torch.compile can't trace it
        shared = sharing in ("tap", "out") and g.groups == 1
        banded = shared and bands.pays(math.prod(self.taps), self.window, g.stride, g.in_channels)
        self.forms = ("window", *(("bands",) if shared else ()), *self._compiled_forms(g))
        self.default_form = "bands" if banded else "window"
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
        found = operators.applicable(g.groups, (g.out_channels, g.in_channels // g.groups), (sets, own), g.stride)
        return (*found, "slices") if self.sharing == "tap" and g.in_channels > g.groups else found

    @property
    def taps(self) -> Ints:
        if self.elements is None:
            return self.kernel_size
        return self.elements, *(k for a, k in enumerate(self.kernel_size) if a not in self.axes)

    @property
    def own_weight(self) -> bool:
        return self.elements is not None

    @property
    def sets(self) -> tuple[int, int]:
        return self.offset.shape[1], self.offset.shape[2]

    def options(self) -> dict[str, Any]:
        width = None if self.widening is None else self.width
        same = ("interpolation", "sharing", "axes", "elements", "position_init")
        # Axes that don't move have no margin.
        return {name: getattr(self, name) for name in same} | {"reach": max(self.margin), "width": width}

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

    def movers(self) -> list[Tensor]:
        if not self.starts_exact:
            return []
        return [self.offset] if self.widening is None else [self.offset, self.widening]

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any, **named: Any) -> Tensor:
        call = bind(False, self.ndim, arguments, named)
        if self.runs_plain():
            return self.plain(input, weight, bias, **call)
        self.check_call(call["dilation"], weight)
        pads = tuple((low + m, high + m) for (low, high), m in zip(self._pads(call["padding"]), self.margin, strict=True))
        layout = Layout(self.window, call["stride"], pads, call["groups"])
        form = self.form_of(input, weight, layout)
        if form == "window":
            return self.evaluated(input, weight, bias, call)
        if form == "bands":
            out = self._as_bands(input, weight, layout)
            return out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * self.ndim)
        evaluate = self._as_operator if regions.traced() else self._as_slices
        batched = input if input.dim() == 2 + self.ndim else input[None]
        out = evaluate(batched, weight, bias, layout, form)
        return out if batched is input else out[0]

    def estimates(self, call: CallShapes, training: bool) -> dict[str, float]:
        return estimate.estimates(self.forms, call, self.taps, self.window, training)

    def form_of(self, input: Tensor, weight: Tensor, layout: Layout) -> str:
        """How a call is evaluated: ``form`` where it can be, else in eager mode the cheapest form at these sizes, else
        ``default_form``. "window" builds the effective kernel; the others: ``forms/``."""
        if self.form in ("window", "bands"):
            form = self.form
        elif self.form == "slices" and (regions.traced() or readable([self.offset, input])):
            return "slices"
        elif self._compiles(self.form, input, weight, layout):
            return cast(str, self.form)
        else:
            form = self.default_form
            if self.interpolation == "linear" and readable([self.offset, input]):
                form = estimate.cheapest(form, self.sharing, input, weight, layout, torch.is_grad_enabled())
        if form == "bands" and layout.groups > 1:
            return "window"
        return form

    def form_alone(self, call: CallShapes, training: bool) -> str | None:
        g = self.geometry
        if self.interpolation != "linear" or (self.sharing == "full" and g.in_channels > g.groups):
            return "window" if self.default_form == "window" else None
        compiled = [form for form in self.forms if form in operators.FORMS]
        if call.device.type == "cpu":  # slices are as fast, but for depthwise layers
            compiled = [form for form in compiled if form == "taps"]
        guessed = self.estimates(call, training)
        best = min((*compiled, "window"), key=lambda form: guessed[form])
        return best if best in compiled else None

    def saved_alone(self, call: CallShapes, training: bool) -> float:
        if "taps" not in self.forms:
            return super().saved_alone(call, training)
        return SLOWER * self.estimates(call, training)["taps"]

    def _compiles(self, form: str | None, input: Tensor, weight: Tensor, layout: Layout) -> bool:
        if form is None or not (regions.traced() or self.runs_compiled(input)):
            return False
        return form in operators.applicable(layout.groups, weight.shape, self.sets, layout.stride)

    def _as_bands(self, input: Tensor, weight: Tensor, layout: Layout) -> Tensor:
        if regions.called(self.opaque):
            tensors = *autocast(input, weight), *self.parameters()
            numbers = *layout.stride, *(n for pair in layout.pads for n in pair)
            return regions.region("dcls_bands", tensors, self.coded, numbers)
        # By its module: symbolic_trace makes a leaf of the name there, not of one imported here.
        return bands.banded_conv(input, weight, self.offset, self.widening, self.grid, layout.stride, layout.pads)

    def _as_slices(self, input: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout, form: str) -> Tensor:
        positions = torch.stack(self.grid.positions(self.taps, self._offset()))
        compiled = None if form == "slices" else form
        return slices.dcls_conv(*autocast(input, weight.flatten(2)), bias, positions, self.sharing, layout, compiled)

    def _as_operator(self, input: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout, form: str) -> Tensor:
        if form == "slices":
            out = opaque.dcls_slices(input, weight.flatten(2), self._offset(), self.coded, layout)
            return out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * self.ndim)
        if regions.called(self.opaque):
            positions = regions.region("dcls_positions", (self._offset(),), self.coded)[:, :, 0]
        else:
            positions = torch.stack([along[:, 0] for along in self.grid.positions(self.taps, self._offset())])
        out = operators.dcls_conv(input, weight.flatten(2), positions, form, self.window, layout.pads)
        return out if bias is None else out + bias.to(out.dtype).view(-1, *(1,) * self.ndim)

    def _offset(self) -> Tensor:
        return self.offset.to(torch.promote_types(self.offset.dtype, torch.float32))

    def kernel(self, weight: Tensor) -> Tensor:
        if regions.called(self.opaque):
            return regions.region("dcls_kernel", (weight, *self.parameters()), self.coded)
        return kernel.dcls_kernel(weight, self.offset, self.widening, self.grid)

    def onnx_form(self) -> OnnxForm | None:
        if self.interpolation != "linear":
            return None
        from ccrewrite.families.dcls.onnx import DclsForm  # of the extra onnx

        return DclsForm(self)

    def fixed(self) -> nn.Module | None:
        return folding.fixed(self)

    def alternatives(self, geometry: ConvGeometry) -> tuple[Alternative, ...]:
        return folding.alternatives(self, geometry)

    def extra_repr(self) -> str:
        grid = f"dilation={self.dilation}" if self.elements is None else f"elements={self.elements}"
        width = "" if self.widening is None else f", width={self.width:.3g}"
        return (
            f"window={self.window}, {grid}, interpolation={self.interpolation}, sharing={self.sharing}, axes={self.axes}{width}"
        )


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
