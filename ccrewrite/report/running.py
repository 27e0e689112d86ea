"""The ways in which a model is run to be measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.report.comparison import INFERENCE, MOVED, TRAINING
from ccrewrite.report.cost import training_step
from ccrewrite.report.observe import built


@dataclass(frozen=True)
class Mode:
    """One way to run a model that is worth a number: ``run`` inside ``context()``."""

    name: str
    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]]


def modes_of(model: nn.Module, inputs: Inputs) -> list[Mode]:
    """Inference as the model is; with every kernel built, where it would not be yet; forward and backward."""
    as_is = inference(INFERENCE, model, inputs)
    found = [as_is]
    with torch.no_grad():
        waiting = any(m.runs_plain() for m in model.modules() if isinstance(m, Sampling))
    if waiting and unwrapped(model) is model:  # a compiled one builds them anyway
        found.append(Mode(MOVED, as_is.run, partial(built, model)))
    if training_step(model, inputs) is not None:
        found.append(Mode(TRAINING, partial(training_step, model, inputs), nullcontext))
    return found


def inference(name: str, model: nn.Module, inputs: Inputs) -> Mode:
    return Mode(name, partial(_inference, model, inputs), nullcontext)


def _inference(model: nn.Module, inputs: Inputs) -> object:
    with torch.no_grad():
        return inputs.run(model)
