"""Taps at continuous positions fitted to given kernels: greedy selection, least squares, joint refinement. Pure functions.

A kernel ``K[s]`` is approximated by ``sum_t w_t prod_axis phi(s - p_t)`` with few taps:

1. orthogonal matching pursuit (Pati et al. 1993; simultaneous where kernels share positions, Tropp et al. 2006) over taps on a
   grid of quarter samples: the tap that correlates most with what is left, then all weights anew by least squares;
2. refinement of positions (and widths) by Adam on the squared error, the weights being the least squares' ones for the
positions
   at every step (variable projection, Golub and Pereyra 1973). What is returned is the best step of each kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccrewrite.families.dcls.place import place
from ccrewrite.families.interpolation import SCRATCH_WIDTH, KeepInside, interpolate
from ccrewrite.ir.typed import advance_, backward, linalg, split, step_

GRID = 4
"""Dictionary positions per sample."""
RIDGE = 1e-4
"""Of the taps' own energy: keeps nearly coinciding taps from huge weights of opposite sign."""
ROUNDS = 48
"""Greedy rounds; beyond as many taps, a round selects several, at least a sample apart."""
CHUNK = 4096
"""Kernels with positions of their own that are fitted at once."""


class Fit(NamedTuple):
    """Taps fitted to ``N`` kernels; ``P`` is N, or 1 where the kernels share positions."""

    weight: Tensor
    """``(N, taps)``"""
    positions: list[Tensor]
    """``(P, taps)`` per axis, in samples from the window's first cell."""
    widths: list[Tensor] | None
    """The same shape, in samples; None for "linear"."""
    errors: Tensor
    """``(N,)``: squared error of each kernel."""


class Path(NamedTuple):
    """A greedy selection: the positions in the order of selection, and the error after each of the first taps."""

    positions: list[Tensor]
    """``(P, taps)`` per axis."""
    errors: list[float]
    """Squared error of all kernels together with 0, 1, ... taps."""


@torch.no_grad()
def select(kernels: Tensor, taps: int, *, shared: bool, interpolation: str = "linear") -> Path:
    """Greedy selection of ``taps`` positions for ``kernels`` ``(N, *window)``; one set for all of them where ``shared``.

    >>> kernels = torch.zeros(1, 5, 5)
    >>> kernels[0, 1, 3] = 2.0
    >>> path = select(kernels, 1, shared=False)
    >>> [p.item() for p in path.positions], path.errors[0], round(path.errors[1], 5)
    ([1.0, 3.0], 4.0, 0.0)
    """
    kernels = kernels.double()
    if not shared and len(kernels) > CHUNK:
        parts = [select(part, taps, shared=False, interpolation=interpolation) for part in split(kernels, CHUNK)]
        together = [torch.cat(axis) for axis in zip(*(p.positions for p in parts), strict=True)]
        return Path(together, [sum(e) for e in zip(*(p.errors for p in parts), strict=True)])
    kernels = _condensed(kernels) if shared else kernels
    window = kernels.shape[1:]
    grids = [torch.linspace(0, size - 1, GRID * (size - 1) + 1, dtype=kernels.dtype, device=kernels.device) for size in window]
    atoms = [_factor(interpolation, grid, None, size, len(window)) for grid, size in zip(grids, window, strict=True)]
    unit = [a / linalg.vector_norm(a, dim=-1, keepdim=True) for a in atoms]
    sets = 1 if shared else len(kernels)
    positions = [kernels.new_zeros(sets, 0) for _ in window]
    at_once = math.ceil(taps / ROUNDS)
    left, errors = kernels, [kernels.square().sum().item()]
    while positions[0].shape[1] < taps:
        strength = _correlations(left, unit).square()
        strength = strength.sum(0, keepdim=True) if shared else strength
        chosen = _strongest(strength, min(at_once, taps - positions[0].shape[1]))
        index = torch.unravel_index(chosen, strength.shape[1:])
        positions = [torch.cat([p, grid[i]], 1) for p, grid, i in zip(positions, grids, index, strict=True)]
        left = kernels - _solve(kernels, _factors(interpolation, positions, None, window))[1]
        errors += [left.square().sum().item()] * chosen.shape[1]
    return Path(positions, errors)


def refine(
    kernels: Tensor, positions: Sequence[Tensor], *, interpolation: str = "linear", steps: int = 150, rate: float = 0.1
) -> Fit:
    """Move taps from ``positions`` (``(P, taps)`` per axis) to where they fit ``kernels`` ``(N, *window)`` best.

    Never worse than least squares at the given positions. ``rate`` is Adam's first step, in samples, and falls to 0.
    """
    kernels = kernels.double()
    positions = [p.double() for p in positions]
    shared = len(positions[0]) == 1 < len(kernels)
    if shared:
        found = _refine(_condensed(kernels), positions, interpolation, steps, rate)
        factors = _factors(interpolation, found.positions, found.widths, kernels.shape[1:])
        weight, fitted = _solve(kernels, factors)
        return Fit(weight, found.positions, found.widths, (kernels - fitted).square().flatten(1).sum(1))
    starts = zip(*(split(p, CHUNK) for p in positions), strict=True)
    parts = [_refine(k, p, interpolation, steps, rate) for k, p in zip(split(kernels, CHUNK), starts, strict=True)]
    widths = [p.widths for p in parts if p.widths is not None]
    return Fit(
        torch.cat([p.weight for p in parts]),
        [torch.cat(axis) for axis in zip(*(p.positions for p in parts), strict=True)],
        [torch.cat(axis) for axis in zip(*widths, strict=True)] or None,
        torch.cat([p.errors for p in parts]),
    )


def _condensed(kernels: Tensor) -> Tensor:
    """At most as many kernels as the window has cells, with the same second moments: what positions shared by all ``kernels``
    gain and lose depends on these alone."""
    flat = kernels.flatten(1)
    if len(flat) <= flat.shape[1]:
        return kernels
    return linalg.qr(flat, mode="r").R.view(-1, *kernels.shape[1:])


def _refine(kernels: Tensor, positions: Sequence[Tensor], interpolation: str, steps: int, rate: float) -> Fit:
    window = kernels.shape[1:]
    together = len(positions[0]) == 1
    norms = kernels.square().sum().sqrt().expand(len(kernels)) if together else linalg.vector_norm(kernels.flatten(1), dim=1)
    scale = norms.clamp_min(1e-30).view(-1, *(1,) * len(window))
    kernels = kernels / scale  # so that one rate suits all of them
    moving = [p.clone().requires_grad_() for p in positions]
    width = None if interpolation == "linear" else SCRATCH_WIDTH[interpolation]
    widening = [] if width is None else [torch.zeros_like(p).requires_grad_() for p in moving]
    optimizer = torch.optim.Adam([*moving, *widening], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    best: Fit | None = None
    for step in range(steps + 1):
        inside = [KeepInside.apply(p, 0, size - 1) for p, size in zip(moving, window, strict=True)]
        widths = None if width is None else [KeepInside.apply(width * w.exp(), *_bounds(interpolation)) for w in widening]
        with torch.no_grad():
            weight, _ = _solve(kernels, _factors(interpolation, inside, widths, window))
        errors = (kernels - _place(weight, interpolation, inside, widths, window)).square().flatten(1).sum(1)
        best = _better(best, weight, inside, widths, errors.detach())
        if step < steps:
            optimizer.zero_grad()
            backward(errors.sum())
            step_(optimizer)
            advance_(schedule)
    assert best is not None
    flat = scale.flatten()
    return Fit(best.weight * flat[:, None], best.positions, best.widths, best.errors * flat.square())


def fit(kernels: Tensor, taps: int, *, shared: bool, interpolation: str = "linear", steps: int = 150) -> Fit:
    """``select`` and ``refine``: ``taps`` taps for ``kernels`` ``(N, *window)``.

    >>> kernels = torch.zeros(1, 7)
    >>> kernels[0, 2:4] = torch.tensor([0.7, 0.3])  # one tap between two samples
    >>> found = fit(kernels, 1, shared=False)
    >>> round(found.positions[0].item(), 2), round(found.weight.item(), 2)
    (2.3, 1.0)
    """
    path = select(kernels, taps, shared=shared, interpolation=interpolation)
    return refine(kernels, path.positions, interpolation=interpolation, steps=steps)


def _bounds(interpolation: str) -> tuple[float, float]:
    return (0.25, 2.0) if interpolation == "gaussian" else (1.0, 4.0)


def _factor(interpolation: str, position: Tensor, width: Tensor | None, size: int, ndim: int) -> Tensor:
    if width is None and interpolation != "linear":
        width = torch.full_like(position, SCRATCH_WIDTH[interpolation])
    return interpolate(interpolation, position, width, size, ndim)


def _factors(kind: str, positions: Sequence[Tensor], widths: Sequence[Tensor] | None, window: Sequence[int]) -> list[Tensor]:
    every = widths or [None] * len(window)
    return [_factor(kind, p, w, s, len(window)) for p, w, s in zip(positions, every, window, strict=True)]


def _correlations(kernels: Tensor, atoms: Sequence[Tensor]) -> Tensor:
    """``(N, *grid)``: each kernel with each product of one atom ``(grid, size)`` per axis."""
    for axis, atom in enumerate(atoms, 1):
        kernels = (kernels.movedim(axis, -1) @ atom.mT).movedim(-1, axis)
    return kernels


def _strongest(strength: Tensor, count: int) -> Tensor:
    """Flat indices ``(P, count)`` of the largest entries; several are local maxima, at least a sample apart."""
    if count > 1:
        pool = (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d, torch.nn.functional.max_pool3d)
        around = pool[strength.ndim - 2](strength[:, None], 2 * GRID - 1, 1, GRID - 1)[:, 0]
        strength = strength * (strength == around)
    return strength.flatten(1).topk(count, 1).indices


def _solve(kernels: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Least squares: the weights ``(N, taps)`` of the taps with ``factors`` ``(P, taps, size)``, and what they give."""
    sets, taps = factors[0].shape[:2]
    products = factors[0] @ kernels.flatten(2) if kernels.ndim > 2 else (factors[0] @ kernels[..., None])
    for factor in factors[1:]:
        products = (torch.unflatten(products, 2, (factor.shape[2], -1)) * factor[..., None]).sum(2)
    gram = torch.ones((), dtype=kernels.dtype, device=kernels.device)
    for factor in factors:
        gram = gram * (factor @ factor.mT)
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-300
    gram = gram + ridge[:, None, None] * torch.eye(taps, dtype=gram.dtype, device=gram.device)
    products = products.view(len(kernels) // sets, sets, taps).permute(1, 2, 0)
    weight = torch.cholesky_solve(products, linalg.cholesky(gram)).permute(2, 0, 1).reshape(len(kernels), taps)
    return weight, _combined(weight, factors)


def _combined(weight: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """``(N, *window)``"""
    rest = factors[-1]
    for factor in reversed(factors[1:-1]):
        rest = (factor[..., :, None] * rest[..., None, :]).flatten(-2)
    if len(factors) == 1:
        return (weight[:, None] @ rest)[:, 0]
    window = [f.shape[2] for f in factors]
    return ((weight[..., None] * factors[0]).mT @ rest).view(len(weight), *window)


def _place(
    weight: Tensor, kind: str, positions: Sequence[Tensor], widths: Sequence[Tensor] | None, window: Sequence[int]
) -> Tensor:
    """``_combined`` with derivatives for positions and widths."""
    sets, taps = positions[0].shape
    grouped = weight.view(len(weight) // sets, sets, taps).transpose(0, 1)[:, None]
    kinds, sizes = (kind,) * len(window), tuple(window)
    every = widths or [None] * len(window)
    apart = [p[:, None] for p in positions], [None if w is None else w[:, None] for w in every]
    kernel = place(grouped.contiguous(), kinds, sizes, *apart)
    return kernel[:, 0].transpose(0, 1).reshape(len(weight), *window)


def _better(best: Fit | None, weight: Tensor, positions: list[Tensor], widths: list[Tensor] | None, errors: Tensor) -> Fit:
    """The better of two fits: for each kernel, or where they share positions, for all of them together."""
    positions = [p.detach() for p in positions]
    widths = None if widths is None else [w.detach() for w in widths]
    if best is None:
        return Fit(weight, positions, widths, errors)
    if len(positions[0]) == len(errors):
        gain = (errors < best.errors)[:, None]
        chosen_widths = (
            None if widths is None else [torch.where(gain, a, b) for a, b in zip(widths, best.widths or (), strict=True)]
        )
        return Fit(
            torch.where(gain, weight, best.weight),
            [torch.where(gain, a, b) for a, b in zip(positions, best.positions, strict=True)],
            chosen_widths,
            torch.minimum(errors, best.errors),
        )
    return Fit(weight, positions, widths, errors) if errors.sum() < best.errors.sum() else best
