"""Values that go into a JSON file and come back the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from ccrewrite.errors import InputError


@runtime_checkable
class _Scalar(Protocol):
    """A number of another library."""

    def item(self) -> object: ...


def frozen(values: Mapping[str, object]) -> dict[str, object]:
    """JSON's lists as tuples."""
    return {name: _frozen(value) for name, value in values.items()}


def plain(values: Mapping[str, object]) -> dict[str, object]:
    """Numbers of other libraries as Python's, tuples as lists."""
    return {name: _plain(value) for name, value in values.items()}


def written(site: str, values: Mapping[str, object]) -> dict[str, object]:
    """``values`` as they come back from a file."""
    data = plain(values)
    for name, value in data.items():
        if not _is_data(value):
            raise InputError(f"{site}: save writes numbers, strings, None, and lists of those; found {name}={values[name]!r}")
    return frozen(data)


def _frozen(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, cast("list[object]", value)))
    return frozen(cast("dict[str, object]", value)) if isinstance(value, dict) else value


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return plain(cast("dict[str, object]", value))
    if isinstance(value, (tuple, list)):
        return list(map(_plain, cast("list[object]", value)))
    return value.item() if isinstance(value, _Scalar) and not isinstance(value, Tensor) else value


def _is_data(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_data, cast("list[object]", value)))
    return value is None or isinstance(value, (bool, int, float, str))
