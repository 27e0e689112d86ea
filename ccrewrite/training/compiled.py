"""The model that a fine-tuning run calls, under torch.compile."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.sampling import Sampling
from ccrewrite.lowering.lower import lower
from ccrewrite.training.batches import Batches, inputs_and_target

if TYPE_CHECKING:
    from accelerate import Accelerator


def compiled(model: nn.Module, train: Batches, accelerator: Accelerator, stack: ExitStack) -> nn.Module:
    """``model`` lowered for training, forms chosen for the first batch; ``stack`` undoes the choice.

    By estimate and one graph for each shape, not by timing and symbolic shapes: so all steps, and those of a resumed run,
    compute the same to the last bit. Raises ``InputError`` under FSDP.
    """
    from accelerate import DistributedType
    from accelerate.utils import send_to_device

    if accelerator.distributed_type == DistributedType.FSDP:
        raise InputError("compile=True runs on one process or under DDP; under FSDP train with compile=False")
    model.to(accelerator.device)
    if not any(isinstance(m, Sampling) for m in model.modules()):
        return cast(nn.Module, torch.compile(model, dynamic=False))
    # Shapes, training and validation, freezing: more graphs than torch compiles of one function by itself.
    stack.enter_context(torch._dynamo.config.patch(recompile_limit=64))
    for sampling in (m for m in model.modules() if isinstance(m, Sampling)):
        stack.callback(setattr, sampling, "opaque", sampling.opaque)
        stack.callback(setattr, sampling, "form", sampling.form)
    inputs, _ = inputs_and_target(send_to_device(next(train.epoch(0)).batch, accelerator.device))
    return lower(model, inputs, mode="training", measured=False, verify=False, dynamic=False).model
