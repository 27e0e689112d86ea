"""One comparison, shared by the tests: slow next to what they look at."""

from __future__ import annotations

import pytest
import torch
from compared_net import Compared, Net, move_

import ccrewrite
from ccrewrite.report import compare
from ccrewrite.report.budget import trade


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs chromium and chromedriver; run by -m browser")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "browser" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("browser")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def compared() -> Compared:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        model, x = Net(), torch.randn(2, 3, 20, 24)
        untouched, moved = (ccrewrite.rewrite(model, x).model for _ in range(2))
        move_(moved)
        scores = iter((1.0, 0.0))
        table = trade(untouched, x, {"smaller": {"down": 0.5}}, lambda m: next(scores), repeats=2)
        extras = {"batches": (1, 3), "scale_groups": True, "trade": table}
        comparison = compare(model, untouched, x, variants={"trained": moved}, quick=True, command="make test", **extras)
    finally:
        torch.set_num_threads(threads)
    return Compared(model, untouched, moved, x, comparison)
