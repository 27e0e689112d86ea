"""Published checkpoints of the reference DCLS package (PyPI ``dcls``), made into ones for this package's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.families.interpolation import SCRATCH_WIDTH
from ccrewrite.ir.geometry import Ints, per_axis

INTERPOLATION_OF = {"v0": "linear", "v1": "linear", "max": "triangle", "gauss": "gaussian"}
"""The reference's versions and what they are called here."""
Window = int | Sequence[int]


def convert_dcls_checkpoint(
    state_dict: Mapping[str, Tensor], *, version: str, window: Window | Mapping[str, Window]
) -> dict[str, Tensor]:
    """A state dict of a model with ``DclsNd`` layers as one for the same model with those of ``ccrewrite.nn``.

    Each layer of the new model is ``DclsConvNd(..., elements=kernel_count, window=dilated_kernel_size, sharing="full",
    interpolation=...)`` with the interpolation that ``INTERPOLATION_OF`` names. The reference's axis orders, its window centre
    and its width parameters are undone, so outputs agree (see docs/dcls.md). Tensors that are no DCLS layer's pass through.

    Args:
        state_dict: keys ``<layer>.weight``, ``<layer>.P`` and, for "max" and "gauss", ``<layer>.SIG``. ``Dcls1d``, ``Dcls2d``,
            ``Dcls3d``; also ``Dcls2dK1d`` (window with one entry 1) and ``Dcls3_1d`` (window ``(*dense_kernel_size, dilated)``;
            here ``axes=(2,)``).
        version: "v0", "v1", "max" or "gauss".
        window: the reference's ``dilated_kernel_size``, one for all layers, or by layer name: its state dict doesn't hold it.

    Raises ``InputError`` where a layer's tensors don't fit together, and where a Gaussian or triangle is centred outside
    its window, which has no equal here.

    >>> old = {"conv.weight": torch.ones(4, 1, 5), "conv.P": torch.zeros(2, 4, 1, 5)}
    >>> {k: tuple(v.shape) for k, v in convert_dcls_checkpoint(old, version="v1", window=7).items()}
    {'conv.weight': (4, 1, 5), 'conv.sampling.offset': (2, 4, 1, 5)}
    """
    if version not in INTERPOLATION_OF:
        raise InputError(f"version must be one of {', '.join(INTERPOLATION_OF)}, found {version!r}")
    named = [key[:-1] for key in state_dict if key == "P" or key.endswith(".P")]
    layers = [n for n in named if f"{n}weight" in state_dict and state_dict[f"{n}P"].ndim > 3]
    if not layers:
        raise InputError(
            "the state dict holds no DCLS layer: a '<layer>.weight' beside a '<layer>.P' of (axes, out, in/groups, K)"
        )
    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        owner = next((layer for layer in layers if key in (f"{layer}weight", f"{layer}P", f"{layer}SIG")), None)
        if owner is None:
            converted[key] = value
        elif key == f"{owner}weight":
            name = owner.removesuffix(".")
            size = window.get(name) if isinstance(window, Mapping) else window
            if size is None:
                raise InputError(f"window has no entry for the DCLS layer {name!r}; give its dilated_kernel_size")
            tensors = _layer(name, value, state_dict[f"{owner}P"], state_dict.get(f"{owner}SIG"), version, size)
            converted |= {f"{owner}{k}": v for k, v in tensors.items()}
    return converted


def _layer(name: str, weight: Tensor, places: Tensor, sigma: Tensor | None, version: str, window: Window) -> dict[str, Tensor]:
    learned = places.shape[0]
    dense = places.ndim - 4  # axes of Dcls3_1d that don't move
    sizes = per_axis(window, len(window) if isinstance(window, Sequence) else learned + dense, "window")
    axes = [a for a, s in enumerate(sizes) if s > 1][dense:] if len(sizes) > learned else list(range(len(sizes)))
    if places.shape[1:] != weight.shape or len(axes) != learned or len(sizes) > 3 or any(sizes[a] < 2 for a in axes):
        shapes = f"weight {tuple(weight.shape)}, P {tuple(places.shape)}, window {sizes}"
        raise InputError(
            f"{name}: P must be (axes, *weight.shape), with an axis for each size over 1 of the window; found {shapes}"
        )
    if (sigma is None) == (version in ("max", "gauss")):
        raise InputError(f"{name}: version {version!r} has {'no' if sigma is not None else 'a'} SIG; check the version")
    order = _axis_of_row(version, learned)
    moved_sizes = [sizes[a] for a in axes]
    left = torch.ones_like(weight)  # of each tap, inside the window
    offset = torch.empty_like(places)
    for row, along in enumerate(order):
        size = moved_sizes[along]
        position = places[row] + moved_sizes[row] // 2  # the reference takes the row's size, whatever axis the row is
        beyond = (position - position.clamp(0, size - 1)).abs()
        if version in ("v0", "v1"):
            left = left * (1 - beyond).clamp_min(0)
        elif beyond.any():
            count, most = int((beyond > 0).sum()), float(beyond.max())
            raise InputError(
                f"{name}: {count} taps are centred up to {most:.3g} samples outside the window of {size}; "
                "clamp them in the reference (clamp_parameters) or give the window's true size"
            )
        offset[along] = position.clamp(0, size - 1) - (size - 1) / 2
    if version == "v1":  # normalised, so what left the window is made up for as long as something stayed
        left = torch.where(left < 1, left / (left + 1e-7), left)
    tensors = {"weight": weight * left, "sampling.offset": offset}
    if sigma is not None:
        width = sigma.abs() + (0.27 if version == "gauss" else 1.0)
        widening = torch.empty_like(sigma)
        widening[list(order)] = torch.log(width / SCRATCH_WIDTH[INTERPOLATION_OF[version]])
        tensors["sampling.widening"] = widening
    if len(sizes) > learned:  # elements first, then the axes that don't move
        tensors = {k: _elements_first(v, fixed=len(sizes) - learned, dense=dense) for k, v in tensors.items()}
    return tensors


def _axis_of_row(version: str, ndim: int) -> Ints:
    """The axis that each row of the reference's ``P`` moves along: v0 counts (rows, columns) and (depth, columns, rows)."""
    return {1: (0,), 2: (0, 1) if version == "v0" else (1, 0), 3: (0, 2, 1) if version == "v0" else (2, 1, 0)}[ndim]


def _elements_first(tensor: Tensor, *, fixed: int, dense: int) -> Tensor:
    if dense:
        return tensor.movedim(-1, -1 - dense)
    return tensor.reshape(*tensor.shape, *(1,) * fixed)
