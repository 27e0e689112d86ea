"""When a folded layer may compute in a way that only pays where Inductor fuses it."""

from __future__ import annotations

import torch
from torch import nn


class Fusing(nn.Module):
    """Mixin for layers that compute the same in another way where Inductor will fuse it: ``ccrewrite.aot``, which exports in
    order to compile, sets ``fuses``."""

    fuses = False

    def fused(self) -> bool:
        return self.fuses or (torch.compiler.is_compiling() and not torch.compiler.is_exporting())
