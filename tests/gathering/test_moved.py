"""Products moved to where their taps are: both ways to read them."""

from __future__ import annotations

import pytest
import torch

from ccrewrite.gathering import moved


@pytest.mark.parametrize("sets", [1, 4])
@pytest.mark.parametrize("size", [(7, 6), (9,), (4, 5, 3)])
def test_read_with_bounds_checks_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, sets: int, size: tuple[int, ...]) -> None:
    window, pads = (4,) * len(size), [(2, 1), (0, 1), (1, 3)][: len(size)]
    pads[-1] = (2, 2)  # wide enough for the shortest axis
    mixed = torch.randn(3, 4, 2, *size)
    positions = torch.rand(len(size), sets, 3) * 3
    padded = moved.moved_sum(mixed, positions, window, pads)
    monkeypatch.setattr(moved, "copies", lambda device: False)
    assert torch.equal(moved.moved_sum(mixed, positions, window, pads), padded)
