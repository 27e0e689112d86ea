"""The lane needs the reference package (PyPI ``dcls``): elsewhere there is nothing here to collect."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("DCLS") else ["*.py"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The package logs four warnings per layer where there is no GPU."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
