"""The ConvNeXt block (arXiv 2201.03545) with a DCLS depthwise convolution, as in ConvNeXt-dcls (arXiv 2112.03740).

    python examples/convnext_dcls.py

34 elements in a 17 x 17 window take the place of a 7 x 7 kernel; the blocks of a stage share one set of positions. The
optimizer's groups and the repulsive loss are the paper's recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccrewrite.nn import DclsConv2d, share_positions
from ccrewrite.training import param_groups, repulsive_loss


class Block(nn.Module):
    """Depthwise DCLS -> layer norm -> pointwise, GELU, pointwise -> scale, around a skip connection."""

    def __init__(self, dim: int, elements: int = 34, window: int = 17, scale: float = 1e-6) -> None:
        super().__init__()
        self.dwconv = DclsConv2d(
            dim, dim, padding="same", groups=dim, elements=elements, window=window, weight_init="trunc_normal"
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(scale * torch.ones(dim))

    def forward(self, input: Tensor) -> Tensor:
        x = self.norm(self.dwconv(input).movedim(1, -1))
        x = self.gamma * self.pwconv2(nn.functional.gelu(self.pwconv1(x)))
        return input + x.movedim(-1, 1)


def stage(dim: int, depth: int) -> nn.Sequential:
    """Blocks that share their positions."""
    blocks = [Block(dim) for _ in range(depth)]
    share_positions(*(block.dwconv for block in blocks))
    return nn.Sequential(*blocks)


def convnext(dims: tuple[int, ...] = (32, 64), depths: tuple[int, ...] = (2, 2), classes: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = []
    last = 3
    for dim, depth in zip(dims, depths, strict=True):
        layers += [nn.Conv2d(last, dim, 2, stride=2), stage(dim, depth)]
        last = dim
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(last), nn.Linear(last, classes))


def main() -> None:
    torch.manual_seed(0)
    model = convnext()
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.05))
    images, classes = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    for step in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), classes)
        crowding = repulsive_loss(model)
        (loss + crowding**2).backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, repulsive loss {crowding.item():.4f}")
    positions = {id(p) for n, p in model.named_parameters() if n.endswith("offset")}
    print(f"{len(positions)} sets of positions for {sum(isinstance(m, DclsConv2d) for m in model.modules())} layers")


if __name__ == "__main__":
    main()
