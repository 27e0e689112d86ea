"""The layers that ccrewrite puts in place of convolutions, and what belongs to them. A facade: ``ccrewrite.families`` has
the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccrewrite.ir.lazy import lazy_names

if TYPE_CHECKING:
    from ccrewrite.families.adopt import RewrittenConv
    from ccrewrite.families.cc.layers import (
        CCConv1d,
        CCConv2d,
        CCConv3d,
        CCConvTranspose1d,
        CCConvTranspose2d,
        CCConvTranspose3d,
    )
    from ccrewrite.families.cc.sampling import CCSampling, nyquist_penalty
    from ccrewrite.families.dcls.layers import DclsConv1d, DclsConv2d, DclsConv3d
    from ccrewrite.families.dcls.losses import repulsive_loss
    from ccrewrite.families.dcls.sampling import DclsSampling
    from ccrewrite.families.dcls.sharing import share_positions
    from ccrewrite.families.dcls.widths import WidthSchedule
    from ccrewrite.families.resizable import ResizableSampling
    from ccrewrite.families.sampling import Sampling

__all__ = [
    "CCConv1d",
    "CCConv2d",
    "CCConv3d",
    "CCConvTranspose1d",
    "CCConvTranspose2d",
    "CCConvTranspose3d",
    "CCSampling",
    "DclsConv1d",
    "DclsConv2d",
    "DclsConv3d",
    "DclsSampling",
    "ResizableSampling",
    "RewrittenConv",
    "Sampling",
    "WidthSchedule",
    "nyquist_penalty",
    "repulsive_loss",
    "share_positions",
]

_HOME = {
    "CCConv1d": "families.cc.layers",
    "CCConv2d": "families.cc.layers",
    "CCConv3d": "families.cc.layers",
    "CCConvTranspose1d": "families.cc.layers",
    "CCConvTranspose2d": "families.cc.layers",
    "CCConvTranspose3d": "families.cc.layers",
    "CCSampling": "families.cc.sampling",
    "DclsConv1d": "families.dcls.layers",
    "DclsConv2d": "families.dcls.layers",
    "DclsConv3d": "families.dcls.layers",
    "DclsSampling": "families.dcls.sampling",
    "ResizableSampling": "families.resizable",
    "RewrittenConv": "families.adopt",
    "Sampling": "families.sampling",
    "WidthSchedule": "families.dcls.widths",
    "nyquist_penalty": "families.cc.sampling",
    "repulsive_loss": "families.dcls.losses",
    "share_positions": "families.dcls.sharing",
}
"""Name -> the module of ``ccrewrite`` that has it. A family may be missing."""

__getattr__, __dir__ = lazy_names(__name__, _HOME)
