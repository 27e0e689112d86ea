"""Whether the rest of a file follows when one of its internal sizes changes: a copy is run at another one, and numbers in it
that may have been computed of the old one are named."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ccrewrite.errors import ExportError
from ccrewrite.export.convolutions import Convolution
from ccrewrite.export.graph import END, constant_of
from ccrewrite.export.probed import Probed
from ccrewrite.export.report import SizeTrial
from ccrewrite.families.resizable import scaled_size
from ccrewrite.ir.geometry import Ints
from ccrewrite.passes.scales.trials import RATIOS

NUMBERS = {"Pad": (1, "pads"), "Reshape": (1, "shape"), "Slice": (2, "ends"), "Resize": (3, "size")}
"""Operator -> which of its inputs may be sizes, or computed of some; how it is called."""
WINDOWED = ("Conv", "MaxPool", "AveragePool")


@dataclass(frozen=True)
class Watched:
    """A place whose size is looked at in each run: ``shape``, the value of a ``Shape`` node that was put there. It is the input
    of ``node``, which is called ``name``, or (None) the output of the convolution of that name. ``window``: for each axis
    extent, stride and pads, of a node that has some."""

    shape: ir.Value
    name: str
    node: ir.Node | None = None
    window: tuple[tuple[int, int, int, int], ...] = ()


def watch_(model: ir.Model, found: Sequence[Convolution]) -> list[Watched]:
    """Put a ``Shape`` node at each place of ``model`` that has to be looked at, while it is not rewritten yet."""
    convs = {id(c.node): c for c in found}
    watched: list[Watched] = []
    for node in list(model.graph):
        conv = convs.get(id(node))
        name = conv.site.name if conv else node.name or node.outputs[0].name or node.op_type
        if conv is not None:
            probe = _probe(node.outputs[0])
            model.graph.insert_after(node, [probe])
            watched.append(Watched(probe.outputs[0], name))
        window = _window(node, conv)
        if window or node.op_type in NUMBERS:
            probe = _probe(node.inputs[0])
            model.graph.insert_before(node, [probe])
            watched.append(Watched(probe.outputs[0], name, node, window))
    return watched


def _probe(value: ir.Value | None) -> ir.Node:
    node = ir.node("Shape", [value])
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    return node


def _window(node: ir.Node, conv: Convolution | None) -> tuple[tuple[int, int, int, int], ...]:
    """Of a node that has both strides and pads, as constants."""
    get = node.attributes.get_ints
    kernel = conv.site.geometry.kernel_size if conv else get("kernel_shape", ())
    strides, pads = get("strides", [1] * len(kernel)), get("pads", [0] * 2 * len(kernel))
    if node.op_type not in WINDOWED or not any(pads) or max(strides) == 1:
        return ()
    extents = (d * (k - 1) + 1 for k, d in zip(kernel, get("dilations", [1] * len(kernel)), strict=True))
    return tuple(zip(extents, strides, pads[: len(kernel)], pads[len(kernel) :], strict=True))


def tried(probed: Probed, watched: Sequence[Watched]) -> tuple[SizeTrial, ...]:
    """A run for each size that ``probed`` asks for, with what others may need for it (``SizeTrial.others``). Its values are the
    shapes of what is ``watched``."""
    sizes, inputs = probed.asked, probed.inputs
    if not sizes:
        return ()

    def shapes(asked: Mapping[str, Ints]) -> list[Ints]:
        return [tuple(int(n) for n in shape) for shape in probed.run(asked)[1]]

    before = shapes({})
    at_site = {one.name: shape[2:] for one, shape in zip(watched, before, strict=True) if one.node is None}
    native = {x.name: at_site[x.sites[0]] for x in sizes}
    known = {tuple(v.shape[2:]) for v in inputs.values()}
    trials: list[SizeTrial] = []
    for x in sizes:
        size = tuple(m if (m := scaled_size(n, RATIOS[0])) != n else n + 1 for n in native[x.name])
        alike = {name: size for name, n in native.items() if n == native[x.name]}
        failures: list[str] = []
        for others, asked in {"free": {x.name: size}, "native": native | {x.name: size}, "alike": native | alike}.items():
            try:
                after = shapes(asked)
            except ExportError as error:
                failures.append(str(error))
                continue
            doubts = (_doubt(one, old, new, known) for one, old, new in zip(watched, before, after, strict=True) if old != new)
            trials.append(SizeTrial(x.name, native[x.name], size, others, doubts=tuple(filter(None, doubts))))
            break
        else:
            trials.append(SizeTrial(x.name, native[x.name], size, "free", failures[0]))
    return tuple(trials)


def _doubt(watched: Watched, old: Ints, new: Ints, known: set[Ints]) -> str | None:
    """What numbers of the file a node applies to an axis whose size changed from natively ``old`` to ``new``, where these may
    have been computed of it. ``known``: the sizes of the file's inputs, to which a model may well return."""
    node = watched.node
    if node is None:
        return None
    if watched.window:
        pads = [low for *_, low, _ in watched.window] + [high for *_, high in watched.window]
        return f"pads {pads} of {watched.name}" if _same(watched.window, old[2:]) else None
    place, called = NUMBERS[node.op_type]
    values = [None if v is None else constant_of(v) for v in node.inputs]
    values += [None] * (5 - len(values))
    numbers = values[place]
    if not numbers:
        return None
    changed = {axis for axis, sizes in enumerate(zip(old, new, strict=True)) if len(set(sizes)) > 1}
    axes = [axis % len(old) for axis in values[3] or range(len(old))]
    match node.op_type:
        case "Reshape":
            doubtful = not _follows(numbers, old, new)
        case "Resize":
            doubtful = tuple(numbers[-len(old[2:]) :]) not in known
        case "Pad":
            padded = {a for a, low, high in zip(axes, numbers, numbers[len(numbers) // 2 :], strict=False) if low or high}
            doubtful = bool(padded & changed)
        case _:  # a cut near the native end, not a few samples from the start
            computed = len(node.inputs) > 3 and node.inputs[3] is not None and values[3] is None
            every = itertools.product(range(len(old)), numbers) if computed else zip(axes, numbers, strict=False)
            doubtful = any(old[axis] / 2 < end < END for axis, end in every if axis in changed)
    return f"{called} {numbers} of {watched.name}" if doubtful else None


def _same(window: tuple[tuple[int, int, int, int], ...], sizes: Ints) -> bool:
    """Whether pads are those that "same" padding, as TensorFlow's, makes of these sizes; of others it may make others."""
    for n, (extent, stride, low, high) in zip(sizes, window, strict=True):
        total = max((-(-n // stride) - 1) * stride + extent - n, 0)
        if sorted((low, high)) != [total // 2, total - total // 2]:
            return False
    return True


def _follows(numbers: Sequence[int], old: Ints, new: Ints) -> bool:
    """Whether a ``Reshape`` means the same for shapes of ``old`` and ``new``: its -1 takes up all axes that changed, and what
    is before and after it divides up axes that didn't."""
    while numbers and numbers[0] == 0:  # copied
        numbers, old, new = numbers[1:], old[1:], new[1:]
    changed = [axis for axis, sizes in enumerate(zip(old, new, strict=True)) if len(set(sizes)) > 1]
    if not changed:
        return True
    if -1 not in numbers or 0 in numbers:
        return False
    i = numbers.index(-1)
    before, after = math.prod(numbers[:i]), math.prod(numbers[i + 1 :])
    return math.prod(old[: changed[0]]) % before == 0 and math.prod(old[changed[-1] + 1 :]) % after == 0
