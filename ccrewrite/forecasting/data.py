"""The batches of a forecast: those that probes train on, and fresh ones that judge them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ccrewrite.errors import InputError
from ccrewrite.training.batches import Batches, Loss, task_loss

CHOOSING, JUDGING = 8, 16
"""Fresh batches: by the first ones the best learning rate is chosen, by the others it is judged."""
FEWEST = 8
"""Batches below which there are too few to train on some and judge by others."""


class Data:
    """The batches of one epoch of ``train_data``, on ``device``. The first are kept as fresh ones: nothing trains on them.

    Raises ``InputError`` where there are fewer than ``FEWEST``.
    """

    def __init__(self, train_data: object, loss: Loss, seed: int, device: torch.device) -> None:
        batches = Batches(train_data, "train_data", seed)
        if len(batches) < FEWEST:
            raise InputError(
                f"a forecast trains on some batches and judges by others: it needs at least {FEWEST}, found {len(batches)} in "
                "train_data; make them smaller"
            )
        self.loss, self.device = loss, device
        self._rest: Iterator[object] = (share.batch for share in batches.epoch(0))
        fresh = min(CHOOSING + JUDGING, len(batches) // 2)
        chosen = max(1, fresh * CHOOSING // (CHOOSING + JUDGING))
        kept = [self._moved(batch) for batch in islice(self._rest, fresh)]
        self.choosing, self.judging = kept[:chosen], kept[chosen:]
        self.training: list[object] = []

    def fetch(self, count: int) -> None:
        """Have ``count`` batches to train on, or all there are."""
        self.training += [self._moved(batch) for batch in islice(self._rest, max(0, count - len(self.training)))]

    def batch(self, step: int) -> object:
        """What step ``step`` trains on: the same batch for every probe, from the first again where there are no more."""
        return self.training[step % len(self.training)]

    def loss_of(self, model: nn.Module, batch: object) -> Tensor:
        return task_loss(model, self.loss, batch)

    @torch.no_grad()
    def losses(self, model: nn.Module, batches: Sequence[object]) -> list[float]:
        return [float(self.loss_of(model, batch)) for batch in batches]

    def chosen_by(self, model: nn.Module) -> float:
        """Mean loss on the batches that choose between learning rates."""
        return statistics.fmean(self.losses(model, self.choosing))

    def _moved(self, batch: object) -> object:
        if isinstance(batch, Mapping):
            batch = dict(cast("Mapping[str, object]", batch))
        return tree_map_only(Tensor, lambda t: t.to(self.device), batch)
