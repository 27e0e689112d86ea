"""What torch and Python keep once for the whole process, and how threads that rewrite side by side get along with it.

torch's tracers put a function of their own in the place of ``nn.Module.__call__``; random generators and the filters of
warnings are everybody's. So whatever touches these is done by one thread at a time.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO, cast

_lock = threading.RLock()


@contextmanager
def one_at_a_time() -> Generator[None]:
    """Other threads of this package wait until it ends. May be nested."""
    with _lock:
        yield


@contextmanager
def quiet() -> Generator[None]:
    """No warnings, and nothing that this thread prints."""
    with one_at_a_time(), warnings.catch_warnings(), redirect_stdout(_others(sys.stdout)), redirect_stderr(_others(sys.stderr)):
        warnings.simplefilter("ignore")
        yield


class _OtherThreads:
    """A stream that passes on what other threads write."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


def _others(stream: TextIO) -> TextIO:
    return cast(TextIO, _OtherThreads(stream))
