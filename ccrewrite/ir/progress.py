"""What work that takes long is at: it says so by ``step``, and ``progress`` lets somebody hear it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """``work`` is the function that was called, e.g. "export_onnx"; ``what`` it does now; ``share`` of the work is done, from 0
    to 1, None where that is unknown.

    >>> print(Step("lower", "measuring 3 of 12 sites", 0.25))
    lower: measuring 3 of 12 sites, 25 %
    """

    work: str
    what: str
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.work}: {self.what}" + ("" if self.share is None else f", {self.share:.0%}".replace("%", " %"))


Listener = Callable[[Step], object]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


def step(work: str, what: str, share: float | None = None) -> None:
    """Say what ``work`` does from now on: to those who listen, and at level INFO to this module's logger."""
    begun = Step(work, what, share)
    log.info("%s", begun)
    for listener in _listeners.get():
        listener(begun)


@contextmanager
def progress(listener: Listener) -> Generator[None]:
    """Inside, ``listener`` is called with each ``Step`` that this thread's work begins. What it raises ends the work.

    >>> with progress(print):
    ...     step("fold", "comparing outputs")
    fold: comparing outputs
    """
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)
