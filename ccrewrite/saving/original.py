"""What a rewritten model was before, and what it has in addition. The model, its fresh original, and one that is rewritten
already give the same answers."""

from __future__ import annotations

import sys
from typing import TypedDict, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import RewrittenConv, torch_layer
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.torch_private import ConvNd, parameters_of
from ccrewrite.ir.typed import named_modules

Original = TypedDict("Original", {"class": str, "tensors": dict[str, str]})
"""The class of a model before it was rewritten; name -> dtype and shape of each tensor that it had, in words."""


def original_of(model: nn.Module) -> Original:
    """What ``model`` was before."""
    added = {id(t) for _, t in added_parameters(model)}
    dense = _dense_shapes(model)
    state = {name: t for name, t in model.state_dict(keep_vars=True).items() if id(t) not in added}
    return {"class": class_of(model), "tensors": {n: described(n, t, dense.get(id(t))) for n, t in state.items()}}


def added_names(model: nn.Module) -> set[str]:
    """Names of the tensors that the original has not, or not in this shape."""
    ids = {id(t) for _, t in added_parameters(model)} | _dense_shapes(model).keys()
    return {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in ids}


def added_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Name and tensor of all that samplings own, tied ones under each name."""
    samplings = [(n, m) for n, m in named_modules(model) if isinstance(m, Sampling)]
    return [(f"{n}.{name}", t) for n, m in samplings for name, t in m.named_parameters(remove_duplicate=False)]


def described(name: str, tensor: object, shape: tuple[int, ...] | None = None) -> str:
    """Dtype and shape (or ``shape``), in words."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    if nn.parameter.is_lazy(tensor):
        raise InputError(f"{name} has no shape yet: run the model once first")
    return " ".join((named(tensor.dtype), "x".join(map(str, tensor.shape if shape is None else shape)))).rstrip()


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def layer_of(module: nn.Module) -> str:
    """The class of ``module`` before, and the geometry of a convolution."""
    if torch_layer(type(module)) is None:
        return class_of(module)
    return f"{class_of(module)} {ConvGeometry.from_module(cast(ConvNd, module)).describe()}"


def class_of(module: nn.Module) -> str:
    """Name of the class that ``module`` had before it was rewritten, parametrized or sharded."""
    if isinstance(module, fx.GraphModule):
        return fx.GraphModule.__name__  # the name of its class changes when it is copied
    kind = type(module)
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where it isn't imported, nothing is sharded
    if fsdp is not None and issubclass(kind, fsdp.FSDPModule):
        kind = kind.__bases__[1]
    if parametrize.is_parametrized(module):
        kind = kind.__bases__[0]
    return (kind.ccrewrite_replaced if issubclass(kind, RewrittenConv) else kind).__name__


def _dense_shapes(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """``id`` of each weight that is not the original's -> the shape of the kernel that it was."""
    layers = [m for m in model.modules() if isinstance(m, RewrittenConv)]
    weights = [(parameters_of(m).get("weight"), m.sampling.kernel_size) for m in layers if m.sampling.own_weight]
    return {id(w): (*w.shape[:2], *size) for w, size in weights if w is not None}
