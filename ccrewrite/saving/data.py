"""Values that go into a JSON file and come back the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from ccrewrite.errors import InputError


def frozen(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(frozen(v) for v in cast("list[Any]", value))
    return {k: frozen(v) for k, v in cast("dict[str, Any]", value).items()} if isinstance(value, dict) else value


def plain(value: Any) -> Any:
    """Numbers of other libraries as Python's, tuples as lists."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in cast("tuple[Any, ...]", value)]
    return value.item() if hasattr(value, "item") and not isinstance(value, Tensor) else value


def written(site: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as they come back from a file."""
    for name, value in values.items():
        if not _is_data(plain(value)):
            raise InputError(f"{site}: save writes numbers, strings, None, and lists of those; found {name}={value!r}")
    return frozen(plain(values))


def _is_data(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_data, cast("list[Any]", value)))
    return value is None or isinstance(value, (bool, int, float, str))
