"""The model that a fine-tuning run calls, under torch.compile, or with layers that are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from torch import nn

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir import typed
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.choice import Choice
from ccrewrite.ir.progress import step
from ccrewrite.ir.torch_private import patched
from ccrewrite.lowering.lower import lower
from ccrewrite.lowering.sites import release_, step_once, step_seconds
from ccrewrite.training.accelerating import Accelerated, agreed, sent, under_fsdp
from ccrewrite.training.batches import Batches, inputs_and_target

Forms = dict[str, str]
"""Of rewritten sites, by name: what each runs as in training ("eager": as it would anyway)."""


def compiled(model: nn.Module, train: Batches, accelerator: Accelerated, stack: ExitStack) -> nn.Module:
    """``model`` lowered for training, forms chosen for the first batch; ``stack`` undoes the choice.

    By estimate and one graph for each shape, not by timing and symbolic shapes: so all steps, and those of a resumed run,
    compute the same to the last bit. Raises ``InputError`` under FSDP.
    """
    _not_under_fsdp(accelerator, "True")
    model.to(accelerator.device)
    if not any(isinstance(m, Sampling) for m in model.modules()):
        return typed.compiled(model, dynamic=False)
    from torch._dynamo import config  # seconds, which only those pay who compile

    # Shapes, training and validation, freezing: more graphs than torch compiles of one function by itself.
    stack.enter_context(patched(config, {"recompile_limit": 64}))
    _restored(model, stack)
    inputs = _first(train, accelerator)
    return lower(model, inputs, mode="training", measured=False, verify=False, dynamic=False).model


def with_compiled_sites(
    model: nn.Module,
    train: Batches,
    accelerator: Accelerated,
    stack: ExitStack,
    *,
    must: bool,
    forms: Mapping[str, str] | None = None,
) -> Forms:
    """Let the rewritten layers of ``model`` run compiled at the sizes of the first batch, until ``stack`` ends; compiled here,
    by one step. Returns the form of each site; other sizes run eagerly, so a run that is resumed with these ``forms`` computes
    the same to the last bit.

    Each kind of layer is timed compiled and eager, and takes what is faster. Without ``must``, so is a whole step: empty, and
    the model as it was, where eager code is as fast, or where compiling fails, with a warning that says why. With ``must``,
    failing raises: ``InputError`` under FSDP, ``ModelRunError`` where torch can't compile them. Given ``forms``, nothing is
    timed.
    """
    _not_under_fsdp(accelerator, '"sites"')
    model.to(accelerator.device)
    samplings = _restored(model, stack)
    if not samplings:
        return {}
    inputs, error = _first(train, accelerator), None
    found: Forms = {}
    try:
        with accelerator.autocast():
            found = _chosen(model, inputs, samplings, forms, judge=not must)
    except ModelRunError as failed:
        error = failed
    if (main := agreed(found, accelerator)) != found:
        lower(model, inputs, mode="training", scope="sites", forms=main, verify=False)
    if error is None:
        return main
    release_(samplings)
    if must:
        raise error
    warnings.warn(f"fine-tuning goes on without compiled layers (compile=False asks for no more): {error}", stacklevel=4)
    return {}


def _chosen(
    model: nn.Module, inputs: Inputs, samplings: Sequence[Sampling], forms: Mapping[str, str] | None, *, judge: bool
) -> Forms:
    lowered = lower(model, inputs, mode="training", scope="sites", forms=forms, verify=False)
    if not any(sampling.compiled_at for sampling in samplings):
        return {}
    step_once(model, inputs)
    if forms is None and judge:
        seconds = step_seconds(model, inputs, samplings)
        choice = Choice.fastest("measured", seconds)
        told = ", ".join(f"{name} {1e3 * each:.3g} ms" for name, each in seconds.items())
        step(
            "finetune", f"a step takes {told}: {'its layers are compiled' if choice.form == 'sites' else 'nothing is compiled'}"
        )
        if choice.form != "sites":
            release_(samplings)
            return {}
    return {site.name: site.code for site in lowered}


def _not_under_fsdp(accelerator: Accelerated, found: str) -> None:
    if under_fsdp(accelerator):
        raise InputError(f"compile={found} runs on one process or under DDP; under FSDP train with compile=False")


def _restored(model: nn.Module, stack: ExitStack) -> list[Sampling]:
    """The samplings of ``model``, whose forms ``stack`` sets back."""
    samplings = [m for m in model.modules() if isinstance(m, Sampling)]
    for sampling in samplings:
        for name in ("opaque", "form", "compiled_at"):
            stack.callback(setattr, sampling, name, getattr(sampling, name))
    return samplings


def _first(train: Batches, accelerator: Accelerated) -> Inputs:
    """Those of the first batch."""
    inputs, _ = inputs_and_target(sent(next(train.epoch(0)).batch, accelerator))
    return Inputs.of(inputs)
