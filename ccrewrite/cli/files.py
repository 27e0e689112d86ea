"""TOML files as models: what ``--config`` and ``ccrewrite finetune`` read. Options of rules and of the training are for those
to check."""

from __future__ import annotations

from pydantic import Field

from ccrewrite.ir.documents import Count, Document, checked
from ccrewrite.ir.json_types import JsonObject

Names = str | list[str]
OneRule = str | JsonObject


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
    rewrite: JsonObject = Field(default_factory=dict)
    finetune: JsonObject = Field(default_factory=dict)


def selection_of(table: JsonObject, where: str) -> JsonObject:
    """The arguments that ``table`` gives. Raises ``InputError`` in the name of ``where``."""
    return checked(SelectionFile, table, where).model_dump(exclude_unset=True)
