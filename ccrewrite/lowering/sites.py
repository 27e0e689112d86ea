"""``lower(scope="sites")``: every rewritten layer compiled by itself, in a model that else runs eagerly."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import unwatched
from ccrewrite.lowering.calls import SiteCall, site_calls
from ccrewrite.lowering.lowered import LoweredSite

EAGER = "eager"
"""The form of a layer that is left as it was."""


def compile_sites_(
    model: nn.Module, inputs: Inputs, samplings: Mapping[str, Sampling], forced: Mapping[str, str], *, training: bool
) -> tuple[LoweredSite, ...]:
    """Let each of ``samplings`` run compiled at the sizes that ``inputs`` give; in place. Those where that doesn't pay stay
    eager. Raises ``InputError`` where a site has no such form as ``forced`` says."""
    for name, form in forced.items():
        forms = (*samplings[name].forms, EAGER)
        if form not in forms:
            raise InputError(f"site {name} can't take the form {form!r}; it has the forms {', '.join(forms)}")
    release_(samplings.values())
    calls = site_calls(model, inputs, samplings)
    return tuple(_compile_(n, s, calls.get(n), forced.get(n), training) for n, s in samplings.items())


def _compile_(name: str, sampling: Sampling, call: SiteCall | None, forced: str | None, training: bool) -> LoweredSite:
    if call is None:
        return LoweredSite.chosen(name, EAGER, "not run", {})
    form = forced or sampling.form_alone(call.shapes, training) or EAGER
    if form != EAGER:
        sampling.form, sampling.compiled_at = form, call.inputs
    how = "forced" if forced else EAGER if form == EAGER else "alone"
    return LoweredSite.chosen(name, form, how, {})


def release_(samplings: Iterable[Sampling]) -> None:
    """Let them run eagerly, in no form in particular."""
    for sampling in samplings:
        sampling.opaque, sampling.form, sampling.compiled_at = False, None, frozenset()


@contextmanager
def eager(samplings: Iterable[Sampling]) -> Generator[None]:
    """Inside, none of ``samplings`` runs compiled."""
    found = [(s, s.opaque, s.form, s.compiled_at) for s in samplings]
    release_(s for s, *_ in found)
    try:
        yield
    finally:
        for sampling, opaque, form, compiled_at in found:
            sampling.opaque, sampling.form, sampling.compiled_at = opaque, form, compiled_at


def step_once(model: nn.Module, inputs: Inputs) -> None:
    """Run ``model`` in training mode, forward and backward, so that what it compiles is compiled. Leaves no trace on it.

    Raises ``ModelRunError`` where it can't run.
    """
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with unwatched([model], inputs.tensors(), evaluate=False), torch.enable_grad():
            model.train()
            outputs = [t for t in tree_leaves(inputs.run(model)) if isinstance(t, Tensor) and t.requires_grad]
            if wanted and outputs:
                torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True)
    except Exception as error:  # Dynamo's, Inductor's or the compiler's, of many kinds
        raise ModelRunError(f"a compiled step of this {type(model).__name__} fails: {type(error).__name__}: {error}") from error
