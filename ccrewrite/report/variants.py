"""Models made of a rewritten one, by name, to put beside it in a report; and batches of other sizes made of example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ccrewrite.errors import InputError, likely
from ccrewrite.ir.capture import Inputs, Model
from ccrewrite.ir.typed import compiled
from ccrewrite.report.comparison import ORIGINAL, REWRITTEN


def _folded(model: nn.Module, inputs: object) -> nn.Module:
    from ccrewrite.passes.fold import fold

    return fold(model, inputs).model


def _lowered(model: nn.Module, inputs: object) -> nn.Module:
    from ccrewrite.lowering.lower import lower  # Inductor: a second, which only those pay who lower

    # For inference: no training step. Outputs are compared in the report.
    return lower(model, inputs, verify=False).model.requires_grad_(False)


VARIANTS: dict[str, Callable[[nn.Module, object], Model]] = {
    "folded": _folded,
    "lowered": _lowered,
    "compiled": lambda model, inputs: compiled(model),
}
"""Name -> the variant made of a rewritten model and its example inputs. Open: add your own."""


def variants_of(
    rewritten: nn.Module, example_inputs: object, variants: Mapping[str, Model] | Sequence[str] | None
) -> dict[str, Model]:
    """``variants`` as models: given ones as they are, names in ``VARIANTS`` made of ``rewritten``."""
    if variants is None:
        return {}
    if isinstance(variants, Mapping):
        for name in (ORIGINAL, REWRITTEN):
            if name in variants:
                raise InputError(f"a variant can't be called {name!r}: that is the name of one of the two first models")
        return dict(variants)
    known = (REWRITTEN, *VARIANTS)
    for name in variants:
        if name != REWRITTEN and name not in VARIANTS:
            raise InputError(f"unknown variant {name!r}; the variants are {', '.join(known)}{likely(name, known)}")
    return {name: VARIANTS[name](rewritten, example_inputs) for name in variants if name != REWRITTEN}


def batch_of(inputs: Inputs, size: int) -> Inputs:
    """``inputs`` with ``size`` samples, theirs repeated. The batch is the first axis of the first tensor, and of every tensor
    that has as many entries there.

    >>> batch_of(Inputs.of((torch.ones(2, 3), torch.ones(5))), 4).tensors()[0].shape
    torch.Size([4, 3])
    """
    if size < 1:
        raise InputError(f"a batch has at least 1 sample, found {size}")
    count = next((t.shape[0] for t in inputs.tensors() if t.dim()), 0)
    if not count:
        raise InputError("the example inputs have no batch to change: no tensor of at least one axis and one entry")

    def repeated(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != count:
            return tensor
        return tensor[torch.arange(size, device=tensor.device) % count]

    args, kwargs = tree_map_only(Tensor, repeated, (inputs.args, inputs.kwargs))
    return replace(inputs, args=args, kwargs=kwargs)
