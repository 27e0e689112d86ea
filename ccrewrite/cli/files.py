"""TOML files as models: what ``--config`` and ``ccrewrite finetune`` read. Options of rules and of the training are for those
to check."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ccrewrite.ir.documents import Count, Document, checked

Names = str | list[str]
OneRule = str | dict[str, Any]


class SelectionFile(Document):
    """What is rewritten, and how: the keyword arguments of ``ccrewrite.plan``."""

    include: Names | None = None
    exclude: Names | None = None
    kinds: Names | None = None
    rules: OneRule | list[OneRule] | None = None


class FinetuneFile(Document):
    """docs/finetune.md describes the keys."""

    model: str
    data: str
    loss: str
    out: str
    input: list[str] | None = None
    validation: str | None = None
    record_every: Count | None = None
    rewrite: dict[str, Any] = Field(default_factory=dict)
    finetune: dict[str, Any] = Field(default_factory=dict)


def selection_of(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments that ``table`` gives. Raises ``InputError`` in the name of ``where``."""
    return checked(SelectionFile, table, where).model_dump(exclude_unset=True)
