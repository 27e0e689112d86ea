"""The layers that ccrewrite puts in place of torch's convolutions."""

from ccrewrite.nn.cc import CCSampling, nyquist_penalty
from ccrewrite.nn.cc_layers import (
    CCConv1d,
    CCConv2d,
    CCConv3d,
    CCConvTranspose1d,
    CCConvTranspose2d,
    CCConvTranspose3d,
)
from ccrewrite.nn.conv import RewrittenConv
from ccrewrite.nn.dcls import DclsSampling, share_positions
from ccrewrite.nn.dcls_layers import DclsConv1d, DclsConv2d, DclsConv3d
from ccrewrite.nn.sampling import Sampling

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
    "RewrittenConv",
    "Sampling",
    "nyquist_penalty",
    "share_positions",
]
