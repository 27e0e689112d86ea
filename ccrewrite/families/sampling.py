"""What a replacement layer adds to a convolution: a ``Sampling``, the learnable geometry of its kernel.

A sampling turns the call's ``weight`` into the effective kernel on a dense window, ``K_eff = B(geometry) . weight``, and
convolves with that. It never owns the weight, so it serves a module's convolution and a functional one alike.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families import alone
from ccrewrite.families.estimate import dense_seconds
from ccrewrite.families.learnable import Learnable
from ccrewrite.families.look import any_, readable, require_values, still
from ccrewrite.families.onnx import OnnxForm
from ccrewrite.folded.alternative import Alternative
from ccrewrite.folded.scripting import Unscriptable
from ccrewrite.gathering import depthwise
from ccrewrite.ir.calls import FUNCTIONS, CallShapes
from ccrewrite.ir.geometry import AxisMap, ConvArguments, ConvGeometry, Ints, Padding, per_axis, require_channels
from ccrewrite.ir.operators import CONVOLUTIONS, NAMED_PADDING, TRANSPOSED, bind
from ccrewrite.ir.torch_private import len_torch_function_stack

SAVED = 0.5
"""What compiling a layer by itself saves, over the plain convolution's time: the building of its kernel, for the most part."""


class Sampling(Learnable, Unscriptable, ABC):
    """Learnable geometry of one convolution; called with the arguments of the torch function that it stands for.

    ``sampling(input, weight, bias, stride, padding, dilation, groups)`` in place of ``F.convNd``, and
    ``sampling(input, weight, bias, stride, padding, output_padding, groups, dilation)`` in place of ``F.conv_transposeNd``.

    While the geometry is untouched and nothing differentiates through it, the plain torch function runs: bitwise equal.
    Otherwise the effective kernel is built on the window that holds the original extent and ``margin`` samples on both sides.

    Subclasses must give ``movers`` and ``kernel``. The rest has defaults, right if slow (docs/writing-a-family.md).

    Args:
        geometry: of the convolution that it stands for.
        margin: samples by which the window exceeds the original extent on both sides, per axis or one number for all.
    """

    attributes: ClassVar[tuple[str, ...]] = ()
    """Names of what may be set after construction: ``save`` writes them beside ``options()``."""

    margin: Ints
    """Samples by which the window exceeds the kernel's original extent, per axis and on both sides."""
    forms: tuple[str, ...] = ("window",)
    """Ways to evaluate the convolution, which all compute the same. "window" builds the effective kernel and convolves."""
    default_form: str = "window"
    """The one of ``forms`` that a call takes while ``form`` is None."""
    form: str | None = None
    """The one of ``forms`` that is wanted. ``ccrewrite.lower`` sets it; a class with several forms acts on it."""
    site: str = ""
    """Name of its site in the model that it was put into, for messages."""
    opaque: bool = False
    """Whether torch.compile takes what is built of the geometry as operators (``regions.py``), so that layers that are alike
    are compiled once. ``ccrewrite.lower`` sets it."""
    compiled_at: frozenset[tuple[int, ...]] = frozenset()
    """Shapes of inputs at which this layer is compiled by itself, also where its model runs eagerly (``alone.py``).
    ``ccrewrite.lower(scope="sites")`` sets it."""

    def __init__(self, geometry: ConvGeometry, *, margin: int | Sequence[int] = 0) -> None:
        super().__init__()
        self.geometry = geometry
        self.kernel_size = geometry.kernel_size
        self.dilation = geometry.dilation
        self.transposed = geometry.transposed
        self.margin = per_axis(margin, geometry.ndim, "margin")
        if min(self.margin) < 0:
            raise InputError(f"{type(self).__name__}: margin must be at least 0, found {margin}")

    @property
    def ndim(self) -> int:
        return len(self.kernel_size)

    @property
    def window(self) -> Ints:
        """Size of the effective kernel, per axis."""
        sizes = zip(self.kernel_size, self.dilation, self.margin, strict=True)
        return tuple(d * (k - 1) + 1 + 2 * m for k, d, m in sizes)

    @property
    def taps(self) -> Ints:
        """Shape of one filter's taps, ``weight.shape[2:]``; not ``kernel_size`` where the weight isn't the original's."""
        return self.kernel_size

    @property
    def own_weight(self) -> bool:
        """Whether the layer's weight is not the original's, but ``taps`` that were made of it."""
        return self.taps != self.kernel_size

    @property
    def sets(self) -> tuple[int, int]:
        """Along the weight's first two dimensions, how many channels may have a geometry of their own; ``(1, 1)`` where one is
        everybody's, and a weight may have any number of channels. By default all: ``fold`` finds out which are alike."""
        return self.geometry.weight_channels

    @property
    def resized(self) -> bool:
        """Whether calls are asked for another size or grid than the convolution's own (``ResizableSampling``)."""
        return False

    def axis_map(self, geometry: ConvGeometry, axis: int, input_size: int, output_size: int) -> AxisMap:
        """Where the ``output_size`` outputs of one axis look, in samples of an input that has ``input_size`` of them.

        ``geometry`` is that of the call: a sampling's own may have other padding, where its layer pads by itself.
        """
        return geometry.axis_map(axis)

    @classmethod
    def of(cls, geometry: ConvGeometry, **options: Any) -> Self:
        """The sampling that starts out as a convolution of this geometry; ``options`` are the class's own, and
        ``dtype``, ``device``."""
        return cls(geometry, **options)

    def options(self) -> dict[str, Any]:
        """What ``of`` must be given, besides geometry, ``dtype`` and ``device``, to make this sampling again: numbers, strings,
        None, and lists of those. ``save`` writes it. Raises ``InputError`` where the class takes options and doesn't say them.
        """
        known = ("self", "geometry", "dtype", "device")
        untold = [name for name in inspect.signature(type(self).__init__).parameters if name not in known]
        if untold:
            raise InputError(
                f"{type(self).__name__} takes the options {', '.join(untold)}; to be saved, it must say theirs in options()"
            )
        return {}

    def settable(self) -> set[str]:
        """Names that are set on a sampling; a layer that is rewritten has none of them."""
        properties = {name for name, value in inspect.getmembers_static(type(self)) if getattr(value, "fset", None)}
        return properties | {*self.attributes, *self._parameters}

    @abstractmethod
    def movers(self) -> list[Tensor]:
        """The tensors that are all zero as long as the layer computes what the plain convolution computes.

        An empty list: the layer never equals a plain convolution on this grid.
        """

    def values(self) -> list[Tensor]:
        """The tensors that every moved call reads."""
        return list(self.parameters())

    @abstractmethod
    def kernel(self, weight: Tensor) -> Tensor:
        """Effective kernel, ``(*weight.shape[:2], *window)``, for ``weight`` of shape ``(out, in/groups, *taps)``
        (transposed: ``(in, out/groups, *taps)``). Linear in the weight: ``fold`` relies on it."""

    def on_grid(self, weight: Tensor) -> Tensor:
        """The plain convolution's kernel, ``(*weight.shape[:2], *window)``: taps on the dilated grid, zeros elsewhere."""
        for axis, (dilation, margin) in enumerate(zip(self.dilation, self.margin, strict=True)):
            taps = weight.movedim(2 + axis, -1)
            spaced = F.pad(taps[..., None], (0, dilation - 1)).flatten(-2)
            weight = F.pad(spaced, (margin, margin - (dilation - 1))).movedim(-1, 2 + axis)
        return weight

    def at_start(self) -> bool:
        """Whether the plain convolution computes the same. Reads values."""
        movers = self.movers()
        return bool(movers) and not any(bool(mover.any()) for mover in movers)

    def estimates(self, call: CallShapes, training: bool) -> dict[str, float]:
        """Seconds of one call on one core in each of ``forms``, from the shapes alone; with ``training``, of its backward as
        well. To compare forms with each other: ``ccrewrite.lower`` measures those that come near the best."""
        return dict.fromkeys(self.forms, dense_seconds(call, self.window, self.transposed, training))

    def form_alone(self, call: CallShapes, training: bool) -> str | None:
        """The one of ``forms`` that ``lower(scope="sites")`` compiles, this layer by itself; None: eager code is as fast."""
        return self.default_form

    def saved_alone(self, call: CallShapes, training: bool) -> float:
        """Seconds, roughly, that one call takes less (with ``training``, its backward as well) where this layer is compiled by
        itself. ``finetune`` compiles where a run is long enough to gain by it."""
        return SAVED * dense_seconds(call, self.taps, self.transposed, training)

    @torch.no_grad()
    def nudge_(self) -> None:
        """Move the geometry off its start, in place: at the start some forms may have less to do than they usually have."""
        for parameter in self.parameters():
            parameter.add_(0.3)

    def onnx_form(self) -> OnnxForm | None:
        """How a layer stays open in an ONNX file; None: it is folded before its model is exported."""
        return None

    def alternatives(self, geometry: ConvGeometry) -> tuple[Alternative, ...]:
        """What a layer of this ``geometry`` can be folded to, as the sampling is now, besides one with a dense kernel.

        ``ccrewrite.fold`` takes what is fastest, or what ``forms=`` names; the name is then the site's code.
        """
        return ()

    def fixed(self) -> nn.Module | None:
        """What evaluates calls with the geometry as it is now, for weights that are known at run time only: a module that is
        called as the sampling is, with ``kernel_size``, ``transposed`` and ``describe()``. None: a dense kernel is built."""
        return None

    def describe(self) -> str:
        """What was added, in one line for a plan's table."""
        return f"{sum(p.numel() for p in self.parameters())} parameters added, window {'x'.join(map(str, self.window))}"

    def runs_plain(self) -> bool:
        """Whether a call made now may run the plain convolution: geometry at its start, and no gradient wanted for it.

        Only where values can be read: never while a graph is being traced, for what it would bake in may change later.
        """
        looked = still(self)
        movers = self.movers() if looked is None or torch.is_grad_enabled() else []
        if looked is None and (not movers or not readable(movers)):
            return False
        if torch.is_grad_enabled() and (movers[0].requires_grad or any(p.requires_grad for p in self.parameters())):
            return False
        return not any_(movers) if looked is None else looked

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Flat, so that `model.to(memory_format=...)` leaves it alone: torch means the pictures' formats for every tensor of
        # four or five axes, and raises where the number is the wrong one of the two.
        def flat(t: Tensor) -> Tensor:
            return fn(t.flatten()).view(t.shape)

        return super()._apply(flat, recurse)  # pyright: ignore[reportUnknownMemberType]

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: Any, **named: Any) -> Tensor:
        if self.runs_plain():
            return self.plain(input, weight, bias, *arguments, **named)
        call = bind(self.transposed, self.ndim, arguments, named)
        self.check_call(call["dilation"], weight)
        return self.evaluated(input, weight, bias, call)

    def plain(self, input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any, **named: Any) -> Tensor:
        """The plain convolution, for what overrides ``forward``. It is torch's function, which a mode that reroutes calls would
        send back here: under a mode it is the operator."""
        if not len_torch_function_stack():
            return FUNCTIONS[self.transposed, self.ndim](input, weight, bias, *arguments, **named)
        call = bind(self.transposed, self.ndim, arguments, named)
        functions = TRANSPOSED if self.transposed else NAMED_PADDING if isinstance(call["padding"], str) else CONVOLUTIONS
        return functions[self.ndim - 1](input, weight, bias, **call)

    def check_call(self, dilation: Ints, weight: Tensor) -> None:
        """Raise where a call's dilation or channels aren't this geometry's, or its weight has values and the geometry none."""
        if dilation != self.dilation:
            raise InputError(
                f"this {type(self).__name__} was made for dilation {self.dilation}, but the call says {dilation}; "
                "revert and rewrite the model if its dilation changed"
            )
        require_channels(type(self).__name__, weight, self.geometry.weight_channels, self.sets)
        require_values(self, self.values(), weight)

    def runs_compiled(self, input: Tensor) -> bool:
        """Whether a call made now is compiled by itself."""
        return bool(self.compiled_at) and tuple(input.shape) in self.compiled_at and readable([input])

    def evaluated(self, input: Tensor, weight: Tensor, bias: Tensor | None, call: ConvArguments) -> Tensor:
        """``moved``, compiled by itself where ``ccrewrite.lower`` said so."""
        evaluate = alone.moved if self.runs_compiled(input) else type(self).moved
        return evaluate(self, input, weight, bias, call)

    def moved(self, input: Tensor, weight: Tensor, bias: Tensor | None, call: ConvArguments) -> Tensor:
        """The convolution wherever the geometry is. ``call`` has torch's further arguments by name."""
        kernel = self.kernel(weight)
        if readable([kernel]) and kernel.shape != (shape := (*weight.shape[:2], *self.window)):
            raise InputError(f"{type(self).__name__}.kernel must return the shape {shape}, found {tuple(kernel.shape)}")
        return (self._windowed_transposed if self.transposed else self._windowed)(input, kernel, bias, call)

    def _windowed(self, input: Tensor, kernel: Tensor, bias: Tensor | None, call: ConvArguments) -> Tensor:
        pads = tuple((low + m, high + m) for (low, high), m in zip(self._pads(call["padding"]), self.margin, strict=True))
        if depthwise.takes(input, kernel, call["stride"]):
            return depthwise.depthwise_conv(input, kernel, bias, pads)
        padding = tuple(low for low, _ in pads)
        if any(low != high for low, high in pads):
            input, padding = F.pad(input, [p for pair in reversed(pads) for p in pair]), (0,) * self.ndim
        return CONVOLUTIONS[self.ndim - 1](input, kernel, bias, call["stride"], padding, (1,) * self.ndim, call["groups"])

    def _windowed_transposed(self, input: Tensor, kernel: Tensor, bias: Tensor | None, call: ConvArguments) -> Tensor:
        stride, padding, function = call["stride"], cast(Ints, call["padding"]), TRANSPOSED[self.ndim - 1]
        extra = call.get("output_padding", (0,) * self.ndim)
        wide = tuple(p + m for p, m in zip(padding, self.margin, strict=True))
        if all(e < s for e, s in zip(extra, stride, strict=True)):
            return function(input, kernel, bias, stride, wide, extra, call["groups"])
        # An output padding that only the dilation allowed (the window has none): the full output, then crop or extend.
        zeros = (0,) * self.ndim
        full = function(input, kernel, None, stride, zeros, zeros, call["groups"])
        cropped = F.pad(full, [n for w, e in zip(reversed(wide), reversed(extra), strict=True) for n in (-w, e - w)])
        return cropped if bias is None else cropped + bias.view(-1, *(1,) * self.ndim)

    def _pads(self, padding: Padding | Literal["valid"]) -> tuple[tuple[int, int], ...]:
        # Only the padding matters to `pads`; the rest of the geometry is this sampling's own.
        zeros = (0,) * self.ndim
        samples = zeros if padding == "valid" else padding
        return ConvGeometry(1, 1, self.kernel_size, (1,) * self.ndim, samples, self.dilation, 1, zeros).pads
