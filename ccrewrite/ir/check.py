"""What comparing two models found: ``Check``, with an ``OutputCheck`` for each output tensor."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass

import torch
from tabulate import tabulate

from ccrewrite.ir.json_types import JsonObject

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference allowed, relative to the largest magnitude of the original's output."""
COMPILED = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The same for code of a compiler or another runtime, which fuse operators and sum in another order."""


@dataclass(frozen=True)
class OutputCheck:
    """One output tensor (at ``path``) of the rewritten model against the original's.

    ``max_rel_error`` is relative to the output's largest magnitude. For integer and boolean outputs ``flips`` counts the
    elements that differ; they have no tolerance.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    flips: int
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Check:
    """What verification found. ``ran`` is False where the model was not run (meta device, ``verify=False``).

    ``outputs`` compares the models as they run without gradients. ``built_error`` is the largest relative difference, over the
    sites, between the plain convolution and the kernel built from the geometry, as in training: in float64, on a small input;
    None where only outputs were compared.
    """

    outputs: tuple[OutputCheck, ...]
    ran: bool
    note: str = ""
    built_error: float | None = None
    gradients: tuple[OutputCheck, ...] = ()
    """Of the inputs and weights, for a random sum of the outputs, with the kernels built: the original's against the rewritten
    model's. Empty where they weren't compared; ``note`` says why, where that was asked for."""

    @property
    def ok(self) -> bool:
        return all(o.ok for o in (*self.outputs, *self.gradients))

    @property
    def max_abs_error(self) -> float:
        return max((o.max_abs_error for o in self.outputs), default=0.0)

    @property
    def max_rel_error(self) -> float:
        return max((o.max_rel_error for o in self.outputs), default=0.0)

    def to_dict(self) -> JsonObject:
        """As plain data, ``ok`` included."""
        return {"ok": self.ok, **asdict(self)}

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, by column: a row for each output."""
        return [
            {
                "output": o.path,
                "dtype": o.dtype,
                "shape": "x".join(map(str, o.shape)),
                "max abs error": f"{o.max_abs_error:.1e}",
                "max rel error": f"{o.max_rel_error:.1e}",
                "flips": str(o.flips),
                "note": o.note,
            }
            for o in self.outputs
        ]

    def verdict(self) -> str:
        """The lines below the table: what agrees, and what is to be known."""
        if not self.ran:
            return f"not verified: {self.note}"
        said = ["outputs are equal" if all(o.ok for o in self.outputs) else "outputs DIFFER"]
        if self.gradients:
            worst = max(self.gradients, key=lambda g: g.max_rel_error)
            equal = "are equal" if all(g.ok for g in self.gradients) else "DIFFER"
            said.append(f"{len(self.gradients)} gradients {equal}: {worst.path} by {worst.max_rel_error:.1e}")
        if self.built_error is not None:
            said.append(f"kernels built from the geometry, as in training: max rel error {self.built_error:.1e} in float64")
        return "\n".join(filter(None, (*said, self.note)))

    def __str__(self) -> str:
        table = tabulate(self.rows(), headers="keys", disable_numparse=True) if self.ran else ""
        return "\n".join(filter(None, (table, self.verdict())))

    def _repr_html_(self) -> str:
        table = tabulate(self.rows(), headers="keys", tablefmt="html", disable_numparse=True) if self.ran else ""
        return f"{table}<pre>{html.escape(self.verdict())}</pre>"
