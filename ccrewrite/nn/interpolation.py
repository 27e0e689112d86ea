"""Interpolation kernels phi: how much of a tap at a continuous position lands on each sample of the grid.

One function per axis, evaluated in samples: ``phi(distance)``. On the grid itself the piecewise ones have kinks; there the
derivative is the mean of the two one-sided ones, so that a tap on a sample feels both neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hat(distance: Tensor) -> Tensor:
    """Linear interpolation, ``max(0, 1 - |distance|)``; same shape and dtype as ``distance``, in samples.

    The derivative at -1, 0, 1 is 1/2, 0, -1/2 (the central one; ``relu`` would give zeros and freeze the layer).

    >>> hat(torch.tensor([-1.0, -0.25, 0.0, 2.0]))
    tensor([0.0000, 0.7500, 1.0000, 0.0000])
    """
    return torch.maximum(1 - distance.abs(), distance.new_zeros(()))


def keys_cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution (a = -1/2), the C1 cardinal interpolant of third order (Keys 1981, eq. 15).

    >>> keys_cubic(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]))
    tensor([ 1.0000,  0.5625,  0.0000, -0.0625,  0.0000])
    """
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
