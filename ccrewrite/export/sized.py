"""CC layers whose output size is known when the exported file runs: torch sees one operator, ``ccrewrite::CCConv``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ccrewrite.errors import ExportError
from ccrewrite.export.functions import DOMAIN, CCConv
from ccrewrite.export.resampling import Axis, Profile
from ccrewrite.export.sizes import SIZES, Sizes
from ccrewrite.families.cc.bands import LONG
from ccrewrite.families.cc.profile import gain
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.operators import bind
from ccrewrite.passes.fold.layers import at_start
from ccrewrite.passes.scales.sizes import samplings_of
from ccrewrite.passes.scales.whereabouts import hint_of


class SizedSampling(CCSampling):
    """A ``CCSampling`` of a model that is about to be exported: its output size is what ``sizes`` says while it is traced."""

    sizes: Sizes
    site: str
    still: bool

    @property
    def resized(self) -> bool:
        return self.site in self.sizes.sized or super().resized

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *arguments: Any,
        output_size: int | Sequence[int] | None = None,
        padding_mode: str = "zeros",
        **named: Any,
    ) -> Tensor:
        call = bind(self.transposed, self.ndim, arguments, named)
        geometry = ConvGeometry.from_call("conv_transpose" if self.transposed else "conv", weight.shape, call)
        natural = geometry.output_size(input.shape[-self.ndim :])
        if self.sizes.looking:
            self.sizes.see(self.site, natural)
            return input.new_empty((*input.shape[: -self.ndim - 1], geometry.out_channels, *natural))
        asked = self.sizes.size(self.site, self, natural)
        if output_size is not None:
            asked = tuple(output_size) if isinstance(output_size, Sequence) else (output_size,) * self.ndim
        elif self.site not in self.sizes.sized:
            return super().forward(input, weight, bias, *arguments, padding_mode=padding_mode, **named)
        if input.dtype not in (torch.float32, torch.float16):
            raise ExportError(f"{self.site}: sizes that are open need float32 or float16, found {input.dtype}")
        sizes = zip(input.shape[-self.ndim :], natural, asked, strict=True)
        long = [max(map(hint_of, found)) > LONG for found in sizes]
        what, learned = operator(self, geometry, still=self.still, mode=padding_mode, long=long, dtype=input.dtype)
        key = self.sizes.register(what)
        batched = input if input.dim() == self.ndim + 2 else input[None]
        out = torch.onnx.ops.symbolic(
            f"{DOMAIN}::CCConv",
            [batched, weight, bias, _vector(natural), _vector(asked), *learned],
            {"key": key},
            dtype=input.dtype,
            shape=(batched.shape[0], geometry.out_channels, *asked),
            version=1,
        )
        return out if batched is input else out[0]


def operator(
    layer: CCSampling, geometry: ConvGeometry, *, still: bool, mode: str, long: Sequence[bool], dtype: torch.dtype
) -> tuple[CCConv, list[Tensor]]:
    """What ``layer`` computes at another size, and the tensors that it has learned. ``still``: it has learned nothing.
    ``long``: of each axis, whether it is resampled sample by sample."""
    g, alongs = geometry, layer._along()
    learned: list[Tensor] = [layer.shift] if layer.shift is not None and not still else []
    axes: list[Axis] = []
    for a, along in enumerate(alongs):
        if not still:
            taps = torch.arange(g.kernel_size[a], device=along.layers[0].device)
            learned += [gain(taps, along), *along.layers]
        profile = Profile(along.basis, along.twice_support, along.extent, along.spacing, along.within)
        axes.append(
            Axis(
                g.kernel_size[a],
                g.stride[a],
                g.dilation[a],
                *g.pads[a],
                profile,
                g.transposed,
                layer.alignment == "centred",
                layer.rescaled,
                long[a],
                mode,
                10 if dtype == torch.float16 else 1,
            )
        )
    return CCConv(tuple(axes), g.groups, 0 if still else len(alongs[0].layers), layer.shift is not None), learned


def _vector(sizes: Sequence[Any]) -> Tensor:
    return torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in sizes])


def size_(model: nn.Module, sizes: Sizes) -> None:
    """Let the CC sites of ``model`` ask ``sizes`` for their output sizes. In place; ``model`` is for export alone then.

    Its ``forward`` takes the sizes that are chosen as one more argument, a dictionary of ints, where there are any, and then
    returns, beside its outputs, the sizes that the same sites would have by themselves.
    """
    for site, found in samplings_of(model).items():
        if site in sizes.sites:
            still = at_start(found)
            found.__class__ = SizedSampling
            sized = cast(SizedSampling, found)
            sized.sizes, sized.site, sized.still = sizes, site, still
    base = type(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given: Mapping[str, int] = kwargs.pop(SIZES, {})
        with sizes.run(given) as needs_native:
            if needs_native:
                base.forward(self, *args, **kwargs)
        out = base.forward(self, *args, **kwargs)
        return (out, sizes.by_themselves()) if given else out

    signature = inspect.signature(base.forward)
    if sizes.inputs:
        named = inspect.Parameter(SIZES, inspect.Parameter.KEYWORD_ONLY)
        known = list(signature.parameters.values())
        at = len(known) - (bool(known) and known[-1].kind is inspect.Parameter.VAR_KEYWORD)
        signature = signature.replace(parameters=[*known[:at], named, *known[at:]])
    cast(Any, forward).__signature__ = signature
    model.__class__ = cast(Any, type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__}))
