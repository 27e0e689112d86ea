"""The networks of CC layers: the residual around each node, and the paper's own kernel.

In the paper (arXiv 2006.11120), the whole filter is a network of the coordinates; here it is one network per axis:

    filter(u) = sum_t weight_t prod_axis psi_t(u_axis)          psi_t(u) = taper(u) * (last . sin(middle . sin(inner . u)))_t

``u`` is the distance from the kernel's centre in samples, ``taper`` 1 within the extent and 0 a sample beyond. The
convolution's ``weight`` is the networks' joint last layer, so that any output size is two banded products, as for nodes. The
networks start as SIRENs (arXiv 2006.09661) whose last layers are fitted, by least squares, to cubic interpolation between the
nodes: the filter starts as the weight, as torch draws it or as it was trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.types import Device

from ccrewrite.families.cc.profile import features, taper
from ccrewrite.families.interpolation import keys_cubic
from ccrewrite.ir.typed import linalg

FINENESS = 8
"""Samples per cell of the curve that a network is fitted to."""
NODE_WEIGHT = 100.0
"""How much more a cell of the grid counts in the fit than a place between them."""


class Affine(nn.Module):
    """The parameters of ``nn.Linear`` without being one: what a user does to all linear layers of a model (initialise,
    quantize) is not meant for these."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype | None, device: Device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype, device=device))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Called for its parameters, not merely read: so hooks that bring them where they are needed (offloading) see it."""
        return self.weight, self.bias


class Residual(nn.Module):
    """The learned part of ``phi_t`` along one axis: a small sinusoidal network (SIREN, arXiv 2006.09661) of the coordinate,
    ``last . sin(inner . z + b)``, with one output per tap, or (``shared``) one for all taps. The last layer starts at zero."""

    def __init__(
        self, taps: int, hidden: int, *, shared: bool = False, dtype: torch.dtype | None = None, device: Device = None
    ) -> None:
        super().__init__()
        self.taps, self.shared = taps, shared
        self.inner = Affine(1, hidden, dtype, device)
        self.last = Affine(hidden, 1 if shared else taps, dtype, device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Frequencies up to one cycle per two samples: as much as samples one apart can carry.
        nn.init.uniform_(self.inner.weight, -math.pi, math.pi)
        nn.init.uniform_(self.inner.bias, -math.pi, math.pi)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self) -> tuple[Tensor, ...]:
        """Weights and biases, the last ones with a row for each tap."""
        inner, last = self.inner(), self.last()
        return (*inner, last[0].expand(self.taps, -1), last[1].expand(self.taps)) if self.shared else (*inner, *last)


class FilterNetwork(nn.Module):
    """``psi`` along one axis: coordinates -> one value per tap. Starts as cubic interpolation between the taps."""

    def __init__(
        self, taps: int, dilation: int, hidden: int, *, dtype: torch.dtype | None = None, device: Device = None
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.inner = Affine(1, hidden, dtype, device)
        self.middle = Affine(hidden, hidden, dtype, device)
        self.last = Affine(hidden, taps, dtype, device)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        # Up to a cycle per two samples, as much as samples one apart can carry; then SIREN's (section 3.2).
        nn.init.uniform_(self.inner.weight, -math.pi, math.pi)
        nn.init.uniform_(self.inner.bias, -math.pi, math.pi)
        bound = math.sqrt(6 / self.middle.weight.shape[1])
        nn.init.uniform_(self.middle.weight, -bound, bound)
        nn.init.uniform_(self.middle.bias, -math.pi, math.pi)
        if self.last.weight.is_meta:
            return
        kind, cpu = torch.float64, torch.device("cpu")
        taps = self.last.weight.shape[0]
        extent = self.dilation * (taps - 1) + 1
        half = (extent + 1) / 2
        places = torch.linspace(-half, half, (extent + 1) * FINENESS + 1, dtype=kind, device=cpu)
        nodes = self.dilation * torch.arange(taps, dtype=kind, device=cpu) - (extent - 1) / 2
        on_grid = torch.arange(len(places), device=cpu) % FINENESS == 0
        importance = torch.where(on_grid, NODE_WEIGHT, 1.0)[:, None] * taper(places, extent)[:, None]
        layers = [p.detach().double().cpu() for affine in (self.inner, self.middle) for p in (affine.weight, affine.bias)]
        hidden = torch.cat([features(places, layers), torch.ones(len(places), 1, dtype=kind, device=cpu)], 1)
        target = keys_cubic(places[:, None] - nodes)
        # A little ridge keeps the coefficients small enough for float32.
        system = torch.cat([importance * hidden, 1e-4 * torch.eye(hidden.shape[1], dtype=kind, device=cpu)])
        wanted = torch.cat([importance * target, torch.zeros(hidden.shape[1], taps, dtype=kind, device=cpu)])
        found = linalg.lstsq(system, wanted).solution
        self.last.weight.copy_(found[:-1].mT)
        self.last.bias.copy_(found[-1])

    def forward(self) -> tuple[Tensor, ...]:
        """Weights and biases."""
        return (*self.inner(), *self.middle(), *self.last())
