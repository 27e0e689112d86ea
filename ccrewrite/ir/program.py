"""What ``capture`` gives: the convolution calls of one run, ``ConvCall``, and all of them, ``Program``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx

from ccrewrite.ir.geometry import ConvGeometry

Obstacle = Literal["scripted", "quantized", "opaque", "control-flow", "autograd-function", "other-object"]


@dataclass(frozen=True)
class ConvCall:
    """One convolution call of the run.

    ``module`` is the path of the module whose forward makes the call. ``weight`` is the name of the parameter or buffer used as
    the weight, None where the weight is computed. ``obstacle`` says why the call can't be reached from Python, else None;
    ``within`` what is around the call then: the name of a control-flow operator, an autograd function or an object's class.
    """

    module: str
    weight: str | None
    geometry: ConvGeometry
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    node: str | None = field(default=None, compare=False)
    """Name of the call's node in the program's graph, where the graph shows it."""
    obstacle: Obstacle | None = None
    within: str = ""


@dataclass(frozen=True)
class Program:
    """What ``capture`` saw: the calls in the order of the run, and the graph where there is one."""

    calls: tuple[ConvCall, ...]
    how: Literal["export", "observed", "graph"]
    graph: fx.GraphModule | None
    note: str
    """Why export was not used, where it was not; and what the run could not tell."""
    hidden: tuple[str, ...] = ()
    """The control-flow operators of the run that hide what they call."""
