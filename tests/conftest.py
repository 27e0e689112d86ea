"""One thread, one seed for each test, and the same hypothesis examples in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from compared_net import Compared

# Building convolutions is slow next to what hypothesis expects of a strategy.
settings.register_profile("deterministic", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deterministic")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def compared() -> Compared:
    from compared_net import compared

    return compared()
