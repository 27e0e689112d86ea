"""What a site costs once it has moved, next to its plain convolution, as data: ``Cost``."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ccrewrite.ir.json_types import JsonObject

DEAR = 5.0
"""From so many times the plain convolution's time, a site is marked."""


@dataclass(frozen=True)
class Cost:
    """Of all calls of one site in one run: moved, and of the plain convolution.

    Seconds of inference (``seconds``, ``plain_seconds``) and of a training step, forward and backward (``step_seconds``,
    ``plain_step_seconds``); floating-point operations of inference, a multiply-add as two; bytes that a training step holds
    at most. FLOPs and bytes are None where nothing was run. ``how``: "eager" (timed without a compiler), "lowered" (timed
    compiled, in the form that ``ccrewrite.lower`` takes: ``form`` in training, ``inference_form``) or "estimated" (from shapes
    alone). ``parameters``: how many are added. ``options``: those of its rule that make it cheaper.
    """

    how: str
    form: str
    inference_form: str
    seconds: float
    plain_seconds: float
    step_seconds: float
    plain_step_seconds: float
    flops: int | None
    plain_flops: int | None
    step_bytes: int | None
    plain_step_bytes: int | None
    parameters: int
    options: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Inference time over the plain convolution's."""
        return self.seconds / self.plain_seconds

    @property
    def step_ratio(self) -> float:
        """Time of a training step over the plain convolution's."""
        return self.step_seconds / self.plain_step_seconds

    @property
    def dear(self) -> bool:
        """Whether it takes more than ``DEAR`` times the plain convolution's time."""
        return max(self.ratio, self.step_ratio) > DEAR

    def advice(self, site: str) -> str:
        """What to do about a dear site, in a line; empty where it is not dear."""
        if not self.dear:
            return ""
        options = " and ".join(f"{option}=" for option in self.options)
        cheaper = f"another {options} of its rule may be cheaper, or " if options else ""
        worst = max(self.ratio, self.step_ratio)
        return f"{site} takes {worst:.1f} times as long as its plain convolution: {cheaper}leave it alone, exclude=[{site!r}]"

    def cells(self) -> dict[str, str]:
        """Cells of a table."""
        mark = " !" if self.dear else ""
        return {
            "time": f"{self.ratio:.2f}x",
            "step": f"{self.step_ratio:.2f}x{mark}",
            "MFLOP": _pair(self.flops, self.plain_flops, 1e6),
            "step MB": _pair(self.step_bytes, self.plain_step_bytes, 1e6),
            "cost": self.how if self.how != "lowered" else f"lowered: {self.form}, {self.inference_form}",
        }

    def to_dict(self) -> JsonObject:
        """As plain data, ratios included."""
        return {**asdict(self), "ratio": self.ratio, "step_ratio": self.step_ratio, "dear": self.dear}


def _pair(now: int | None, before: int | None, unit: float) -> str:
    if now is None or before is None:
        return ""
    return f"{now / unit:.3g} / {before / unit:.3g}"
