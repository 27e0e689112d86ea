"""What a layer's learnt geometry looks like, as plain numbers: its own picture, its kernel before and now, and the receptive
field of the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import InputError
from ccrewrite.families.learnable import rounded
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.preserve import preserved
from ccrewrite.ir.typed import manual_seed
from ccrewrite.passes.verify import leaves

PICTURED = ("positions", "profiles", "distance", "drift")
"""What ``Sampling.picture`` may have, of the form of docs/report-schema.json."""
CELLS = 1 << 21
"""Of a kernel that are looked at at once."""
SUPPORT_FLOOR = 1e-3
"""A cell belongs to a kernel's extent where its magnitude is at least this share of the largest one's."""


def geometry_of(sampling: Sampling, weight: Tensor, geometry: ConvGeometry) -> JsonObject:
    """All that a report says of one sampling; ``weight`` is the tensor that its convolution uses.

    Lengths are in samples of the finer lattice (the input's, or a transposed convolution's output's).
    """
    with torch.no_grad():
        found = {"moved": not sampling.at_start(), "window": list(sampling.window), **_picture(sampling)}
        seen = _Kernels(sampling, weight)
        found["kernel"] = seen.pictures()
        extents = {"before": list(geometry.extent), "after": _extent(seen.largest)}
        now, before = _spreads(seen.after), None if seen.before is None else _spreads(seen.before)
        found["extent"] = extents | {"rms_before": before, "rms_after": now}
    return found


def _picture(sampling: Sampling) -> JsonObject:
    found = sampling.picture()
    for name in found:
        if name not in PICTURED:
            which = f"{type(sampling).__name__}.picture() has the entry {name!r}"
            raise InputError(f"{which}; a report shows {', '.join(PICTURED)}")
    return found


def _on_grid(weight: Tensor, sampling: Sampling) -> Tensor:
    """The original kernel on the sampling's window."""
    grid = weight.new_zeros(*weight.shape[:2], *sampling.window)
    cells = zip(sampling.kernel_size, sampling.dilation, sampling.margin, strict=True)
    grid[(..., *(slice(m, m + d * (k - 1) + 1, d) for k, d, m in cells))] = weight
    return grid


class _Kernels:
    """A layer's kernel before and after, looked at some channels at a time: of taps far apart, it is many times its weight.

    ``before`` and ``after``: sums of squares over the channels. ``largest``: the largest magnitude of what is after.
    """

    def __init__(self, sampling: Sampling, weight: Tensor) -> None:
        own = tuple(weight.shape[2:]) == sampling.kernel_size
        zeros = weight.new_zeros(sampling.window, dtype=torch.float64)
        self.channels, self.energy = weight.shape[:2].numel(), -1.0
        self.before, self.after, self.largest = zeros.clone() if own else None, zeros.clone(), zeros.clone()
        for first, second, part in _parts(sampling, weight):
            after = sampling.kernel(part).double()
            before = _on_grid(part.double(), sampling) if own else torch.zeros_like(after)
            if self.before is not None:
                self.before += before.square().sum((0, 1))
            self.after += after.square().sum((0, 1))
            self.largest = torch.maximum(self.largest, after.abs().amax((0, 1)))
            energies = (after - before).flatten(2).square().sum(2)
            index = int(energies.argmax())
            if float(energies.flatten()[index]) > self.energy:
                self.energy = float(energies.flatten()[index])
                row, column = divmod(index, after.shape[1])
                self.filter = [first + row, second + column]
                self.singles = before[row, column].clone(), after[row, column].clone()

    def pictures(self) -> JsonObject:
        """Two of each kernel: the root mean square over its channels, and its most changed filter."""
        found: JsonObject = {"filter": self.filter, "projected": self.after.dim() > 2}
        for name, squares, single in zip(("before", "after"), (self.before, self.after), self.singles, strict=True):
            if squares is not None:
                rms = (squares / self.channels).sqrt()
                found[name] = {"rms": rounded(_flat(rms), 3), "filter": rounded(_flat(single), 3)}
        return found


def _parts(sampling: Sampling, weight: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """``weight`` in parts along an axis of channels that share one geometry, whose kernels have ``CELLS`` or so, with the place
    of each part's first channel. In one part where every channel has its own."""
    axis = next((axis for axis, sets in enumerate(sampling.sets) if sets == 1), None)
    if axis is None:
        yield 0, 0, weight
        return
    step = max(1, CELLS // (math.prod(sampling.window) * weight.shape[1 - axis]))
    for start in range(0, weight.shape[axis], step):
        yield (start, 0, weight[start : start + step]) if axis == 0 else (0, start, weight[:, start : start + step])


def _flat(picture: Tensor) -> Tensor:
    """At most two axes: of a volume, the slice along its first axis that has the most in it."""
    if picture.dim() < 3:
        return picture.reshape(1, -1) if picture.dim() == 1 else picture
    return picture[int(picture.abs().flatten(1).sum(1).argmax())]


def _extent(size: Tensor) -> list[int]:
    """Samples from the first to the last that matter, per axis; ``size``: the kernel's largest magnitudes."""
    matters = size >= SUPPORT_FLOOR * size.max()
    found: list[int] = []
    for axis in range(size.dim()):
        others = [a for a in range(size.dim()) if a != axis]
        along = torch.nonzero(matters.any(others) if others else matters).flatten()
        found.append(int(along.max() - along.min()) + 1)
    return found


def _spreads(mass: Tensor) -> list[float]:
    """Root mean square distance of ``mass`` (a kernel's squares) from its centre, per axis."""
    total = mass.sum()
    found: list[float] = []
    for axis in range(mass.dim()):
        others = [a for a in range(mass.dim()) if a != axis]
        along = (mass.sum(others) if others else mass) / total
        places = torch.arange(len(along), dtype=along.dtype, device=along.device)
        mean = (along * places).sum()
        found.append(rounded((along * (places - mean).square()).sum().sqrt()))
    return found


def receptive_field(model: nn.Module, inputs: Inputs) -> JsonObject | None:
    """Input samples that the centre of the output depends on, measured by its gradient, with every kernel as it is now.

    ``extent`` is the box of the non-zero ones per spatial axis, ``rms`` the root mean square distance of the squared gradient
    from its centre of mass. Of the first output and the first input that are floating point and have spatial axes (the axes
    after the second); an output without any counts as a whole. None where there are none, or no gradient gets through.
    """
    with preserved(model, inputs.tensors()), torch.enable_grad():
        manual_seed(0)
        chosen = next((t for t in inputs.tensors() if t.is_floating_point() and t.dim() > 2), None)
        if chosen is None:
            return None
        probe = chosen.detach().clone().requires_grad_()
        outputs = leaves(_replaced(inputs, chosen, probe).run(model), "output")
        floating = [(p, t) for p, t in outputs if isinstance(t, Tensor) and t.is_floating_point() and t.requires_grad]
        spatial = [(p, t) for p, t in floating if t.dim() > 2] or floating
        if not spatial:
            return None
        path, output = spatial[0]
        middle: Ints = tuple(n // 2 for n in output.shape[2:])
        unit = output[(0, slice(None), *middle)] if output.dim() > 2 else output[:1]
        signs = torch.randn(unit.shape, generator=torch.Generator().manual_seed(0)).to(unit)
        found = cast("Sequence[Tensor | None]", torch.autograd.grad((unit * signs).sum(), probe, allow_unused=True))
    gradient = found[0]
    if gradient is None or not gradient[0].any():
        return None
    mass = gradient[0].detach().double().square().sum(0)
    extent: list[int] = []
    for axis in range(mass.dim()):
        others = [a for a in range(mass.dim()) if a != axis]
        along = torch.nonzero(mass.sum(others) if others else mass).flatten()
        extent.append(int(along.max() - along.min()) + 1)
    return {"output": path, "input_size": list(mass.shape), "extent": extent, "rms": _spreads(mass)}


def _replaced(inputs: Inputs, old: Tensor, new: Tensor) -> Inputs:
    def other(value: object) -> object:
        return new if value is old else value

    return Inputs(tuple(map(other, inputs.args)), {k: other(v) for k, v in inputs.kwargs.items()})
