"""Run somebody's model and leave no trace: training flags, attributes, buffers, parameters and random states come back."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ccrewrite.ir.own_state import OwnState
from ccrewrite.ir.threads import one_at_a_time
from ccrewrite.ir.torch_private import buffer_registration_hooks, buffers_of, parameters_of, schema_of
from ccrewrite.ir.typed import DispatchMode, Operator, called, random_states_forked


@contextmanager
def preserved(model: nn.Module, tensors: Iterable[Tensor] | None = ()) -> Generator[list[Tensor]]:
    """Run ``model`` in evaluation mode inside; afterwards it, ``tensors`` (its inputs) and the random states are as before.

    Values written in place are saved just before the first write to them, so nothing is copied that the run doesn't change.
    ``tensors=None`` leaves values to whoever enters this: a ``WriteGuard`` must be inside of a mode for fake tensors, for the
    model's own are real there. Given are the tensors in the model's other attributes.
    """
    with ExitStack() as stack:
        own = stack.enter_context(_restored(list(model.modules()), evaluate=True))
        if tensors is not None:
            stack.enter_context(WriteGuard(model, (*tensors, *own)))
        yield own


@contextmanager
def unwatched(models: Collection[nn.Module], tensors: Iterable[Tensor], *, evaluate: bool = True) -> Generator[list[Tensor]]:
    """``preserved`` without the guard over every operator, which would be timed as well and keep torch.compile from compiling.

    Of several models; copies beforehand ``tensors`` and all that the models hold, but for their parameters. With
    ``evaluate=False`` they stay in the mode that they are in.
    """
    with _restored([module for model in models for module in model.modules()], evaluate) as own:
        saved = [_Saved(t) for t in (*tensors, *own, *(b for m in models for b in m.buffers()))]
        try:
            yield own
        finally:
            for tensor in saved:
                tensor.restore_if_changed()


class _Saved:
    """A tensor's values, and that it had no history: a run with gradients that writes to a buffer gives it one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.values, self.history = tensor, tensor.detach().clone(), tensor.grad_fn

    def restore(self) -> None:
        self.tensor.detach().copy_(self.values)
        if self.history is None and self.tensor.grad_fn is not None:
            with suppress(RuntimeError):  # of views
                self.tensor.detach_()

    def restore_if_changed(self) -> None:
        if self.tensor.grad_fn is not self.history or not torch.equal(self.tensor, self.values):
            self.restore()


@contextmanager
def _restored(modules: Iterable[nn.Module], evaluate: bool) -> Generator[list[Tensor]]:
    """Gives the tensors in attributes that are no parameters or buffers."""
    flags = [(module, module.training) for module in modules]
    state = OwnState(vars(module) for module, _ in flags)
    known = {id(t) for module, _ in flags for t in (*parameters_of(module).values(), *buffers_of(module).values())}
    with ExitStack() as stack:
        stack.enter_context(one_at_a_time())
        stack.enter_context(random_states_kept())
        stack.callback(state.restore)
        for module, training in flags:
            stack.callback(setattr, module, "training", training)  # a ScriptModule keeps it elsewhere
            if evaluate:
                module.training = False
        yield [t for t in state.tensors if id(t) not in known and _storage(t) is not None]


RUNNING_STATISTICS = ("running_mean", "running_var")
"""Arguments that batch norm's operators update without a word of it in their schemas."""


class WriteGuard(DispatchMode):
    """Saves the values of a tensor, of ``model``'s own or one of ``tensors``, before the first operator that writes to its
    storage, and puts them back on exit. Every operator takes longer while it looks."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.tracked: dict[int, list[Tensor]] = defaultdict(list)
        owned = (t for m in model.modules() for t in (*parameters_of(m).values(), *buffers_of(m).values()) if t is not None)
        for tensor in (*owned, *tensors):
            if (key := _storage(tensor)) is not None:
                self.tracked[key].append(tensor)  # several where they are slices of one
        self.saved: list[_Saved] = []
        self.met_control_flow = False

    def __torch_dispatch__(
        self, func: Operator, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.met_control_flow = True
            return called(func, args, kwargs)
        for position, name in _written(func):
            value = args[position] if position < len(args) else kwargs.get(name)
            for tensor in cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else (value,):
                self._save(tensor)
        return func(*args, **kwargs)

    def _save(self, tensor: object) -> None:
        key = _storage(tensor) if isinstance(tensor, Tensor) else None
        originals = () if key is None else self.tracked.pop(key, ())
        if originals:
            with unset_fake_temporarily():
                self.saved += map(_Saved, originals)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        with unset_fake_temporarily():
            for tensor in self.saved:
                tensor.restore()
        if self.met_control_flow:
            # torch.cond and its like compile what they call. What is kept of that is of no use without this mode, and torch
            # (2.13) fails on it, in the next run or export.
            torch.compiler.reset()


@cache
def _written(func: OpOverload[..., object]) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that ``func`` writes to."""
    schema = schema_of(func)
    arguments = enumerate(schema.arguments) if schema.is_mutable or "batch_norm" in schema.name else ()
    return tuple((i, a.name) for i, a in arguments if (a.alias_info and a.alias_info.is_write) or a.name in RUNNING_STATISTICS)


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
