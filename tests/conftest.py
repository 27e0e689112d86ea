"""One thread, one seed for each test, and the same hypothesis examples in every run."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# Building convolutions is slow next to what hypothesis expects of a strategy.
settings.register_profile("deterministic", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deterministic")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
