"""``ccrewrite demo``: rewrite a trained network, see that nothing changed, teach it new geometry, and take it all back."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ccrewrite.api import revert, rewrite
from ccrewrite.demo.canvases import canvases
from ccrewrite.demo.network import example_inputs, segmenter
from ccrewrite.demo.train import TEST_CANVASES, TEST_SEED, Score, evaluate
from ccrewrite.ir.typed import advance_, backward, manual_seed, named_modules, step_
from ccrewrite.nn import RewrittenConv, Sampling

STEPS, BATCH, RATE, SEED = 60, 16, 1e-2, 1_000_000
"""Of the fine-tuning; the seed starts where no canvas of the training came from."""


def run(console: Console) -> dict[str, Score]:
    """Print the demo, in well under a minute, and return the networks' scores.

    Raises ``CcrewriteError`` where scikit-learn (extra ``demo``) is missing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # nearly as fast on images this small, and never ten times slower on a busy machine
    try:
        return _run(console)
    finally:
        torch.set_num_threads(threads)


def _run(console: Console) -> dict[str, Score]:
    start = time.perf_counter()
    test = canvases(TEST_CANVASES, TEST_SEED, "test")
    manual_seed(0)  # the residuals' inner layers are drawn at random
    model = segmenter()
    scores = {"original": evaluate(model, *test)}

    console.rule("1. Rewrite in one call: ccrewrite.rewrite(model, example_inputs)")
    result = rewrite(model, example_inputs())
    rewritten = result.model
    console.print(str(result.plan), markup=False, highlight=False, soft_wrap=True)
    console.print(_parameters(rewritten))
    scores["rewritten"] = evaluate(rewritten, *test)
    verdict = "equal" if result.check.ok else "NOT equal"
    console.print(f"Outputs before and after: {verdict}, {_errors(result.check.max_abs_error, result.check.max_rel_error)}.")
    built = _built(model, rewritten, test[0][:8])
    console.print(f"While training, when every kernel is built from its geometry: {built}.")

    console.rule(f"2. Fine-tune the added parameters alone: {STEPS} steps, every weight frozen")
    fine_tune(rewritten)
    console.print(_movement(rewritten))
    scores["fine-tuned"] = evaluate(rewritten, *test)

    console.rule("3. Back to the original layers: ccrewrite.revert(model)")
    scores["reverted"] = evaluate(revert(rewritten), *test)
    console.print(_scores(scores))
    console.print(f"{time.perf_counter() - start:.0f} s in all.")
    return scores


def fine_tune(model: nn.Module, steps: int = STEPS) -> None:
    """Adam on the parameters that the rewrite added. In eval mode: batch norm keeps its statistics too. In place."""
    added = [p for module in model.modules() if isinstance(module, Sampling) for p in module.parameters()]
    optimizer = torch.optim.Adam(added, RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, steps)
    for step in range(steps):
        images, labels = canvases(BATCH, SEED + step, "train")
        model.zero_grad()
        backward(F.cross_entropy(model(images), labels))
        step_(optimizer)
        advance_(schedule)


def _layers(model: nn.Module) -> dict[str, RewrittenConv]:
    return {name: module for name, module in named_modules(model) if isinstance(module, RewrittenConv)}


def _built(original: nn.Module, rewritten: nn.Module, images: Tensor) -> str:
    expected = original(images).detach()
    error = (rewritten(images).detach() - expected).abs().max().item()
    return _errors(error, error / expected.abs().max().item())


def _errors(absolute: float, relative: float) -> str:
    return f"max abs error {absolute:.1e}, max rel error {relative:.1e}"


def _parameters(model: nn.Module) -> Table:
    table = Table("layer", "now a", title="Parameters", show_footer=True)
    layers = _layers(model)
    added = {name: _count(layer.sampling) for name, layer in layers.items()}
    kept = {name: _count(layer) - added[name] for name, layer in layers.items()}
    table.add_column("original", f"{sum(kept.values()):,}", justify="right")
    table.add_column("added", f"{sum(added.values()):,}", justify="right")
    table.columns[0].footer = "these layers"
    for name, layer in layers.items():
        table.add_row(name, type(layer).__name__, f"{kept[name]:,}", f"{added[name]:,}")
    total = _count(model) - sum(added.values())
    table.caption = f"whole network: {total:,} + {sum(added.values()):,} ({sum(added.values()) / total:+.1%})"
    return table


def _movement(model: nn.Module) -> Table:
    table = Table("layer", "what moved", title="Largest movement, in samples")
    table.add_column("largest", justify="right")
    for name, layer in _layers(model).items():
        for kind, value in layer.sampling.named_parameters(recurse=False):
            table.add_row(name, kind, f"{value.abs().max():.3f}")
    return table


def _scores(scores: dict[str, Score]) -> Table:
    table = Table("network", title=f"{TEST_CANVASES} canvases of unseen drawings")
    for heading in Score._fields:
        table.add_column(heading.replace("_", " "), justify="right")
    for name, score in scores.items():
        table.add_row(name, *(f"{value:.4f}" for value in score))
    return table


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
