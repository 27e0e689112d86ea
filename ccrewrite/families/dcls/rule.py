"""The rule that makes dilated convolutions DCLS layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ccrewrite.families.dcls.sampling import DclsSampling, Sharing, check_reach
from ccrewrite.families.rule import Rule
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.sites import Site


@dataclass(frozen=True)
class DilatedToDcls(Rule):
    """dilated Conv -> DCLS (``ccrewrite.nn.DclsConv2d``): its taps get learnable positions. Options as ``DclsSampling``'s."""

    name: ClassVar[str] = "dilated-to-dcls"
    sharing: Literal["auto", Sharing] = "auto"
    reach: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reach(f"rule {self.name}", self.reach)

    def takes(self, site: Site) -> bool:
        return "dilated" in site.kinds and "transposed" not in site.kinds

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        sharing = self.sharing
        if sharing == "auto" and site.functional and site.weight is None:
            sharing = "tap"  # the channels of a computed weight may change from call to call
        return DclsSampling.of(site.geometry, sharing=sharing, reach=self.reach, **factory)
