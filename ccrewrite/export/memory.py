"""What sites of open sizes take in memory when a file runs them, estimated before it is written: ``require_memory``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ccrewrite.errors import ExportError
from ccrewrite.export.report import times
from ccrewrite.families.onnx import OnnxCall, OnnxForm
from ccrewrite.ir.geometry import Ints

MEMORY = 2 * 2**30
"""Bytes that a site may take, where nothing else is said."""


@dataclass(frozen=True)
class Need:
    """``site`` is estimated to take ``bytes`` in one run, with an ``input`` of that shape and the output size ``asked``."""

    site: str
    bytes: int
    input: Ints
    asked: Ints

    @classmethod
    def of(cls, site: str, form: OnnxForm, call: OnnxCall, input: Ints, asked: Ints) -> Need:
        """At ``asked`` or at its native size, whichever is larger along each axis."""
        native = call.geometry.output_size(input[2:])
        asked = tuple(max(1, *pair) for pair in zip(native, asked, strict=True))
        return cls(site, form.memory(call, input, native, asked), input, asked)

    def __str__(self) -> str:
        return f"{self.site}: about {_gib(self.bytes)} for an input of {times(self.input)} and an output of {times(self.asked)}"


def require_memory(needs: Iterable[Need], limit: int, advice: str) -> None:
    """Raise ``ExportError`` where one of ``needs`` is more than ``limit`` bytes. ``advice``: what else to do."""
    above = sorted((need for need in needs if need.bytes > limit), key=lambda need: -need.bytes)
    if above:
        more = f" (and {len(above) - 1} more sites)" if above[1:] else ""
        raise ExportError(
            f"{above[0]}{more}, at any size but its native one; memory={limit} allows {_gib(limit)}. "
            f"Take smaller example inputs, {advice}, or allow more with memory= (bytes). Nothing was written"
        )


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"
