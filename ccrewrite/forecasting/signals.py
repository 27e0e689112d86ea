"""How clear the gradients of a model's geometry are at its start, site by site, without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ccrewrite.forecasting.data import Data

DAMPING = 1e-3
"""Of the Fisher information, in parts of its mean."""


class Signal(NamedTuple):
    """Of one site, or of all. ``geometry`` and ``weight``: the mean over parameters of the squared mean gradient over its own
    variance, 1 where there is nothing but noise; None where nothing of it trains. ``decrease``: the decrease of the loss that
    a step along the geometry's gradient is expected to bring where the Fisher information is the curvature, up to a factor
    that all sites share. ``connected``: whether the loss depends on the site at all."""

    geometry: float | None
    weight: float | None
    decrease: float
    connected: bool


class Moments:
    """Mean and variance over batches of the gradient of some tensors, without keeping the batches."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.count, self.connected = 0, False
        self.sums = [torch.zeros_like(t, dtype=torch.float32) for t in tensors]
        self.squares = [torch.zeros_like(t, dtype=torch.float32) for t in tensors]

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        self.count += 1
        for total, square, gradient in zip(self.sums, self.squares, gradients, strict=True):
            if gradient is not None:
                self.connected = True
                total.add_(gradient.float())
                square.addcmul_(gradient.float(), gradient.float())

    @property
    def seen(self) -> bool:
        """Whether any gradient was other than zero."""
        return any(bool(square.any()) for square in self.squares)

    def _flat(self) -> tuple[Tensor, Tensor]:
        """Mean, and variance of one batch's gradient, of all that isn't always zero."""
        mean = torch.cat([t.flatten().double() for t in self.sums]) / self.count
        square = torch.cat([t.flatten().double() for t in self.squares]) / self.count
        live = square > 0
        variance = (square - mean.square()).clamp_min(0)[live] * self.count / (self.count - 1)
        return mean[live], variance.clamp_min(torch.finfo(torch.float32).eps * float(square.max()))

    def clearness(self) -> float | None:
        """1 where gradients are noise around zero, whatever their scale."""
        if not self.tensors or not self.seen:
            return None
        mean, variance = self._flat()
        # With noise alone the ratio is distributed as F(1, count - 1), whose mean is this.
        expected = (self.count - 1) / (self.count - 3)
        return float((mean.square() / (variance / self.count)).mean()) / expected

    def decrease(self) -> float:
        """Of the loss, along the gradient over the Fisher information; what noise alone would show is taken off."""
        if not self.tensors or not self.seen:
            return 0.0
        mean, variance = self._flat()
        return float(((mean.square() - variance / self.count) / (variance + DAMPING * variance.mean())).sum()) / 2


def signals(
    model: nn.Module, data: Data, geometry: Mapping[str, Sequence[Tensor]], weights: Mapping[str, Sequence[Tensor]]
) -> tuple[dict[str, Signal], Signal]:
    """The signal of each site, from its tensors of ``geometry`` and its own ``weights``, and that of all together. One backward
    pass for each of ``data.training``; no ``grad`` is touched."""
    wanted = list(dict.fromkeys(t for group in (geometry, weights) for tensors in group.values() for t in tensors))
    moments = {t: Moments([t]) for t in wanted}
    for batch in data.training:
        loss = data.loss_of(model, batch)
        none = cast("tuple[Tensor | None, ...]", (None,) * len(wanted))
        found = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else none
        for tensor, gradient in zip(wanted, found, strict=True):
            moments[tensor].add([gradient])

    alive = any(m.seen for m in moments.values())

    def signal(geometry: Sequence[Tensor], weights: Sequence[Tensor]) -> Signal:
        g, w = _joined([moments[t] for t in geometry]), _joined([moments[t] for t in weights])
        # Gradients that are always zero mean the same as none, unless the model is perfect: then all are.
        connected = g.seen or w.seen if alive else g.connected or w.connected
        return Signal(g.clearness(), w.clearness(), g.decrease(), connected)

    def every(group: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        return list(dict.fromkeys(t for tensors in group.values() for t in tensors))

    return {name: signal(geometry[name], weights[name]) for name in geometry}, signal(every(geometry), every(weights))


def _joined(several: Sequence[Moments]) -> Moments:
    joined = Moments([])
    joined.tensors = [t for m in several for t in m.tensors]
    joined.sums, joined.squares = [t for m in several for t in m.sums], [t for m in several for t in m.squares]
    joined.count = several[0].count if several else 0
    joined.connected = any(m.connected for m in several)
    return joined
