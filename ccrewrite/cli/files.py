"""TOML files as models: what ``--config`` and ``ccrewrite finetune`` read. Options of rules and of the training are for those
to check."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from pydantic import Field

from ccrewrite.errors import InputError
from ccrewrite.ir.documents import Count, Document, checked, read_toml
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


def finetune_file(file: Path) -> tuple[FinetuneFile, JsonObject]:
    """What ``file`` says, and the arguments of ``ccrewrite.plan`` in it. Raises ``InputError`` for keys it doesn't know, or
    that belong into one of its tables."""
    from ccrewrite.training.config import FinetuneConfig

    table = read_toml(file)
    tables = {"rewrite": SelectionFile.model_fields, "finetune": {field.name for field in fields(FinetuneConfig)}}
    for key in table:
        place = next((name for name, known in tables.items() if key in known), None)
        if place is not None and key not in FinetuneFile.model_fields:
            raise InputError(f"{file}: {key} belongs into the table [{place}]")
    told = checked(FinetuneFile, table, file)
    return told, selection_of(told.rewrite, f"{file}: rewrite")
