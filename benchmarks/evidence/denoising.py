"""c. Dilated convolutions -> DCLS in a denoiser of photographs.

python benchmarks/evidence/denoising.py      # writes reports/evidence/denoising.json, .md and .png
"""

from __future__ import annotations

import functools

import skimage.data  # pyright: ignore[reportMissingImports]
import torch
import torch.nn.functional as F
from common import Batch, Claim, run
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import ccrewrite

SIGMA, CROP, CHANNELS, DILATIONS = 25 / 255, 32, 16, (2, 3, 4, 3, 2)
PHOTOS = {
    "train": ("china.jpg", "astronaut", "coffee", "gravel", "brick", "rocket"),
    "validation": ("coins", "grass"),
    "test": ("flower.jpg", "camera", "chelsea", "moon"),
}


class Denoiser(nn.Module):
    """Predicts the noise, as IRCNN does (arXiv 1704.03264), with separable dilated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=d, dilation=d, groups=CHANNELS),
                nn.Conv2d(CHANNELS, CHANNELS, 1),
                nn.ReLU(),
                nn.Conv2d(CHANNELS, CHANNELS, 1),
            )
            for d in DILATIONS
        )
        self.last = nn.Conv2d(CHANNELS, 1, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        y = self.first(noisy)
        for block in self.blocks:
            y = y + block(y)
        return noisy - self.last(F.relu(y))


@functools.cache
def photos(split: str) -> list[Tensor]:
    """Grey, 0 to 1, halved in size: ``(1, H, W)`` each."""
    found: list[Tensor] = []
    for name in PHOTOS[split]:
        pixels = load_sample_image(name) if "." in name else getattr(skimage.data, name)()
        image = torch.tensor(pixels, dtype=torch.float32) / 255
        grey = image @ torch.tensor([0.299, 0.587, 0.114]) if image.ndim == 3 else image
        found.append(F.avg_pool2d(grey[None], 2))
    return found


def crops(split: str, count: int, size: int, random: torch.Generator) -> Tensor:
    images = photos(split)
    cut: list[Tensor] = []
    for which in torch.randint(0, len(images), (count,), generator=random).tolist():
        image = images[which]
        top, left = (int(torch.randint(0, n - size + 1, (), generator=random)) for n in image.shape[1:])
        cut.append(image[:, top : top + size, left : left + size])
    return torch.stack(cut)


def noisy(clean: Tensor, random: torch.Generator) -> Batch:
    return clean + SIGMA * torch.randn(clean.shape, generator=random), clean


def batch(random: torch.Generator, first: bool) -> Batch:
    clean = crops("train", 4, CROP, random)
    if torch.rand((), generator=random) < 0.5:
        clean = clean.mT
    return noisy(clean, random)


@torch.no_grad()
def score(model: nn.Module, split: str) -> dict[str, float]:
    """Mean over 32 crops of 96 pixels."""
    random = torch.Generator().manual_seed(0)
    x, clean = noisy(crops(split, 32, 96, random), random)
    errors = torch.cat(
        [(model(a).clamp(0, 1) - b).square().mean((1, 2, 3)) for a, b in zip(x.split(8), clean.split(8), strict=True)]
    )
    return {"PSNR, dB": float((-10 * errors.log10()).mean())}


def dcls(model: nn.Module) -> nn.Module:
    return ccrewrite.rewrite(model, torch.zeros(2, 1, CROP, CROP), kinds=["dilated"]).model


CLAIM = Claim(
    name="denoising",
    about="Noise of standard deviation 25 / 255 on grey photographs, training crops of 32 x 32, test crops of 96 x 96; "
    f"depthwise convolutions of dilations {', '.join(map(str, DILATIONS))}.",
    network=Denoiser,
    batch=batch,
    loss=F.mse_loss,
    score=score,
    arms={"untouched": lambda m: m, "DCLS": dcls},
    train_steps=500,
    train_rate=5e-3,
    tune_steps=250,
    rates=(1e-3, 3e-3, 1e-2),
    digits=3,
)

if __name__ == "__main__":
    run("denoising", "Dilated convolutions made DCLS in a denoiser", [CLAIM])
