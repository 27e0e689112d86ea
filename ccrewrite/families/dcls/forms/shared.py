"""Calls whose channels all share their taps' places, on a CPU: data with its channels last, where a tap is a slice.

A tap's sample of all channels is one contiguous piece there, interpolating it is one ``lerp`` along each axis, and products
over channels take the data as it lies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ccrewrite.families.dcls.forms.ways import BLOCK_BYTES, Inputs, Products, Way, gradients
from ccrewrite.gathering.corners import full
from ccrewrite.gathering.last import first, last, mix, mix_backward, padded
from ccrewrite.gathering.places import Shared, give_
from ccrewrite.ir.geometry import Ints

LEAST_BYTES = 2**19
"""So much is read together, however small the layer is."""


class SharedWay(Way):
    @functools.cached_property
    def places(self) -> Shared:
        return Shared(self.positions, self.layout.window, self.layout.stride)

    def block_bytes(self) -> int:
        """In training as much as the layer's own data, in the backward half of it: a step takes little more memory than the
        plain layer's then."""
        data = self.input.numel() + self.out * self.batch * math.prod(self.outputs)
        own = max(data * self.input.element_size(), LEAST_BYTES)
        return {"inference": BLOCK_BYTES, "forward": min(own, BLOCK_BYTES), "backward": max(own // 2, LEAST_BYTES)}[self.phase]

    def own_blocks(self, channels: int, sizes: Ints) -> Iterator[range]:
        """``blocks`` for data with its channels last, where those of a group lie together."""
        if self.layout.groups > 1:
            return (range(tap, tap + 1) for tap in range(self.weight.shape[2]))
        return self.blocks(channels, sizes)


class SharedInputs(SharedWay, Inputs):
    """The input read at every tap, then mixed. The forward, which reads once, leaves the channels where they are."""

    def backward(self, gradient: Tensor, wants_input: bool, wants_positions: bool) -> dict[str, Tensor]:
        data, arrived = padded(self.input, self.layout.pads), last(gradient)
        d_data = torch.zeros_like(data) if wants_input else None
        d_weight = torch.empty_like(self.weight, memory_format=torch.contiguous_format)
        wants_read, slopes = wants_input or wants_positions, list[Tensor]()
        for block in self.own_blocks(self.input.shape[1], self.outputs):
            read = self._read_last(data, block)
            d_read, d_mixing = mix_backward(arrived, read, self._flat_mixing(block), self.layout.groups, wants_read)
            d_weight[:, :, block.start : block.stop] = d_mixing.view(self.out, len(block), -1).transpose(1, 2)
            for tap, each in zip(block, _apart(d_read, block) if wants_read else (), strict=wants_read):
                if wants_positions:
                    slopes.append(self.places.slopes(data, tap, each))
                if d_data is not None:
                    give_(d_data, self.places.taps[tap], each, self.layout.stride)
        if d_data is None:
            return gradients(self.input, d_weight, slopes)
        crop = [n for low, high in reversed(self.layout.pads) for n in (-low - 1, -high - 1)]
        return gradients(first(F.pad(d_data.movedim(1, -1), [0, 0, *crop])), d_weight, slopes)

    def _read_last(self, data: Tensor, block: range) -> Tensor:
        """``(N, *outputs, taps * in)``"""
        read = data.new_empty(self.batch, *self.outputs, len(block) * data.shape[1])
        for target, tap in zip(_apart(read, block), block, strict=True):
            value = self.places.value(data, tap, self.outputs, out=target)
            if value is not target:
                target.copy_(value)
        return read

    def _flat_mixing(self, block: range) -> Tensor:
        """``(out, taps * in/groups)``"""
        return self.weight[:, :, block.start : block.stop].transpose(1, 2).flatten(1)


class SharedProducts(SharedWay, Products):
    """Every tap's products with the input, then read where the taps are and added up: for few outputs, stride 1, one group."""

    def backward(self, gradient: Tensor, wants_input: bool, wants_positions: bool) -> dict[str, Tensor]:
        arrived, flat = last(gradient).movedim(-1, 1), last(self.input)
        again = cast(Shared, self.places.reversed())
        ahead = F.pad(last(gradient), [0, 0, *(n + 1 for p in reversed(full(self.layout.pads, self.layout.window)) for n in p)])
        d_flat = torch.zeros_like(flat)
        d_weight = torch.empty_like(self.weight, memory_format=torch.contiguous_format)
        slopes = list[Tensor]()
        for block in self.blocks(self.out, self.sizes):
            d_products = flat.new_empty(*flat.shape[:-1], len(block) * self.out)
            for target, tap in zip(_apart(d_products, block), block, strict=True):
                value = again.value(ahead.movedim(-1, 1), tap, self.sizes, out=target)
                if value is not target:
                    target.copy_(value)
            mixing = self._flat_mixing(block)
            d_block, d_mixing = mix_backward(d_products, flat, mixing, 1, wants_input)
            d_weight[:, :, block.start : block.stop] = d_mixing.view(len(block), self.out, -1).permute(1, 2, 0)
            if wants_input:
                d_flat += d_block
            if wants_positions:
                for tap, each in zip(block, _apart(mix(flat, mixing), block), strict=True):
                    slopes.append(self.places.slopes(self._padded(each), tap, arrived))
        return gradients(first(d_flat), d_weight, slopes)

    def _padded(self, product: Tensor) -> Tensor:
        pads = [n + 1 for pair in reversed(self.layout.pads) for n in pair]
        return F.pad(product.movedim(1, -1), [0, 0, *pads]).movedim(-1, 1)

    def _flat_mixing(self, block: range) -> Tensor:
        """``(taps * out, in)``"""
        return self.weight[:, :, block.start : block.stop].permute(2, 0, 1).flatten(0, 1)


def _apart(data: Tensor, block: range) -> list[Tensor]:
    """``(N, *size, taps * C)`` -> of each tap ``(N, C, *size)``: views."""
    return [each.movedim(-1, 1) for each in torch.unflatten(data, -1, (len(block), -1)).unbind(-2)]
