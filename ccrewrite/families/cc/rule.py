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
    """strided Conv -> CC (``ccrewrite.nn.CCConv2d``): its taps become the nodes of a continuous kernel.

    Axes of one tap and stride 1 stay plain. ``kernel="mlp"`` and ``alignment="centred"`` are not exact.

    Args:
        include: sites to take (names, globs or ``re:...``).
        exclude: sites to leave to other rules.
        kernel: "nodes": interpolation between the weight's taps, with a learned shift and residual. "mlp": the whole filter is
            a network of the coordinates.
        basis: what interpolates between the nodes, "cubic" (Keys) or "linear".
        hidden: width of the residual networks, or of the filter's; None: 16, or 64.
        reach: samples by which the kernel may come to exceed its original extent at each end, 0 to 2; None: 2, or 0 with "mlp".
            With 0, a causal convolution stays one.
        alignment: "native" keeps each output where the convolution has it; "centred" puts the centre of the output on the
            input's, at every size.
        sharing: "tap": each tap has a residual of its own; "axis": all taps of an axis share one.

    Raises:
        InputError: for options out of their range.

    >>> import ccrewrite, torch
    >>> model, x = torch.nn.Conv1d(4, 8, 3, stride=2), torch.randn(1, 4, 33)
    >>> layer = ccrewrite.rewrite(model, x, rules=StridedToCC(reach=0)).model  # a causal one stays causal
    >>> layer.sampling.window, layer(x, output_size=12).shape
    ((3,), torch.Size([1, 8, 12]))
    """

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
    """ConvTranspose -> CC (``ccrewrite.nn.CCConvTranspose2d``): its taps become the nodes of a continuous kernel.

    Args:
        include: as ``StridedToCC``'s.
        exclude: as ``StridedToCC``'s.
        kernel: as ``StridedToCC``'s.
        basis: as ``StridedToCC``'s.
        hidden: as ``StridedToCC``'s.
        reach: as ``StridedToCC``'s.
        alignment: as ``StridedToCC``'s.
        sharing: as ``StridedToCC``'s.

    Raises:
        InputError: for options out of their range.

    >>> import ccrewrite, torch
    >>> model, x = torch.nn.ConvTranspose1d(4, 8, 4, stride=2, padding=1), torch.randn(1, 4, 16)
    >>> layer = ccrewrite.rewrite(model, x, rules=TransposedToCC(basis="linear")).model
    >>> layer(x).shape, layer(x, output_size=40).shape
    (torch.Size([1, 8, 32]), torch.Size([1, 8, 40]))
    """

    name: ClassVar[str] = "transposed-to-cc"

    def takes(self, site: Site) -> bool:
        return "transposed" in site.kinds
