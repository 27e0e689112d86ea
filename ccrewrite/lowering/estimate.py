"""A static guess at how long each form takes: which are worth measuring, and the choice where nothing is measured."""

from __future__ import annotations

import math

from ccrewrite.lowering.calls import SiteCall

MULTIPLY = 0.012, 0.036
"""Nanoseconds of one multiplication in a matrix product or dense convolution: forward; forward and backward."""
DEPTHWISE = 0.04, 1.2
"""The same in a depthwise convolution, whose backward runs far from the machine's peak (channels last for the forward)."""
SHIFTED = 1.0, 4.5
"""One sample of a tap shifted and weighted, in ``ccrewrite.families.dcls.forms.products`` and ``shifts``."""
TAPPED = 0.3, 1.0
"""The same in ``ccrewrite.families.dcls.forms.taps``."""
BANDED = 0.02, 0.06
"""One multiplication in a band matrix's product."""
CONSTRUCTED = 0.3, 1.0
"""One cell of an effective kernel."""


def estimates(site: SiteCall, training: bool) -> dict[str, float]:
    """Nanoseconds of one call on one core, by form. From the shapes alone; the constants are of one machine
    (``benchmarks/lowering_cpu.py``) and serve to compare forms with each other.
    """
    sampling, at = site.sampling, int(training)
    out, inner = site.weight[:2]
    sizes = site.input[-sampling.ndim :]
    batch = site.input[0] if len(site.input) == sampling.ndim + 2 else 1
    channels, taps = site.input[-sampling.ndim - 1], math.prod(sampling.taps)
    stride = site.call["stride"]
    samples = batch * math.prod(max(1, n // s) for n, s in zip(sizes, stride, strict=True))
    cells = math.prod(sampling.window)
    once = out * inner * samples
    mixed = once * taps * MULTIPLY[at]
    dense = once * cells * (DEPTHWISE if inner == 1 else MULTIPLY)[at]
    shifted = taps * samples * SHIFTED[at]
    found = {
        "window": dense + out * inner * cells * CONSTRUCTED[at],
        "bands": mixed * math.prod(stride) + taps * out * samples * sum(sizes) * BANDED[at],
        "products": mixed + shifted * out,
        "shifts": mixed * (4 / 3 if training else 1) + shifted * (channels + training * out) / (1 + training),
        "taps": channels * taps * samples * TAPPED[at],
    }
    return {form: found[form] for form in sampling.forms}
