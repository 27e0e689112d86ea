"""Times the forms of a site as torch.compile runs them."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, Sequence

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

EAGER = "eager"
"""The form of a layer that isn't compiled."""
GOOD = 1.1
"""No form is expected to beat the plain convolution by much: once one takes at most so many times its time, the forms after it
are not compiled."""


class _Trial:
    """Random data of the shapes of a site's call."""

    def __init__(self, site: SiteCall) -> None:
        self.site, self.shapes = site, site.shapes
        self.generator = torch.Generator(site.shapes.device).manual_seed(0)
        outputs = self.shapes.weight[1] * self.shapes.arguments["groups"]
        self.input = self.drawn(self.shapes.input)
        self.weight = self.drawn(self.shapes.weight)
        self.bias = self.drawn((outputs if site.sampling.transposed else self.shapes.weight[0],)) if self.shapes.bias else None

    def drawn(self, size: Sequence[int]) -> Tensor:
        device, dtype = self.shapes.device, self.shapes.dtype
        return torch.randn(tuple(size), generator=self.generator, device=device, dtype=dtype).requires_grad_()

    def run(
        self, call: Callable[..., Tensor], weight: Tensor, learned: Sequence[Tensor], *, training: bool
    ) -> Callable[[], object]:
        """``call(input, weight, bias)``; with ``training``, and the gradients of these and of what is ``learned``."""
        wanted = [t for t in (self.input, weight, self.bias, *learned) if t is not None]

        def both() -> None:
            with torch.set_grad_enabled(training):
                out = call(self.input, weight, self.bias)
                if training:
                    torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)

        return both


def measure(site: SiteCall, forms: Sequence[str]) -> dict[str, float]:
    """Seconds of one compiled call and its backward in ``forms``, on random data of the site's shapes, with geometry off its
    start; in their order, until one is ``GOOD``. Leaves the site's own sampling alone."""
    trial, arguments = _Trial(site), site.shapes.arguments
    plain_weight = trial.drawn((*site.shapes.weight[:2], *site.sampling.kernel_size))
    plain = trial.run(lambda *given: site.sampling.plain(*given, **arguments), plain_weight, (), training=True)

    def step(form: str) -> Callable[[], object]:
        sampling, run = nudged(site.sampling, form), compiled_call()
        learned = list(sampling.parameters())
        return trial.run(lambda *given: run(sampling, given, arguments), trial.weight, learned, training=True)

    found: dict[str, float] = {}
    for form in forms:
        timed = seconds_of({"plain": plain, form: step(form)}, site.shapes.device, EFFORT)
        found[form] = timed[form]
        if timed[form] <= GOOD * timed["plain"]:
            break
    return found


def measure_alone(site: SiteCall, form: str, *, training: bool) -> Mapping[str, float]:
    """Seconds of one call (with ``training``, and its backward) as eager code runs it, and of one that is compiled by itself in
    ``form``; on random data, with geometry off its start."""
    trial, arguments = _Trial(site), site.shapes.arguments

    def of(name: str) -> Callable[[], object]:
        sampling = nudged(site.sampling, None if name == EAGER else form)
        sampling.compiled_at = frozenset() if name == EAGER else site.inputs
        learned = list(sampling.parameters())
        return trial.run(lambda *given: sampling(*given, **arguments), trial.weight, learned, training=training)

    return seconds_of({name: of(name) for name in (EAGER, form)}, site.shapes.device)


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
