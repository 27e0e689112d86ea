"""What the package needs of torch that torch keeps private: here alone, under public and typed names."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch
from torch import _C, Tensor, nn
from torch._C._functorch import maybe_current_level as _maybe_current_level
from torch._ops import OpOverload
from torch.autograd import forward_ad as _forward_ad
from torch.nn.modules import batchnorm, conv
from torch.nn.modules import module as _module
from torch.nn.utils import prune
from torch.overrides import _get_current_function_mode

BatchNorm = batchnorm._BatchNorm
NormBase = batchnorm._NormBase
ConvNd = conv._ConvNd
ConvTransposeNd = conv._ConvTransposeNd

len_torch_dispatch_stack = _C._len_torch_dispatch_stack
len_torch_function_stack = _C._len_torch_function_stack
current_function_mode = _get_current_function_mode

Hooks = dict[int, Callable[..., object]]
"""The key of each hook's handle -> the hook, in the order in which they are called."""

convolution: Callable[..., Tensor] = cast(Any, torch)._convolution

forward_ad: Any = _forward_ad
"""For its ``_current_level``, below 0 outside forward-mode derivatives. Read in every call, so not by a function."""


class _Config(Protocol):
    """One of torch's modules of settings."""

    def patch(self, changes: dict[str, object], /) -> AbstractContextManager[None]: ...


def patched(config: object, settings: Mapping[str, object]) -> AbstractContextManager[None]:
    """Inside, ``config``, one of torch's modules of settings, has ``settings``."""
    return cast(_Config, config).patch(dict(settings))


class _Hooked(Protocol):
    """A module's hooks, with the types that torch doesn't give them."""

    _forward_hooks: Hooks
    _forward_pre_hooks: Hooks
    _load_state_dict_pre_hooks: Hooks


def transformed() -> bool:
    """Whether a transform of torch.func's (vmap, grad) runs now. torch.compile takes the answer for a constant of the code."""
    return _maybe_current_level() is not None


# As torch.compiler.assume_constant_result does, which imports all of dynamo.
cast(Any, transformed)._dynamo_marked_constant = True


def untraced() -> bool:
    """Whether nothing traces, transforms, casts or looks on at what runs now."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or len_torch_dispatch_stack():
        return False
    return _maybe_current_level() is None and forward_ad._current_level < 0 and not torch.is_autocast_enabled("cpu")


def unwatched(*tensors: Tensor) -> bool:
    """Whether an operator that torch neither differentiates nor traces can take ``tensors`` here."""
    if not untraced() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return False
    return all(type(t) in (Tensor, nn.Parameter) for t in tensors)


def onednn_multiplies() -> bool:
    """Whether ``onednn_product`` can be called: elsewhere than on x86 nobody has tried it."""
    return _ONEDNN and _C._get_mkldnn_enabled()


_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def onednn_product(one: Tensor, other: Tensor) -> Tensor:
    """``one @ other.mT`` of two float32 matrices on a CPU, by rows or by columns in memory. Neither differentiable nor
    traceable."""
    return torch.ops.mkldnn._linear_pointwise(_dense(one), _dense(other), None, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """With columns that lie apart, oneDNN takes a hundred times as long."""
    by_columns = matrix.stride(0) == 1 and matrix.shape[1] > 1
    return matrix.mT.contiguous().mT if by_columns else matrix.contiguous()


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Its own ones, to read and to write."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    return module._buffers


def non_persistent_of(module: nn.Module) -> set[str]:
    """The names of its buffers that are in no state dict."""
    return module._non_persistent_buffers_set


def submodules_of(module: nn.Module) -> dict[str, nn.Module | None]:
    return module._modules


def forward_hooks_of(module: nn.Module) -> Hooks:
    return cast(_Hooked, module)._forward_hooks


def always_called_of(module: nn.Module) -> dict[int, bool]:
    """The keys of the forward hooks that are called where the forward raises, too."""
    return module._forward_hooks_always_called


def forward_pre_hooks_of(module: nn.Module) -> Hooks:
    return cast(_Hooked, module)._forward_pre_hooks


def drop_forward_pre_hook_(module: nn.Module, key: int) -> None:
    """As its handle's ``remove`` does."""
    del cast(_Hooked, module)._forward_pre_hooks[key]
    module._forward_pre_hooks_with_kwargs.pop(key, None)


def loading_hooks_of(module: nn.Module) -> Hooks:
    """Those before ``load_state_dict``."""
    return cast(_Hooked, module)._load_state_dict_pre_hooks


def buffer_registration_hooks() -> Hooks:
    """Those on all modules."""
    return vars(_module)["_global_buffer_registration_hooks"]


def border_of(layer: ConvNd) -> list[int]:
    """The padding of a padding mode other than zeros, as ``F.pad`` takes it."""
    return layer._reversed_padding_repeated_twice


def set_border_(layer: ConvNd, padding: Sequence[int]) -> None:
    """To that of ``padding``, one number per axis."""
    layer._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]


def output_padding_of(
    layer: ConvTransposeNd,
    input: Tensor,
    output_size: list[int] | None,
    stride: list[int],
    padding: list[int],
    kernel_size: list[int],
    ndim: int,
    dilation: list[int],
) -> list[int]:
    """What makes a transposed convolution's output of that size."""
    return layer._output_padding(input, output_size, stride, padding, kernel_size, ndim, dilation)


def unprune_(module: nn.Module, hook: prune.BasePruningMethod) -> None:
    """Make the tensor that ``hook`` prunes a parameter of its own again, with the zeros in it."""
    prune.remove(module, hook._tensor_name)  # pyright: ignore[reportUnknownMemberType]


def schema_of(operator: OpOverload) -> torch.FunctionSchema:
    return operator._schema
