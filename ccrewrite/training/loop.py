"""The course of a fine-tuning run: epochs, log, checkpoints, early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.ir.progress import step
from ccrewrite.ir.typed import number_rows
from ccrewrite.training.accelerating import summed
from ccrewrite.training.batches import Batches, seed_all
from ccrewrite.training.config import Compile
from ccrewrite.training.run_folder import Row, RunFolder
from ccrewrite.training.steps import TERMS, Steps

BEST, LAST = "best.safetensors", "model.safetensors"


@dataclass(frozen=True, repr=False)
class History:
    """What ``finetune`` did: ``rows`` as in ``log.csv``, one for each step, from the very first also where it was resumed."""

    rows: list[Row]
    best_epoch: int | None
    """Of the lowest validation loss, counted from 0; None: no validation."""
    stopped_early: bool
    compile: Compile = False
    """What ran compiled (``FinetuneConfig.compile``): nothing, "sites", the rewritten layers, or True, the model."""

    def __str__(self) -> str:
        said = f"{len(self.rows)} steps"
        if self.rows:
            said += f", loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}"
        if self.best_epoch is not None:
            said += f"; best validation loss {min(self.validations):.4g} after epoch {self.best_epoch}"
        if self.stopped_early:
            said += ", stopped early"
        if self.compile:
            said += f"; {'the rewritten layers' if self.compile == 'sites' else 'the model'} ran compiled"
        return said

    def __repr__(self) -> str:
        return f"<History: {self}>"

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows]

    @property
    def validations(self) -> list[float]:
        return [row["validation"] for row in self.rows if row["validation"] is not None]


class Loop:
    """Epochs, log, checkpoints, early stopping."""

    def __init__(
        self,
        run: Steps,
        train: Batches,
        valid: Batches | None,
        folder: RunFolder | None,
        progress: bool,
        forms: Mapping[str, str],
    ) -> None:
        self.run, self.train, self.valid, self.folder, self.forms = run, train, valid, folder, forms
        self.config, self.accelerator = run.config, run.accelerator
        self.per_epoch = -(-len(train) // self.config.accumulate)
        self.total = self.config.epochs * self.per_epoch
        self.steps_done, self.best, self.best_epoch, self.worse = 0, float("inf"), cast("int | None", None), 0
        self.rows: list[Row] = []
        self.waiting: list[tuple[Row, Tensor]] = []
        shown = progress and self.accelerator.is_main_process and (console := Console(stderr=True)).is_terminal
        self.bar = Progress(console=console) if shown else None  # pyright: ignore[reportPossiblyUnboundVariable]

    @property
    def stopped(self) -> bool:
        return self.config.patience is not None and self.worse >= self.config.patience

    def all(self, resume: bool) -> History:
        if self.folder is not None:
            checkpoint = self.folder.begin(self._settings(), resume)
            if checkpoint is not None:
                self._restore(self.folder, checkpoint)
            self.rows = self.folder.rows(self.steps_done)
        if self.config.trackers:
            options = {n: v if isinstance(v, (bool, int, float, str)) else str(v) for n, v in asdict(self.config).items()}
            self.accelerator.init_trackers("finetune", options)
        with self.bar or nullcontext():
            task = self.bar.add_task("fine-tuning", total=self.total, completed=self.steps_done) if self.bar else None
            while self.steps_done < self.total and not self.stopped:
                self._epoch(task)
        if self.folder is not None:
            if self.config.patience is not None:
                self.run.load(self.folder.weights(BEST))
            self.folder.save_weights(LAST, self.run.weights())
        return History(self.rows, self.best_epoch, self.stopped, cast(Compile, self.config.compile))

    def _epoch(self, task: TaskID | None) -> None:
        number, first = divmod(self.steps_done, self.per_epoch)
        batches = self.train.epoch(number, first * self.config.accumulate)
        rank = self.accelerator.process_index
        while shares := list(islice(batches, self.config.accumulate)):
            seed_all(self.config.seed, number, first, rank, 1)  # fetching drew as much as it liked
            first += 1
            rate = self.config.rate(self.steps_done, self.total)
            terms = self.run.step(shares, self.steps_done, rate)
            self.steps_done += 1
            self.waiting.append(({"step": self.steps_done, "epoch": number, "lr": rate * self.config.lr}, terms))
            ends = first == self.per_epoch
            if ends and self.valid is not None:
                self._validate(self.valid, number)
            every = self.config.checkpoint_every
            checkpoints = self.folder is not None and (ends or (every is not None and self.steps_done % every == 0))
            if ends or checkpoints or self.steps_done % self.config.log_every == 0:
                self._flush()
                if self.accelerator.is_main_process:
                    step("finetune", f"epoch {number}, loss {self.rows[-1]['loss']:.4g}", self.steps_done / self.total)
            if checkpoints:
                self._checkpoint(cast(RunFolder, self.folder))
            if self.bar and task is not None:
                described = f"loss {self.rows[-1]['loss']:.4f}" if self.rows else "fine-tuning"
                self.bar.update(task, completed=self.steps_done, description=described)

    def _validate(self, valid: Batches, number: int) -> None:
        self._flush(keep=1)
        value = self.run.validate(valid.epoch(0))
        self.waiting[-1][0]["validation"] = value
        self._finite(value, f"the validation loss after epoch {number}")
        if value < self.best:
            self.best, self.best_epoch, self.worse = value, number, 0
            if self.config.patience is not None:
                cast(RunFolder, self.folder).save_weights(BEST, self.run.weights())
        else:
            self.worse += 1

    def _flush(self, keep: int = 0) -> None:
        """Read the losses that wait on the device, but for the last ``keep``; check and write them."""
        ready, self.waiting = self.waiting[: len(self.waiting) - keep], self.waiting[len(self.waiting) - keep :]
        if not ready:
            return
        terms = number_rows(summed(self.accelerator, torch.stack([t for _, t in ready])))
        for (row, _), values in zip(ready, terms, strict=True):
            row |= {"loss": sum(values)} | dict(zip(TERMS, values, strict=True)) | {"validation": row.get("validation")}
            said = ", ".join(f"{n} {row[n]:.3g}" for n in TERMS if row[n])
            self._finite(row["loss"], f"the loss at step {row['step']} ({said})")
            self.rows.append(row)
            logged = {n: v for n, v in row.items() if v is not None and n != "step"}
            self.accelerator.log(logged, step=row["step"]) if self.config.trackers else None
        if self.folder is not None:
            self.folder.log([row for row, _ in ready])

    def _finite(self, value: float, what: str) -> None:
        if value != value or abs(value) == float("inf"):
            kept = " the last checkpoint is from before," if self.folder is not None else ""
            raise InputError(f"{what} is {value};{kept} try a lower lr, a longer warmup, clip_norm, or look at the data")

    def _checkpoint(self, folder: RunFolder) -> None:
        schedules = [s.state_dict() for s in self.run.schedules]
        progress = {"step": self.steps_done, "best": self.best, "best_epoch": self.best_epoch, "worse": self.worse}
        folder.checkpoint(self.steps_done, self.accelerator.save_state, progress | {"schedules": schedules})

    def _restore(self, folder: RunFolder, checkpoint: Path) -> None:
        progress = folder.progress(checkpoint)
        # As in the step that was stored: under FSDP2 an optimizer takes states of what is trainable alone.
        self.run.freeze_as_in(progress.step - 1)
        try:
            self.accelerator.load_state(str(checkpoint))
        except Exception as error:  # a damaged file: of several formats, with errors of their own
            raise InputError(f"{checkpoint} can't be loaded: {error}") from error
        try:
            for schedule, state in zip(self.run.schedules, progress.schedules, strict=True):
                schedule.load_state_dict(state)
        except Exception as error:
            raise InputError(f"{checkpoint}: the schedules' state can't be loaded: {error}") from error
        self.steps_done, self.best = progress.step, progress.best
        self.best_epoch, self.worse = progress.best_epoch, progress.worse

    def _settings(self) -> dict[str, object]:
        """What must be the same for a run to go on."""
        state = self.run.model.state_dict()
        settings: dict[str, object] = {
            "config": asdict(self.config),
            "batches in an epoch": len(self.train),
            "schedules": [type(s).__name__ for s in self.run.schedules],
            "processes": f"{self.accelerator.num_processes}, {self.accelerator.distributed_type.value}",
            "model": {name: str(tuple(value.shape)) for name, value in state.items()},
        }
        return settings | {"forms": dict(self.forms)} if self.forms else settings
