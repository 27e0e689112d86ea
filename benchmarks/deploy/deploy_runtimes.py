"""Which runtime takes which form of a folded layer: ``make deploy``.

    .venv-deploy/bin/python benchmarks/deploy/deploy_runtimes.py    # writes reports/deploy/runtimes.*, and docs/deploy.md

Every model of tests/deploy/models.py is rewritten, moved, folded, written as a file of every kind (``doors.py`` there) and run
from it at two batch sizes, in processes that can't import ccrewrite; the outputs are compared with the rewritten model's own.
Where a runtime refuses, it gets the model that nothing was done to as well. tests/deploy/test_runtimes.py looks at the report.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ccrewrite

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from deploy.doors import write  # noqa: E402
from deploy.models import CASES, OTHER_BATCH, forms, original, rewritten  # noqa: E402
from deploy.table import put_between, table  # noqa: E402

HERE = ROOT / "tests" / "deploy"
REPORT = ROOT / "reports" / "deploy"
NODE_MODULES = Path(sys.prefix) / "node_modules"
RUNTIMES = {
    "onnxruntime": ("onnx", "sizes"),
    "onnxruntime-web": ("onnx", "sizes"),
    "OpenVINO": ("onnx", "sizes"),
    "torch.export": ("pt2",),
    "AOTInductor": ("aoti",),
    "ExecuTorch": ("portable",),
    "ExecuTorch, XNNPACK": ("xnnpack",),
}
"""Runtime -> the kinds of files that it runs."""
RATIOS = 0.75, 1.25, 0.5
"""Internal sizes to ask for, by axis, over the native ones."""


@torch.no_grad()
def prepare(model: nn.Module, x: Tensor, directory: Path, kinds: Iterable[str]) -> dict[str, Any]:
    """Write the model's files, inputs for them, and what is expected; a file's place or refusal by kind."""
    directory.mkdir()
    (argument,) = inspect.signature(model.forward).parameters
    case: dict[str, Any] = {"files": {}, "inputs": [], "expected": []}
    sizes: Sequence[Any] = ()
    for kind in kinds:
        start = time.perf_counter()
        try:
            path, sizes = write(kind, model, x, directory)
            case["files"][kind] = {"file": str(path)}
        except Exception as error:  # an exporter's refusal is an answer
            case["files"][kind] = {"refused": f"{type(error).__name__}: {error}"}
        print(f"{directory.name}: {kind}, {time.perf_counter() - start:.0f} s", flush=True)
    # The second run has another batch size and, where the file lets it choose, another internal size.
    for n, run in enumerate((x, torch.randn(OTHER_BATCH, *x.shape[1:]))):
        ratios = {s.sites[0]: RATIOS[: len(s.native)] for s in sizes[:1]} if n else {}
        with ccrewrite.resized(model, ratios, run) if ratios else nullcontext():
            case["expected"].append(model(run))
        feeds = {argument: _save(run, directory / f"input{n}.raw")}
        for s in sizes:
            asked = [round(r * k) for r, k in zip(ratios.get(s.sites[0], (0,) * len(s.native)), s.native, strict=True)]
            feeds[s.name] = _save(torch.tensor(asked), directory / f"{s.name}{n}.raw")
        case["inputs"].append(feeds)
    return case


def _save(x: Tensor, path: Path) -> dict[str, Any]:
    x.numpy().tofile(path)
    return {"shape": list(x.shape), "type": str(x.dtype).removeprefix("torch."), "data": str(path)}


def run(runtime: str, cases: Mapping[str, dict[str, Any]], directory: Path) -> dict[str, dict[str, Any]]:
    """By case: the largest error, relative to the output's largest magnitude, or the words of a refusal."""
    files = {n: f for n, c in cases.items() for kind, f in c["files"].items() if kind in RUNTIMES[runtime]}
    jobs = [{**file, "inputs": inputs} for n, file in files.items() if "file" in file for inputs in cases[n]["inputs"]]
    path = directory / "jobs.json"
    path.write_text(json.dumps(jobs))
    if runtime == "onnxruntime-web":
        command = [str(Path(sys.prefix, "bin", "node")), str(HERE / "run_web.mjs"), str(NODE_MODULES.parent), str(path)]
    else:
        command = [sys.executable, str(HERE / "run_files.py"), runtime, str(path)]
    subprocess.run(command, check=True, cwd=directory, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    answers = iter(json.loads(path.with_name(f"jobs.json.{runtime}").read_text()))
    outcomes: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        refused, errors = file.get("refused"), [0.0]
        for expected in cases[name]["expected"] if "file" in file else ():
            answer = next(answers)
            if isinstance(answer, list):
                errors.append(_error(expected, *answer))
            else:
                refused = refused or f"at batch {len(expected)}, {answer['error']}"
        outcomes[name] = {
            "error": None if refused else max(errors),
            "refused": " ".join(refused.split())[:300] if refused else None,
        }
    return outcomes


def _error(expected: Tensor, answer: dict[str, Any]) -> float:
    found = torch.from_numpy(np.fromfile(answer["data"], dtype=np.float32).reshape(answer["shape"]))
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=list(CASES), help="names of cases; of the others, what the report has is kept"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        cases = {name: prepare(*rewritten(CASES[name]), directory / name, CASES[name].kinds) for name in arguments.only}
        for runtime in RUNTIMES:
            for case, outcome in run(runtime, cases, directory).items():
                if outcome["refused"]:
                    place, kinds = directory / f"original of {case}, {runtime}", set(CASES[case].kinds) & set(RUNTIMES[runtime])
                    untouched = {case: prepare(*original(CASES[case]), place, kinds)}
                    outcome["refused_original"] = run(runtime, untouched, directory)[case]["refused"]
                outcomes.append({"runtime": runtime, "case": case, "forms": forms(CASES[case]), **outcome})
    if arguments.only != list(CASES):
        before: list[dict[str, Any]] = json.loads((REPORT / "runtimes.json").read_text())["outcomes"]
        outcomes += [o for o in before if o["case"] in CASES and o["case"] not in arguments.only]
    outcomes.sort(key=lambda o: (list(RUNTIMES).index(o["runtime"]), list(CASES).index(o["case"])))
    web = json.loads((NODE_MODULES / "onnxruntime-web" / "package.json").read_text())["version"]
    packages = ("ccrewrite", "torch", "onnxruntime", "openvino", "executorch")
    report = {
        "command": "make deploy",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}",
        "versions": {**{p: version(p) for p in packages}, "onnxruntime-web": web, "python": platform.python_version()},
        "outcomes": outcomes,
    }
    text = table(report)
    REPORT.mkdir(parents=True, exist_ok=True)
    (REPORT / "runtimes.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    (REPORT / "runtimes.md").write_text(f"# Which runtime takes which form\n\n{text}")
    page = ROOT / "docs" / "deploy.md"
    page.write_text(put_between(page.read_text(), f"\n{text}\n"))
    print(text)


if __name__ == "__main__":
    main()
