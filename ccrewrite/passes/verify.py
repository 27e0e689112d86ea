"""Rewritten against original, output by output: ``compare_outputs`` and the search for sites that change them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ccrewrite.capture import Inputs
from ccrewrite.preserve import preserved

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference allowed, relative to the largest magnitude of the original's output."""


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
    """What verification found. ``ran`` is False where there was nothing to run (meta device, ``verify=False``)."""

    outputs: tuple[OutputCheck, ...]
    ran: bool
    note: str = ""

    @property
    def ok(self) -> bool:
        return all(o.ok for o in self.outputs)

    @property
    def max_abs_error(self) -> float:
        return max((o.max_abs_error for o in self.outputs), default=0.0)

    @property
    def max_rel_error(self) -> float:
        return max((o.max_rel_error for o in self.outputs), default=0.0)

    def __str__(self) -> str:
        if not self.ran:
            return f"not verified: {self.note}"
        rows = [
            (o.path, o.dtype, "x".join(map(str, o.shape)), f"{o.max_abs_error:.1e}", f"{o.max_rel_error:.1e}", o.flips, o.note)
            for o in self.outputs
        ]
        table = tabulate(rows, headers=("output", "dtype", "shape", "max abs error", "max rel error", "flips", ""))
        return "\n".join(filter(None, (table, "outputs are equal" if self.ok else "outputs DIFFER", self.note)))


def outputs_of(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The leaves of ``model``'s output by path, run in evaluation mode on one random state; the model is left as it was."""
    with preserved(model, inputs.tensors()), torch.no_grad():
        torch.manual_seed(0)
        # Copies: an output may be (a view of) an input or a buffer that `preserved` puts back.
        return {p: v.clone() if isinstance(v, Tensor) else v for p, v in leaves(inputs.run(model), "output")}


@contextmanager
def modules_run() -> Generator[set[int]]:
    """The ``id`` of every module called inside."""
    seen: set[int] = set()

    def note(module: nn.Module, args: Any) -> None:
        seen.add(id(module))

    handle = register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Tensors and plain values in nested tuples, lists, mappings, dataclasses and objects, with their paths."""
    yield from _leaves(value, path, set())


def _leaves(value: Any, path: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    if value is None or isinstance(value, (Tensor, bool, int, float, complex, str, bytes)):
        yield path, value
        return
    if id(value) in above:
        return
    above = above | {id(value)}
    if isinstance(value, Mapping):
        parts = [(f"[{k!r}]", v) for k, v in cast("Mapping[Any, Any]", value).items()]
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        sequence = cast("Sequence[Any]", value)
        parts = [(f".{names[i]}" if names else f"[{i}]", v) for i, v in enumerate(sequence)]
    elif is_dataclass(value):
        parts = [(f".{f.name}", getattr(value, f.name)) for f in fields(value)]
    else:
        parts = [(f".{k}", v) for k, v in getattr(value, "__dict__", {}).items()]
    for name, part in parts:
        yield from _leaves(part, path + name, above)


def compare_outputs(original: Mapping[str, Any], rewritten: Mapping[str, Any]) -> tuple[OutputCheck, ...]:
    """One ``OutputCheck`` for each tensor or value that either has."""
    paths = [*original, *(p for p in rewritten if p not in original)]
    return tuple(c for p in paths if (c := _compare(p, original.get(p), rewritten.get(p))) is not None)


def _compare(path: str, before: Any, after: Any) -> OutputCheck | None:
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        if type(before) is type(after) and before == after:
            return None
        return OutputCheck(
            path, type(before).__name__, (), float("inf"), float("inf"), 1, False, f"{before!r} became {after!r}"
        )
    shape, dtype = tuple(before.shape), str(before.dtype).removeprefix("torch.")
    if shape != tuple(after.shape) or before.dtype != after.dtype:
        note = f"{shape} {before.dtype} became {tuple(after.shape)} {after.dtype}"
        return OutputCheck(path, dtype, shape, float("inf"), float("inf"), before.numel(), False, note)
    if not before.numel():
        return OutputCheck(path, dtype, shape, 0.0, 0.0, 0, True)
    if not before.dtype.is_floating_point and not before.dtype.is_complex:
        flips = int((before != after).sum())
        largest = float((before.double() - after.double()).abs().max())
        note = f"{flips} of {before.numel()} values flipped: rounding upstream of a discrete choice" if flips else ""
        return OutputCheck(path, dtype, shape, largest, float(flips > 0), flips, not flips, note)
    same = (before == after) | (before.isnan() & after.isnan())
    wide = torch.complex128 if before.dtype.is_complex else torch.float64
    # infinities that agree and NaNs that agree count as equal; any other non-finite difference stays visible
    difference = (before.to(wide) - after.to(wide)).abs().masked_fill(same, 0)
    finite = before.to(wide).abs().masked_fill(~before.isfinite(), 0)
    largest, scale = float(difference.max()), float(finite.max())
    relative = largest / scale if scale else largest
    base = torch.zeros((), dtype=before.dtype).abs().dtype
    return OutputCheck(path, dtype, shape, largest, relative, 0, relative <= TOLERANCE.get(base, 1e-5))


def culprits(names: Sequence[str], passes: Callable[[Sequence[str]], bool]) -> list[str]:
    """The sites that must be put back, found by halving: ``passes(some)`` tells whether rewriting just ``some`` is right."""
    if not names or passes(names):
        return []
    if len(names) == 1:
        return list(names)
    middle = len(names) // 2
    return culprits(names[:middle], passes) + culprits(names[middle:], passes)
