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
"""What the rewritten model must lead by, as a share of the loss: by less, which learning rate was tried decides who leads."""


@dataclass(frozen=True)
class Comparison:
    """The rewritten model against the original, as many seconds of training each. ``gain``: by how much the loss of the
    rewritten one falls on the judging batches; ``lead``: by how much more than the original's does. ``start``: the original's
    mean loss before."""

    start: float
    rewritten: Arm
    original: Arm
    gain: Estimate
    lead: Estimate

    @classmethod
    def of(cls, start: Sequence[float], rewritten: Arm, original: Arm) -> Comparison:
        """``start``: the original's losses on the judging batches. Where training makes it worse, it is taken untrained."""
        ours, theirs = (np.asarray(arm.losses) for arm in (rewritten, original))
        if theirs.mean() > np.mean(start):
            theirs = np.broadcast_to(np.asarray(start), ours.shape)
        probes = min(len(ours), len(theirs))
        gain, lead = np.asarray(start) - ours, theirs[:probes] - ours[:probes]
        return cls(float(np.mean(start)), rewritten, original, Estimate.of(gain.tolist()), Estimate.of(lead.tolist()))

    def to_dict(self) -> JsonObject:
        probes = {"rewritten": self.rewritten.to_dict(), "original": self.original.to_dict()}
        return {"start": self.start, **probes, "gain": asdict(self.gain), "lead": asdict(self.lead)}


def judged(found: Comparison | None, signal: Signal) -> tuple[Verdict, str]:
    """``found`` is None where there was no time for probes."""
    if not signal.connected:
        return "does not pay", "the loss depends on none of the sites"
    if found is None:
        return "unclear", "there was no time to train anything: give it more seconds"
    steps = f"{found.rewritten.steps} steps rewritten against {found.original.steps} of the original, as many seconds"
    told = f"{steps}: the loss of {found.start:.4g} falls by {_shown(found.gain)}, which is {_shown(found.lead)} more"
    if found.rewritten.rate == 0:
        return "does not pay", f"{steps}: training the rewritten model gives a finite loss at none of the learning rates"
    if found.gain.high <= 0:
        return "does not pay", f"{told}: no lower than where the original starts"
    if found.gain.low > 0 and found.lead.low > MARGIN * abs(found.start):
        return "pays", told
    if found.lead.low > 0:
        return "unclear", f"{told}: not {MARGIN:.0%} of the loss, too little to rely on"
    if found.lead.high >= 0:
        return "unclear", f"{told}, an interval that holds 0"
    return "does not pay", told


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
