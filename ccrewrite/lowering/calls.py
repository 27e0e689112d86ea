"""What the sites of a model are called with: the shapes for which forms are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.calls import CONV, CONV_TRANSPOSE, CallShapes
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.observe import Like, ModuleCall, module_calls
from ccrewrite.ir.operators import bind


class SiteCall(NamedTuple):
    """The first call of a site in a run, and how large its inputs are."""

    sampling: Sampling
    shapes: CallShapes
    inputs: frozenset[tuple[int, ...]]
    """The shapes of the inputs of all its calls."""
    calls: int = 1
    """How many calls there are."""


def site_calls(model: nn.Module, inputs: Inputs, sites: Mapping[str, Sampling]) -> dict[str, SiteCall]:
    """What each of ``sites`` is called with when ``model`` runs on ``inputs``; those that are not called are left out."""
    found = module_calls(model, inputs, sites)
    return {
        name: SiteCall(sites[name], shapes[0], frozenset(each.input for each in shapes), len(shapes))
        for name, calls in found.items()
        if (shapes := [_shapes(sites[name], call) for call in calls])
    }


def _shapes(sampling: Sampling, call: ModuleCall) -> CallShapes:
    given = dict(zip(("input", "weight", "bias"), call.args, strict=False)) | call.kwargs
    input, weight = given["input"], given["weight"]
    assert isinstance(input, Like)
    assert isinstance(weight, Like)
    bias = given.get("bias") is not None
    # What a sampling takes beyond a convolution's arguments (another output size) is left out: no form depends on it.
    names = CONV_TRANSPOSE if sampling.transposed else CONV
    arguments = bind(sampling.transposed, sampling.ndim, call.args[3:], {n: given[n] for n in names if n in given})
    return CallShapes(input.shape, weight.shape, bias, input.dtype, input.device, arguments)
