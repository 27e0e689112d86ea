"""A schedule of the widths of taps."""

from __future__ import annotations

import math

import torch

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.interpolation import MIN_WIDTH
from ccrewrite.ir.outcome import GivenModel, model_of


class WidthSchedule:
    """Exponential decay of the taps' widths: ``width(t) = start * (end / start) ** min(t / steps, 1)``.

    A wide Gaussian feels far samples, a sharp one samples one spot: the spiking nets of the DCLS authors (arXiv 2306.17670) go
    from wide to sharp over the first quarter of training and round the positions for evaluation (``snap``).

    All widths are ``start`` from the construction on; call ``step()`` after each optimizer step (or epoch). What the widths
    learn beside that is kept: a step multiplies them.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.
        start: the width at first, in samples.
        end: the width after ``steps``, in samples.
        steps: calls of ``step`` from the one to the other.

    Raises:
        InputError: where the model has no layer with a width.

    >>> from ccrewrite.nn import DclsConv1d
    >>> layer = DclsConv1d(1, 1, elements=2, window=9, interpolation="gaussian")
    >>> schedule = WidthSchedule(layer, start=2.0, end=0.5, steps=2)
    >>> for _ in range(3):
    ...     print(round(layer.sampling.widths().mean().item(), 3))
    ...     schedule.step()
    2.0
    1.0
    0.5
    """

    def __init__(self, model: GivenModel, *, start: float, end: float, steps: int) -> None:
        found = [m for m in model_of(model).modules() if isinstance(m, DclsSampling) and m.widening is not None]
        self.samplings = list({id(s.widening): s for s in found}.values())
        if not self.samplings:
            raise InputError("the model has no DCLS layer with a width; use interpolation 'gaussian' or 'triangle'")
        least = max(MIN_WIDTH[s.interpolation] for s in self.samplings)
        if min(start, end) < least:
            raise InputError(f"widths must be at least {least} samples here, found start {start} and end {end}")
        if steps < 1:
            raise InputError(f"steps must be at least 1, found {steps}")
        self.start, self.end, self.steps, self.done = start, end, steps, 0
        with torch.no_grad():
            for sampling in self.samplings:
                assert sampling.widening is not None
                sampling.widening.fill_(math.log(start / sampling.width))

    @property
    def width(self) -> float:
        """The scheduled width now, in samples."""
        return self.start * (self.end / self.start) ** min(self.done / self.steps, 1)

    def step(self) -> None:
        """One step on; after ``steps`` of them the widths are left alone."""
        before = self.width
        self.done += 1
        change = math.log(self.width / before)
        if change:
            with torch.no_grad():
                for sampling in self.samplings:
                    assert sampling.widening is not None
                    sampling.widening.add_(change)

    def state_dict(self) -> dict[str, int]:
        """Where the schedule stands; the widths themselves are the model's."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a stored state, beside the model's own ``load_state_dict``."""
        self.done = int(state["done"])
