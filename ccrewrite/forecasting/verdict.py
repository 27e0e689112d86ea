"""Probes and signals -> "pays", "does not pay" or "unclear", and the sentence that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from ccrewrite.forecasting.probes import Arm, Estimate
from ccrewrite.forecasting.signals import Signal
from ccrewrite.ir.json_types import JsonObject

Verdict = Literal["pays", "does not pay", "unclear"]
MARGIN = 0.02
"""What geometry must lead by, as a share of the loss: by less, which learning rate was tried decides who leads."""


@dataclass(frozen=True)
class Comparison:
    """Geometry alone against weights alone, as many seconds each. ``gain``: by how much the geometry lowers the loss on the
    judging batches; ``lead``: by how much more than the weights do. ``start``: the mean loss before."""

    start: float
    geometry: Arm
    weights: Arm
    gain: Estimate
    lead: Estimate

    @classmethod
    def of(cls, start: Sequence[float], geometry: Arm, weights: Arm) -> Comparison:
        """``start``: the original's losses on the judging batches."""
        ours, theirs = (np.asarray(arm.losses) for arm in (geometry, weights))
        probes = min(len(ours), len(theirs)) if geometry.rate and weights.rate else max(len(ours), len(theirs))
        ours, theirs = (np.broadcast_to(a[:probes], (probes, a.shape[1])) for a in (ours, theirs))
        gain, lead = Estimate.of((np.asarray(start) - ours).tolist()), Estimate.of((theirs - ours).tolist())
        return cls(float(np.mean(start)), geometry, weights, gain, lead)

    def to_dict(self) -> JsonObject:
        probes = {"geometry": self.geometry.to_dict(), "weights": self.weights.to_dict()}
        return {"start": self.start, **probes, "gain": asdict(self.gain), "lead": asdict(self.lead)}


def judged(found: Comparison | None, signal: Signal, slower: float) -> tuple[Verdict, str]:
    """``found`` is None where there was no time for probes. ``slower``: how many times a weights' step one of the geometry
    takes."""
    if not signal.connected:
        return "does not pay", "the loss depends on none of the sites"
    if found is None:
        return "unclear", "there was no time to train anything: give it more seconds"
    steps = f"{found.geometry.steps} steps of geometry alone against {found.weights.steps} of weights alone, as many seconds"
    told = f"{steps}: the loss of {found.start:.4g} falls by {_shown(found.gain)}, which is {_shown(found.lead)} more"
    if found.geometry.rate == 0:
        return "does not pay", f"{steps}: geometry alone lowers the loss at none of the learning rates"
    if found.gain.high < 0:
        return "does not pay", f"{told}: below where the original starts"
    if found.gain.low > 0 and found.lead.low > MARGIN * abs(found.start):
        return "pays", told
    if found.lead.low > 0:
        return "unclear", f"{told}: not {MARGIN:.0%} of the loss, too little to rely on"
    if found.lead.high >= 0:
        return "unclear", f"{told}, an interval that holds 0"
    clearer = stands_out(signal, slower)
    if clearer is not None and clearer > 1:
        return "unclear", (
            f"{told}; but for the time of a step, the geometry's gradient is {clearer:.2g} times as clear as the weights': "
            "it may pay once the weights are trained further"
        )
    return "does not pay", told


def stands_out(signal: Signal, slower: float) -> float | None:
    """How clear the geometry's gradient is, over the clearness of the weights', for the same time; None: nothing to compare."""
    if signal.geometry is None or not signal.weight:
        return None
    return signal.geometry / signal.weight / slower


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
