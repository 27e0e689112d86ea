"""The rules that make strided and transposed convolutions CC layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ccrewrite.families.cc.profile import Basis
from ccrewrite.families.cc.sampling import CCSampling, Kernel, Sharing, checked_options, continuous_axes
from ccrewrite.families.resizable import Alignment
from ccrewrite.families.rule import Rule
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.sites import Site


@dataclass(frozen=True)
class StridedToCC(Rule):
    """strided Conv -> CC (``ccrewrite.nn.CCConv2d``): its taps become the nodes of a continuous kernel. Options as
    ``CCSampling``'s; ``kernel="mlp"`` and ``alignment="centred"`` are not exact. Axes of one tap and stride 1 stay plain."""

    name: ClassVar[str] = "strided-to-cc"
    kernel: Kernel = "nodes"
    basis: Basis = "cubic"
    hidden: int | None = None
    reach: int | None = None
    alignment: Alignment = "native"
    sharing: Sharing = "tap"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_options(f"rule {self.name}", self.kernel, self.hidden, self.reach, self.sharing)

    @property
    def exact(self) -> bool:
        return self.kernel == "nodes" and self.alignment == "native"

    def takes(self, site: Site) -> bool:
        return "strided" in site.kinds and "transposed" not in site.kinds

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        options = {n: getattr(self, n) for n in ("kernel", "basis", "hidden", "reach", "alignment", "sharing")}
        return CCSampling.of(site.geometry, axes=continuous_axes(site.geometry, self.kernel), **options, **factory)

    def describe(self, site: Site) -> str:
        return ("" if self.exact else "NOT exact: ") + super().describe(site)


@dataclass(frozen=True)
class TransposedToCC(StridedToCC):
    """ConvTranspose -> CC (``ccrewrite.nn.CCConvTranspose2d``): its taps become the nodes of a continuous kernel."""

    name: ClassVar[str] = "transposed-to-cc"

    def takes(self, site: Site) -> bool:
        return "transposed" in site.kinds
