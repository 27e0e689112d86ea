"""Looking whether geometry has moved: once for a whole model, at the beginning of its forward.

As long as nothing moved, plain convolutions run. To see that, values are read, and reading a value waits for a device. So a
rewritten model has a pair of hooks: one look at the geometry of all its layers when its forward begins, forgotten when it
ends. Nothing is remembered from one forward to the next, so no write is ever missed, however it is made. A layer that is called
outside its model's forward looks for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ccrewrite.errors import InputError
from ccrewrite.ir.torch_private import (
    always_called_of,
    forward_ad,
    forward_hooks_of,
    forward_pre_hooks_of,
    len_torch_dispatch_stack,
)
from ccrewrite.ir.typed import integers, split

if TYPE_CHECKING:
    from ccrewrite.families.sampling import Sampling


class _Looked(threading.local):
    """What was seen in the forwards that are running in this thread, the innermost last."""

    def __init__(self) -> None:
        self.seen: list[dict[int, bool]] = []


_looked = _Looked()


class Look:
    """Forward pre-hook of a rewritten model: looks at ``samplings`` together."""

    def __init__(self, samplings: Sequence[Sampling]) -> None:
        self.samplings = list(samplings)

    def __call__(self, model: nn.Module, args: object) -> None:
        if not torch.compiler.is_compiling():
            _looked.seen.append(_look(self.samplings))


class Forget:
    """Forward hook beside ``Look``: what was seen counts until the forward ends, also where it raises."""

    def __call__(self, model: nn.Module, args: object, output: object) -> None:
        if not torch.compiler.is_compiling() and _looked.seen:
            _looked.seen.pop()


def look_once_(model: nn.Module) -> None:
    """Let ``model`` look at its geometry once in each forward, in place. To be called after layers change."""
    for hooks, kind in ((forward_pre_hooks_of(model), Look), (forward_hooks_of(model), Forget)):
        for key, hook in list(hooks.items()):
            if isinstance(hook, kind):
                del hooks[key]
                always_called_of(model).pop(key, None)
    from ccrewrite.families.sites import named_samplings  # a sampling looks, too

    named = named_samplings(model)
    for name, sampling in named.items():
        sampling.site = name
    samplings = [sampling for sampling in named.values() if sampling.movers()]
    if len(samplings) > 1:
        model.register_forward_pre_hook(Look(samplings), prepend=True)
        model.register_forward_hook(Forget(), always_call=True)


def require_values(sampling: Sampling, tensors: Sequence[object], weight: Tensor) -> None:
    """Raise ``InputError`` where ``tensors``, of the geometry, have no values, and the weight that they are to move has."""
    if any(isinstance(t, Tensor) and t.is_meta for t in tensors) and not weight.is_meta:  # (of a tracer they are no tensors)
        where = sampling.site or f"this {type(sampling).__name__}"
        raise InputError(
            f"the geometry of {where} is on the meta device, which holds no values, while its weight is on {weight.device}: "
            "load the geometry too (load_state_dict(strict=True) names what is missing), or rewrite with the weights in place"
        )


def still(sampling: Sampling) -> bool | None:
    """Whether its geometry was seen to be at its start in the forward that is running; None: it must look for itself."""
    if not _looked.seen or _traced():
        return None
    return _looked.seen[-1].get(id(sampling))


def _look(samplings: Sequence[Sampling]) -> dict[int, bool]:
    """``id`` of each sampling -> whether all its movers are zero. Reads one value where all are; nothing where none can be."""
    movers = [sampling.movers() for sampling in samplings]
    everything = [mover for of_one in movers for mover in of_one]
    if torch.is_grad_enabled() and any(mover.requires_grad for mover in everything):
        return {}  # kernels are built, whatever they are
    if not readable(everything) or len({mover.device for mover in everything}) > 1:
        return {}
    flat = torch.cat([mover.detach().flatten() for mover in everything])
    if not flat.any().item():
        return {id(sampling): True for sampling in samplings}
    lengths = [sum(mover.numel() for mover in of_one) for of_one in movers]
    moved = integers(torch.stack([part.any() for part in split(flat, lengths)]))
    return {id(sampling): not one for sampling, one in zip(samplings, moved, strict=True)}


def readable(tensors: Sequence[Tensor]) -> bool:
    """Whether the values of ``tensors`` may be read now: real ones, outside every tracer, export, compilation, capture and
    transform (vmap, forward-mode derivatives)."""
    if _traced():
        return False
    for t in tensors:
        if (type(t) is not nn.Parameter and type(t) is not Tensor) or t.is_meta:
            return False
    if len_torch_dispatch_stack() and detect_fake_mode(tensors) is not None:
        return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())


def _traced() -> bool:
    """Whether something traces what runs now, or transforms it."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    # All that traces operators is a mode; other modes (a FLOP counter) only look on.
    if len_torch_dispatch_stack() and (detect_fake_mode() is not None or get_proxy_mode() is not None):
        return True
    return maybe_current_level() is not None or forward_ad._current_level >= 0


def any_(tensors: Sequence[Tensor]) -> bool:
    """Whether any value is not zero."""
    if tensors[0].is_cuda:
        tensors = [torch.cat([t.flatten() for t in tensors])]  # so that the device is waited for once
    return any(t.count_nonzero().item() for t in tensors)
