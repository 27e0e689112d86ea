"""What the commands print to, and how they end."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console

from ccrewrite.errors import CcrewriteError

out = Console()
err = Console(stderr=True)


@contextmanager
def reported() -> Generator[None]:
    """Errors meant for the user end the command with their message alone, and status 2."""
    try:
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
