"""What comes from files, read with bounds and checked against a model (pydantic's) before anything is made of it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from ccrewrite.errors import InputError, likely
from ccrewrite.ir.json_types import JsonObject

LARGEST = 1 << 28
"""Bytes of a text file that are read: more is refused. Reports and recipes of the largest models have a tenth of it."""
SHOWN = 3
"""Faults that a message names."""

Natural = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Count = Annotated[int, Field(strict=True, ge=1, lt=1 << 31)]
T = TypeVar("T")


class Document(BaseModel):
    """Part of a file. Numbers are finite, and keys that it doesn't know are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class OpenDocument(BaseModel):
    """Part of a file that may have further keys, which are left as they are."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)


def read_json(file: Path, *, finite: bool = True) -> object:
    """What is in a JSON file, without NaN and Infinity where it is to be ``finite``. Raises ``InputError``, in the file's name,
    for what is none."""
    content = _bytes(file)
    try:
        return from_json(content, allow_inf_nan=not finite)
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}") from error


def read_toml(file: Path) -> JsonObject:
    """What is in a TOML file. Raises ``InputError``, in the file's name, for what is none."""
    content = _bytes(file)
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: no TOML: {error}") from error


def checked(kind: type[T], value: object, where: str | os.PathLike[str]) -> T:
    """``value`` as ``kind``, a model or a type. Raises ``InputError`` in the name of ``where``: key, expected, found.

    >>> checked(dict[str, int], {"a": "x"}, "settings.toml")
    Traceback (most recent call last):
    ccrewrite.errors.InputError: settings.toml: a: input should be a valid integer, unable to parse string ..., found 'x'
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        known: list[str] = list(getattr(kind, "model_fields", ()))
        raise InputError(f"{os.fspath(where)}: {told(error, known)}") from error
    except RecursionError as error:
        raise InputError(f"{os.fspath(where)}: nested too deeply") from error


def told(error: ValidationError, known: Sequence[str] = ()) -> str:
    """The first faults, each with its key. ``known``: the keys of the whole."""
    faults = error.errors(include_url=False, include_context=False)
    said: list[str] = []
    for fault in faults[:SHOWN]:
        key = ".".join(map(str, fault["loc"])) or "the whole"
        if fault["type"] in ("missing", "extra_forbidden"):
            expected = f"; expected {', '.join(known)}{likely(key, known)}" if len(fault["loc"]) == 1 and known else ""
            said.append(f"{key} is missing" if fault["type"] == "missing" else f"unknown key {key}{expected}")
            continue
        found = repr(fault["input"])
        found = found if len(found) <= 60 else f"{found[:57]}..."
        message = fault["msg"][:1].lower() + fault["msg"][1:]
        said.append(f"{key}: {message}, found {found}")
    more = len(faults) - SHOWN
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "")


def _bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{file} can't be read: {error}") from error
    if len(content) > LARGEST:
        raise InputError(f"{file} is larger than {LARGEST} bytes; ccrewrite writes no such file")
    return content
