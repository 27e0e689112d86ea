"""Commands say nothing of what they are at, however slow the machine is."""

import pytest

from ccrewrite.cli import console


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SILENT_S", 1e6)
