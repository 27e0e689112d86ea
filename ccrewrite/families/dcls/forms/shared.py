"""Calls whose channels all share their taps' places, on a CPU: a tap is a slice, interpolated by a ``lerp`` along each axis."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ccrewrite.families.dcls.forms.ways import Inputs, Products, Way, gradients
from ccrewrite.gathering.corners import pad
from ccrewrite.gathering.mixing import mix_backward
from ccrewrite.gathering.places import Shared, give_, padded


class SharedWay(Way):
    @functools.cached_property
    def places(self) -> Shared:
        return Shared(self.positions, self.layout.window, self.layout.stride)


class SharedInputs(SharedWay, Inputs):
    """The input read at every tap, then mixed. What the backward meets there is given back slice by slice."""

    def backward(self, gradient: Tensor, wants_input: bool, wants_positions: bool) -> dict[str, Tensor]:
        data, gradient = padded(self.input, self.layout.pads), gradient.flatten(2)
        d_data = torch.zeros_like(data) if wants_input else None
        d_by_tap = torch.empty_like(self.by_tap)
        d_weight = d_by_tap.transpose(1, 2)
        wants_read, slopes = wants_input or wants_positions, list[Tensor]()
        for block in self.blocks(self.input.shape[1], self.outputs):
            read = self._read(data, block)
            d_read, d_mixing = mix_backward(gradient, read, self._mixing(block), self.layout.groups, wants_read)
            d_by_tap[:, block.start : block.stop] = d_mixing.view(self.out, len(block), -1)
            if not wants_read:
                continue
            arrived = self._apart(d_read, block)
            if wants_positions:
                slopes += self.places.slopes_(data, block, self._apart(read, block), arrived)[:, None].unbind(2)
            if d_data is not None:
                for tap, each in zip(block, arrived, strict=True):
                    give_(d_data, self.places.taps[tap], each, self.layout.stride)
        if d_data is None:
            return gradients(self.input, d_weight, slopes)
        crop = [(-low - 1, -high - 1) for low, high in self.layout.pads]
        return gradients(pad(d_data, crop), d_weight, slopes)

    def _apart(self, read: Tensor, block: range) -> list[Tensor]:
        """``(N, taps * in, samples)`` -> of each tap ``(N, in, *outputs)``."""
        taps = read.view(self.batch, self.layout.groups, len(block), -1, *self.outputs).unbind(2)
        return [tap.flatten(1, 2) for tap in taps]


class SharedProducts(SharedWay, Products):
    """Every tap's products with the input, then read where the taps are and added up: for few outputs, stride 1, one group."""
