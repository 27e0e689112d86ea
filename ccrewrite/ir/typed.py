"""What torch leaves without types, under functions and classes that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


def named_modules(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """``model.named_modules()``: the path of every module -> the module, outermost first."""
    return cast("Iterator[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=remove_duplicate))


def manual_seed(seed: int) -> None:
    """Of torch's generators on all devices."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]


def random_states_forked(devices: Sequence[int]) -> AbstractContextManager[None]:
    """Inside, the generators of the CPU and of these CUDA devices draw what is forgotten afterwards."""
    return cast("AbstractContextManager[None]", torch.random.fork_rng(devices=devices))  # pyright: ignore[reportUnknownMemberType]


def numbers(tensor: Tensor) -> list[float]:
    """What is in a real tensor of one axis.

    >>> numbers(torch.tensor([1.5, 2]))
    [1.5, 2.0]
    """
    return _lists(tensor)


def integers(tensor: Tensor) -> list[int]:
    """What is in an integer tensor of one axis."""
    return _lists(tensor)


def number_rows(tensor: Tensor) -> list[list[float]]:
    """What is in a real tensor of two axes."""
    return _lists(tensor)


def integer_rows(tensor: Tensor) -> list[list[int]]:
    """What is in an integer tensor of two axes."""
    return _lists(tensor)


def _lists(tensor: Tensor) -> Any:
    return tensor.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def split(tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """In parts of these sizes along ``dim``."""
    return tensor.split(list(sizes), dim)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def norm(tensor: Tensor) -> Tensor:
    """The 2-norm of all values together."""
    return cast(Tensor, tensor.norm())  # pyright: ignore[reportUnknownMemberType]


def compiled(module: nn.Module, *, dynamic: bool | None = None, fullgraph: bool = False) -> nn.Module:
    """``torch.compile``, of a module."""
    return cast(nn.Module, torch.compile(module, dynamic=dynamic, fullgraph=fullgraph))  # pyright: ignore[reportUnknownMemberType]


Operator = OpOverload[..., object] | HigherOrderOperator
"""What ``__torch_dispatch__`` is told of."""


def called(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """``function(*args, **kwargs)``, where ``function`` doesn't say what it gives."""
    return function(*args, **kwargs)


class DispatchMode(TorchDispatchMode):
    """A mode that ``__torch_dispatch__`` of its subclasses is called in."""

    if TYPE_CHECKING:

        def __init__(self) -> None: ...
        def __exit__(self, *exception: object) -> None: ...
