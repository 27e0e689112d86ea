"""What a forecast answers: ``Forecast``, with a ``SiteForecast`` for each site."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ccrewrite.errors import InputError
from ccrewrite.forecasting.choose import Chosen, Limit, most_worth
from ccrewrite.forecasting.probes import Estimate
from ccrewrite.forecasting.signals import Signal
from ccrewrite.forecasting.verdict import Comparison, Verdict
from ccrewrite.ir.costs import Cost
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.outcome import SiteTable
from ccrewrite.ir.sites import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = "body{font:16px system-ui,sans-serif;max-width:70rem;margin:2rem auto} td,th{padding:.2rem .6rem;text-align:left}"
CODES = {
    "gains": "once trained, the loss rises without its geometry",
    "unclear": "an interval that holds 0",
    "no-gain": "once trained, the loss does not rise without its geometry",
    "unconnected": "the loss doesn't depend on it",
    "frozen": "its weight is frozen, and so is its geometry",
    "not-probed": "there was no time to train anything",
}


@dataclass(frozen=True)
class SiteForecast:
    """``gain``: by how much the loss rises, once all was trained, where this site's geometry alone is put back, with an
    interval; None where nothing was trained. ``signal``: how clear its gradients are. ``cost``: None where the example inputs
    don't reach it."""

    name: str
    aliases: tuple[str, ...]
    code: str
    message: str
    gain: Estimate | None
    signal: Signal
    cost: Cost | None

    def to_dict(self) -> JsonObject:
        found = asdict(self) | {"signal": self.signal._asdict()}
        return found | {"cost": None if self.cost is None else self.cost.to_dict()}


@dataclass(frozen=True)
class Forecast(SiteTable[SiteForecast]):
    """What moving geometry would gain and cost. ``print`` it; in notebooks it has its picture.

    ``verdict`` is "pays", "does not pay" or "unclear", ``why`` the sentence that says so. ``sites``: those that would be
    rewritten. ``comparison``: what the probes reached; None where there was no time for them. ``steps``: of the probes, of the
    rewritten model and of the original. ``step_seconds``: what a step of each took when they were timed; None where steps were
    given. ``seconds``: of inference on the example inputs: plain, rewritten at its start, and with every site moved;
    ``site_seconds``: by how much each site makes it longer that moves alone. ``said``: what was cut short, and why.
    """

    verdict: Verdict
    why: str
    sites: tuple[SiteForecast, ...]
    comparison: Comparison | None
    signal: Signal
    steps: tuple[int, int]
    step_seconds: tuple[float, float] | None
    seconds: tuple[float, float, float]
    site_seconds: Mapping[str, float]
    plan: Plan
    said: tuple[str, ...] = ()

    def choose(self, *, latency: float | None = None, parameters: int | None = None, sites: int | None = None) -> Chosen:
        """The sites that are expected to gain most within all the limits that are given, for ``rewrite(include=...)``.

        ``latency``: inference time of the rewritten model, moved and not folded, over the original's, e.g. 1.05; at the example
        inputs. ``parameters``: how many may be added. ``sites``: how many may move. Sites without an expected gain are never
        chosen, so it may be empty. ``left_out`` of what is returned says why the others were not.

        Raises ``InputError`` without a limit, for one that can't be, and where scipy (extra ``forecast``) is missing.
        """
        limits = self._limits(latency, parameters, sites)
        able = {s.name: s for s in self.sites if s.gain is not None and s.cost is not None}
        names = most_worth({name: s.gain.mean for name, s in able.items() if s.gain is not None}, limits)
        said = ", ".join(limit.said for limit in limits)
        return Chosen.of(names, {s.name: self._why_not(s, said) for s in self.sites if s.name not in names})

    def _limits(self, latency: float | None, parameters: int | None, sites: int | None) -> list[Limit]:
        costs = {s.name: s.cost for s in self.sites if s.cost is not None}
        found: list[Limit] = []
        if latency is not None:
            if not latency >= 1:
                raise InputError(f"latency is a time over the original's, at least 1; found {latency}")
            plain, still, _ = self.seconds
            room = (latency - 1) * plain - max(0.0, still - plain)  # what any rewritten model takes more
            found.append(Limit(self.added_seconds, max(0.0, room), f"latency={latency:g}"))
        for name, most, each in (
            ("parameters", parameters, {n: float(c.parameters) for n, c in costs.items()}),
            ("sites", sites, dict.fromkeys(costs, 1.0)),
        ):
            if most is not None:
                if most < 0:
                    raise InputError(f"{name} must be at least 0, found {most}")
                found.append(Limit(each, most, f"{name}={most}"))
        if not found:
            raise InputError("choose needs a limit: latency=, parameters= or sites=")
        return found

    @property
    def added_seconds(self) -> Mapping[str, float]:
        """By how much each site makes inference longer, by name: ``site_seconds``, scaled to what all take together."""
        _, still, moved = self.seconds
        total = sum(self.site_seconds.values())
        scale = (moved - still) / total if total > 0 and moved > still else 1.0
        return {name: scale * seconds for name, seconds in self.site_seconds.items()}

    def _why_not(self, site: SiteForecast, limit: str) -> str:
        if site.gain is None or site.gain.mean <= 0 or site.cost is None:
            return f"left out by the forecast: {site.message}"
        added = 100 * self.added_seconds[site.name] / self.seconds[0]
        return f"left out by the forecast: {limit} leaves no room for its gain of {site.gain.mean:.3g} at {added:+.1f} % time"

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, by column: a row for each site."""
        return [self._row(site) for site in self.sites]

    def _row(self, s: SiteForecast) -> dict[str, str]:
        cells = {} if s.cost is None else s.cost.cells()
        return {
            "site": s.name,
            "gain": "" if s.gain is None else f"{s.gain.mean:.3g} ({s.gain.low:.3g} to {s.gain.high:.3g})",
            "clear": _number(s.signal.geometry),
            "of weight": _number(s.signal.weight),
            "parameters": "" if s.cost is None else str(s.cost.parameters),
            **{column: cells.get(column, "") for column in ("time", "step", "MFLOP", "step MB", "cost")},
            "code": s.code,
        }

    def summary(self) -> str:
        return f"{self.verdict}: {self.why}"

    def notes(self) -> list[str]:
        plain, _, moved = (1000 * seconds for seconds in self.seconds)
        return [
            "gain: what the loss rises by without this site's geometry, once trained",
            "clear: its squared mean gradient at the start, 1 for noise alone",
            f"inference {plain:.3g} ms, with every site moved {moved:.3g} ms; time and step: moved over plain",
            *(f"{s.name}: {s.message}" for s in self.sites if s.code == "unconnected"),
            *(advice for s in self.sites if s.cost is not None and (advice := s.cost.advice(s.name))),
            *self.said,
        ]

    def to_dict(self) -> JsonObject:
        """All of it as plain data; ``plan`` as ``Plan.to_dict`` gives it."""
        return {
            "verdict": self.verdict,
            "why": self.why,
            "sites": [s.to_dict() | {"added_seconds": self.added_seconds.get(s.name)} for s in self.sites],
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "signal": self.signal._asdict(),
            "steps": list(self.steps),
            "step_seconds": None if self.step_seconds is None else list(self.step_seconds),
            "seconds": list(self.seconds),
            "site_seconds": dict(self.site_seconds),
            "said": list(self.said),
            "plan": self.plan.to_dict(),
        }

    def for_report(self) -> JsonObject:
        """What a report keeps of it, as plain data."""
        sites = [
            {
                "name": s.name,
                "code": s.code,
                "gain": None if s.gain is None else asdict(s.gain),
                "added_seconds": self.added_seconds.get(s.name),
                "parameters": None if s.cost is None else s.cost.parameters,
            }
            for s in self.sites
        ]
        return {"verdict": self.verdict, "why": self.why, "seconds": [self.seconds[0], self.seconds[2]], "sites": sites}

    def draw(self) -> Figure:
        """Expected gain over added time, a point for each site. Raises ``InputError`` where matplotlib (extra ``report``) is
        missing."""
        from ccrewrite.forecasting.picture import draw

        return draw(self.for_report())

    def page(self) -> str:
        """An HTML page that needs nothing else: verdict, picture and table. Raises what ``draw`` raises."""
        from ccrewrite.forecasting.picture import svg

        head = f"<!doctype html><meta charset=utf-8><title>Forecast</title><style>{STYLE}</style>"
        return f"{head}<h1>{html.escape(self.verdict)}</h1>{svg(self.for_report())}{super()._repr_html_()}"

    def _repr_html_(self) -> str:
        from ccrewrite.forecasting.picture import svg

        try:
            picture = svg(self.for_report())
        except InputError:
            picture = ""
        return picture + super()._repr_html_()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
