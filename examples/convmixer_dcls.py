"""The ConvMixer block (arXiv 2201.09792) with DCLS: built sparse from scratch, or a trained dense one made sparse.

    python examples/convmixer_dcls.py

``benchmarks/evidence/dcls_sparse.py`` does the second with trained networks and compares it with pruning.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.families.dcls.sparsify import LargeToDcls
from ccrewrite.nn import DclsConv2d


class Residual(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def block(mixing: nn.Module, dim: int) -> nn.Sequential:
    """Depthwise mixing of places around a skip connection, then pointwise mixing of channels."""
    places = Residual(mixing, nn.GELU(), nn.BatchNorm2d(dim))
    return nn.Sequential(places, nn.Conv2d(dim, dim, 1), nn.GELU(), nn.BatchNorm2d(dim))


def dense_block(dim: int) -> nn.Sequential:
    return block(nn.Conv2d(dim, dim, 9, padding="same", groups=dim), dim)


def sparse_block(dim: int) -> nn.Sequential:
    """A third of the dense one's 81 parameters per kernel: 9 weights and 18 coordinates."""
    return block(DclsConv2d(dim, dim, padding="same", groups=dim, elements=9, window=9), dim)


def kernel_parameters(model: nn.Module) -> int:
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    return sum(p.numel() for layer in layers for name, p in layer.named_parameters() if name != "bias")


def main() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    stem = nn.Conv2d(3, 32, 4, stride=4)
    from_scratch = nn.Sequential(stem, sparse_block(32), sparse_block(32))
    print(f"from scratch: {kernel_parameters(from_scratch)} depthwise parameters, output {tuple(from_scratch(images).shape)}")

    dense = nn.Sequential(stem, dense_block(32), dense_block(32)).eval()
    result = ccrewrite.rewrite(dense, images, rules=[LargeToDcls(budget=1 / 3)])
    print(f"dense: {kernel_parameters(dense)} depthwise parameters; rewritten: {kernel_parameters(result.model)}")
    for site in result.plan.rewritten:
        print(f"{site.name}: {site.decision.message}")


if __name__ == "__main__":
    main()
