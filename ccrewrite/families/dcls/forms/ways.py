"""One call of a DCLS convolution in eager mode, by what is read where the taps are: inputs, products, or single channels."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

from ccrewrite.families import alone
from ccrewrite.families.dcls.forms import operators
from ccrewrite.gathering.mixing import mix, mix_backward
from ccrewrite.gathering.places import Layout, Places, met_again, padded
from ccrewrite.ir.geometry import Ints

BLOCK_BYTES = 4 * 2**20
"""Taps are read so many bytes at a time: about what a core's cache holds."""
LEAST_BYTES = 2**19
"""So much is read together, however small the layer is."""

R = TypeVar("R")


class Way(ABC):
    """One call of the convolution: what is read, and in which order."""

    phase: Literal["inference", "forward", "backward"] = "backward"
    """What of the call is computed: a forward, with or without a backward that belongs to it, or that backward."""

    def __init__(self, input: Tensor, weight: Tensor, positions: Tensor, layout: Layout) -> None:
        self.input, self.weight, self.positions, self.layout = input, weight, positions, layout
        self.outputs = layout.outputs(input)
        self.sizes: Ints = tuple(input.shape[2:])
        self.batch, self.out = len(input), weight.shape[0]

    @functools.cached_property
    def places(self) -> Places:
        return Places.of(self.positions, self.layout.window, self.layout.stride)

    @abstractmethod
    def forward(self, bias: Tensor | None) -> Tensor:
        """The convolution."""

    @abstractmethod
    def backward(self, gradient: Tensor, wants_input: bool, wants_positions: bool) -> dict[str, Tensor]:
        """The gradients of input, weight and positions, by name."""

    def block_bytes(self) -> int:
        """How much may be read together. In training as much as the layer's own data, in the backward half of it: a step takes
        little more memory than the plain layer's then."""
        data = self.input.numel() + self.out * self.batch * math.prod(self.outputs)
        own = max(data * self.input.element_size(), LEAST_BYTES)
        return {"inference": BLOCK_BYTES, "forward": min(own, BLOCK_BYTES), "backward": max(own // 2, LEAST_BYTES)}[self.phase]

    def blocks(self, channels: int, sizes: Ints) -> Iterator[range]:
        """The taps, as many at a time as may be read together."""
        bytes_each = self.batch * channels * math.prod(sizes) * self.input.element_size()
        taps = self.weight.shape[2]
        count = max(1, self.block_bytes() // max(1, bytes_each))
        for first in range(0, taps, count):
            yield range(first, min(first + count, taps))


class Inputs(Way):
    """The input read at every tap, then mixed: ``(taps * in) -> out``."""

    def forward(self, bias: Tensor | None) -> Tensor:
        data = padded(self.input, self.layout.pads)
        out: Tensor | None = None
        for block in self.blocks(self.input.shape[1], self.outputs):
            mixed = mix(self._read(data, block), self._mixing(block), self.layout.groups)
            out = mixed if out is None else out.add_(mixed)
        return _biased(cast(Tensor, out).view(self.batch, self.out, *self.outputs), bias)

    def backward(self, gradient: Tensor, wants_input: bool, wants_positions: bool) -> dict[str, Tensor]:
        groups = self.layout.groups
        data, again = padded(self.input, self.layout.pads), self.places.reversed()
        d_input = torch.zeros_like(self.input, memory_format=torch.contiguous_format)
        d_weight = torch.empty_like(self.by_tap)
        slopes: list[Tensor] = []
        for block in self.blocks(self.input.shape[1], self.outputs):
            wants_read = wants_input or wants_positions
            d_read, d_mixing = mix_backward(
                gradient.flatten(2), self._read(data, block), self._mixing(block), groups, wants_read
            )
            d_weight[:, block.start : block.stop] = d_mixing.view(self.out, len(block), -1)
            if not wants_read:
                continue
            each = d_read.view(self.batch, groups, len(block), -1, *self.outputs)
            for index, tap in enumerate(block):
                arrived = each[:, :, index].flatten(1, 2)
                if wants_positions:
                    slopes.append(self.places.slopes(data, tap, arrived))
                if wants_input:
                    d_input += again.value(met_again(arrived, self.sizes, self.layout), tap, self.sizes)
        return gradients(d_input, d_weight.transpose(1, 2), slopes)

    def _read(self, data: Tensor, block: range) -> Tensor:
        """``(N, groups * taps * in/groups, prod(outputs))``"""
        groups = self.layout.groups
        read = data.new_empty(self.batch, groups, len(block), data.shape[1] // groups, *self.outputs)
        targets = read[:, 0].unbind(1) if groups == 1 else None
        for index, tap in enumerate(block):
            target = targets[index] if targets else None
            found = self.places.value(data, tap, self.outputs, out=target)
            if found is not target:
                read[:, :, index] = found.unflatten(1, (groups, -1))
        return read.flatten(1, 3).flatten(2)

    def _mixing(self, block: range) -> Tensor:
        """``(out, taps * in/groups, 1)``"""
        return self.by_tap[:, block.start : block.stop].flatten(1)[:, :, None]

    @functools.cached_property
    def by_tap(self) -> Tensor:
        """The weight, ``(out, taps, in/groups)``: one tap of it lies all over the memory."""
        return self.weight.transpose(1, 2).contiguous()


class Products(Way):
    """Every tap's products with the input, ``in -> (taps * out)``, then read where the taps are and added up."""

    def forward(self, bias: Tensor | None) -> Tensor:
        out = self.input.new_zeros(self.batch, self.out, *self.outputs)
        for block in self.blocks(self.out, self.sizes):
            products = self._products(block)
            for index, tap in enumerate(block):
                out += self.places.value(padded(products[:, index], self.layout.pads), tap, self.outputs)
        return _biased(out, bias)

    def backward(self, gradient: Tensor, wants_input: bool, wants_positions: bool) -> dict[str, Tensor]:
        again, arrived = self.places.reversed(), met_again(gradient, self.sizes, self.layout)
        flat = self.input.flatten(2)
        d_input = torch.zeros_like(flat, memory_format=torch.contiguous_format)
        d_weight = torch.empty_like(self.by_tap)
        slopes: list[Tensor] = []
        for block in self.blocks(self.out, self.sizes):
            d_products = torch.stack([again.value(arrived, tap, self.sizes) for tap in block], 1)
            d_flat, d_mixing = mix_backward(d_products.flatten(1, 2).flatten(2), flat, self._mixing(block), 1, wants_input)
            d_weight[block.start : block.stop] = d_mixing.view(len(block), self.out, -1)
            if wants_input:
                d_input += d_flat
            if wants_positions:
                products = self._products(block)
                for index, tap in enumerate(block):
                    slopes.append(self.places.slopes(padded(products[:, index], self.layout.pads), tap, gradient))
        return gradients(d_input.view(self.input.shape), d_weight.permute(1, 2, 0), slopes)

    def _products(self, block: range) -> Tensor:
        """``(N, taps, out, *sizes)``"""
        return mix(self.input.flatten(2), self._mixing(block), 1).view(self.batch, len(block), self.out, *self.sizes)

    def _mixing(self, block: range) -> Tensor:
        """``(taps * out, in, 1)``"""
        return self.by_tap[block.start : block.stop].flatten(0, 1)[:, :, None]

    @functools.cached_property
    def by_tap(self) -> Tensor:
        """The weight, ``(taps, out, in)``."""
        return self.weight.permute(2, 0, 1).contiguous()


class Depthwise(Way):
    """Every channel by itself: read at a tap, times its weight, added up."""

    def forward(self, bias: Tensor | None) -> Tensor:
        data = padded(self.input, self.layout.pads)
        out = self.input.new_zeros(self.batch, self.out, *self.outputs)
        for tap in range(self.weight.shape[2]):
            out.addcmul_(self.places.value(data, tap, self.outputs), self._factor(tap))
        return _biased(out, bias)

    def backward(self, gradient: Tensor, wants_input: bool, wants_positions: bool) -> dict[str, Tensor]:
        data, again = padded(self.input, self.layout.pads), self.places.reversed()
        arrived = met_again(gradient, self.sizes, self.layout) if wants_input else None
        d_input = torch.zeros_like(self.input, memory_format=torch.contiguous_format)
        d_weight = torch.empty_like(self.weight, memory_format=torch.contiguous_format)
        slopes: list[Tensor] = []
        over = (0, *range(2, gradient.dim()))
        for tap in range(self.weight.shape[2]):
            d_weight[:, 0, tap] = (gradient * self.places.value(data, tap, self.outputs)).sum(over)
            if wants_positions:
                slopes.append(self.places.slopes(data, tap, gradient * self._factor(tap)))
            if arrived is not None:
                d_input.addcmul_(again.value(arrived, tap, self.sizes), self._factor(tap))
        return gradients(d_input, d_weight, slopes)

    def _factor(self, tap: int) -> Tensor:
        return self.weight[:, 0, tap].view(-1, *(1,) * len(self.sizes))


class Indexed(Way):
    """On devices, which would be waited for if a place were read as a number: the compiled forms' code. It gathers by index."""

    def __init__(self, input: Tensor, weight: Tensor, positions: Tensor, layout: Layout, form: str | None = None) -> None:
        super().__init__(input, weight, positions.detach(), layout)
        self.form = form or indexed_forms(weight, positions.shape[1], layout)[0]
        self.numbers = list(layout.window), [n for pair in layout.pads for n in pair]

    def forward(self, bias: Tensor | None) -> Tensor:
        return _biased(self._evaluated()[0], bias)

    def backward(self, gradient: Tensor, wants_input: bool, wants_positions: bool) -> dict[str, Tensor]:
        kept = self._evaluated()[1] if operators.FORMS[self.form].keeps_products else self.input.new_empty(0)
        tensors = gradient, self.input, self.weight, self.positions, kept
        found = self.run(operators.backward_of, *tensors, self.form, *self.numbers, [wants_input, True, wants_positions])
        return dict(zip(("input", "weight", "positions"), found, strict=True))

    def _evaluated(self) -> tuple[Tensor, Tensor]:
        return self.run(operators.forward_of, self.input, self.weight, self.positions, self.form, *self.numbers)

    def run(self, code: Callable[..., R], *arguments: object) -> R:
        return code(*arguments)


class Compiled(Indexed):
    """The same code compiled, for all sizes and windows alike: layers that differ in these alone share it."""

    def run(self, code: Callable[..., R], *arguments: object) -> R:
        tensors = [a.detach().contiguous() for a in arguments if isinstance(a, Tensor)]
        others = arguments[len(tensors) :]
        shapes = tuple(tuple(t.shape) for t in tensors)
        numbers = tuple(n for along in self.numbers for n in along)
        key = self.form, *map(alone.few, (*shapes, numbers)), *(t.dtype for t in tensors), tensors[0].device, *others[3:]
        hashed: tuple[object, ...] = tuple(tuple(cast("list[bool]", k)) if isinstance(k, list) else k for k in key)
        return alone.run_open(code, hashed, (*shapes, numbers), *tensors, *others)


def indexed_forms(weight: Tensor, sets: int, layout: Layout) -> list[str]:
    """The compiled forms that evaluate such a convolution; first those that keep nothing for the backward."""
    forms = operators.applicable(layout.groups, weight.shape, (sets, 1), layout.stride)
    return sorted(forms, key=lambda form: operators.FORMS[form].keeps_products)


def _biased(out: Tensor, bias: Tensor | None) -> Tensor:
    return out if bias is None else out.add_(bias.to(out.dtype).view(-1, *(1,) * (out.dim() - 2)))


def gradients(d_input: Tensor, d_weight: Tensor, slopes: list[Tensor]) -> dict[str, Tensor]:
    found = {"input": d_input, "weight": d_weight}
    return {**found, "positions": torch.stack(slopes, -1)} if slopes else found
