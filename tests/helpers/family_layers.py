"""The layers of the families, to be built from scratch or from a torch layer."""

from __future__ import annotations

from torch.nn.modules.conv import _ConvNd

from ccrewrite.families.family import families
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.scratch import ScratchConv

LAYERS: dict[tuple[type[Sampling], type[_ConvNd]], type[ScratchConv]] = {
    (layer.sampling_class, layer.torch_class): layer for family in families() for layer in family.layers
}
"""(sampling class, torch layer) -> the layer."""
