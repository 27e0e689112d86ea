"""Layers that stay what they are in an ONNX file: while torch traces their model, it sees one operator for each of their calls.

The nodes have the domain ``ccrewrite``, and an attribute ``key`` that says which of ``Calls`` they are; ``functions`` puts in
what these are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import ExportError
from ccrewrite.export.memory import Need
from ccrewrite.export.traced_sizes import TracedSizes
from ccrewrite.families.onnx import DOMAIN, OnnxCall, OnnxForm, OnnxOperator
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import ConvGeometry, Ints
from ccrewrite.ir.operators import bind
from ccrewrite.ir.typed import named_modules


@dataclass(frozen=True)
class Call:
    """One call of a site that is kept. ``tensors``: the names of what its node takes after x, weight and bias. ``need``: the
    memory that it takes at the sizes that are traced."""

    site: str
    operator: OnnxOperator
    tensors: tuple[str, ...]
    need: Need


Calls = dict[str, Call]
"""By the key that their nodes have."""


@dataclass(frozen=True)
class Kept:
    """How a site is exported. ``sizes``: where its output size is open, what says it."""

    site: str
    form: OnnxForm
    calls: Calls
    sizes: TracedSizes | None


class KeptSampling(Sampling):
    """A sampling of a model that is about to be exported. ``keep_`` makes it of another one."""

    kept: Kept

    def geometry_of(self, weight: Tensor, arguments: tuple[object, ...], named: dict[str, object]) -> ConvGeometry:
        """Of a call."""
        call = bind(self.transposed, self.ndim, arguments, named)
        self.check_call(call["dilation"], weight)
        geometry = ConvGeometry.from_call("conv_transpose" if self.transposed else "conv", weight.shape, call)
        return replace(geometry, kernel_size=self.kernel_size)  # where the weight is few taps in a window

    def operator(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        sizes: Mapping[str, Tensor],
        size: Ints,
    ) -> Tensor:
        """The call as one operator, whose output has ``size``. ``sizes``: what it takes beside the form's tensors."""
        call = OnnxCall(geometry, geometry.pads, tuple(int(n) for n in weight.shape), input.dtype)
        form, calls, key = self.kept.form, self.kept.calls, str(len(self.kept.calls))
        learned = [getattr(self, _buffer(name)) for name in form.tensors]
        batched = input if input.dim() == self.ndim + 2 else input[None]
        shape, asked = (tuple(map(_known, s)) for s in (batched.shape, size))
        need = Need.of(self.kept.site, form, call, shape, asked)
        calls[key] = Call(self.kept.site, form.operator(call), (*sizes, *form.tensors), need)
        out = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{calls[key].operator.name}",
            [batched, weight, bias, *sizes.values(), *learned],
            {"key": key},
            dtype=input.dtype,
            shape=(batched.shape[0], geometry.out_channels, *size),
            version=1,
        )
        return out if batched is input else out[0]


class CalledSampling(KeptSampling):
    """One whose calls are those of a function in the file."""

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: object, **named: object) -> Tensor:
        if input.dtype not in (torch.float32, torch.float16):
            raise ExportError(f"{self.kept.site}: functions in the file need float32 or float16, found {input.dtype}")
        geometry = self.geometry_of(weight, arguments, named)
        size = geometry.output_size(input.shape[-self.ndim :])
        return self.operator(input, weight, bias, geometry, {}, size)


class SizedSampling(KeptSampling):
    """One whose output size is what ``kept.sizes`` says."""

    @property
    def resized(self) -> bool:
        site, sizes = self.kept.site, self.kept.sizes
        return (sizes is not None and site in sizes.plan.sized) or super().resized

    def pads_output(self, size: Sequence[int], least: Sequence[int], stride: Sequence[int]) -> bool:
        """That is decided when the file runs (``_native``)."""
        return False

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *arguments: object,
        output_size: int | Sequence[int] | None = None,
        padding_mode: str = "zeros",
        **named: object,
    ) -> Tensor:
        site, sizes = self.kept.site, self.kept.sizes
        assert sizes is not None
        geometry = replace(self.geometry_of(weight, arguments, named), padding_mode=padding_mode)
        natural = geometry.output_size(input.shape[-self.ndim :])
        own = natural if output_size is None else _sizes(output_size, self.ndim)
        if sizes.looking:
            sizes.look(site, own)
            return input.new_empty((*input.shape[: -self.ndim - 1], geometry.out_channels, *own))
        asked = sizes.size(site, own)
        if output_size is not None:
            asked = own
        elif site not in sizes.plan.sized:
            return super().forward(input, weight, bias, *arguments, padding_mode=padding_mode, **named)
        if input.dtype not in (torch.float32, torch.float16):
            raise ExportError(f"{site}: sizes that are open need float32 or float16, found {input.dtype}")
        native = _native(geometry, natural, asked) if output_size is not None and geometry.transposed else _vector(natural)
        return self.operator(input, weight, bias, geometry, {"native": native, "asked": _vector(asked)}, asked)


def keep_(sampling: Sampling, form: OnnxForm, site: str, calls: Calls, sizes: TracedSizes | None = None) -> None:
    """Let ``sampling`` be exported as calls of its operator, which ``calls`` gets; at the sizes that ``sizes`` says, where they
    are open. In place; its model is for export alone then."""
    for name, tensor in form.tensors.items():
        sampling.register_buffer(_buffer(name), tensor.detach().clone())
    mixin = CalledSampling if sizes is None else SizedSampling
    sampling.__class__ = cast(Any, type(f"Kept{type(sampling).__name__}", (mixin, type(sampling)), {}))
    cast(KeptSampling, sampling).kept = Kept(site, form, calls, sizes)


def tensors_of(model: nn.Module) -> dict[str, tuple[str, str]]:
    """The tensors of the sites that are kept: path of the buffer -> (site, the form's name for it)."""
    found: dict[str, tuple[str, str]] = {}
    for path, module in named_modules(model):
        if isinstance(module, KeptSampling):
            kept = module.kept
            found |= {f"{path}.{_buffer(name)}".removeprefix("."): (kept.site, name) for name in kept.form.tensors}
    return found


def _buffer(name: str) -> str:
    """Of a form's tensor: no attribute of the sampling has this name."""
    return f"onnx_{name}"


def _native(geometry: ConvGeometry, natural: Ints, asked: Ints) -> Tensor:
    """The output size that a transposed convolution has by itself where ``asked`` is its caller's ``output_size``: that, where
    it is one that torch's layer takes along every axis, by adding rows."""
    size, least = _vector(asked), _vector([n - e for n, e in zip(natural, geometry.output_padding, strict=True)])
    taken = (size >= least) & (size < least + torch.tensor(geometry.stride))
    return torch.where(taken.all(), size, _vector(natural))


def _known(size: int | torch.SymInt) -> int:
    """What a size is for the example inputs; 1 where that depends on their values."""
    if not isinstance(size, torch.SymInt):
        return size
    node = cast(Any, size).node
    return int(node.hint) if node.has_hint() else 1


def _sizes(size: int | Sequence[int], ndim: int) -> Ints:
    return tuple(size) if isinstance(size, Sequence) else (size,) * ndim


def _vector(sizes: Sequence[Any]) -> Tensor:
    return torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in sizes])
