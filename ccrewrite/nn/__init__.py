"""The layers that ccrewrite puts in place of convolutions, and what belongs to them. A facade: ``ccrewrite.families`` has
the code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

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
    "CCConv1d": "cc.layers",
    "CCConv2d": "cc.layers",
    "CCConv3d": "cc.layers",
    "CCConvTranspose1d": "cc.layers",
    "CCConvTranspose2d": "cc.layers",
    "CCConvTranspose3d": "cc.layers",
    "CCSampling": "cc.sampling",
    "DclsConv1d": "dcls.layers",
    "DclsConv2d": "dcls.layers",
    "DclsConv3d": "dcls.layers",
    "DclsSampling": "dcls.sampling",
    "ResizableSampling": "resizable",
    "RewrittenConv": "adopt",
    "Sampling": "sampling",
    "WidthSchedule": "dcls.widths",
    "nyquist_penalty": "cc.sampling",
    "repulsive_loss": "dcls.losses",
    "share_positions": "dcls.sharing",
}
"""Name -> the module of ``ccrewrite.families`` that has it. Imported when it is first used: a family may be missing."""


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"ccrewrite.families.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
