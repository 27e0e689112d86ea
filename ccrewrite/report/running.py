"""The ways in which a model is run to be measured, and how it is left afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.preserve import preserved
from ccrewrite.report.comparison import INFERENCE, MOVED, TRAINING
from ccrewrite.report.cost import training_step
from ccrewrite.report.observe import built


@dataclass(frozen=True)
class Mode:
    """One way to run a model that is worth a number: ``run`` inside ``context()``."""

    name: str
    run: Callable[[], object]
    context: Callable[[], AbstractContextManager[Any]]


def modes_of(model: nn.Module, inputs: Inputs) -> list[Mode]:
    """Inference as the model is; with every kernel built, where it would not be yet; forward and backward."""
    as_is = inference(INFERENCE, model, inputs)
    found = [as_is]
    with torch.no_grad():
        waiting = any(m.runs_plain() for m in model.modules() if isinstance(m, Sampling))
    if waiting and plain_of(model) is model:  # a compiled one builds them anyway
        found.append(Mode(MOVED, as_is.run, partial(built, model)))
    if training_step(model, inputs) is not None:
        found.append(Mode(TRAINING, partial(training_step, model, inputs), nullcontext))
    return found


def inference(name: str, model: nn.Module, inputs: Inputs) -> Mode:
    return Mode(name, partial(_inference, model, inputs), nullcontext)


def _inference(model: nn.Module, inputs: Inputs) -> object:
    with torch.no_grad():
        return inputs.run(model)


def plain_of(model: nn.Module) -> nn.Module:
    """The model without what ``torch.compile`` wraps around it."""
    return cast(nn.Module, getattr(model, "_orig_mod", model))


@contextmanager
def evaluating(models: Collection[nn.Module], inputs: Inputs) -> Generator[None]:
    """Models in evaluation mode; afterwards they, their buffers, the inputs and the random states are as before.

    Like ``preserved`` for all of them, but without its guard over every operator, which would be timed too.
    """
    tensors = [*inputs.tensors(), *(b for m in models for b in m.buffers())]
    saved = [(t, t.detach().clone()) for t in tensors]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserved(model, None))
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, values in saved:
                    if not torch.equal(tensor, values):
                        tensor.copy_(values)
