"""Times the forms of a site as torch.compile runs them."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.ir import typed
from ccrewrite.ir.timing import MIN_ROUNDS, Effort, seconds_of
from ccrewrite.lowering import inductor
from ccrewrite.lowering.calls import SiteCall
from ccrewrite.passes.fold.choose import Question

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
        timed = seconds_of({"plain": plain, form: step(form)}, shapes.device, EFFORT)
        found[form] = timed[form]
        if timed[form] <= GOOD * timed["plain"]:
            break
    return found


def measure_folded(question: Question) -> dict[str, float]:
    """Seconds of one compiled call of a layer folded to each of its forms, on random data."""
    input = question.example()

    def inference(form: str) -> Callable[[], object]:
        folded, run = question.folded(form), compiled_call()

        @torch.no_grad()
        def forward() -> None:
            run(folded, (input,), {})

        return forward

    return seconds_of({form: inference(form) for form in question.forms}, input.device, EFFORT)


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
