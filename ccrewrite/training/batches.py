"""The batches of a fine-tuning run: in an order and with random draws that the seed and the place in the run decide alone.

So a run that was killed goes on with the data it would have had, and several processes share out the batches that one would
have had: a loader's batch is the batch of the whole run, and each process takes its share of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from ccrewrite.errors import InputError
from ccrewrite.ir.preserve import random_states_kept
from ccrewrite.ir.typed import manual_seed

Loss = Callable[[Any, Any], Tensor]
"""Of the model's outputs and the target (of a batch that is a mapping, the batch): a scalar, the mean over the batch."""
Place = tuple[int, object]
"""Of a sample: its place in the epoch, and its index in the dataset."""


class Collected(Protocol):
    """Batches that can be counted, and iterated again."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[object]: ...


class Indexed(Protocol):
    """A dataset of samples with indices, whatever those are."""

    def __getitem__(self, index: object, /) -> object: ...


class Loader(Protocol):
    """A ``DataLoader``, with the types that torch doesn't give it."""

    dataset: Indexed
    sampler: object
    batch_sampler: Iterable[Iterable[object]] | None
    collate_fn: Callable[[list[object]], object]
    num_workers: int
    pin_memory: bool
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: object
    prefetch_factor: int | None


class Share(NamedTuple):
    """A process's part of a batch, and its size over that of an even part: the weight of its mean in the mean of all."""

    batch: object
    weight: float


class Batches:
    """Epochs of ``data``.

    Args:
        data: a ``DataLoader`` on a dataset with indices; its batches are shared out among processes, and its dataset's random
            draws depend on (seed, epoch, place in the epoch) alone, whatever ``num_workers``. Or, for one process, any
            other collection of batches that has a length and can be iterated again: such a run goes on by fetching the
            batches that it had already.
        name: what messages call it.
        rank, world: of how many processes this is which.

    Raises ``InputError`` where data is empty, has no length, or can't be iterated again or shared out.
    """

    def __init__(self, data: object, name: str, seed: int, rank: int = 0, world: int = 1) -> None:
        self.name, self.seed, self.rank, self.world = name, seed, rank, world
        if not _starts_anew(data):
            raise InputError(f"{name} must be a DataLoader or another collection of batches, found {type(data).__name__}")
        if not _has_length(data):
            raise InputError(
                f"{name}, a {type(data).__name__}, needs a length: the number of its batches. A stream's batches can be "
                "collected first, list(loader), or its dataset given a __len__"
            )
        self.data = cast(Collected, data)
        self.loader = _indexed(data)
        if world > 1 and self.loader is None:
            raise InputError(f"{name} must be a DataLoader on a dataset with indices, for {world} processes to share it")
        if self.loader is not None and isinstance(self.loader.sampler, DistributedSampler):
            raise InputError(f"{name} has a DistributedSampler; pass the loader without, finetune shares out each batch itself")
        if not len(self.data):
            raise InputError(f"{name} is empty: it has no batches")

    def __len__(self) -> int:
        return len(self.data)

    def epoch(self, number: int, start: int = 0) -> Iterator[Share]:
        """The batches of epoch ``number`` from the one with index ``start`` on. Seeds the global generators."""
        seed_all(self.seed, number)
        if self.loader is None:
            yield from (Share(batch, 1.0) for index, batch in enumerate(self._drawn(number)) if index >= start)
            return
        indices = self._indices(number)[start:]
        shares = [batch[self.rank :: self.world] for batch in indices]
        # A process that is left without a sample takes one all the same, for all must run; it doesn't count.
        loader = self._like(self.loader, number, [s or b[:1] for s, b in zip(shares, indices, strict=True)])
        for batch, share, whole in zip(loader, shares, indices, strict=True):
            yield Share(batch, len(share) * self.world / len(whole))

    def _drawn(self, number: int) -> Iterator[object]:
        iterator = iter(self.data)
        for index in range(len(self.data)):
            seed_all(self.seed, number, index)
            batch = next(iterator, self)
            if batch is self:
                raise InputError(f"{self.name} has a length of {len(self.data)} batches, but gave {index} in epoch {number}")
            yield batch

    def _indices(self, number: int) -> list[list[Place]]:
        """(place in the epoch, index) of each sample of each batch."""
        assert self.loader is not None
        assert self.loader.batch_sampler is not None
        with random_states_kept():
            seed_all(self.seed, number)
            for holder in (self.loader, self.loader.sampler):
                if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
                    generator.manual_seed(torch.initial_seed())
            place = iter(range(2**62))
            return [[(next(place), index) for index in batch] for batch in self.loader.batch_sampler]

    def _like(self, loader: Loader, number: int, indices: list[list[Place]]) -> DataLoader[object]:
        return DataLoader(
            _Seeded(loader.dataset, self.seed, number),
            batch_sampler=indices,
            collate_fn=loader.collate_fn,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
        )


def _starts_anew(data: object) -> bool:
    """Whether it can be iterated, again and again."""
    return isinstance(data, Iterable) and iter(cast("Iterable[object]", data)) is not data


def _has_length(data: object) -> bool:
    try:
        return len(cast(Sized, data)) >= 0
    except TypeError:  # also a loader's, whose dataset is a stream
        return False


def _indexed(data: object) -> Loader | None:
    """``data``, if it is a loader whose batches are lists of a dataset's indices."""
    loader = cast(Loader, data) if isinstance(data, DataLoader) else None
    return None if loader is None or loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset) else loader


class _Seeded(Dataset[object]):
    """A dataset whose items are drawn from generators seeded for each."""

    def __init__(self, dataset: Indexed, *key: int) -> None:
        self.dataset, self.key = dataset, key

    def __getitem__(self, place_and_index: Place) -> object:
        place, index = place_and_index
        seed_all(*self.key, place)
        return self.dataset[index]


def inputs_and_target(batch: object) -> tuple[tuple[object, ...] | dict[str, object], object]:
    """What of a batch the model takes, and what the loss: of a mapping both all of it. Raises ``InputError`` for others.

    >>> inputs_and_target(["image", "class"])
    (('image',), 'class')
    """
    if isinstance(batch, Mapping):
        named = cast("Mapping[str, object]", batch)
        return dict(named), named
    found = type(batch).__name__
    if isinstance(batch, (tuple, list)) and len(cast("Sequence[object]", batch)) > 1:
        *inputs, target = cast("Sequence[object]", batch)
        return tuple(inputs), target
    raise InputError(f"a batch must be (*inputs, target) or a mapping, found {found}")


def task_loss(model: nn.Module, loss: Loss, batch: object) -> Tensor:
    """The loss of one batch. Raises ``InputError`` where it is no scalar tensor."""
    inputs, target = inputs_and_target(batch)
    outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    value = cast(object, loss(outputs, target))
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the loss must be a scalar tensor, the mean over the batch; found {found}")
    return value.squeeze()


def seed_all(*key: int) -> None:
    """Seed torch's, NumPy's and Python's generators by several numbers together."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the legacy generator is what datasets draw from)
    manual_seed(seed)
