"""CC: continuous convolution (arXiv 2006.11120)."""

from ccrewrite.families.cc.layers import (
    CCConv1d,
    CCConv2d,
    CCConv3d,
    CCConvTranspose1d,
    CCConvTranspose2d,
    CCConvTranspose3d,
)
from ccrewrite.families.cc.rule import StridedToCC, TransposedToCC
from ccrewrite.families.cc.sampling import CCSampling
from ccrewrite.families.family import Family

FAMILY = Family(
    name="cc",
    title="CC",
    samplings=(CCSampling,),
    layers=(CCConv1d, CCConv2d, CCConv3d, CCConvTranspose1d, CCConvTranspose2d, CCConvTranspose3d),
    rules=(StridedToCC, TransposedToCC),
    default_rules=(StridedToCC(), TransposedToCC()),
)
