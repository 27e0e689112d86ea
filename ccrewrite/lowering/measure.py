"""Times the forms of a site as torch.compile runs them."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir import typed
from ccrewrite.ir.timing import MIN_ROUNDS, Case, Effort, time_cases
from ccrewrite.lowering import inductor
from ccrewrite.lowering.calls import SiteCall
from ccrewrite.passes.fold.layers import fold_layer_
from ccrewrite.passes.substitute import copied

EFFORT = Effort(0, (MIN_ROUNDS, MIN_ROUNDS), 0.03)
"""A third of a second for each form."""


GOOD = 1.1
"""No form is expected to beat the plain convolution by much: once one takes at most so many times its time, the forms after it
are not compiled."""


def measure(site: SiteCall, forms: Sequence[str]) -> dict[str, float]:
    """Seconds of one compiled call and its backward in ``forms``, on random data of the site's shapes, with geometry off its
    start; in their order, until one is ``GOOD``. Leaves the site's own sampling alone."""
    shapes = site.shapes
    generator = torch.Generator(shapes.device).manual_seed(0)
    factory: dict[str, Any] = {"device": shapes.device, "dtype": shapes.dtype}
    input = torch.randn(shapes.input, generator=generator, **factory).requires_grad_()
    weight = nn.Parameter(torch.randn(shapes.weight, generator=generator, **factory))
    outputs = shapes.weight[1] * shapes.arguments["groups"] if site.sampling.transposed else shapes.weight[0]
    bias = nn.Parameter(torch.randn(outputs, generator=generator, **factory)) if shapes.bias else None

    def step(form: str) -> Callable[[], object]:
        sampling, run = nudged(site.sampling, form), compiled_call()
        wanted = [t for t in (input, weight, bias, *sampling.parameters()) if t is not None]

        def both() -> None:
            out = run(sampling, (input, weight, bias), shapes.arguments)
            torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)

        return both

    def plain() -> None:
        out = site.sampling.plain(input, plain_weight, bias, **shapes.arguments)
        torch.autograd.grad(out, [t for t in (input, plain_weight, bias) if t is not None], torch.ones_like(out))

    plain_weight = nn.Parameter(torch.randn(*shapes.weight[:2], *site.sampling.kernel_size, generator=generator, **factory))
    found: dict[str, float] = {}
    for form in forms:
        timed = times({"plain": plain, form: step(form)}, shapes.device)
        found[form] = timed[form]
        if timed[form] <= GOOD * timed["plain"]:
            break
    return found


def measure_folded(layer: RewrittenConv, shape: Sequence[int], forms: Sequence[str]) -> dict[str, float]:
    """Seconds of one compiled call of ``layer`` folded to each of ``forms``, on random data of this shape."""
    like = next(layer.parameters())
    generator = torch.Generator(like.device).manual_seed(0)
    input = torch.randn(tuple(shape), generator=generator, device=like.device, dtype=like.dtype)

    def inference(form: str) -> Callable[[], object]:
        folded, run = copied(layer), compiled_call()
        fold_layer_(cast(RewrittenConv, folded), form=form)
        folded.eval()

        @torch.no_grad()
        def forward() -> None:
            run(folded, (input,), {})

        return forward

    return times({form: inference(form) for form in forms}, like.device)


def times(runs: Mapping[str, Callable[[], object]], device: torch.device, effort: Effort = EFFORT) -> dict[str, float]:
    """Seconds of each of ``runs``, by name."""
    cases = {form: Case(run, nullcontext, form) for form, run in runs.items()}
    return {form: timing.median_s for form, timing in time_cases(cases, effort, cuda=device.type == "cuda").items()}


def nudged(sampling: Sampling, form: str | None = None) -> Sampling:
    """A copy that learns, off its start, in ``form``."""
    sampling = copy.deepcopy(sampling).requires_grad_()
    sampling.form = form
    sampling.nudge_()
    return sampling


def _call(module: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> Tensor:
    return module(*arguments, **named)


def compiled_call() -> Callable[..., Tensor]:
    """``(module, arguments, named)`` -> ``module(*arguments, **named)``, compiled anew."""
    # torch.compile counts recompilations by code object, and gives up after eight.
    function = types.FunctionType(_call.__code__.replace(), _call.__globals__)
    return typed.compiled(function, fullgraph=True, dynamic=False, options=inductor.options())
