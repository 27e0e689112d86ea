"""What torch leaves without types, under functions and classes that have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
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


def split(tensor: Tensor, sizes: int | list[int], dim: int = 0) -> tuple[Tensor, ...]:
    """In parts of this size, or of these, along ``dim``."""
    return tensor.split(sizes, dim)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def backward(loss: Tensor) -> None:
    """Add the gradients of ``loss`` to those of the parameters."""
    loss.backward()  # pyright: ignore[reportUnknownMemberType]


def step_(optimizer: Optimizer) -> None:
    """One, of any optimizer: torch's own ones have no types there."""
    optimizer.step()


def advance_(schedule: LRScheduler) -> None:
    """To the rate of the next step."""
    schedule.step()  # pyright: ignore[reportUnknownMemberType]


class Fourier(Protocol):
    """``torch.fft``."""

    def fftfreq(self, n: int, *, device: torch.device) -> Tensor: ...
    def rfftfreq(self, n: int, *, device: torch.device) -> Tensor: ...
    def rfft(self, input: Tensor, n: int) -> Tensor: ...
    def rfft2(self, input: Tensor) -> Tensor: ...
    def irfft2(self, input: Tensor, *, s: tuple[int, int]) -> Tensor: ...


C = TypeVar("C", bound=Callable[..., object])
fft = cast(Fourier, torch.fft)


def norm(tensor: Tensor) -> Tensor:
    """The 2-norm of all values together."""
    return cast(Tensor, tensor.norm())  # pyright: ignore[reportUnknownMemberType]


def compiled(code: C, **options: Any) -> C:
    """``torch.compile(code, **options)``, of a function or a module."""
    return cast(C, torch.compile(code, **options))  # pyright: ignore[reportUnknownMemberType]


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
