"""What a run uses of accelerate, with the types that accelerate doesn't give."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import DistributedType  # pyright: ignore[reportMissingTypeStubs]


T = TypeVar("T")


class Accelerated(Protocol):
    """An ``accelerate.Accelerator``."""

    @property
    def device(self) -> torch.device: ...
    @property
    def distributed_type(self) -> DistributedType: ...
    @property
    def is_main_process(self) -> bool: ...
    @property
    def process_index(self) -> int: ...
    @property
    def num_processes(self) -> int: ...
    def wait_for_everyone(self) -> None: ...
    def prepare(self, *args: Any) -> Any: ...
    def autocast(self) -> AbstractContextManager[object]: ...
    def no_sync(self, model: nn.Module) -> AbstractContextManager[object]: ...
    def backward(self, loss: Tensor) -> None: ...
    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> object: ...
    def reduce(self, tensor: Tensor) -> Any: ...
    def init_trackers(self, project_name: str, config: dict[str, Any]) -> None: ...
    def log(self, values: dict[str, Any], step: int) -> None: ...
    def save_state(self, output_dir: str) -> object: ...
    def load_state(self, input_dir: str) -> None: ...


class Tracker(Protocol):
    """What writes losses somewhere."""

    def finish(self) -> None: ...


class Made(Accelerated, Protocol):
    """One that was made for a single run."""

    mixed_precision: str
    scaler: object
    trackers: list[Tracker]

    def free_memory(self) -> object: ...


def prepared(
    accelerator: Accelerated, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """What the steps call: ``model`` and ``optimizer`` as this kind of run needs them."""
    return accelerator.prepare(model, optimizer)


def summed(accelerator: Accelerated, tensor: Tensor) -> Tensor:
    """Over the processes."""
    return accelerator.reduce(tensor)


def sent(batch: object, accelerator: Accelerated) -> object:
    """``batch`` on the run's device."""
    from accelerate.utils import send_to_device  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    return cast(object, send_to_device(batch, accelerator.device))


def agreed(value: T, accelerator: Accelerated) -> T:
    """The main process's ``value``, in all of them."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    found = [value]
    broadcast_object_list(found)
    return found[0]


def size_of(batch: object) -> int | None:
    """How many samples it has; None: it holds no tensor."""
    from accelerate.utils import find_batch_size  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    try:
        return cast("int | None", find_batch_size(batch))
    except TypeError:  # it holds something else
        return None


def under_fsdp(accelerator: Accelerated) -> bool:
    from accelerate import DistributedType  # pyright: ignore[reportMissingTypeStubs]

    return accelerator.distributed_type == DistributedType.FSDP
