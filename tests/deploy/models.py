"""Small models for the deploy lane, rewritten and moved so that folding gives every form of ``ccrewrite.passes.fold.sites``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.demo.network import segmenter


class TCN(nn.Module):
    """Causal dilated convolutions over a signal, with residuals."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, channels, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ConstantPad1d((2 * d, 0), 0.0), nn.Conv1d(channels, channels, 3, dilation=d), nn.ReLU())
            for d in (1, 2, 4, 8)
        )

    def forward(self, signal: Tensor) -> Tensor:
        x = self.stem(signal)
        for block in self.blocks:
            x = x + block(x)
        return x


class UNet(nn.Module):
    """Down by strided convolutions, up by transposed ones, to two or three dimensions."""

    def __init__(self, ndim: int = 2, channels: int = 8) -> None:
        super().__init__()
        conv, up, norm = (
            (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d) if ndim == 2 else (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)
        )
        c = channels
        self.stem = conv(3, c, 3, padding=1)
        self.down1 = nn.Sequential(conv(c, 2 * c, 3, stride=2, padding=1), norm(2 * c), nn.ReLU())
        self.down2 = nn.Sequential(conv(2 * c, 4 * c, 3, stride=2, padding=1), norm(4 * c), nn.ReLU())
        self.up1 = up(4 * c, 2 * c, 4, stride=2, padding=1)
        self.up2 = up(4 * c, c, 2, stride=2)
        self.head = conv(2 * c, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        full = F.relu(self.stem(image))
        half = self.down1(full)
        x = torch.cat([F.relu(self.up1(self.down2(half))), half], 1)
        return self.head(torch.cat([F.relu(self.up2(x)), full], 1))


def depthwise(channels: int = 16) -> nn.Module:
    """Depthwise dilated convolutions between pointwise ones, as large-kernel networks have them."""

    def block(dilation: int) -> nn.Module:
        spatial = nn.Conv2d(channels, channels, 5, padding=2 * dilation, dilation=dilation, groups=channels)
        return nn.Sequential(spatial, nn.Conv2d(channels, channels, 1), nn.GELU())

    return nn.Sequential(nn.Conv2d(3, channels, 4, stride=4), block(2), block(6), nn.Conv2d(channels, 5, 1))


def far(channels: int = 16) -> nn.Module:
    """Taps that lie far apart."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=8, dilation=8), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=8, dilation=8)
    )


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight that is convolved with is computed in each call."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised() -> nn.Module:
    return nn.Sequential(
        Standardised(3, 8, 3, stride=2, padding=1), nn.ReLU(), Standardised(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 4, 1)
    )


def around() -> nn.Module:
    """Circular and reflected borders."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, padding_mode="reflect"),
    )


class Case(NamedTuple):
    """A model, the shape of its input, whether its geometry moves, internal sizes (``ccrewrite.resize_``'s settings), and the
    kinds of files that are made of it (``doors.py``)."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    moved: bool = True
    settings: Mapping[str, float] | None = None
    kinds: tuple[str, ...] = ("onnx", "pt2", "aoti", "portable", "xnnpack")
    sharing: str | None = None
    """Of the positions of DCLS layers; None: the rule's own."""


BATCH, OTHER_BATCH = 2, 3
"""Files are made from an example of the first batch size and run at both."""
IMAGE, DEMO, SIGNAL, VOLUME = (BATCH, 3, 32, 32), (BATCH, 1, 64, 64), (BATCH, 4, 64), (BATCH, 3, 16, 16, 16)

CASES: dict[str, Case] = {
    "demo": Case(segmenter, DEMO),
    "tcn": Case(TCN, SIGNAL),
    "unet": Case(UNet, IMAGE),
    "unet-3d": Case(lambda: UNet(3, 4), VOLUME),
    "depthwise": Case(depthwise, IMAGE),
    "far": Case(far, IMAGE),
    "far, each channel": Case(lambda: far(64), IMAGE, sharing="out"),
    "standardised": Case(standardised, IMAGE),
    "around": Case(around, IMAGE),
    "demo, unmoved": Case(segmenter, DEMO, moved=False),
    "tcn, unmoved": Case(TCN, SIGNAL, moved=False),
    "unet, unmoved": Case(UNet, IMAGE, moved=False),
    "depthwise, unmoved": Case(depthwise, IMAGE, moved=False),
    "demo, resized": Case(segmenter, DEMO, settings={"down1": 0.75}),
    "unet, resized": Case(UNet, IMAGE, settings={"down1": 0.75}),
    "demo, open sizes": Case(segmenter, DEMO, kinds=("sizes",)),
    "unet, open sizes": Case(UNet, IMAGE, kinds=("sizes",)),
    "unet-3d, open sizes": Case(lambda: UNet(3, 4), VOLUME, kinds=("sizes",)),
}


def original(case: Case) -> tuple[nn.Module, Tensor]:
    """The case's model as it was, and an example of its input."""
    torch.manual_seed(0)
    return case.build().eval(), torch.randn(case.shape)


def rewritten(case: Case) -> tuple[nn.Module, Tensor]:
    """The case's rewritten model, as it is to be deployed, and that example."""
    model, x = original(case)
    rules = [ccrewrite.DilatedToDcls(sharing=case.sharing), ccrewrite.StridedToCC()] if case.sharing else None  # pyright: ignore[reportArgumentType]
    model = ccrewrite.rewrite(model, x, rules=rules).model
    if case.moved:
        move_(model)
    if case.settings:
        ccrewrite.resize_(model, case.settings, x)
    return model, x


@torch.no_grad()
def move_(model: nn.Module, std: float = 0.3) -> None:
    """Every offset, shift and last layer of a residual off its start by a normal draw."""
    for module in model.modules():
        if isinstance(module, ccrewrite.nn.Sampling):
            for mover in module.movers():
                mover += std * torch.randn_like(mover)


def forms(case: Case) -> list[str]:
    """What becomes of the case's sites when it is folded."""
    return (
        ["size-input"]
        if case.kinds == ("sizes",)
        else sorted({site.code for site in ccrewrite.fold(*rewritten(case), forms="estimated")})
    )
