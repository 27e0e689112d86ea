"""The rule that makes dilated convolutions DCLS layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ccrewrite.families.dcls.positions import check_reach
from ccrewrite.families.dcls.sampling import DclsSampling, Sharing
from ccrewrite.families.rule import Rule
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.sites import Site


@dataclass(frozen=True)
class DilatedToDcls(Rule):
    """dilated Conv -> DCLS (``ccrewrite.nn.DclsConv2d``): its taps get learnable positions.

    Args:
        include: sites to take (names, globs or ``re:...``).
        exclude: sites to leave to other rules.
        sharing: whose a tap's position is: "tap" (one for all channels), "group", "out" (each output channel's own), "in",
            "full" (each kernel's own), or "auto": each channel's own for depthwise layers, "tap" for others.
        reach: by how many samples taps may leave the original extent, on each side.

    Raises:
        InputError: for options out of their range.

    >>> import ccrewrite, torch
    >>> model, x = torch.nn.Conv2d(4, 8, 3, dilation=2), torch.randn(1, 4, 16, 16)
    >>> layer = ccrewrite.rewrite(model, x, rules=DilatedToDcls(sharing="out", reach=1)).model
    >>> layer.sampling.offset.shape, layer.sampling.window  # (axes, output channels, 1, *taps)
    (torch.Size([2, 8, 1, 3, 3]), (7, 7))
    """

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
