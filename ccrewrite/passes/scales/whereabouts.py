"""What runs where in a run on fake tensors, and the numbers that stay numbers in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

OUTPUT = "output"


@dataclass(frozen=True)
class Where:
    """The place in a run that asked for something: ``node`` is the operation, numbered as in an fx graph (``flatten``,
    ``add_3``), "" for Python code between operations; ``module`` the path of the module whose forward makes it."""

    node: str
    module: str

    def __str__(self) -> str:
        if self.node == OUTPUT:
            return f"the model's {self.module}"
        return f"{self.node or 'Python code'} in {self.module or 'the model'}"


class Whereabouts(TorchFunctionMode):
    """Knows which operation of which module is running."""

    def __init__(self, stack: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.stack = stack
        self.counts: Counter[str] = Counter()
        self.running: list[str] = []
        self.failed: Where | None = None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        name = _name(func)
        if name == "get":  # a property (x.shape): whatever is asked of sizes is asked by the code around it
            return func(*args, **(kwargs or {}))
        count = self.counts[name]
        self.counts[name] += 1
        self.running.append(f"{name}_{count}" if count else name)
        try:
            out = _with_constants(func, args, kwargs or {})
            self.failed = None  # an earlier failure was handled
        except Exception:
            self.failed = self.failed or self.here()
            raise
        finally:
            self.running.pop()
        return out

    def here(self) -> Where:
        return Where(self.running[-1] if self.running else "", self.stack[-1][0])


def _with_constants(func: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """``func(*args, **kwargs)`` in which single numbers that the model owns (a stride kept in a buffer) have their values."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if tensors and all(_is_constant(t) for t in tensors):
        with unset_fake_temporarily():
            args, kwargs = tree_map(_copied, (args, dict(kwargs)))
            return func(*args, **kwargs)

    def number(value: object) -> object:
        return value.item() if isinstance(value, Tensor) and value.ndim == 0 and _is_constant(value) else value

    if any(_is_constant(t) for t in tensors):
        with unset_fake_temporarily():
            args, kwargs = tuple(tree_map(number, a) if isinstance(a, (tuple, list)) else a for a in args), dict(kwargs)
    return func(*args, **kwargs)


def _copied(value: object) -> object:
    """A copy of the model's number, for what is called may write to it; a size as a number."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return hint_of(value) if isinstance(value, torch.SymInt) else value


def _is_constant(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and not tensor.is_meta and tensor.numel() == 1


def _name(func: object) -> str:
    return str(getattr(func, "__name__", func)).split(".")[0].strip("_")


def hint_of(size: int | torch.SymInt) -> int:
    return int(cast(Any, size).node.hint) if isinstance(size, torch.SymInt) else int(size)
