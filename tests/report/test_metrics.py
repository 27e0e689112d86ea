"""Metrics against cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ccrewrite.errors import InputError
from ccrewrite.report.metrics import accuracy, resolution_accuracy, shift_consistency, translate, translation_equivariance


def test_a_classifier_of_the_mean_is_consistent_and_one_of_a_corner_pixel_is_not() -> None:
    images = torch.zeros(8, 1, 24, 24)
    images[:, :, ::2, ::2] = 1  # every crop of even side has the same mean
    assert shift_consistency(lambda x: torch.stack([x.mean((1, 2, 3)), x.mean((1, 2, 3)) * 0 + 0.5], 1), images) == 1
    corner = shift_consistency(lambda x: torch.stack([x[:, 0, 0, 0], x[:, 0, 0, 0] * 0 + 0.5], 1), images, pairs=200)
    # One phase of four is bright, and 5, 4 of the 9 shifts per axis are even, odd.
    bright = (5 / 9) ** 2
    assert abs(corner - (bright**2 + (1 - bright) ** 2)) < 0.1
    with pytest.raises(InputError, match="don't fit"):
        shift_consistency(lambda x: x, images, size=20, shift=8)


def test_translations_of_a_wave_are_its_phase() -> None:
    n = torch.arange(16)
    wave = torch.cos(2 * math.pi * 3 * n / 16).expand(1, 1, 16, 16)
    moved = torch.cos(2 * math.pi * 3 * (n - 0.3) / 16).expand(1, 1, 16, 16)
    torch.testing.assert_close(translate(wave, (0.7, 0.3)), moved, atol=1e-5, rtol=0)


def test_equivariance_in_decibels() -> None:
    """A known error: the output plus a pattern that doesn't move, of known power."""
    torch.manual_seed(0)
    low = torch.fft.rfft2(torch.randn(2, 1, 32, 32))
    low[..., 5:] = 0
    low[..., 5:-4, :] = 0
    images = torch.fft.irfft2(low, s=(32, 32))
    assert translation_equivariance(lambda x: 2 * x, images) > 90  # float32
    strided = translation_equivariance(lambda x: x[..., ::2, ::2], images, stride=2)
    assert strided > 90  # nothing above the Nyquist frequency: no aliasing
    rough = images + 0.5 * torch.randn(2, 1, 32, 32)
    aliased = translation_equivariance(lambda x: x[..., ::2, ::2], rough, stride=2)
    blurred = translation_equivariance(lambda x: F.avg_pool2d(x, 3, 2, 1), rough, stride=2)
    assert aliased < blurred < strided
    pattern = torch.zeros(1, 1, 32, 32)
    pattern[..., 1::2] = 1
    found = translation_equivariance(lambda x: x + pattern, images, shift=0.5, pairs=64)
    spread = float((images + pattern).amax() - (images + pattern).amin())
    # A wave at the Nyquist frequency, +-1/2 around its mean, moved by b pixels: cos(pi b) of it is left.
    generator = torch.Generator().manual_seed(0)
    moves = [float(((2 * torch.rand(2, generator=generator) - 1) * 0.5)[1]) for _ in range(64)]
    power = sum((0.5 * (1 - math.cos(math.pi * b))) ** 2 for b in moves) / 64
    assert abs(found - 10 * math.log10(spread**2 / power)) < 0.01


def test_accuracy_by_resolution() -> None:
    images = torch.zeros(4, 1, 8, 8)
    images[2:] = 1
    batches = [(images, torch.tensor([0, 0, 1, 0]))]

    def bright(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([0.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1)

    assert accuracy(bright, batches) == 0.75
    seen: list[int] = []
    assert resolution_accuracy(lambda x: (seen.append(x.shape[-1]), bright(x))[1], batches, [4, 16], back=8) == {
        4: 0.75,
        16: 0.75,
    }
    assert seen == [8, 8]
    with pytest.raises(InputError, match="no batches"):
        accuracy(bright, [])
