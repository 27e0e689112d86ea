"""Digests of the weights that geometry was learned on: geometry that is loaded onto others can be told."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ccrewrite.errors import WeightsWarning
from ccrewrite.saving.original import added_names

PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def digests_of(model: nn.Module) -> dict[str, str]:
    """Name -> digest of each tensor that the original of ``model`` has, too; none of sharded ones and those without values."""
    added, known = added_names(model), dict[int, str]()
    found: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in added and type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_meta:
            found[name] = known.get(id(tensor)) or known.setdefault(id(tensor), _digest(tensor))
    return found


def warn_of_other_weights(model: nn.Module, expected: Mapping[str, str], directory: Path) -> None:
    """A ``WeightsWarning`` where tensors of ``model`` are not those of the digests ``expected``."""
    found = digests_of(model)
    different = [name for name, digest in expected.items() if name in found and found[name] != digest]
    if different:
        more = f" and {len(different) - 4} more" if len(different) > 4 else ""
        warnings.warn(
            f"{directory}: this geometry was learned on other weights than the model has ({', '.join(different[:4])}{more}). "
            "Load the weights that it was learned on first, or save without geometry_only",
            WeightsWarning,
            stacklevel=4,
        )


def _digest(tensor: Tensor) -> str:
    """Of its values, in 64 bits: enough to tell a mistake."""
    values = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()[:16]
