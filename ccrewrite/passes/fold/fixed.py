"""A site whose weight must stay what it is: its geometry becomes a constant, applied to the weight at each call."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ccrewrite.families.adopt import HOSTED, host_
from ccrewrite.families.reroute import Route
from ccrewrite.families.sampling import Sampling
from ccrewrite.folded.cuts import cut_out
from ccrewrite.folded.fixed import FixedSampling
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.passes.fold.sites import Answer
from ccrewrite.passes.fold.weights import evaluating


def fix_layer_(conv: _ConvNd, sampling: Sampling, why: str, route: Route | None = None) -> Answer:
    """Send ``conv``'s convolution through ``sampling``'s geometry as it is now. In place. ``why`` the weight must stay, for the
    message. ``route``: which call that is, where the layer has a forward of its own."""
    g = ConvGeometry.from_module(conv)
    key = f"conv{'_transpose' if g.transposed else ''}{g.ndim}d"
    if route is None:
        weight = "weight" if "weight" in conv._parameters else None
        # In another padding mode the layer pads before it convolves.
        padding = g.padding if g.padding_mode == "zeros" else (0,) * g.ndim
        route = Route(key, weight, g.transposed, g.kernel_size, g.stride, padding, sampling.dilation)
    fixed = fixed_of(sampling)
    host_(conv, key, fixed, replace(route, sampling=f"{HOSTED}.{key}"), "")
    return Answer("geometry", f"{fixed.describe()}; {why}")


def fix_call_(host: nn.Module, key: str) -> Answer:
    """The same for the functional call whose sampling is ``host.ccrewrite.<key>``."""
    samplings = cast(nn.ModuleDict, host._modules[HOSTED])
    sampling = cast(Sampling, samplings[key])
    samplings[key] = fixed = fixed_of(sampling).train(sampling.training)
    return Answer("geometry", f"{fixed.describe()}; a functional call")


def fixed_of(sampling: Sampling) -> FixedSampling:
    """``sampling``'s geometry as it is now, as a constant."""
    matrix, cuts = cut_out(matrix_of(sampling), sampling.margin)
    given = sampling.kernel_size, sampling.dilation, sampling.transposed
    return FixedSampling(matrix, cuts, *given)


def matrix_of(sampling: Sampling) -> Tensor:
    """``B`` of ``K = B . weight``, ``(taps, A, B, *window)``, in at least float32: a kernel is linear in its weight."""
    like = next(sampling.parameters())
    dtype, count = torch.promote_types(like.dtype, torch.float32), math.prod(sampling.taps)
    hot = torch.eye(count, dtype=dtype, device=like.device).view(count, 1, 1, *sampling.taps)
    with evaluating(sampling):
        return torch.stack([sampling.kernel(one.expand(*sampling.sets, *sampling.taps).contiguous()) for one in hot])
