"""Files and folders that are there whole or not at all, whenever the process ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ccrewrite.errors import InputError

try:
    import fcntl
except ImportError:  # no POSIX system: then nothing is locked, and what a killed process left stays
    fcntl = None

PREFIX = ".ccrewrite-"
"""Of the folders in which files are written before they take their names."""


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Generator[Path]:
    """Where to write what is to be called ``target``, a file or a folder: in a folder of its own beside it.

    When the block ends, what was written moves to its place, ``target`` itself last. If an error ends it, nothing changes.
    Folders that killed processes left there are removed. Raises ``InputError`` where the disk refuses.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "name.txt")) as file:
    ...         _ = file.write_text("whole")
    ...     os.listdir(folder)
    ['name.txt']
    """
    target = Path(target)
    with refused(target), workplace(target.parent) as folder:
        yield folder / target.name
        for name in sorted(os.listdir(folder), key=lambda name: (name == target.name, name)):
            os.replace(folder / name, target.parent / name)


def writable(path: Path) -> Path:
    """``path``, where a file of that name can be written; else ``InputError`` says why not."""
    if path.is_dir():
        raise InputError(f"path must be a file, found the directory {path}")
    if not path.parent.is_dir():
        raise InputError(f"there is no directory {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path} can't be written: no permission")
    return path


@contextmanager
def refused(target: str | os.PathLike[str]) -> Generator[None]:
    """Raises ``InputError``, in the name of ``target``, where the disk refuses what is inside."""
    if "\0" in os.fspath(target):
        raise InputError(f"{os.fspath(target)!r} can't be written: no name holds a null character")
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} can't be written: {error}") from error


@contextmanager
def workplace(parent: Path) -> Generator[Path]:
    """An empty folder in ``parent``, removed in the end. Those that killed processes left there are removed at once."""
    with ExitStack() as stack:
        with locked(parent):
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix=PREFIX, ignore_cleanup_errors=True))
            )
            stack.enter_context(locked(folder))
            for left in leftovers(parent):
                with locked(left, wait=False) as free:
                    if free:
                        shutil.rmtree(left, ignore_errors=True)
        yield folder


def leftovers(parent: Path) -> list[Path]:
    """Folders in ``parent`` that are in use, or that a killed process left."""
    return [path for path in sorted(parent.glob(f"{PREFIX}*")) if path.is_dir() and not path.is_symlink()]


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Generator[bool]:
    """Inside, this process has the lock of ``folder``, which ends with the process. Not ``wait``: only if it is free. False: it
    isn't, or this file system has no locks."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            got = True
        except OSError:
            got = False
        yield got
    finally:
        os.close(handle)
