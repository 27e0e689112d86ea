"""Options checked against type hints."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch

from ccrewrite.errors import InputError
from ccrewrite.ir.options import allowed, check_arguments, check_options, expected

if TYPE_CHECKING:
    from collections.abc import Hashable


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [0, -3, np.int64(2)], [1.0, True, "1", None, np.bool_(True)]),
        (float, [0.5, 1, float("inf"), np.float32(1)], [True, "0.5", None, 1j, torch.zeros(())]),
        (bool, [True, False], [0, 1, None, "true"]),
        (str, ["", "a"], [b"a", None, ["a"]]),
        (int | None, [None, 1], [1.5, "None", False]),
        (Literal["a", "b"], ["a", "b"], ["c", None, ["a"], 0, torch.zeros(2)]),
        (Literal["a"] | None, ["a", None], ["b"]),
        (Literal[1, 2], [1, 2], [True, 1.0, 3]),
        (tuple[str, ...], [(), ("a", "b")], ["ab", ["a"], ("a", 1), None]),
        (tuple[int, float], [(1, 2.5)], [(1,), (1.5, 2), (1, 2, 3)]),
        (Sequence[int] | None, [None, (0, 1), [2]], [1, {1}]),
        (Colour, [Colour.RED], [1, "RED"]),
        (torch.dtype | None, [None, torch.float64], ["float64"]),
        (Callable[[int], int], [abs], [3]),
        (Any, [None, 1], []),
    ],
)
def test_allowed(hint: Any, right: list[Any], wrong: list[Any]) -> None:
    assert all(allowed(value, hint) for value in right)
    assert not any(allowed(value, hint) for value in wrong)
    assert isinstance(expected(hint), str)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"),
        (float | None, "a number or None"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (tuple[str, ...], "a tuple of a string"),
        (Colour, "one of Colour.RED"),
        (torch.dtype, "a dtype"),
        (Sequence[int], "a sequence"),
    ],
)
def test_expected(hint: Any, words: str) -> None:
    assert expected(hint) == words


def test_hints_that_only_type_checkers_can_read_are_not_looked_at() -> None:
    class Odd:
        def __init__(self, key: Hashable, reach: int) -> None: ...

    check_options("Odd", Odd, {"key": 1, "reach": 2})
    with pytest.raises(InputError, match="reach must be an integer"):
        check_options("Odd", Odd, {"key": 1, "reach": "far"})


def test_the_message_names_owner_option_expected_and_found() -> None:
    class Layer:
        def __init__(self, reach: int) -> None: ...

    check_options("Layer", Layer, {"reach": 1, "other": 2})
    with pytest.raises(InputError, match="Layer: reach must be an integer, found 'far'"):
        check_options("Layer", Layer, {"reach": "far"})


def test_arguments_of_a_function() -> None:
    """Patterns, and what only type checkers know, are left to the function."""

    def export(
        path: str | os.PathLike[str],
        key: Hashable,
        include: str | Sequence[str] | None = None,
        loss: Callable[[int], int] = abs,
    ) -> None:
        check_arguments(export, locals())

    export("a", 0, 3)  # type: ignore[arg-type]
    export(Path("a"), [], None, len)  # pyright: ignore[reportArgumentType]
    for wrong, says in (((3, 0), "path must be a string or a path"), (("a", 0, None, 1), "export: loss must be a function")):
        with pytest.raises(InputError, match=says):
            export(*wrong)  # type: ignore[arg-type]
