"""Every error that ccrewrite raises on purpose.

A message names the site or the argument, what was expected, what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CcrewriteError(Exception):
    """Base class: ``except ccrewrite.CcrewriteError`` catches all of them.

    >>> import ccrewrite, torch
    >>> try:
    ...     ccrewrite.rewrite(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    ... except ccrewrite.CcrewriteError as error:
    ...     print(type(error).__name__)
    SelectionError
    """


class InputError(CcrewriteError, ValueError):
    """The model, the example inputs or an option can't be used as they are."""


class ModelRunError(CcrewriteError, RuntimeError):
    """The model itself raised on the example inputs; the original exception is the ``__cause__``."""


class ExportError(CcrewriteError, RuntimeError):
    """The model can't be exported, or what was exported computes something else; no file was written."""


class SelectionError(CcrewriteError, LookupError):
    """``include``, ``exclude``, ``kinds`` or ``rules`` select no convolution at all."""


class SelectionWarning(UserWarning):
    """One glob of a selection that otherwise selects something hits no convolution."""


class WeightsWarning(UserWarning):
    """Geometry was loaded onto other weights than it was learned on."""


class TargetWarning(UserWarning):
    """A file has what the target that was asked for doesn't take."""


class SizeWarning(UserWarning):
    """An ONNX file that was given run-time sizes holds numbers that may be right at its native sizes alone."""


def likely(name: object, known: Iterable[str]) -> str:
    """The end of a message that refuses ``name``: which of ``known`` is spelled most like it. "" where none is.

    >>> likely("epoch", ["accumulate", "epochs", "lr"])
    ". Did you mean 'epochs'?"
    """
    close = get_close_matches(str(name), list(known), 1)
    return f". Did you mean {close[0]!r}?" if close else ""
