"""The continuous kernel of one axis (``ccrewrite.families.cc.profile``), as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ccrewrite.families.cc.onnx.axis import Profile
from ccrewrite.families.cc.profile import MAX_SHIFT, SUPPORT
from ccrewrite.ir.onnx_nodes import Nodes


@dataclass(frozen=True)
class Learned:
    """What was learned along one axis: ``shift`` (a number; None: there is none), the layers of its network, and ``gain``,
    what each tap adds up to natively, (taps,)."""

    shift: ir.Value | None
    layers: tuple[ir.Value, ...]
    gain: ir.Value

    @classmethod
    def of(cls, op: Nodes, axis: int, shift_index: int, tensors: Mapping[str, ir.Value]) -> Learned | None:
        """Out of the operator's tensors (``form.learned``); None where nothing was learned."""
        if f"gain{axis}" not in tensors:
            return None
        layers = tuple(value for name, value in tensors.items() if name.startswith(f"layer{axis}_"))
        shift = op.Gather(tensors["shift"], shift_index, axis=0) if "shift" in tensors else None
        return cls(shift, layers, tensors[f"gain{axis}"])


def weights(
    op: Nodes, distance: ir.Value, taps: np.ndarray, profile: Profile, squeeze: ir.Value, learned: Learned | None
) -> ir.Value:
    """What the samples at ``distance`` (outputs, taps or 1, n) contribute; each row's sum is that of the native kernel.

    ``squeeze``: how much narrower the kernel is in distances than it is in samples.
    """
    if learned is None:
        bump = basis(op, profile.basis, distance)
        return op.Div(bump, op.ReduceSum(bump, [-1]))
    values, bump = _profile(op, distance, taps, profile, learned)
    bump, values = op.Div(bump, op.ReduceSum(bump, [-1])), op.Mul(values, squeeze)
    # Not (gain - sum) * bump: OpenVINO subtracts sums over the last axis from the wrong elements of a constant.
    gain, sums = op.Unsqueeze(op.real(learned.gain), [1]), op.ReduceSum(values, [-1])
    return op.Add(values, op.Sub(op.Mul(gain, bump), op.Mul(sums, bump)))


def basis(op: Nodes, name: str, distance: ir.Value) -> ir.Value:
    """The interpolant, "linear" or "cubic"."""
    far = op.Abs(distance)
    if name == "linear":
        return op.Relu(op.Sub(1.0, far))
    square = op.Mul(far, far)
    inner = op.Add(op.Mul(square, op.Sub(op.Mul(1.5, far), 2.5)), 1.0)
    outer = op.Add(op.Mul(far, op.Sub(op.Mul(far, op.Add(op.Mul(-0.5, far), 2.5)), 4.0)), 2.0)
    return op.Where(op.Less(far, 1.0), inner, op.Where(op.Less(far, 2.0), outer, 0.0))


def _profile(op: Nodes, distance: ir.Value, taps: np.ndarray, profile: Profile, learned: Learned) -> tuple[ir.Value, ir.Value]:
    """(``phi_t``, the interpolant alone)."""
    z = distance
    if learned.shift is not None:
        z = op.Sub(z, op.Max(-MAX_SHIFT, op.Min(op.real(learned.shift), MAX_SHIFT)))
    bump = basis(op, profile.basis, z)
    along = (profile.spacing * taps).astype(np.float32)
    if profile.extent:
        places = op.Add(z, along - (profile.extent - 1) / 2)
        return op.Mul(_taper(op, places, profile.extent), _network(op, places, learned.layers)), bump
    near = op.Max(float(-SUPPORT), op.Min(z, float(SUPPORT)))
    window = op.Cos(op.Mul(near, math.pi / (2 * SUPPORT)))
    values = op.Add(bump, op.Mul(op.Mul(window, window), _network(op, z, learned.layers)))
    if profile.within:
        start = basis(op, profile.basis, distance)
        inside = _taper(op, op.Add(distance, along - np.float32(profile.spacing * (len(taps) - 1) / 2)), profile.within)
        values, bump = (op.Add(start, op.Mul(inside, op.Sub(v, start))) for v in (values, bump))
    return values, bump


def _taper(op: Nodes, places: ir.Value, extent: int) -> ir.Value:
    beyond = op.Max(0.0, op.Min(op.Sub(op.Abs(places), (extent - 1) / 2), 1.0))
    bell = op.Cos(op.Mul(beyond, math.pi / 2))
    return op.Mul(bell, bell)


def _network(op: Nodes, places: ir.Value, layers: Sequence[ir.Value]) -> ir.Value:
    """At ``places`` (outputs, taps or 1, n), for each tap: (outputs, taps, n)."""
    inner, bias, *middle, last, last_bias = (op.real(layer) for layer in layers)
    inner = op.Reshape(inner, [-1])
    hidden = op.Sin(op.Add(op.Mul(op.Unsqueeze(places, [3]), inner), bias))
    for weight, shift in zip(middle[::2], middle[1::2], strict=True):
        hidden = op.Sin(op.Add(op.MatMul(hidden, op.Transpose(weight, perm=[1, 0])), shift))
    found = op.Squeeze(op.MatMul(hidden, op.Unsqueeze(last, [2])), [3])
    return op.Add(found, op.Unsqueeze(last_bias, [1]))
