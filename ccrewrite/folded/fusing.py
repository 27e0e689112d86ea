"""When a folded layer may compute in a way that only pays where Inductor fuses it, or in eager mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccrewrite.ir.torch_private import transformed


class Fusing(nn.Module):
    """Mixin for layers that compute the same in another way where Inductor will fuse it: ``ccrewrite.aot``, which exports in
    order to compile, sets ``fuses``."""

    fuses = False

    def fused(self) -> bool:
        return self.fuses or (torch.compiler.is_compiling() and not torch.compiler.is_exporting())


def in_place(data: Tensor) -> bool:
    """Whether what is made of ``data`` may be written in place: in eager mode, where nothing traces, differentiates or maps
    over it."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return not traced and not transformed() and not (torch.is_grad_enabled() and data.requires_grad)
