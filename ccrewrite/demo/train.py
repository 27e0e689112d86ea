"""``python -m ccrewrite.demo.train``: train the demo's network and write the weights that the package ships."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ccrewrite.demo.canvases import CLASSES, canvases
from ccrewrite.demo.network import WEIGHTS, DigitSegmenter, segmenter
from ccrewrite.ir.tensor_files import save_file
from ccrewrite.ir.typed import advance_, backward, manual_seed, split, step_

STEPS, BATCH, PEAK = 1800, 32, 5e-3
TEST_CANVASES, TEST_SEED = 200, 0


class Score(NamedTuple):
    loss: float
    """Cross entropy."""
    pixel_accuracy: float
    """Share of the pixels, background included."""
    mIoU: float  # noqa: N815 - the measure's name
    """Mean intersection over union, over the classes that occur."""


def train(console: Console, steps: int = STEPS) -> DigitSegmenter:
    """The network after ``steps`` batches, each of new canvases; in eval mode."""
    manual_seed(0)
    model = segmenter(pretrained=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, steps, pct_start=0.2)
    start = time.perf_counter()
    for step in range(steps):
        images, labels = canvases(BATCH, seed=step, split="train")
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        backward(loss)
        step_(optimizer)
        advance_(schedule)
        if step % 100 == 99:
            console.print(f"step {step + 1} of {steps}: loss {loss.item():.4f}, {time.perf_counter() - start:.0f} s")
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> Score:
    """How well ``model`` labels the pixels of ``images``; all canvases count together."""
    outputs = torch.cat([model(batch) for batch in split(images, 50)])
    pairs = (labels * CLASSES + outputs.argmax(1)).flatten()
    counts = torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)
    hits = counts.diag()
    unions = counts.sum(0) + counts.sum(1) - hits
    loss = F.cross_entropy(outputs, labels)
    return Score(loss.item(), (hits.sum() / counts.sum()).item(), (hits / unions).nanmean().item())


def main() -> None:
    console = Console()
    torch.set_num_threads(1)  # sums in one order, whatever the machine's cores
    model = train(console)
    score = evaluate(model, *canvases(TEST_CANVASES, TEST_SEED, "test"))
    console.print(f"{TEST_CANVASES} test canvases: pixel accuracy {score.pixel_accuracy:.4f}, mIoU {score.mIoU:.4f}")
    save_file(model.state_dict(), WEIGHTS)
    console.print(f"wrote {WEIGHTS} ({WEIGHTS.stat().st_size / 1024:.0f} KiB)")


if __name__ == "__main__":
    main()
