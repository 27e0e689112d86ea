"""One step of a fine-tuning run, and one validation, on this process's share of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ccrewrite import nn as layers
from ccrewrite.errors import InputError
from ccrewrite.training.accelerating import Accelerated, prepared, sent, size_of, summed
from ccrewrite.training.batches import Loss, Share, task_loss
from ccrewrite.training.config import FinetuneConfig
from ccrewrite.training.distillation import Distillation
from ccrewrite.training.positions import clamp_positions
from ccrewrite.training.schedules import FreezeSchedule
from ccrewrite.training.sharded import gathered

TERMS = ("task", "distillation", "features", "repulsion", "smoothness")
"""What a loss is the sum of."""


class Schedule(Protocol):
    """Called after each optimizer step, before gradients are cleared; its state (plain values and tensors) is in the
    checkpoints. ``WidthSchedule`` and ``Recorder`` are such."""

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Steps:
    """Model, optimizer and losses: one step, one validation, one checkpoint.

    ``called`` is what runs, the model itself or compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        called: nn.Module,
        loss: Loss,
        original: nn.Module | None,
        config: FinetuneConfig,
        optimizer: torch.optim.Optimizer,
        schedules: Sequence[Schedule],
        accelerator: Accelerated,
        stack: ExitStack,
    ) -> None:
        self.model, self.loss, self.config, self.accelerator = model, loss, config, accelerator
        self.distillation: Distillation | None = None
        if config.distillation or config.feature_distillation:
            if original is None:
                raise InputError("distillation needs the original: finetune(..., original=model_before_the_rewrite)")
            temperature = config.temperature if config.outputs == "scores" else None
            self.distillation = stack.enter_context(
                Distillation(model, original, features=config.features, temperature=temperature, dim=config.class_axis)
            )
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.wrapped, self.optimizer = prepared(accelerator, called, optimizer)
        self.schedules = list(schedules)
        self.freeze: FreezeSchedule | None = None
        if config.geometry_from or config.weights_from:  # after the preparation, which takes what is trainable
            self.freeze = FreezeSchedule(model, geometry=config.geometry_from, weights=config.weights_from)
            stack.callback(self.freeze.release)

    def freeze_as_in(self, number: int) -> None:
        """Freeze what the config freezes in step ``number``, counted from 0."""
        if self.freeze is not None:
            self.freeze.load_state_dict({"done": number})

    def step(self, shares: Sequence[Share], number: int, rate: float) -> Tensor:
        """Optimizer step ``number``; this process's part of ``TERMS``, which over processes add up to those of the batch."""
        self.freeze_as_in(number)
        for group, highest in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * highest
        self.wrapped.train()
        terms = torch.zeros(len(TERMS), device=self.accelerator.device)
        for index, share in enumerate(shares):
            last = index == len(shares) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                data = self._of_data(share.batch)
                found = {name: share.weight / len(shares) * value for name, value in data.items()}
                found |= self._of_geometry() if last else {}
                self.accelerator.backward(cast(Tensor, sum(found.values())))
            world = self.accelerator.num_processes
            terms += torch.stack([found[n].detach().float() if n in found else terms.new_zeros(()) for n in TERMS]) / world
        if self.config.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip_norm)
        if self.freeze is not None:  # FSDP2 makes gradients for them too
            for parameter in self.wrapped.parameters():
                parameter.grad = parameter.grad if parameter.requires_grad else None
        self.optimizer.step()
        clamp_positions(self.model)
        for schedule in self.schedules:
            schedule.step()
        self.optimizer.zero_grad()
        return terms

    def _of_data(self, batch: object) -> dict[str, Tensor]:
        task = self._task(batch)
        if not task.requires_grad:
            raise InputError("the loss depends on nothing that trains; is everything frozen, or is the loss detached?")
        if self.distillation is None:
            return {"task": task}
        with self.accelerator.autocast():
            outputs, features = self.distillation()
        weights = self.config.distillation, self.config.feature_distillation
        return {"task": task, "distillation": weights[0] * outputs, "features": weights[1] * features}

    def _task(self, batch: object) -> Tensor:
        return task_loss(self.wrapped, self.loss, sent(batch, self.accelerator))

    def _of_geometry(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.config.repulsion or self.config.smoothness:
            with gathered(self.model):
                if self.config.repulsion:
                    found["repulsion"] = self.config.repulsion * layers.repulsive_loss(self.model).square()
                if self.config.smoothness:
                    found["smoothness"] = self.config.smoothness * layers.nyquist_penalty(self.model)
        return found

    @torch.no_grad()
    def validate(self, shares: Iterator[Share]) -> float:
        """Mean loss over the samples."""
        self.wrapped.eval()
        total = torch.zeros(2, device=self.accelerator.device, dtype=torch.float64)
        for share in shares:
            size = size_of(share.batch) if share.weight else 0
            if size is None:
                raise InputError("a batch of the validation data holds no tensor")
            total += torch.stack([size * self._task(share.batch).double(), total.new_tensor(size)])
        total = summed(self.accelerator, total)
        return float(total[0] / total[1])

    def weights(self) -> dict[str, Tensor]:
        """All of them, in the main process."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # pyright: ignore[reportReturnType]

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Complete ones, in every process."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(self.model, dict(weights), options=StateDictOptions(full_state_dict=True))
