"""The sampling of CC layers: taps as the nodes of a continuous kernel, sampled for any output size (arXiv 2006.11120).

At its native size a layer convolves with the effective kernel: along each axis, tap ``t`` contributes ``phi_t(s - t')`` to
sample ``s`` of the window, with ``t'`` the tap's own place (``phi``: ``profile.py``). While shift and residual are
zero, that is the weight on its dilated grid. Coordinates are samples of the finer lattice: the input's for a convolution, the
output's for a transposed one. At another size, the axes that change are resampled (``resampling.py``) around the
untouched weight.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families import regions
from ccrewrite.families.cc import curves, estimate, fold, native, operators, resized
from ccrewrite.families.cc.networks import FilterNetwork, Residual
from ccrewrite.families.cc.profile import MAX_SHIFT, SUPPORT, Along, Basis, profile
from ccrewrite.families.learnable import Recording, clamp_between_
from ccrewrite.families.look import require_values
from ccrewrite.families.onnx import OnnxForm
from ccrewrite.families.resizable import Alignment, ResizableSampling, Scales
from ccrewrite.folded.alternative import Alternative
from ccrewrite.ir.calls import CallShapes
from ccrewrite.ir.geometry import ConvArguments, ConvGeometry, Ints
from ccrewrite.ir.operators import full_precision
from ccrewrite.ir.options import check_options
from ccrewrite.ir.outcome import GivenModel, model_of
from ccrewrite.ir.typed import fft

Kernel = Literal["nodes", "mlp"]
Sharing = Literal["tap", "axis"]
HIDDEN: dict[Kernel, int] = {"nodes": 16, "mlp": 64}
"""What the continuous kernel is made of -> the width of its networks."""


class CCSampling(ResizableSampling):
    """Continuous kernel of one convolution: a shift and a residual per axis over the nodes that the weight gives.

    Args:
        geometry: the convolution's.
        kernel: "nodes": interpolation between the weight's taps, with a learned shift and residual. "mlp": the whole filter is
            a network of the coordinates (``ccrewrite.families.cc.networks``), fitted to start as the weight (``fit_error``).
        basis: what interpolates between the nodes, "cubic" (Keys) or "linear".
        hidden: width of the residual networks, or of the filter's; None: 16, or 64.
        reach: samples by which the kernel may come to exceed its original extent at each end, natively, 0 to 2; None: 2, or 0
            with "mlp". With 0, a causal convolution stays one.
        alignment: "native" keeps each output where the convolution has it; "centred" puts the centre of the output on the
            input's, at every size (the paper's grid).
        axes: the spatial axes that become continuous; None: all. Along the others nothing is learned and nothing is added to
            the kernel's extent. Layers and rules leave out axes of one tap and stride 1 (``continuous_axes``).
        sharing: "tap": each tap has a residual of its own; "axis": all taps of an axis share one, which makes the layer a
            filter along each axis and the plain convolution.

    Parameters: ``shift``, a number for each of ``axes``, in samples of the finer lattice, kept within +-0.5; ``residual``, one
    ``Residual`` for each of them. The residual's inner layers learn once its last layer has moved. With "mlp": ``network``, one
    ``FilterNetwork`` per axis, and no shift; then ``axes`` must be all, and ``sharing`` "tap".

    ``output_size``, ``scale`` and ``rescaled`` ask for another size than the native one: see ``ResizableSampling``. Rescaled,
    the taps keep their distance in the picture also where they come closer than a sample.

    Raises ``InputError`` for options out of their range.
    """

    attributes = ("output_size", "scale", "rescaled")  # the alignment is one of the options
    default_form = "separable"
    """Along each axis the cheapest way: a window, or one product for all taps (``native.py``). The other form, "filtered", is
    for torch.compile alone: filters along each axis and one product (``operators.py``)."""

    shift: nn.Parameter | None
    axes: Ints
    """The spatial axes that are continuous, in order."""

    def __init__(
        self,
        geometry: ConvGeometry,
        *,
        kernel: Kernel = "nodes",
        basis: Basis = "cubic",
        hidden: int | None = None,
        reach: int | None = None,
        alignment: Alignment = "native",
        axes: tuple[int, ...] | None = None,
        sharing: Sharing = "tap",
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        owner, mlp = type(self).__name__, kernel == "mlp"
        options = {"kernel": kernel, "basis": basis, "hidden": hidden, "reach": reach, "alignment": alignment}
        check_options(owner, CCSampling, {**options, "axes": axes, "sharing": sharing})
        hidden, reach = checked_options(owner, kernel, hidden, reach, sharing)
        every = tuple(range(geometry.ndim))
        axes = every if axes is None else tuple(sorted(set(axes)))
        if not axes or not set(axes) <= set(every) or (mlp and axes != every):
            wanted = f"all of {every} for kernel 'mlp'" if mlp else f"some of {every}"
            raise InputError(f"{owner}: axes must be {wanted}, found {axes}")
        super().__init__(geometry, margin=tuple(reach if a in axes else 0 for a in every))
        self.axes, self.sharing, self.reach = axes, sharing, reach
        self.forms = ("separable", "filtered") if operators.applicable(geometry) else ("separable",)
        self.basis = basis
        self.alignment = alignment
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        if mlp:
            grid = zip(self.kernel_size, self.dilation, strict=True)
            self.register_parameter("shift", None)
            self.network = nn.ModuleList(FilterNetwork(k, d, hidden, **factory) for k, d in grid)
        else:
            taps, shared = (self.kernel_size[a] for a in axes), sharing == "axis"
            self.shift = nn.Parameter(torch.zeros(len(axes), **factory))
            self.residual = nn.ModuleList(Residual(k, hidden, shared=shared, **factory) for k in taps)

    @property
    def sets(self) -> tuple[int, int]:
        return 1, 1

    def options(self) -> dict[str, Any]:
        return {
            "kernel": "mlp" if self.shift is None else "nodes",
            "basis": self.basis,
            "hidden": self._networks()[0].inner.bias.numel(),
            "reach": self.reach,
            "alignment": self.alignment,
            "axes": list(self.axes),
            "sharing": self.sharing,
        }

    def describe(self) -> str:
        made = "kernel mlp" if self.shift is None else f"sharing {self.sharing}"
        plain = [str(a) for a in range(self.ndim) if a not in self.axes]
        left = [f"axis {' and '.join(plain)} left plain"] if plain else []
        return ", ".join([super().describe(), f"reach {self.reach}", made, *left])

    def reset_parameters(self) -> None:
        """Start again: no shift, no residual; networks fitted anew."""
        if self.shift is not None:
            nn.init.zeros_(self.shift)
        for axis in self._networks():
            axis.reset_parameters()

    def movers(self) -> list[Tensor]:
        shift = self.shift
        if shift is None:
            return []
        # Past `getattr` (which a tracer watches for the shift): this runs in every call.
        last = (axis._modules["last"] for axis in self._modules["residual"]._modules.values())  # pyright: ignore[reportOptionalMemberAccess]
        return [shift, *(p for layer in last for p in layer._parameters.values())]  # pyright: ignore[reportOptionalMemberAccess, reportReturnType]

    def clamp_(self) -> None:
        if self.shift is not None:
            bound = torch.tensor(MAX_SHIFT, dtype=self.shift.dtype, device=self.shift.device)
            clamp_between_(self.shift, -bound, bound)

    @torch.no_grad()
    def snap_(self, tol: float, *, width: float | None = None) -> float:
        if self.shift is None:
            return 0.0
        near = self.shift.abs() <= tol
        moved = float((self.shift.abs() * near).max())
        self.shift.masked_fill_(near, 0)
        return moved

    def recording(self) -> Recording:
        return curves.recording(self.along(), self.kernel_size)

    def picture(self) -> dict[str, Any]:
        return curves.picture(self.along(), self.kernel_size)

    def alternatives(self, geometry: ConvGeometry) -> tuple[Alternative, ...]:
        return fold.alternatives(self, geometry)

    def kernel(self, weight: Tensor) -> Tensor:
        return native.cc_kernel(weight, self.along(), self.dilation, self.margin)

    def values(self) -> list[Tensor]:
        return [] if self.shift is None else [self.shift]  # the networks' where they are read

    def _moved_along(self, weight: Tensor) -> tuple[Along, ...]:
        alongs = self.along()
        require_values(self, [tensor for along in alongs for tensor in along.layers], weight)
        return alongs

    def moved(self, input: Tensor, weight: Tensor, bias: Tensor | None, call: ConvArguments) -> Tensor:
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return super().moved(input, weight, bias, call)  # with the window: the cheapest form goes by the input's size
        evaluate = operators.cc_conv if self.form == "filtered" and regions.traced() else native.cc_native
        return evaluate(input, weight, bias, self._moved_along(weight), self.margin, call)

    def estimates(self, call: CallShapes, training: bool) -> dict[str, float]:
        return estimate.estimates(self.forms, call, self.geometry, self.window, self.axes, training)

    def form_alone(self, call: CallShapes, training: bool) -> str | None:
        return min(guessed := self.estimates(call, training), key=lambda form: guessed[form])

    def at_size(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, call: ConvArguments, asked: Ints | None, scale: Scales | None
    ) -> Tensor:
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            raise InputError(
                "torch.jit.trace would keep the sizes of the example inputs in a layer that asks for another output size: "
                "ccrewrite.fold the model for them first, or use torch.export"
            )
        asks = (call, asked, scale, self.alignment, self.rescaled)
        # By their module: symbolic_trace makes leaves of the names there, not of ones imported here.
        return resized.cc_resized(input, weight, bias, self._moved_along(weight), self.margin, *asks, self.runs_plain())

    def onnx_form(self) -> OnnxForm:
        from ccrewrite.families.cc.onnx.form import CCForm  # of the extra onnx

        return CCForm(self)

    def fit_error(self, weight: Tensor) -> float:
        """How far the native kernel is from ``weight`` on its grid: largest difference over the largest weight."""
        with torch.no_grad():
            kernel = self.kernel(weight)
            grid = torch.zeros_like(kernel)
            spans = zip(self.margin, self.dilation, self.kernel_size, strict=True)
            grid[(..., *(slice(m, m + d * (k - 1) + 1, d) for m, d, k in spans))] = weight
            return float((kernel - grid).abs().max() / weight.abs().max())

    def nyquist_penalty(self) -> Tensor:
        """Power of what was learned on top of the interpolant at frequencies that samples one apart can't carry, summed over
        axes and averaged over taps (the idea is FlexConv's, arXiv 2110.08059). Zero at the start; for a loss."""
        total: list[Tensor] = []
        alongs = self.along()
        for axis in self.axes:
            along = alongs[axis]
            half, taps = along.twice_support / 2, torch.arange(self.kernel_size[axis], device=along.layers[0].device)
            with full_precision(taps.device):
                places = torch.linspace(-half, half, round(16 * half) + 1, dtype=along.dtype, device=taps.device)[:-1]
                values, bump = profile(places, taps, along)
                spectrum = fft.rfft(values - bump) / 8
                beyond = fft.rfftfreq(len(places), 1 / 8, device=taps.device) > 0.5
                total.append((spectrum.abs().square() * beyond).sum(-1).mean() / (2 * half))
        return torch.stack(total).sum()

    def _networks(self) -> list[Any]:
        return list(self.network if self.shift is None else self.residual)

    def along(self) -> tuple[Along, ...]:
        """The continuous kernel of each axis."""
        mlp, networks = self.shift is None, self._networks()
        cut = not mlp and self.reach < SUPPORT  # of two samples nothing needs to be cut: natively no kernel is wider
        alongs: list[Along] = []
        for a in range(self.ndim):
            along = Along(self.basis, 0, self.shift, (), spacing=self.dilation[a], opaque=self.opaque)
            if a in self.axes:
                index = self.axes.index(a)
                along = along._replace(
                    shift_index=index,
                    layers=networks[index](),
                    extent=self.window[a] if mlp else 0,
                    within=self.window[a] if cut else 0,
                    shared=self.sharing == "axis" and not cut,
                )
            alongs.append(along)
        return tuple(alongs)

    def extra_repr(self) -> str:
        shape = f"basis={self.basis}" if self.shift is not None else "kernel=mlp"
        own = f"kernel_size={self.kernel_size}, dilation={self.dilation}, {shape}, transposed={self.transposed}"
        return ", ".join(filter(None, (own, super().extra_repr())))


def continuous_axes(geometry: ConvGeometry, kernel: Kernel) -> Ints | None:
    """The ``axes`` that layers and rules ask for: those with more than one tap or a stride, of which a continuous kernel makes
    something; None (all) where there are none, and for "mlp".

    >>> continuous_axes(ConvGeometry.from_module(nn.Conv2d(1, 32, (512, 1), stride=(4, 1))), "nodes")
    (0,)
    """
    axes = tuple(a for a in range(geometry.ndim) if geometry.kernel_size[a] > 1 or geometry.stride[a] > 1)
    return (axes or None) if kernel == "nodes" else None


def checked_options(owner: str, kernel: Kernel, hidden: int | None, reach: int | None, sharing: Sharing) -> tuple[int, int]:
    """``hidden`` and ``reach``, the kernel's own where they are None. Raises ``InputError`` where an option is out of range."""
    if kernel == "mlp" and sharing != "tap":
        raise InputError(f"{owner}: kernel 'mlp' has no residual to share, found sharing {sharing!r}")
    hidden = HIDDEN[kernel] if hidden is None else hidden
    if hidden < 1:
        raise InputError(f"{owner}: hidden must be at least 1, found {hidden}")
    most = 0 if kernel == "mlp" else SUPPORT
    reach = most if reach is None else reach
    if not 0 <= reach <= most:
        raise InputError(f"{owner}: reach must be 0 to {most} samples for kernel {kernel!r}, found {reach}")
    return hidden, reach


def nyquist_penalty(model: GivenModel) -> Tensor:
    """``CCSampling.nyquist_penalty`` summed over the CC layers of ``model``, to be added to a loss.

    Raises ``InputError`` where there is none.
    """
    found = [module.nyquist_penalty() for module in model_of(model).modules() if isinstance(module, CCSampling)]
    if not found:
        raise InputError("nyquist_penalty found no CC layer in the model; rewrite it first")
    return torch.stack(found).sum()
