"""The tensors of a saved model: which are written, and how they come back, all of them or none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import cast

import torch
from safetensors.torch import _SIZE as DTYPES  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ccrewrite.errors import InputError
from ccrewrite.saving.files import WEIGHTS
from ccrewrite.saving.original import added_names, described
from ccrewrite.saving.placed import REMEDY

ORDER = (
    ", of a quantized model. The order that works: rewrite, fine-tune, save, fold, and quantize the folded model; for a model "
    "that was quantized before it was rewritten, save(geometry_only=True)"
)
"""What to do where something of a model is quantized."""


def tensors_of(model: nn.Module, *, geometry_only: bool) -> dict[str, object]:
    """The state of ``model`` by name, tied tensors once; with ``geometry_only``, what the original hasn't."""
    state = _untied(model.state_dict(keep_vars=True))
    only = added_names(model) if geometry_only else state.keys()
    return {name: tensor for name, tensor in state.items() if name in only}


def storable(tensors: Mapping[str, object]) -> dict[str, Tensor]:
    """On the CPU, contiguous, each with memory of its own."""
    stored: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if not isinstance(tensor, Tensor) or type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            quantized = "quant" in type(tensor).__module__ or "_packed_params" in name
            raise InputError(f"{name}: save writes plain tensors, found {type(tensor).__name__}{ORDER if quantized else ''}")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
            found = f"a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise InputError(f"{name}: save writes dense tensors with values, of the dtypes of safetensors; found {found}")
        value = tensor.detach().to("cpu").contiguous()
        storage = value.untyped_storage()
        shared = storage.nbytes() != value.nbytes or storage.data_ptr() in taken
        taken.add(storage.data_ptr())
        stored[name] = value.clone() if shared else value
    return stored


def load_tensors_(model: nn.Module, tensors: Mapping[str, Tensor], *, geometry_only: bool) -> None:
    """Check that ``tensors`` are those of ``model``, then copy them."""
    everything = model.state_dict(keep_vars=True)
    own, wanted = _untied(everything), tensors_of(model, geometry_only=geometry_only)
    expected = {n: described(n, t) for n, t in wanted.items()}
    found = {n: described(n, t) for n, t in tensors.items()}
    different = [n for n in {**expected, **found} if expected.get(n) != found.get(n)]
    if different:
        shown = "; ".join(f"{n}: expected {expected.get(n, 'nothing')}, found {found.get(n, 'nothing')}" for n in different[:4])
        more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise InputError(f"{WEIGHTS} doesn't hold what this model needs. {shown}{more}. {REMEDY}")
    meta = next((n for n, t in own.items() if isinstance(t, Tensor) and t.is_meta), None)
    if meta is not None:
        raise InputError(f"{meta} is on the meta device, which holds no values: call model.to_empty(device=...) first")
    before = {n: t.detach().to("cpu", copy=True) for n, t in wanted.items() if isinstance(t, Tensor)}
    first = {id(t): n for n, t in own.items()}
    try:
        state = OrderedDict((n, tensors.get(first[id(t)], t)) for n, t in everything.items())
        vars(state)["_metadata"] = getattr(everything, "_metadata", {})  # the versions of modules' states
        model.load_state_dict(state)
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                tensor = cast(Tensor, own[name])
                if not torch.equal(tensor.to("cpu"), value):
                    tensor.copy_(value)
        raise


def _untied(state: Mapping[str, object]) -> dict[str, object]:
    """Each tensor once, under the first of its names."""
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: state[name] for name in first.values()}
