"""What the files of a run folder hold, as models."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ccrewrite.ir.documents import Count, Document, Natural

Cell = Annotated[float | None, BeforeValidator(lambda text: text or None)]
"""A number of log.csv; empty: none."""


class RowDocument(Document):
    """A row of log.csv."""

    step: Annotated[int, Field(ge=1)]
    epoch: Annotated[int, Field(ge=0)]
    lr: Cell
    loss: Cell
    task: Cell
    distillation: Cell
    features: Cell
    repulsion: Cell
    smoothness: Cell
    validation: Cell


class Progress(Document):
    """progress.pt: how far a run had come."""

    step: Count
    best: Annotated[float, Field(strict=True, allow_inf_nan=True)]
    """The lowest validation loss; inf: none yet."""
    best_epoch: Natural | None
    worse: Natural
    """Validations in a row that were no better."""
    schedules: list[Any]
    """The state of each."""
