"""What a forecast says of each site."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ccrewrite.forecasting.answer import CODES, SiteForecast
from ccrewrite.forecasting.probes import Estimate
from ccrewrite.forecasting.signals import Signal
from ccrewrite.ir.costs import Cost
from ccrewrite.ir.sites import Site


def sites_of(
    sites: Sequence[Site],
    by_site: Mapping[str, Signal],
    rises: Mapping[str, tuple[tuple[float, ...], ...]],
    costs: Mapping[str, Cost],
    probed: bool,
    frozen: Collection[str],
) -> tuple[SiteForecast, ...]:
    """One answer for each of ``sites``. ``rises``: what ``Arm.rises`` says.
    ``frozen``: those whose geometry does not train."""
    found: list[SiteForecast] = []
    for site in sites:
        signal, gain = by_site[site.name], _gain(rises.get(site.name, ()), probed)
        code = "frozen" if site.name in frozen else _code(signal, gain)
        gain = None if code in ("frozen", "unconnected") else gain
        message = CODES[code] if gain is None else _message(code, gain)
        found.append(SiteForecast(site.name, site.aliases, code, message, gain, signal, costs.get(site.name)))
    return tuple(found)


def _gain(rises: Sequence[Sequence[float]], probed: bool) -> Estimate | None:
    """What the loss rises by without the site's geometry; nothing where it could not be trained."""
    if not probed:
        return None
    return Estimate.of(rises) if rises else Estimate(0.0, 0.0, 0.0)


def _code(signal: Signal, gain: Estimate | None) -> str:
    if not signal.connected:
        return "unconnected"
    if gain is None:
        return "not-probed"
    return "gains" if gain.low > 0 else "no-gain" if gain.high <= 0 else "unclear"


def _message(code: str, gain: Estimate) -> str:
    return f"{CODES[code]}: {gain.mean:.3g} ({gain.low:.3g} to {gain.high:.3g})"
