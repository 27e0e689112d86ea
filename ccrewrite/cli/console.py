"""What the commands print to, how they end, and how they say what they are at."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console

from ccrewrite.errors import CcrewriteError
from ccrewrite.ir.progress import Step, progress

out = Console()
err = Console(stderr=True)
logger = logging.getLogger("ccrewrite")

SILENT_S = 2.0
"""Seconds of work after which a command says what it is at."""
AGAIN_S = 15.0
"""Seconds after which it says so again."""
BARS = ("compare", "finetune")
"""Work that shows a bar on a terminal."""


@contextmanager
def reported() -> Generator[None]:
    """Errors meant for the user end the command with their message alone, and status 2. Work that takes long is told."""
    try:
        with _told():
            yield
    except CcrewriteError as error:
        err.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


def say(text: str) -> None:
    """A line of text as it is, long paths unbroken."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """The same, beside what a command prints."""
    err.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def log_to_stderr(verbose: int) -> None:
    """What the package logs: 1: at level INFO, 2: at DEBUG, 0: nothing."""
    for handler in [h for h in logger.handlers if h.name == __name__]:
        logger.removeHandler(handler)
    logger.setLevel((logging.NOTSET, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    if verbose:
        handler = logging.StreamHandler()
        handler.name = __name__
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)


@contextmanager
def _told() -> Generator[None]:
    """A line on stderr now and then, where work takes longer; none where it is logged there already."""
    if logger.level not in (logging.NOTSET, logging.WARNING):
        yield
        return
    teller = _Teller()
    teller.start()
    try:
        with progress(teller.hear):
            yield
    finally:
        teller.ended.set()
        teller.join()


class _Teller(threading.Thread):
    """Says which step is running once it has run for a while."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.running: Step | None = None

    def hear(self, begun: Step) -> None:
        if not (err.is_terminal and begun.work in BARS):
            self.running = begun

    def run(self) -> None:
        begin = last = time.monotonic()
        said: Step | None = None
        while not self.ended.wait(0.1):
            now, step = time.monotonic(), self.running
            if step is None or now - last < (AGAIN_S if step is said else SILENT_S):
                continue
            err.print(f"{step} ({now - begin:.0f} s)", style="dim", markup=False, highlight=False, soft_wrap=True)
            said, last = step, now
