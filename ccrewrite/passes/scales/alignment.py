"""Where the samples of each feature map lie in the input, and where they should: ``misalignment(model, inputs)``.

A strided convolution with k3 s2 p1 puts its outputs on every second input sample from the first on: over an even number of
samples their centre is half a sample before the input's, and each further layer doubles the distance (arXiv 2006.11120).
Exact, as fractions: the coordinate maps of the graph's operations are affine, and compose.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, overload

from tabulate import tabulate
from torch import fx
from torch.utils._pytree import tree_leaves

from ccrewrite.errors import InputError
from ccrewrite.ir.capture import Inputs, Model, as_module, capture
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.passes.scales.grids import Follower, Grid, module_of, packet_of, shape_of


@dataclass(frozen=True)
class FeatureMap:
    """The output of one convolution or pool, per spatial axis: ``size``; ``step`` from sample to sample, ``centre`` and
    ``expected`` centre, in input samples (pixel 0 is the first one's centre)."""

    module: str
    operation: str
    node: str
    size: Ints
    step: tuple[Fraction, ...]
    centre: tuple[Fraction, ...]
    expected: tuple[Fraction, ...]

    @property
    def offset(self) -> tuple[Fraction, ...]:
        """By how much the centre is off, in input samples."""
        return tuple(c - e for c, e in zip(self.centre, self.expected, strict=True))


class Misalignment(Sequence[FeatureMap]):
    """The feature maps of a model in the order of the run. ``print`` it, or take ``to_json()``."""

    def __init__(self, maps: Sequence[FeatureMap]) -> None:
        self._maps = tuple(maps)

    @overload
    def __getitem__(self, key: int) -> FeatureMap: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[FeatureMap, ...]: ...
    def __getitem__(self, key: int | slice) -> FeatureMap | tuple[FeatureMap, ...]:
        return self._maps[key]

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def worst(self) -> Fraction:
        """The largest distance of a centre from where it should be, along any axis, in input samples."""
        return max((abs(o) for m in self for o in m.offset), default=Fraction(0))

    def rows(self) -> list[dict[str, str]]:
        """The table's cells, by column."""
        return [
            {
                "module": m.module,
                "operation": m.operation,
                "size": "x".join(map(str, m.size)),
                "step": _shown(m.step),
                "centre": _shown(m.centre),
                "should be": _shown(m.expected),
                "off by": _shown(m.offset),
            }
            for m in self
        ]

    def to_json(self) -> str:
        """``{"maps": [{"module", "operation", "node", "size", "step", "centre", "expected", "offset"}]}``, in floats."""
        names = ("step", "centre", "expected", "offset")
        plain = ("module", "operation", "node", "size")
        maps = [{**{n: getattr(m, n) for n in plain}, **{n: [float(v) for v in getattr(m, n)] for n in names}} for m in self]
        return json.dumps({"maps": maps}, indent=2)

    def __str__(self) -> str:
        return tabulate(self.rows(), headers="keys", disable_numparse=True)


def misalignment(model: Model, example_inputs: Any) -> Misalignment:
    """Where the output of each convolution and pool of ``model`` is centred, in input samples, and where it should be.

    Works on plain models and on rewritten ones, at the sizes that they are set to. What a CC site has learnt (its shift) is
    not counted: the table shows the grid, not the kernel on it. Outputs whose samples have no place in an input (after a
    flatten, or of a network of tokens) are left out.

    Raises ``InputError`` where the model can't be exported, for without a graph there is nothing to follow.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1))
    >>> [(m.size, *map(str, m.centre), *map(str, m.expected)) for m in misalignment(model, torch.randn(1, 3, 224, 224))]
    [((112, 112), '111', '111', '223/2', '223/2'), ((56, 56), '110', '110', '223/2', '223/2')]
    """
    module, inputs = unwrapped(as_module(model)), Inputs.of(example_inputs)
    program = capture(module, inputs)
    if program.graph is None or program.how != "export":
        why = program.note or "it is a graph without shapes"
        raise InputError(f"misalignment follows the exported graph of a model, and {type(module).__name__} has none: {why}")
    placeholders = program.graph.graph.find_nodes(op="placeholder")
    count = len(tree_leaves((inputs.args, inputs.kwargs)))  # they come last, after parameters, buffers and constants
    follower = Follower(module, program.graph.graph, placeholders[-count:])
    return Misalignment([_feature_map(*found) for found in follower.run()])


def _feature_map(node: fx.Node, grids: tuple[Grid, ...], sampling: str | None) -> FeatureMap:
    size = tuple(int(n) for n in shape_of(node)[-len(grids) :])
    path = module_of(node) if sampling is None else sampling
    return FeatureMap(
        module=path.removesuffix("sampling").removesuffix("."),
        operation=packet_of(node) if sampling is None else "convolution",
        node=node.name,
        size=size,
        step=tuple(g.step for g in grids),
        centre=tuple(g.centre(n) for g, n in zip(grids, size, strict=True)),
        expected=tuple(g.middle for g in grids),
    )


def _shown(values: Sequence[Fraction]) -> str:
    return " x ".join(f"{float(v):g}" for v in values)
