"""DCLS: dilated convolution with learnable spacings (arXiv 2112.03740)."""

from ccrewrite.families.dcls.layers import DclsConv1d, DclsConv2d, DclsConv3d
from ccrewrite.families.dcls.rule import DilatedToDcls
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.families.dcls.sparsify import LargeToDcls
from ccrewrite.families.family import Family

FAMILY = Family(
    name="dcls",
    title="DCLS",
    samplings=(DclsSampling,),
    layers=(DclsConv1d, DclsConv2d, DclsConv3d),
    rules=(DilatedToDcls, LargeToDcls),
    default_rules=(DilatedToDcls(),),
)
