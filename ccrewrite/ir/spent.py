"""What running something takes: floating-point operations, and the most memory that it holds at once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from ccrewrite.ir.typed import DispatchMode, Operator, called


def flops_of(function: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products in ``function()``; a multiply-add is two.

    By the formulas of torch's ``FlopCounterMode`` (elementwise operations and fused recurrent layers have none), except for
    the backward of grouped convolutions, of whose weight gradient it counts every pair of channels.
    """
    with _FlopCounter() as counter:
        function()
    return counter.total


class _FlopCounter(DispatchMode):
    """``FlopCounterMode`` without its tracking of modules, whose hooks ``torch.autograd.grad`` refuses."""

    total = 0

    def __torch_dispatch__(
        self, func: Operator, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        out = called(func, args, kwargs or {})
        formula = FORMULAS.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def _convolution_backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    wanted: Sequence[bool],
    *_: object,
    **__: object,
) -> int:
    # The gradients of input and weight each make the products of the forward once.
    forward = 2 * weight.numel() * len(gradient) * (input if transposed else gradient)[0, 0].numel()
    return forward * (wanted[0] + wanted[1])


FORMULAS: dict[Any, Callable[..., int]] = flop_registry | {torch.ops.aten.convolution_backward: _convolution_backward}


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Most bytes that torch's allocator held at once during ``function()``, above what it held before; results included.

    CUDA: ``torch.cuda.max_memory_allocated``. CPU: the allocations that torch's profiler records (workspace that oneDNN takes
    for itself is not among them).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = function()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del kept
        return peak
    profile: Any = torch.autograd.profiler.profile(profile_memory=True)
    with _quiet_profiler(), profile:
        kept = function()
    del kept
    memory = sorted((e for e in profile.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in memory), initial=0))


@contextmanager
def _quiet_profiler() -> Generator[None]:
    """Kineto announces itself on stderr."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "99")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
