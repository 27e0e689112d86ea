"""A site whose weight must stay what it is: its geometry becomes a constant, applied to the weight at each call."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ccrewrite.families.adopt import HOSTED, Samplings, host_, hosted_by
from ccrewrite.families.reroute import Route
from ccrewrite.families.sampling import Sampling
from ccrewrite.folded.cuts import cut_out
from ccrewrite.folded.fixed import FixedSampling
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.torch_private import ConvNd, parameters_of
from ccrewrite.passes.fold.sites import Answer
from ccrewrite.passes.fold.weights import evaluating


def fix_layer_(conv: ConvNd, sampling: Sampling, why: str, route: Route | None = None) -> Answer:
    """Send ``conv``'s convolution through ``sampling``'s geometry as it is now. In place. ``why`` the weight must stay, for the
    message. ``route``: which call that is, where the layer has a forward of its own."""
    g = ConvGeometry.from_module(conv)
    key = f"conv{'_transpose' if g.transposed else ''}{g.ndim}d"
    if route is None:
        weight = "weight" if "weight" in parameters_of(conv) else None
        # In another padding mode the layer pads before it convolves.
        padding = g.padding if g.padding_mode == "zeros" else (0,) * g.ndim
        route = Route(key, weight, g.transposed, g.kernel_size, g.stride, padding, sampling.dilation)
    fixed = fixed_of(sampling)
    host_(conv, key, fixed, replace(route, sampling=f"{HOSTED}.{key}"), "")
    return Answer("geometry", f"{fixed.describe()}; {why}")


def fix_call_(host: nn.Module, key: str) -> Answer:
    """The same for the functional call whose sampling is ``host.ccrewrite.<key>``."""
    samplings = cast(Samplings, hosted_by(host))
    sampling = cast(Sampling, samplings[key])
    samplings[key] = fixed = fixed_of(sampling).train(sampling.training)
    return Answer("geometry", f"{fixed.describe()}; a functional call")


def fixed_of(sampling: Sampling) -> Any:
    """``sampling``'s geometry as it is now, as a constant."""
    known = sampling.fixed()
    if known is not None:
        return known
    matrix, cuts = cut_out(matrix_of(sampling), sampling.margin)
    return FixedSampling(matrix, cuts, sampling.geometry)


def matrix_of(sampling: Sampling) -> Tensor:
    """``B`` of ``K = B . weight``, ``(taps, A, B, *window)``, in at least float32: a kernel is linear in its weight. Channels
    whose geometry is the same are one."""
    like = next(sampling.parameters())
    dtype, count = torch.promote_types(like.dtype, torch.float32), math.prod(sampling.taps)
    kernels: list[Tensor] = []
    with evaluating(sampling):
        for tap in range(count):
            hot = torch.zeros(count, dtype=dtype, device=like.device)
            hot[tap] = 1
            one = hot.view(1, 1, *sampling.taps).expand(*sampling.sets, *sampling.taps)
            kernels.append(_one_of_equal(sampling.kernel(one.contiguous())))
    sets = [max(kernel.shape[axis] for kernel in kernels) for axis in range(2)]
    return torch.stack([kernel.expand(*sets, *kernel.shape[2:]) for kernel in kernels])


def _one_of_equal(kernel: Tensor) -> Tensor:
    """``kernel`` with one channel along each of the first two dimensions where all are equal."""
    for axis in range(2):
        first = kernel.narrow(axis, 0, 1)
        kernel = first if bool((kernel == first).all()) else kernel
    return kernel
