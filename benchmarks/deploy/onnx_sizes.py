"""What open internal sizes cost in onnxruntime: one layer in a file of its own, native size, against the plain convolution.

    python benchmarks/deploy/onnx_sizes.py

Medians of ratios of interleaved runs, one thread. Prints a Markdown table.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

import ccrewrite
from ccrewrite.ir.timing import Case, Effort, time_cases

ROUNDS = 21
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Conv2d 3->32 k7 s2, 112x112 -> 56x56": (nn.Conv2d(3, 32, 7, 2, 3), (1, 3, 112, 112)),
    "Conv2d 64->64 k3 s2, 56x56 -> 28x28": (nn.Conv2d(64, 64, 3, 2, 1), (1, 64, 56, 56)),
    "ConvTranspose2d 64->32 k4 s2, 28x28 -> 56x56": (nn.ConvTranspose2d(64, 32, 4, 2, 1), (1, 64, 28, 28)),
    "ConvTranspose1d 64->32 k8 s4, 1024 -> 4096": (nn.ConvTranspose1d(64, 32, 8, 4, 2), (1, 64, 1024)),
}


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ratio(plain: Any, other: Any, fed: dict[str, Any]) -> float:
    runs = {"plain": lambda: plain.run(None, fed), "other": lambda: other.run(None, fed)}
    cases = {name: Case(run, nullcontext, "plain") for name, run in runs.items()}
    return time_cases(cases, Effort(0.0, (ROUNDS, ROUNDS), 0.0))["other"].ratio


def main() -> None:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, one thread\n")
    print("| layer | unmoved | moved |")
    print("|---|---|---|")
    for name, (layer, shape) in LAYERS.items():
        x = torch.randn(shape)
        model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1) if len(shape) == 4 else nn.AdaptiveAvgPool1d(1)).eval()
        cells: list[str] = []
        with tempfile.TemporaryDirectory() as directory:
            ccrewrite.export_onnx(model, f"{directory}/plain.onnx", x)
            for moved in (False, True):
                rewritten: Any = ccrewrite.rewrite(model, x).model
                if moved:
                    for mover in rewritten[0].sampling.movers():
                        nn.init.normal_(mover, std=0.1)
                ccrewrite.export_onnx(rewritten, f"{directory}/open.onnx", x, sizes="input")
                plain, opened = (session(Path(directory, f"{n}.onnx")) for n in ("plain", "open"))
                cells.append(f"{ratio(plain, opened, {'input': x.numpy()}):.1f}x")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
