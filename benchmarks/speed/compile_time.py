"""What the first step takes where nothing is cached: networks of fifty rewritten layers, and a WaveNet.

    python benchmarks/speed/compile_time.py [--only TEXT]    # reports/cpu/compile_time.json and .md; resumes what is there

For each: the original under torch.compile; the rewritten model lowered for training, forms by estimate; the same with DCLS
layers that can forced to "slices", which is never compiled; its layers compiled by themselves. Each in a process of its own
with an empty cache; processor seconds, the C++ compiler's included, from preparing the model to the end of its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from moved_cases import WaveNet
from moving import ROOT, move_
from tabulate import tabulate
from torch import Tensor, nn

import ccrewrite
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.typed import compiled

REPORT = ROOT / "reports" / "cpu"
SITES = 50
WAYS = ("original", "lowered", "slices", "sites")


def fifty(kind: str) -> tuple[nn.Module, Tensor]:
    """Layers of two geometries, in turn."""
    pairs = SITES // 2
    if kind == "strided":
        layers = [nn.Conv1d(16, 16, k, stride=2, padding=1) for k in (3, 4) * pairs]
        # Each halves its input, which is made long again.
        return nn.Sequential(*(nn.Sequential(nn.Upsample(scale_factor=2), layer) for layer in layers)), torch.randn(1, 16, 64)
    groups = 16 if kind == "depthwise" else 1
    convs = [nn.Conv2d(16, 16, 3, dilation=d, padding=d, groups=groups) for d in (2, 3) * pairs]
    followed = [nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU()) for conv in convs]
    return nn.Sequential(*(followed if kind == "followed" else convs)), torch.randn(1, 16, 17, 17)


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    f"{SITES} dilated layers": lambda: fifty("dilated"),
    f"{SITES} dilated layers, each with a batch norm and a ReLU": lambda: fifty("followed"),
    f"{SITES} depthwise dilated layers": lambda: fifty("depthwise"),
    f"{SITES} strided layers": lambda: fifty("strided"),
    "WaveNet, 64 -> 128 channels, 4000 samples": lambda: (WaveNet(), torch.randn(1, 1, 4000)),
}


def prepared(way: str, model: nn.Module, x: Tensor) -> nn.Module:
    if way == "original":
        return compiled(model)
    if way == "sites":
        return ccrewrite.lower(model, x, mode="training", scope="sites", verify=False).model
    known = rewritten_sites(model) if way == "slices" else {}
    forced = {name: "slices" for name, site in known.items() if "slices" in site.sampling.forms}
    return ccrewrite.lower(model, x, mode="training", measured=False, forms=forced, verify=False).model


def seconds(case: str, way: str) -> float:
    """In this process, which has compiled nothing of the kind yet."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    model, x = CASES[case]()
    if way != "original":
        model = ccrewrite.rewrite(model, x).model
        move_(model, 0.3)
    small = torch.compile(nn.Conv1d(3, 3, 3))  # what every first compilation loads
    small(torch.randn(1, 3, 8)).sum().backward()
    begin = spent()
    prepared(way, model.train(), x)(x).square().mean().backward()
    return spent() - begin


def spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def apart(case: str, way: str) -> float:
    with tempfile.TemporaryDirectory() as cache:
        own = {"TORCHINDUCTOR_CACHE_DIR": cache, "CCREWRITE_CACHE": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        environment = {**os.environ, **own}
        command = [sys.executable, __file__, "--case", case, "--way", way]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def written(document: dict[str, Any]) -> str:
    def cell(found: dict[str, float], way: str) -> str:
        if way not in found or way == "original":
            return f"{found[way]:.1f}" if way in found else ""
        return f"{found[way]:.1f} ({found[way] / found['original']:.2f})"

    headings = ("", "original compiled, s", "lowered", "lowered, slices", "layers compiled")
    rows = [(name, *(cell(found, way) for way in WAYS)) for name, found in document["cases"].items()]
    return "\n".join(
        [
            "# First steps of training, nothing cached",
            "",
            f"`{document['command']}` · {document['where']}",
            "",
            "Processor seconds, the C++ compiler's included; in brackets over the original's.",
            "",
            tabulate(rows, headers=headings, tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this; measured anew")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.case:
        print(seconds(options.case, options.way))
        return
    file = REPORT / "compile_time.json"
    known = json.loads(file.read_text())["cases"] if file.exists() else {}
    where = (
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, one thread · {datetime.now(UTC):%Y-%m-%d}"
    )
    document: dict[str, Any] = {"command": "python benchmarks/speed/compile_time.py", "where": where, "cases": known}
    for case in CASES:
        found = document["cases"].setdefault(case, {})
        for way in WAYS:
            if options.only in case and (options.only or way not in found):
                found[way] = round(apart(case, way), 2)
                print(f"{case}: {way} {found[way]:.1f} s", flush=True)
                file.write_text(json.dumps(document, separators=(",", ":")) + "\n")
                (REPORT / "compile_time.md").write_text(written(document))


if __name__ == "__main__":
    main()
