"""What torch leaves without types, under functions and classes that have them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
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
    return lists(tensor)


def integers(tensor: Tensor) -> list[int]:
    """What is in an integer tensor of one axis."""
    return lists(tensor)


def number_rows(tensor: Tensor) -> list[list[float]]:
    """What is in a real tensor of two axes."""
    return lists(tensor)


def integer_rows(tensor: Tensor) -> list[list[int]]:
    """What is in an integer tensor of two axes."""
    return lists(tensor)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor in the same memory."""
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]


def lists(tensor: Tensor) -> Any:
    """What is in a tensor: a number, or lists of as many levels as it has axes."""
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


class Context(Protocol):
    """What an autograd function keeps for its derivative; a subclass says what else."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...
    @property
    def needs_input_grad(self) -> tuple[bool, ...]: ...
    def save_for_backward(self, *tensors: Tensor | None) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...
    def set_materialize_grads(self, value: bool) -> None: ...


class TensorsFunction(torch.autograd.Function):
    """One that gives several."""

    if TYPE_CHECKING:

        @classmethod
        def apply(cls, *arguments: object, **named: object) -> tuple[Tensor, ...]: ...


class TensorFunction(torch.autograd.Function):
    """An autograd function that gives one tensor."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Which torch asks for in every call, and would find out anew.
        cls.forward.__signature__ = inspect.signature(cls.forward)  # pyright: ignore[reportFunctionMemberAccess]

    if TYPE_CHECKING:

        @classmethod
        def apply(cls, *arguments: object, **named: object) -> Tensor: ...


F = TypeVar("F", bound=Callable[..., object])


def fake_of(operator: CustomOpDef) -> Callable[[F], F]:
    """Decorates the function that says what ``operator`` gives, without values."""
    return cast("Callable[[F], F]", operator.register_fake)  # pyright: ignore[reportUnknownMemberType]


def differentiated_(operator: CustomOpDef, backward: Callable[..., object], setup_context: Callable[..., None]) -> None:
    """``backward`` is the derivative of ``operator``; ``setup_context`` keeps what it needs."""
    operator.register_autograd(backward, setup_context=setup_context)  # pyright: ignore[reportUnknownMemberType]


def mapped_over(operator: CustomOpDef) -> Callable[[F], F]:
    """Decorates the function that says what ``torch.vmap`` makes of ``operator``."""
    return cast("Callable[[F], F]", operator.register_vmap)  # pyright: ignore[reportUnknownMemberType]


class Batch(Protocol):
    """What ``torch.vmap`` tells such a function of the examples."""

    batch_size: int


class Triangular(Protocol):
    """A QR decomposition."""

    R: Tensor


class Solved(Protocol):
    """A least squares problem."""

    solution: Tensor


class Linear(Protocol):
    """``torch.linalg``."""

    def cholesky(self, input: Tensor) -> Tensor: ...
    def lstsq(self, input: Tensor, b: Tensor) -> Solved: ...
    def qr(self, A: Tensor, mode: str) -> Triangular: ...  # noqa: N803 (torch's name)
    def vector_norm(self, x: Tensor, *, dim: int, keepdim: bool = False) -> Tensor: ...


linalg = cast(Linear, torch.linalg)


class Fourier(Protocol):
    """``torch.fft``."""

    def fftfreq(self, n: int, d: float = 1.0, *, device: torch.device) -> Tensor: ...
    def rfftfreq(self, n: int, d: float = 1.0, *, device: torch.device) -> Tensor: ...
    def rfft(self, input: Tensor) -> Tensor: ...
    def rfft2(self, input: Tensor) -> Tensor: ...
    def irfft2(self, input: Tensor, *, s: tuple[int, int]) -> Tensor: ...


fft = cast(Fourier, torch.fft)


def norm(tensor: Tensor) -> Tensor:
    """The 2-norm of all values together."""
    return cast(Tensor, tensor.norm())  # pyright: ignore[reportUnknownMemberType]


def compiled(code: F, **options: Any) -> F:
    """``torch.compile(code, **options)``, of a function or a module."""
    return cast(F, torch.compile(code, **options))  # pyright: ignore[reportUnknownMemberType]


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
