"""What CC layers should improve, measured: shift consistency, translation equivariance, accuracy over input resolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ccrewrite.errors import InputError
from ccrewrite.ir.typed import fft, numbers

Model = Callable[[Tensor], Tensor]


@torch.no_grad()
def shift_consistency(
    model: Model, images: Tensor, *, shift: int = 8, size: int | None = None, pairs: int = 4, seed: int = 0
) -> float:
    """Share of cases in which two random crops of an image, shifted against each other, are put into the same class.

    As in BlurPool (arXiv 1904.11486, section 4.1): crops of ``size`` whose corners are drawn independently within ``shift``
    pixels per axis.

    Args:
        model: maps images ``(N, C, H, W)`` to class scores ``(N, classes)``.
        images: ``(N, C, H, W)``, larger than ``size``.
        shift: largest shift, in pixels.
        size: side of the crops; None: that of the smaller side less ``shift``.
        pairs: crops compared per image.
        seed: of the shifts.

    Returns a number in [0, 1]. Raises ``InputError`` where the crops don't fit.

    >>> images = torch.rand(4, 3, 1, 1) + 0.01 * torch.rand(4, 3, 20, 20)
    >>> shift_consistency(lambda x: x.mean((2, 3)), images)
    1.0
    """
    side = min(images.shape[-2:]) - shift if size is None else size
    if side < 1 or shift < 1 or side + shift > min(images.shape[-2:]):
        raise InputError(f"crops of {side} shifted by up to {shift} pixels don't fit images of {tuple(images.shape[-2:])}")
    generator = torch.Generator().manual_seed(seed)
    same = 0.0
    for _ in range(pairs):
        classes: list[Tensor] = []
        for _ in range(2):
            top, left = (int(torch.randint(0, shift + 1, (), generator=generator)) for _ in range(2))
            classes.append(model(images[..., top : top + side, left : left + side]).argmax(1))
        same += float((classes[0] == classes[1]).double().mean())
    return same / pairs


@torch.no_grad()
def translation_equivariance(
    model: Model, images: Tensor, *, shift: float = 1.0, stride: Sequence[float] | float = 1.0, pairs: int = 4, seed: int = 0
) -> float:
    """How exactly a translation of the input translates the output, in dB (EQ-T of StyleGAN3, arXiv 2106.12423, eq. 3).

    ``10 log10(range^2 / E[(model(T x) - T model(x))^2])``, with random sub-pixel translations ``T`` by Fourier interpolation
    (periodic) and ``range`` the output's peak-to-peak value. Higher is better; only the middle half of the output counts, so
    that borders don't.

    Args:
        model: maps images ``(N, C, H, W)`` to maps ``(N, D, h, w)``.
        images: ``(N, C, H, W)``, best without content at the Nyquist frequency.
        shift: largest translation per axis, in pixels of the input.
        stride: input pixels per output pixel, one number or one per axis; 1 for a dense task.
        pairs: translations per image.
        seed: of the translations.

    >>> images = F.interpolate(torch.rand(2, 1, 4, 4), (16, 16), mode="bicubic")
    >>> smooth, steps = (translation_equivariance(f, images) for f in (torch.square, torch.round))
    >>> smooth > steps
    True
    """
    strides = (stride, stride) if isinstance(stride, (int, float)) else tuple(stride)
    generator = torch.Generator().manual_seed(seed)
    plain = model(images)
    spread = float(plain.amax() - plain.amin())
    middle = tuple(slice(n // 4, max(n // 4 + 1, n - n // 4)) for n in plain.shape[-2:])
    errors: list[float] = []
    for _ in range(pairs):
        by = (2 * torch.rand(2, generator=generator) - 1) * shift
        moved = model(translate(images, numbers(by)))
        expected = translate(plain, [float(b) / s for b, s in zip(by, strides, strict=True)])
        errors.append(float((moved - expected)[(..., *middle)].square().mean()))
    error = sum(errors) / len(errors)
    return math.inf if error == 0 else 10 * math.log10(spread**2 / error)


def translate(images: Tensor, by: Sequence[float]) -> Tensor:
    """``images`` ``(..., H, W)`` moved down and right by ``by`` pixels, periodic, by the Fourier shift theorem.

    >>> x = torch.rand(1, 1, 6, 8)
    >>> torch.allclose(translate(x, (1, 2)), x.roll((1, 2), (-2, -1)), atol=1e-6)
    True
    """
    height, width = images.shape[-2:]
    rows = fft.fftfreq(height, device=images.device)[:, None] * by[0]
    columns = fft.rfftfreq(width, device=images.device) * by[1]
    turned = fft.rfft2(images.float()) * torch.polar(torch.ones(()), -2 * math.pi * (rows + columns)).to(images.device)
    return fft.irfft2(turned, s=(height, width)).to(images.dtype)


@torch.no_grad()
def accuracy(model: Model, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of right classes over ``(images, labels)`` batches."""
    right = total = 0
    for images, labels in batches:
        right += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    if not total:
        raise InputError("accuracy found no batches")
    return right / total


def resolution_accuracy(
    model: Model, batches: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[int], *, back: int | None = None
) -> dict[int, float]:
    """Accuracy by input resolution: images are resized to each of ``sizes`` (square, bicubic, antialiased) first.

    ``back``: resize them to that size again before the model sees them (a model that can only work there). ``model`` takes
    images of any of the sizes otherwise.

    >>> batches = [(torch.eye(2)[:, :, None, None].expand(2, 2, 8, 8), torch.arange(2))]
    >>> resolution_accuracy(lambda x: x.mean((2, 3)), batches, [4, 8, 16])
    {4: 1.0, 8: 1.0, 16: 1.0}
    """
    found: dict[int, float] = {}
    for size in sizes:
        small = ((resize_images(x, size), labels) for x, labels in batches)
        found[size] = accuracy(model, small if back is None else ((resize_images(x, back), y) for x, y in small))
    return found


def resize_images(images: Tensor, size: int) -> Tensor:
    """Square bicubic resizing, antialiased; unchanged where the size is right."""
    if tuple(images.shape[-2:]) == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)
