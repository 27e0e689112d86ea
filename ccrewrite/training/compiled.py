"""The model that a fine-tuning run calls, under torch.compile, or with layers that are."""

from __future__ import annotations

import warnings
from contextlib import ExitStack

from torch import nn

from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir import typed
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.torch_private import patched
from ccrewrite.lowering.lower import lower
from ccrewrite.lowering.sites import release_, step_once
from ccrewrite.training.accelerating import Accelerated, sent, under_fsdp
from ccrewrite.training.batches import Batches, inputs_and_target
from ccrewrite.training.config import Compile


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


def with_compiled_sites(model: nn.Module, train: Batches, accelerator: Accelerated, stack: ExitStack, *, must: bool) -> Compile:
    """Let the rewritten layers of ``model`` run compiled at the sizes of the first batch, until ``stack`` ends; compiled here,
    by one step. Returns "sites"; where compiling fails, False, and a warning says why. Other sizes run eagerly, so a resumed
    run computes the same to the last bit.

    With ``must``, failing raises: ``InputError`` under FSDP, ``ModelRunError`` where torch can't compile them.
    """
    _not_under_fsdp(accelerator, '"sites"')
    model.to(accelerator.device)
    samplings = _restored(model, stack)
    if not samplings:
        return "sites"
    inputs = _first(train, accelerator)
    try:
        lower(model, inputs, mode="training", scope="sites", verify=False)
        with accelerator.autocast():
            step_once(model, inputs)
    except ModelRunError as error:
        if must:
            raise
        release_(samplings)
        warnings.warn(f"fine-tuning goes on without compiled layers (compile=False asks for no more): {error}", stacklevel=4)
        return False
    return "sites"


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
