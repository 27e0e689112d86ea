"""Rewritten models in int8, by the tools that people use: ``make quantize``.

    .venv-deploy/bin/python benchmarks/deploy/deploy_int8.py    # writes reports/deploy/int8.*

Each model is rewritten, every geometry moved, folded and quantized in every way of tests/deploy/int8.py, and so is the
original: how many convolutions are in int8, and what that costs. Two of the models are trained, and their test data have
labels.
tests/deploy/test_int8.py looks at the report.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

import ccrewrite
from ccrewrite.demo.canvases import canvases
from ccrewrite.demo.network import segmenter

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

from deploy.int8 import WAYS, quantized  # noqa: E402
from deploy.models import TCN, UNet, depthwise, move_  # noqa: E402
from digits import digits, trained  # noqa: E402

REPORT = ROOT / "reports" / "deploy"
CALIBRATION = 32
"""Inputs that ranges are measured on."""


class Case(NamedTuple):
    """A model, what ranges are measured on, and what it is tried on, with labels or without; how far its geometry moves."""

    model: nn.Module
    data: Tensor
    test: Tensor
    labels: Tensor | None
    std: float = 0.1


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    train, (test, labels) = canvases(CALIBRATION, seed=0, split="train")[0], canvases(60, seed=0, split="test")
    drawn, (tried, drawn_labels) = (part.tensors for part in digits())
    # Where they are, and one pixel off along each axis: one drawing of 397 is a quarter of a point.
    around = [tried.roll((rows, columns), (2, 3)) for rows in (-1, 0, 1) for columns in (-1, 0, 1)]
    found = {
        "demo": Case(segmenter().eval(), train, test, labels),
        "digits": Case(trained(), drawn[0][:100], torch.cat(around), drawn_labels.repeat(9), 0.01),
    }
    for name, build, shape in (("unet", UNet, (3, 32, 32)), ("tcn", TCN, (4, 64)), ("depthwise", depthwise, (3, 32, 32))):
        found[name] = Case(build().eval(), torch.randn(CALIBRATION, *shape), torch.randn(16, *shape), None)
    return found


@torch.no_grad()
def outcome(way: str, case: Case, moved: nn.Module, directory: Path) -> dict[str, Any]:
    """How many convolutions are in int8 in the original and in the folded model; the folded model's outputs against those in
    float: how far apart (2-norms), and where there are labels, what is right, in per cent."""
    before = quantized(way, case.model, case.data, directory / "original")
    after = quantized(way, moved, case.data, directory / "folded")
    exact, found = (after.exact or moved)(case.test), torch.cat([after.run(part) for part in case.test.split(8)])
    result: dict[str, Any] = {
        "original": [before.quantized, before.convolutions],
        "folded": [after.quantized, after.convolutions],
        "error": float((found - exact).norm() / exact.norm()),
    }
    if case.labels is not None and after.exact is None:
        result |= {"float": _right(exact, case.labels), "int8": _right(found, case.labels)}
    return result


def _right(outputs: Tensor, labels: Tensor) -> float:
    return 100 * float((outputs.argmax(1) == labels).float().mean())


def table(report: dict[str, Any]) -> str:
    """Markdown: ways down, models across."""
    models = list(dict.fromkeys(o["model"] for o in report["outcomes"]))
    cells = {(o["way"], o["model"]): _cell(o) for o in report["outcomes"]}
    rows = [[way, *(cells.get((way, model), "") for model in models)] for way in WAYS]
    made = f"`{report['command']}`, {report['date']}; " + ", ".join(f"{n} {v}" for n, v in report["versions"].items()) + "."
    what = "In the cells: convolutions in int8 of the folded model (of the original), relative error of the outputs, and how "
    what += "many points more of the test data are right than in float. For `quantize_` linear layers are counted."
    return f"{made} {what}\n\n" + tabulate(rows, headers=["", *models], tablefmt="github", disable_numparse=True) + "\n"


def _cell(o: dict[str, Any]) -> str:
    points = f", {o['int8'] - o['float']:+.2f}" if "int8" in o else ""
    return f"{o['folded'][0]} ({o['original'][0]}), {o['error']:.1e}{points}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of models; of the others, what the report has is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: list[dict[str, Any]] = []
    for name, case in cases().items():
        if arguments.only and name not in arguments.only:
            continue
        torch.manual_seed(0)
        moved = ccrewrite.rewrite(case.model, case.data[:2]).model
        move_(moved, case.std)
        for way in WAYS:
            with tempfile.TemporaryDirectory() as directory:
                outcomes.append({"way": way, "model": name, **outcome(way, case, moved, Path(directory))})
            print(outcomes[-1], flush=True)
    path = REPORT / "int8.json"
    if arguments.only and path.exists():
        outcomes += [o for o in json.loads(path.read_text())["outcomes"] if o["model"] not in arguments.only]
    order = list(cases())
    outcomes.sort(key=lambda o: (list(WAYS).index(o["way"]), order.index(o["model"])))
    packages = ("torch", "onnxruntime", "torchao", "executorch", "openvino", "nncf")
    report = {
        "command": "make quantize",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {**{p: version(p) for p in packages}, "python": platform.python_version()},
        "outcomes": outcomes,
    }
    path.write_text(json.dumps(report, separators=(",", ":")) + "\n")
    (REPORT / "int8.md").write_text(f"# Rewritten models in int8\n\n{table(report)}")
    print(table(report))


if __name__ == "__main__":
    main()
