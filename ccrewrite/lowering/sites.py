"""``lower(scope="sites")``: every rewritten layer compiled by itself, in a model that else runs eagerly."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.choice import Choice, Seconds
from ccrewrite.ir.preserve import unwatched
from ccrewrite.ir.progress import step
from ccrewrite.ir.timing import seconds_of
from ccrewrite.lowering.calls import SiteCall, site_calls
from ccrewrite.lowering.choose import key_of
from ccrewrite.lowering.lowered import LoweredSite
from ccrewrite.lowering.measure import EAGER, measure_alone
from ccrewrite.lowering.observed import judge
from ccrewrite.lowering.times import Times, cache_key
from ccrewrite.passes.judging import Verdict

State = tuple[Sampling, bool, str | None, frozenset[tuple[int, ...]]]
"""Of a sampling, whether and how it runs compiled."""


def compile_sites_(
    model: nn.Module,
    inputs: Inputs,
    samplings: Mapping[str, Sampling],
    forced: Mapping[str, str],
    *,
    training: bool,
    measured: bool,
) -> tuple[LoweredSite, ...]:
    """Let each of ``samplings`` run compiled at the sizes that ``inputs`` give; in place. Those where that doesn't pay stay
    eager: where eager code is as fast by estimate, or when ``measured``. Raises ``InputError`` where a site has no such form
    as ``forced`` says, ``ModelRunError`` where one that is measured can't be compiled."""
    for name, form in forced.items():
        forms = (*samplings[name].forms, EAGER)
        if form not in forms:
            raise InputError(f"site {name} can't take the form {form!r}; it has the forms {', '.join(forms)}")
    release_(samplings.values())
    calls = site_calls(model, inputs, samplings)
    times = Times() if measured else None
    chosen = {n: _choice(n, s, calls.get(n), forced.get(n), training, times) for n, s in samplings.items()}
    found = tuple(LoweredSite.chosen(name, *choice) for name, choice in chosen.items())
    for site in found:
        if site.code != EAGER:
            samplings[site.name].form, samplings[site.name].compiled_at = site.code, calls[site.name].inputs
    if times is not None:
        times.keep()
    return found


def _choice(
    name: str, sampling: Sampling, call: SiteCall | None, forced: str | None, training: bool, times: Times | None
) -> Choice:
    if call is None:
        return Choice(EAGER, "not run", {})
    form = forced or sampling.form_alone(call.shapes, training) or EAGER
    if forced or form == EAGER or times is None:
        return Choice(form, "forced" if forced else EAGER if form == EAGER else "alone", {})
    key, autocast = key_of(call), torch.is_autocast_enabled(call.shapes.device.type)
    step("lower", f"compiling {name}, and timing it")
    try:
        seconds, known = times.of(
            key and cache_key(call.shapes.device, "alone", key, training, autocast, form),
            (EAGER, form),
            lambda: measure_alone(call, form, training=training),
        )
    except Exception as error:  # Dynamo's, Inductor's or the compiler's, of many kinds
        raise ModelRunError(f"{name} can't be compiled: {type(error).__name__}: {error}") from error
    return Choice.fastest("cached" if known else "measured", seconds)


def release_(samplings: Iterable[Sampling]) -> None:
    """Let them run eagerly, in no form in particular."""
    for sampling in samplings:
        sampling.opaque, sampling.form, sampling.compiled_at = False, None, frozenset()


@contextmanager
def eager(samplings: Iterable[Sampling]) -> Generator[None]:
    """Inside, none of ``samplings`` runs compiled."""
    before = _states(samplings)
    release_(s for s, *_ in before)
    try:
        yield
    finally:
        _set_(before)


def _states(samplings: Iterable[Sampling]) -> list[State]:
    return [(s, s.opaque, s.form, s.compiled_at) for s in samplings]


def _set_(states: Iterable[State]) -> None:
    for sampling, opaque, form, compiled_at in states:
        sampling.opaque, sampling.form, sampling.compiled_at = opaque, form, compiled_at


def judge_alone(model: nn.Module, inputs: Inputs, samplings: Iterable[Sampling], *, gradients: bool) -> Verdict:
    """The sites of ``model``, compiled where they are by themselves, each against itself in eager mode."""
    compiled = _states(samplings)
    every = [sampling for sampling, *_ in compiled]

    def run(module: nn.Module) -> object:
        _set_(compiled)
        try:
            return inputs.run(module)
        finally:
            release_(every)

    with eager(every):
        return judge(model, inputs, model, run, gradients=gradients)


def step_once(model: nn.Module, inputs: Inputs) -> None:
    """Run ``model`` in training mode, forward and backward, so that what it compiles is compiled. Leaves no trace on it.

    Raises ``ModelRunError`` where it can't run.
    """
    try:
        with _stepping(model, inputs) as run:
            run()
    except Exception as error:  # Dynamo's, Inductor's or the compiler's, of many kinds
        raise ModelRunError(f"a compiled step of this {type(model).__name__} fails: {type(error).__name__}: {error}") from error


def step_seconds(model: nn.Module, inputs: Inputs, samplings: Iterable[Sampling]) -> Seconds:
    """Of a step of ``model``, forward and backward in training mode: with ``samplings`` eager, and as they are ("sites").
    Leaves no trace on it."""
    every = list(samplings)
    with _stepping(model, inputs) as run:

        def eagerly() -> None:
            with eager(every):
                run()

        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        return seconds_of({EAGER: eagerly, "sites": run}, device)


@contextmanager
def _stepping(model: nn.Module, inputs: Inputs) -> Generator[Callable[[], None]]:
    """A step of ``model`` in training mode; what it changes is as before afterwards."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run() -> None:
        outputs = [t for t in tree_leaves(inputs.run(model)) if isinstance(t, Tensor) and t.requires_grad]
        if wanted and outputs:
            torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True)

    with unwatched([model], inputs.tensors(), evaluate=False), torch.enable_grad():
        model.train()
        yield run
