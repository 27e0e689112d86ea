"""Run somebody's model and leave no trace: training flags, attributes, buffers, parameters and random states come back."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator

from ccrewrite.ir.own_state import OwnState
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.torch_private import buffer_registration_hooks, buffers_of, parameters_of, schema_of
from ccrewrite.ir.typed import DispatchMode, Operator, called, random_states_forked


@contextmanager
def preserved(model: nn.Module, tensors: Iterable[Tensor] | None = ()) -> Generator[None]:
    """Run ``model`` in evaluation mode inside; afterwards it, ``tensors`` (its inputs) and the random states are as before.

    Values written in place are saved just before the first write to them, so nothing is copied that the run doesn't change.
    ``tensors=None`` says that no real value can be written (a run on fake tensors).
    """
    modules = list(model.modules())
    with ExitStack() as stack:
        stack.enter_context(_restored(modules, evaluate=True))
        if tensors is not None:
            owned = (t for m in modules for t in (*parameters_of(m).values(), *buffers_of(m).values()) if t is not None)
            stack.enter_context(_WriteGuard([*owned, *tensors]))
        yield


@contextmanager
def unwatched(models: Collection[nn.Module], tensors: Iterable[Tensor], *, evaluate: bool = True) -> Generator[None]:
    """``preserved`` without the guard over every operator, which would be timed as well and keep torch.compile from compiling.

    Of several models; copies all their buffers and ``tensors`` beforehand. With ``evaluate=False`` they stay in the mode that
    they are in.
    """
    saved = [(t, t.detach().clone()) for t in (*tensors, *(b for m in models for b in m.buffers()))]
    with _restored([module for model in models for module in model.modules()], evaluate):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, values in saved:
                    if not torch.equal(tensor, values):
                        tensor.copy_(values)


@contextmanager
def _restored(modules: Iterable[nn.Module], evaluate: bool) -> Generator[None]:
    flags = [(module, module.training) for module in modules]
    state = OwnState(vars(module) for module, _ in flags)
    with ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        stack.enter_context(random_states_kept())
        stack.callback(state.restore)
        for module, training in flags:
            stack.callback(setattr, module, "training", training)  # a ScriptModule keeps it elsewhere
            if evaluate:
                module.training = False
        yield


RUNNING_STATISTICS = ("running_mean", "running_var")
"""Arguments that batch norm's operators update without a word of it in their schemas."""


class _WriteGuard(DispatchMode):
    """Saves a tracked tensor's values before the first operator that writes to its storage, and puts them back on exit."""

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.tracked: dict[int, list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            if (key := _storage(tensor)) is not None:
                self.tracked[key].append(tensor)  # several where they are slices of one
        self.saved: list[tuple[Tensor, Tensor]] = []
        self.met_control_flow = False

    def __torch_dispatch__(
        self, func: Operator, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.met_control_flow = True
            return called(func, args, kwargs)
        schema = schema_of(func)
        if schema.is_mutable or "batch_norm" in schema.name:
            for position, argument in enumerate(schema.arguments):
                declared = argument.alias_info is not None and argument.alias_info.is_write
                if declared or argument.name in RUNNING_STATISTICS:
                    value = args[position] if position < len(args) else kwargs.get(argument.name)
                    for tensor in cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else (value,):
                        self._save(tensor)
        return func(*args, **kwargs)

    def _save(self, tensor: object) -> None:
        key = _storage(tensor) if isinstance(tensor, Tensor) else None
        originals = () if key is None else self.tracked.pop(key, ())
        self.saved += [(original.detach(), original.detach().clone()) for original in originals]

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for original, values in self.saved:
            original.copy_(values)
        if self.met_control_flow:
            # torch.cond and its like compile what they call. What is kept of that is of no use without this mode, and torch
            # (2.13) fails on it, in the next run or export.
            torch.compiler.reset()


def _storage(tensor: Tensor) -> int | None:
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.is_meta or tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage().data_ptr() or None


@contextmanager
def global_hooks_kept() -> Generator[None]:
    """Hooks on all modules that are registered inside are gone afterwards: torch 2.11's export leaves one where it refuses."""
    hooks = buffer_registration_hooks()
    before = dict(hooks)
    try:
        yield
    finally:
        hooks.clear()
        hooks.update(before)


@contextmanager
def random_states_kept() -> Generator[None]:
    """Whatever is drawn inside, torch's, NumPy's and Python's generators go on afterwards as if nothing had been."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the legacy state is what models draw from)
    with random_states_forked(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def trainable_made() -> Generator[None]:
    """Parameters that are made inside can be trained, also where ``torch.inference_mode`` is on."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():  # leaving it turns gradients on
        yield
