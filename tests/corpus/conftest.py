"""The lane needs packages that ccrewrite doesn't: elsewhere there is nothing here to collect."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

PACKAGES = ("transformers", "monai", "diffusers", "pytorchcv", "pytorch_tcn", "torchvision")

collect_ignore_glob = [] if all(map(find_spec, PACKAGES)) else ["*.py"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that runs compare."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
