"""What torch.jit.script makes of layers whose own code it can't read."""

from __future__ import annotations

from typing import NoReturn

import torch.nn.functional as F
from torch import Tensor, nn

from ccrewrite.errors import InputError


class Unscriptable(nn.Module):
    """Mixin: scripting a model that has this layer raises ``InputError``."""

    def __prepare_scriptable__(self) -> NoReturn:  # what torch.jit.script asks for in place of a module
        refuse_scripting(self)


def refuse_scripting(module: nn.Module) -> NoReturn:
    raise InputError(
        f"torch.jit.script can't read a {type(module).__name__}: trace (torch.jit.trace) or export it (torch.export). "
        "Learnable layers can be folded first, to torch's own where that is possible (ccrewrite.fold, forms='dense')"
    )


class Pad(nn.Module):
    """``F.pad``: zeros where ``mode`` is "constant"; negative pads crop."""

    def __init__(self, pads: list[tuple[int, int]], mode: str) -> None:
        super().__init__()
        self.pads = [n for pair in reversed(pads) for n in pair]
        self.mode = "constant" if mode == "zeros" else mode

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.pads, self.mode)
