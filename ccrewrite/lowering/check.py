"""The compiled model against the given one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from ccrewrite.errors import ModelRunError
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import COMPILED, Check
from ccrewrite.ir.preserve import unwatched
from ccrewrite.ir.typed import manual_seed
from ccrewrite.passes.judging import Verdict
from ccrewrite.passes.noise import ROUNDINGS, with_noise
from ccrewrite.passes.verify import compare_outputs, leaves, outputs_of

IN_EVALUATION = "compared in evaluation mode: in its own it draws random numbers, or can't run on the example inputs"


def checked(
    compiled: nn.Module,
    model: nn.Module,
    inputs: Inputs,
    *,
    training: bool,
    given: Callable[[], AbstractContextManager[object]] = nullcontext,
    judge: Callable[[], Verdict] | None = None,
) -> Check:
    """Compare their outputs on ``inputs``, and warn where they differ.

    In evaluation mode without gradients; with ``training``, as ``model`` stands and with gradients, so that what is compiled
    here serves the training. Inside ``given()``, ``model`` is as it was before. Where the outputs alone can't tell, ``judge``
    judges each site by itself. Raises ``ModelRunError`` where torch can't
    compile or run the model.
    """
    with given():
        expected = _own_outputs(model, inputs) if training else None
        in_evaluation = outputs_of(model, inputs) if expected is None else {}
    note = IN_EVALUATION if training and expected is None else ""
    try:
        if expected is None:
            expected, found = in_evaluation, outputs_of(compiled, inputs)
        else:
            found = _outputs(compiled, inputs, seed=0)
    except ModelRunError as error:
        cause = error.__cause__ or error
        raise ModelRunError(
            f"torch.compile can't compile or run this {type(model).__name__}: {type(cause).__name__}: {cause}"
        ) from error.__cause__
    outputs = compare_outputs(expected, found, COMPILED)
    verdict = Verdict((), ()) if judge is None or all(o.ok for o in outputs) else judge()
    noise = "; ".join(verdict.faults)
    if not verdict.faults:
        roundings = ROUNDINGS if judge is None else verdict.roundings
        with given():
            outputs, noise = with_noise(
                outputs,
                lambda i: _outputs(model, i, seed=0) if training and not note else outputs_of(model, i),
                inputs,
                roundings=roundings,
            )
    check = Check(outputs, ran=True, note="; ".join(filter(None, (note, noise))))
    if not check.ok:
        warnings.warn(
            f"the compiled {type(model).__name__} computes something else than the given one (print(lowered.check) shows "
            "where), unless that one draws random numbers: don't use it",
            stacklevel=3,
        )
    return check


def _own_outputs(model: nn.Module, inputs: Inputs) -> dict[str, object] | None:
    """The outputs in the model's own training mode; None where it doesn't run so, or where random numbers change them."""
    try:
        first, second = (_outputs(model, inputs, seed) for seed in (0, 1))
    except ModelRunError:
        return None
    return first if all(o.ok for o in compare_outputs(first, second, COMPILED)) else None


def _outputs(model: nn.Module, inputs: Inputs, seed: int) -> dict[str, object]:
    with unwatched([model], inputs.tensors(), evaluate=False), torch.enable_grad():
        manual_seed(seed)
        return {p: v.detach().clone() if isinstance(v, Tensor) else v for p, v in leaves(inputs.run(model), "output")}
