"""Two reports of the same comparison, made at different times: what got better, what got worse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ccrewrite.ir.json_types import JsonObject
from ccrewrite.report.comparison import Comparison
from ccrewrite.report.tables import Rows, delta, table

ERRORS_ALIKE = 10
"""An error counts as changed where it grew or shrank by more than this factor: below, it is another order of summation."""


@dataclass(frozen=True)
class Change:
    """One quantity in both reports. ``verdict`` is "better", "worse", "changed" (another model, neither better nor worse),
    "same", "within noise" or "missing" (in one of the reports)."""

    model: str
    quantity: str
    before: float | None
    after: float | None
    verdict: str


@dataclass(frozen=True)
class Regression:
    """``changes`` of every quantity; ``notes`` says where the reports were not made alike."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        return tuple(c for c in self.changes if c.verdict in ("worse", "missing"))

    def rows(self) -> Rows:
        return [
            {
                "model": c.model,
                "quantity": c.quantity,
                "before": _number(c.before),
                "after": _number(c.after),
                "change": "" if c.before is None or c.after is None else delta(c.after, c.before),
                "verdict": c.verdict,
            }
            for c in self.changes
        ]

    def to_json(self) -> str:
        return json.dumps({"notes": self.notes, "changes": [asdict(c) for c in self.changes]}, indent=1, allow_nan=False)

    def __str__(self) -> str:
        verdict = f"{len(self.worse)} of {len(self.changes)} quantities are worse" if self.worse else "nothing is worse"
        return "\n".join([table(self.rows()), *self.notes, verdict])

    def _repr_html_(self) -> str:
        return table(self.rows(), "html")


def regression(before: Comparison, after: Comparison) -> Regression:
    """What changed from one report to another.

    Counts are compared exactly, errors by their order of magnitude, times by their ratios to the original: better or worse only
    where the two intervals have nothing in common.

    Args:
        before: what ``compare`` gave, or ``Comparison.load``.
        after: the later one.

    Returns:
        A verdict for each quantity; ``print`` shows those that changed.

    >>> import ccrewrite, torch
    >>> model, x = torch.nn.Conv2d(3, 8, 3, dilation=2), torch.randn(1, 3, 16, 16)
    >>> comparison = ccrewrite.compare(model, ccrewrite.rewrite(model, x), x, quick=True)
    >>> [change.quantity for change in regression(comparison, comparison).changes if change.verdict != "same"]
    []
    """
    changes: list[Change] = []
    old, new = ({v["name"]: v for v in c.data["variants"]} for c in (before, after))
    for name in [*old, *(n for n in new if n not in old)]:
        one, other = (_quantities(v[name]) if name in v else {} for v in (old, new))
        quantities = [*one, *(q for q in other if q not in one)]
        changes += [_change(name, q, one.get(q), other.get(q)) for q in quantities]
    return Regression(tuple(changes), tuple(_notes(before.data, after.data)))


Interval = tuple[float, float, float]
"""Value, low, high."""


def _quantities(variant: JsonObject) -> dict[str, Interval | None]:
    found: dict[str, Interval | None] = {}
    for kind, number in variant["parameters"].items():
        found[f"parameters, {kind}"] = (number, number, number)
    for key, title in (("flops", "FLOP"), ("memory_bytes", "peak memory (bytes)")):
        for mode, number in variant[key].items():
            found[f"{title}, {mode}"] = (number, number, number)
    for mode, t in variant["latency"].items():
        found[f"time ratio, {mode}"] = (t["ratio"], t["ratio_low"], t["ratio_high"])
    for output in variant["outputs"]:
        error = output["max_rel_error"]
        high = None if error is None else (error, error / ERRORS_ALIKE, error * ERRORS_ALIKE)
        found[f"max rel error, {output['path']}"] = high
    return found


def _change(model: str, quantity: str, before: Interval | None, after: Interval | None) -> Change:
    values = before and before[0], after and after[0]
    if before is None or after is None:
        return Change(model, quantity, *values, "same" if before is after else "missing")
    if before[0] == after[0]:
        verdict = "same"
    elif before[1] <= after[2] and after[1] <= before[2]:
        verdict = "within noise"
    elif quantity.startswith("parameters"):
        verdict = "changed"
    else:
        verdict = "better" if after[0] < before[0] else "worse"
    return Change(model, quantity, *values, verdict)


def _notes(before: JsonObject, after: JsonObject) -> Iterator[str]:
    for key in ("model", "inputs", "settings"):
        if before[key] != after[key]:
            yield f"the {key} differ: {before[key]} and {after[key]}"
    for key, value in before["environment"].items():
        if key not in ("date", "git_revision") and value != after["environment"].get(key):
            yield f"{key} differ: {value} and {after['environment'].get(key)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
