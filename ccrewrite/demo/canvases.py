"""Segmentation data from scikit-learn's handwritten digits: several on each canvas, among clutter and noise."""

from __future__ import annotations

import functools
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccrewrite.errors import CcrewriteError

SIZE = 64
"""Height and width of a canvas, in pixels."""
BACKGROUND = 10
CLASSES = 11
"""The digits 0 to 9, then the background."""
INK = 0.4
"""A pixel belongs to a digit where the digit's own ink, in 0 .. 1, is above this."""
TRAIN_DIGITS = 1400
"""The first 1400 of the 1797 drawings are for training, the others for testing: no drawing is in both."""

Image = NDArray[np.float64]


def canvases(count: int, seed: int, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """``count`` canvases, ``(count, 1, 64, 64)`` float32, and the class of each pixel, ``(count, 64, 64)`` int64.

    The same arguments give the same canvases. Raises ``CcrewriteError`` where scikit-learn is missing.

    >>> images, labels = canvases(2, seed=0, split="train")
    >>> images.shape, labels.shape, int(labels.max())
    (torch.Size([2, 1, 64, 64]), torch.Size([2, 64, 64]), 10)
    """
    drawings, classes = _digits()
    part = slice(None, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    rng = np.random.default_rng((seed, split == "test"))
    pairs = [_canvas(rng, drawings[part], classes[part]) for _ in range(count)]
    images, labels = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    return torch.as_tensor(images[:, None]).float(), torch.as_tensor(labels)


@functools.cache
def _digits() -> tuple[Image, NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise CcrewriteError(
            "the demo's canvases are made from scikit-learn's digits, and scikit-learn can't be imported; "
            "install it with: pip install 'ccrewrite[demo]'"
        ) from error
    # No download: the package holds them.
    drawings, classes = cast("tuple[Image, NDArray[np.int64]]", load_digits(return_X_y=True))
    return np.asarray(drawings).reshape(-1, 8, 8) / 16, np.asarray(classes)


def _canvas(rng: np.random.Generator, drawings: Image, classes: NDArray[np.int64]) -> tuple[Image, NDArray[np.int64]]:
    image = _ramp(rng)
    labels = np.full((SIZE, SIZE), BACKGROUND)
    for _ in range(rng.integers(1, 5)):
        image = np.maximum(image, rng.uniform(0.4, 1.0) * _stroke(rng))
    for _ in range(rng.integers(3, 7)):
        chosen, size = rng.integers(len(drawings)), int(rng.integers(14, 29))
        top, left = rng.integers(0, SIZE - size + 1, 2)
        place = slice(top, top + size), slice(left, left + size)
        weights = _enlarge(size)
        ink = weights @ drawings[chosen] @ weights.T
        drawn = ink > INK
        if (labels[place][drawn] != BACKGROUND).any():  # digits may touch, not overlap: this one is left out
            continue
        image[place] = np.maximum(image[place], rng.uniform(0.6, 1.0) * ink)
        labels[place][drawn] = classes[chosen]
    return image + rng.normal(0, rng.uniform(0.02, 0.1), image.shape), labels


def _ramp(rng: np.random.Generator) -> Image:
    """Uneven light: a plane between 0 and 0.4."""
    along_rows, along_columns = rng.uniform(0, 0.2, 2)
    steps = np.linspace(0, 1, SIZE)
    return np.rot90(along_rows * steps[:, None] + along_columns * steps, int(rng.integers(4)))


def _stroke(rng: np.random.Generator) -> Image:
    """A straight stroke of the digits' width, with soft edges."""
    start, angle = rng.uniform(0, SIZE, 2), rng.uniform(0, np.pi)
    length, width = rng.uniform(6, 30), rng.uniform(1, 3)
    direction = np.array([np.sin(angle), np.cos(angle)])
    rows, columns = np.mgrid[:SIZE, :SIZE] - start[:, None, None]
    along = np.clip(rows * direction[0] + columns * direction[1], 0, length)
    distance = np.hypot(rows - along * direction[0], columns - along * direction[1])
    return np.clip(width - distance, 0, 1)


@functools.cache
def _enlarge(size: int) -> Image:
    """Bilinear interpolation of 8 samples to ``size`` ones, edges aligned: ``(size, 8)``."""
    source = ((np.arange(size) + 0.5) * 8 / size - 0.5).clip(0, 7)
    return np.maximum(1 - abs(source[:, None] - np.arange(8)), 0)
