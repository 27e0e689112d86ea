"""What every layer of ours is built of: torch's convolution operators, their arguments by name, and full precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.ir.geometry import ConvArguments, per_axis

_aten = torch.ops.aten
# The operators, not the functions of torch.nn.functional: those are what `Reroute` looks for.
CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
NAMED_PADDING = (_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding)
TRANSPOSED = (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)

_DEFAULTS: dict[bool, dict[str, object]] = {
    False: {"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    True: {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1},
}


def bind(transposed: bool, ndim: int, arguments: tuple[object, ...], named: Mapping[str, object]) -> ConvArguments:
    """The arguments after the bias, by name, one entry per axis, with torch's defaults."""
    defaults = _DEFAULTS[transposed]
    if len(arguments) > len(defaults) or not named.keys() <= defaults.keys():
        raise InputError(f"a convolution takes {', '.join(defaults)} after its bias; found {arguments!r} and {sorted(named)}")
    call = defaults | dict(zip(defaults, arguments, strict=False)) | dict(named)
    bound = {name: per_axis(v, ndim, name) if name != "groups" and not isinstance(v, str) else v for name, v in call.items()}
    return cast(ConvArguments, bound)


def full_precision(device: torch.device) -> torch.autocast:
    """Kernels and matrices are built without autocast (which knows no meta device)."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def autocast(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type that a convolution under autocast takes."""
    if not torch.is_autocast_enabled(input.device.type):
        return input, weight
    dtype = torch.get_autocast_dtype(input.device.type)
    return input.to(dtype), weight.to(dtype)
