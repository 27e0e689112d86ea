"""What the sites of a model are called with: the shapes for which forms are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.operators import bind
from ccrewrite.passes.verify import outputs_of


class SiteCall(NamedTuple):
    """The first call of a DCLS site in a run."""

    sampling: DclsSampling
    input: torch.Size
    weight: torch.Size
    dtype: torch.dtype
    device: torch.device
    bias: bool
    call: dict[str, Any]
    """torch's arguments after the bias."""

    def key(self) -> tuple[Any, ...]:
        """Equal for sites that are evaluated alike."""
        s = self.sampling
        call = tuple(sorted((k, str(v)) for k, v in self.call.items()))
        options = (s.interpolation, s.sharing, s.window, s.taps, s.axes, tuple(s.offset.shape), s.forms)
        return (tuple(self.input), tuple(self.weight), str(self.dtype), self.bias, call, options)


def site_calls(model: nn.Module, inputs: Inputs, sites: Mapping[str, DclsSampling]) -> dict[str, SiteCall]:
    """What each of ``sites`` is called with when ``model`` runs on ``inputs``; those that are not called are left out."""
    found: dict[str, SiteCall] = {}

    def recorder(name: str) -> Any:
        def record(sampling: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            named = dict(kwargs)
            given = dict(zip(("input", "weight", "bias"), args, strict=False))
            input, weight = (given.get(n, named.pop(n, None)) for n in ("input", "weight"))
            bias = given.get("bias", named.pop("bias", None))
            assert isinstance(sampling, DclsSampling)
            assert isinstance(input, Tensor)
            assert isinstance(weight, Tensor)
            call = bind(False, sampling.ndim, tuple(args[3:]), named)
            found.setdefault(
                name, SiteCall(sampling, input.shape, weight.shape, input.dtype, input.device, bias is not None, call)
            )

        return record

    handles = [s.register_forward_pre_hook(recorder(n), with_kwargs=True) for n, s in sites.items()]
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def layer_shapes(model: nn.Module, inputs: Inputs, layers: Mapping[str, nn.Module]) -> dict[str, torch.Size]:
    """The shape of what each of ``layers`` is first called with; those that are not called are left out."""
    found: dict[str, torch.Size] = {}

    def recorder(name: str) -> Any:
        def record(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                found.setdefault(name, args[0].shape)

        return record

    handles = [layer.register_forward_pre_hook(recorder(name)) for name, layer in layers.items()]
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
