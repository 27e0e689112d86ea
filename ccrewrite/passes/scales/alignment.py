"""Where the samples of each feature map lie in the input, and where they should: ``misalignment(model, inputs)``.

A strided convolution with k3 s2 p1 puts its outputs on every second input sample from the first on: over an even number of
samples their centre is half a sample before the input's, and each further layer doubles the distance (arXiv 2006.11120).
Exact, as fractions: the coordinate maps of the graph's operations are affine, and compose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import fx
from torch.utils._pytree import tree_leaves

from ccrewrite.errors import InputError
from ccrewrite.families.sites import RewrittenSite
from ccrewrite.ir.capture import Inputs, Model, as_module, capture
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.outcome import SiteTable
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.passes.scales.follower import Follower
from ccrewrite.passes.scales.grids import Grid
from ccrewrite.passes.scales.nodes import module_of, packet_of, shape_of


@dataclass(frozen=True)
class FeatureMap:
    """The output of one convolution or pool, per spatial axis: ``size``; ``step`` from sample to sample, ``centre`` and
    ``expected`` centre, in input samples (pixel 0 is the first one's centre). ``module``: its path, or the site's name."""

    module: str
    operation: str
    node: str
    size: Ints
    step: tuple[Fraction, ...]
    centre: tuple[Fraction, ...]
    expected: tuple[Fraction, ...]

    @property
    def name(self) -> str:
        return self.module

    @property
    def code(self) -> str:
        """ "centred" or "off-centre"."""
        return "off-centre" if any(self.offset) else "centred"

    @property
    def message(self) -> str:
        return f"centre at {_shown(self.centre)}, should be {_shown(self.expected)} (input samples)"

    @property
    def offset(self) -> tuple[Fraction, ...]:
        """By how much the centre is off, in input samples."""
        return tuple(c - e for c, e in zip(self.centre, self.expected, strict=True))


@dataclass(frozen=True)
class Misalignment(SiteTable[FeatureMap]):
    """The feature maps of a model in the order of the run. One that is made several times has the name several times: then
    index by position."""

    sites: tuple[FeatureMap, ...]

    @property
    def worst(self) -> Fraction:
        """The largest distance of a centre from where it should be, along any axis, in input samples."""
        return max((abs(o) for m in self for o in m.offset), default=Fraction(0))

    def rows(self) -> list[dict[str, str]]:
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

    def to_dict(self) -> JsonObject:
        """``{"maps": [{"module", "operation", "node", "size", "step", "centre", "expected", "offset"}]}``, in floats."""
        names = ("step", "centre", "expected", "offset")
        plain = ("module", "operation", "node", "size")
        maps = [{**{n: getattr(m, n) for n in plain}, **{n: [float(v) for v in getattr(m, n)] for n in names}} for m in self]
        return {"maps": maps}

    def summary(self) -> str:
        """One line: how many feature maps, and the largest distance."""
        return f"{len(self)} feature maps, the worst off by {float(self.worst):g} input samples"


def misalignment(model: Model, example_inputs: object) -> Misalignment:
    """Where the output of each convolution and pool of ``model`` is centred, in input samples, and where it should be.

    Works on plain models and on rewritten ones, at the sizes that they are set to. What a site has learnt (a shift) is
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
    return Misalignment(tuple(_feature_map(*found) for found in follower.run()))


def _feature_map(node: fx.Node, grids: tuple[Grid, ...], site: RewrittenSite | None) -> FeatureMap:
    size = tuple(int(n) for n in shape_of(node)[-len(grids) :])
    return FeatureMap(
        module=module_of(node) if site is None else site.name,
        operation=packet_of(node) if site is None else "convolution",
        node=node.name,
        size=size,
        step=tuple(g.step for g in grids),
        centre=tuple(g.centre(n) for g, n in zip(grids, size, strict=True)),
        expected=tuple(g.middle for g in grids),
    )


def _shown(values: Sequence[Fraction]) -> str:
    return " x ".join(f"{float(v):g}" for v in values)
