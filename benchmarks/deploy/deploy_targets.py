"""Rewritten models on every target of ``ccrewrite.passes.targets``: part of ``make quantize``.

    .venv-deploy/bin/python benchmarks/deploy/deploy_targets.py    # writes reports/deploy/targets.*

The moved models of tests/deploy/models.py are folded for each target. Those that run here run what comes out, and of ExecuTorch
it is counted what its XNNPACK partitioner leaves to other kernels; of the others it is counted what their lists don't take.
tests/deploy/test_targets.py looks at the report.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino  # pyright: ignore[reportMissingImports]
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]
from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]
from tabulate import tabulate
from torch import Tensor, nn

import ccrewrite
from ccrewrite.passes.fold.taken import not_taken
from ccrewrite.passes.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from deploy.models import CASES, original, rewritten  # noqa: E402

REPORT = ROOT / "reports" / "deploy"
MOVED = [name for name, case in CASES.items() if case.moved and case.settings is None and case.kinds != ("sizes",)]


def on_xnnpack(model: nn.Module, x: Tensor) -> tuple[int, np.ndarray]:
    """How many operators are left to other kernels, and the output."""
    program = torch.export.export(model, (x,), strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    nodes = [n for n in lowered.exported_program().graph.nodes if n.op == "call_function"]
    left = sum("getitem" not in str(n.target) and "delegate" not in str(n.target) for n in nodes)
    buffer = lowered.to_executorch().buffer  # which the runtime doesn't keep alive
    loaded = Runtime.get().load_program(buffer)
    return left, loaded.load_method("forward").execute([x])[0].numpy().copy()


def in_onnx(model: nn.Module, x: Tensor, target: Target, path: Path) -> np.ndarray:
    ccrewrite.export_onnx(model, path, x, target=target)
    if target.name == "openvino":
        config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        return openvino.Core().compile_model(path, "CPU", config)(x.numpy())[0]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@torch.no_grad()
def outcome(case: str, target: Target, directory: Path) -> dict[str, Any]:
    """``refused``: what the target doesn't take of the folded model, and of the original. ``error``: relative to the output's
    largest magnitude, where it runs here. ``left``: operators off the accelerated part, likewise."""
    (plain, x), (model, _) = original(CASES[case]), rewritten(CASES[case])
    folded = ccrewrite.fold(model, x, target=target)
    found: dict[str, Any] = {
        "refused": [str(n) for n in folded.not_taken],
        "refused_original": [str(n) for n in not_taken(plain, (), target)],
        "forms": sorted({site.code for site in folded}),
    }
    if not target.runs_here or found["refused_original"]:
        return found
    expected = model(x).numpy()
    if target.reads == "onnx":
        output = in_onnx(model, x, target, directory / "m.onnx")
    else:
        before, _ = on_xnnpack(plain, x)
        after, output = on_xnnpack(folded.model.eval(), x)
        found["left"] = [after, before]
    return found | {"error": float(np.abs(output - expected).max() / np.abs(expected).max())}


def table(report: dict[str, Any], int8: list[dict[str, Any]]) -> str:
    """Markdown: models down, then int8; targets across."""
    cells = {(o["case"], o["target"]): _cell(o) for o in report["outcomes"]}
    rows = [[case, *(cells.get((case, target), "") for target in TARGETS)] for case in MOVED]
    ways = {"onnxruntime-cpu": "onnxruntime, QDQ", "openvino": "OpenVINO, NNCF", "executorch-xnnpack": "PT2E, XNNPACKQuantizer"}
    counts = {t: [o for o in int8 if o["way"] == way] for t, way in ways.items()}
    sums = {t: (sum(o["folded"][0] for o in found), sum(o["original"][0] for o in found)) for t, found in counts.items()}
    last = ["{} of {}".format(*sums[t]) if t in sums else "" for t in TARGETS]
    made = f"`make quantize`, {report['date']}; " + ", ".join(f"{n} {v}" for n, v in report["versions"].items()) + "."
    what = "A number is the error of a run, relative to the output's largest magnitude; `list` is an answer from the target's "
    what += "list of what it takes, not from a run. `int8`: convolutions in int8, of those of the originals (int8.md)."
    body = tabulate([*rows, ["int8", *last]], headers=["", *TARGETS], tablefmt="github", disable_numparse=True)
    return f"{made} {what}\n\n{body}\n"


def _cell(o: dict[str, Any]) -> str:
    new = len(o["refused"]) - len(o["refused_original"])
    refused = f", {len(o['refused'])} not taken, of the original {len(o['refused_original'])}" if o["refused"] else ""
    ran = f"{o['error']:.0e}" if "error" in o else "list"
    left = f", {o['left'][0]} left (original {o['left'][1]})" if "left" in o else ""
    return f"{ran}{left}{refused}{' MORE' if new > 0 else ''}"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the exporters' about themselves
    outcomes: list[dict[str, Any]] = []
    for case in MOVED:
        for target in TARGETS.values():
            with tempfile.TemporaryDirectory() as directory:
                outcomes.append({"case": case, "target": target.name, **outcome(case, target, Path(directory))})
            print(outcomes[-1], flush=True)
    packages = ("torch", "onnxruntime", "openvino", "executorch")
    report = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {**{p: version(p) for p in packages}, "python": platform.python_version()},
        "outcomes": outcomes,
    }
    (REPORT / "targets.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    text = table(report, json.loads((REPORT / "int8.json").read_text())["outcomes"])
    (REPORT / "targets.md").write_text(f"# Rewritten models on each target\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
