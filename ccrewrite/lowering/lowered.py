"""What lowering answers, as data: ``LoweredSite`` for each site, and ``Lowered``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import nn

from ccrewrite.ir.check import Check
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.outcome import Outcome

HOW = {
    "measured": "measured, the fastest",
    "cached": "measured before, the fastest",
    "estimated": "estimated, the cheapest",
    "forced": "as asked for",
    "only": "the only one",
    "not run": "not called with the example inputs",
    "folded": "",
    "alone": "compiled by itself",
    "eager": "left eager, which is as fast by estimate",
}
"""How a site's form was chosen -> what its message says of it. A folded site's message says what the layer is."""


@dataclass(frozen=True)
class LoweredSite:
    """The form that one site takes, and why.

    ``code`` is the form: in training one of the sampling's ``forms``, in inference a code of ``fold``. ``how`` is a key of
    ``HOW``. ``milliseconds`` are those of each form that was looked at, measured or estimated.
    """

    name: str
    code: str
    how: str
    message: str
    milliseconds: dict[str, float]

    @classmethod
    def chosen(cls, name: str, code: str, how: str, seconds: Mapping[str, float], message: str = "") -> LoweredSite:
        """One whose message is ``message`` and what ``HOW`` says."""
        both = "; ".join(part for part in (message, HOW[how]) if part)
        return cls(name, code, how, both, {form: 1e3 * s for form, s in seconds.items()})


@dataclass(frozen=True)
class Lowered(Outcome[LoweredSite]):
    """What ``lower`` returns: ``model``, compiled, or with compiled layers; the form of every site; and ``check``, which
    compares ``model`` with the model that was given."""

    model: nn.Module
    mode: str
    sites: tuple[LoweredSite, ...]
    check: Check

    def rows(self) -> list[dict[str, str]]:
        return [
            {
                "site": site.name,
                "form": site.code,
                "message": site.message,
                "milliseconds": ", ".join(
                    f"{form} {ms:.3g}" for form, ms in sorted(site.milliseconds.items(), key=lambda i: i[1])
                ),
            }
            for site in self.sites
        ]

    def to_dict(self) -> JsonObject:
        """As plain data: ``{"mode", "sites", "check"}``."""
        return {"mode": self.mode, "sites": [asdict(s) for s in self.sites], "check": self.check.to_dict()}
