"""``make reports``: the comparison reports under reports/, and their index.

    .venv/bin/python benchmarks/reports/make_reports.py demo       the network that ships with the package: fine-tuned, folded
    .venv-corpus/bin/python benchmarks/reports/make_reports.py corpus the fifteen corpus models
    .venv/bin/python benchmarks/reports/make_reports.py index      pages, tables and reports/README.md anew from the data there

One thread: times of small models on shared machines repeat best that way. The corpus models are measured side by side, each in
a process of its own, each process on a core of its own. What is lowered needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ccrewrite
from ccrewrite.report import Comparison, compare
from ccrewrite.report.comparison import COMPILED, INFERENCE, MOVED, TRAINING
from ccrewrite.report.tables import delta, error, ratio, table
from ccrewrite.report.variants import variants_of

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "reports"
SLOW = ("monai_highresnet3d", "hf_dac_weightnorm", "hf_mobilenetv2_deeplab", "diffusers_unet1d", "pcv_erfnet")
"""Started first, so that no core is left alone with one of them at the end."""


def demo(quick: bool) -> None:
    """The digit segmenter as rewritten; after sixty steps of training on the added geometry; that folded, and lowered."""
    from ccrewrite.demo.network import example_inputs, segmenter
    from ccrewrite.demo.run import fine_tune

    model, inputs = segmenter(), example_inputs()
    rewritten, tuned = (ccrewrite.rewrite(model, inputs).model for _ in range(2))
    fine_tune(tuned)
    command = "make reports" + (" QUICK=1" if quick else "")
    variants = {"fine-tuned": tuned} | variants_of(tuned, inputs, ["folded", "lowered"])
    extras: dict[str, Any] = {} if quick else {"batches": (1, 4, 16)}
    compare(model, rewritten, inputs, variants=variants, quick=quick, command=command, **extras).save(REPORTS / "demo")


def corpus(options: argparse.Namespace) -> None:
    """The third-party models of tests/corpus, in as many processes at once as there are cores."""
    from corpus.models import MODELS

    if unknown := set(options.only) - set(MODELS):
        raise SystemExit(f"no corpus model is called {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    waiting = sorted(options.only or MODELS, key=lambda name: name not in SLOW)
    start, total, done = time.perf_counter(), len(waiting), itertools.count(1)
    again = [sys.executable, __file__, "model", "--out", str(options.out), *(["--quick"] if options.quick else [])]

    def work(core: int) -> None:
        while waiting:
            command = [*again, "--only", waiting.pop(0), "--core", str(core)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
            print(f"{next(done)} of {total} after {time.perf_counter() - start:.0f} s: {said}", flush=True)

    with ThreadPoolExecutor() as pool:
        list(pool.map(work, sorted(os.sched_getaffinity(0))))


def model(name: str, quick: bool, out: Path) -> None:
    """One of them: as rewritten, with every geometry moved at random, that folded, and that lowered for inference.

    Of the others, the original is compiled as well: what lowering adds is the ratio to that.
    """
    from corpus.models import build
    from torch._inductor import config

    config.compile_threads = 1
    start = time.perf_counter()
    original, inputs = build(name)
    rewritten, moved = (ccrewrite.rewrite(original, inputs).model for _ in range(2))
    move_(moved)
    variants = {"moved": moved} | variants_of(moved, inputs, ["folded", "lowered"])
    command = f"make reports-corpus ONLY={name}" + (" QUICK=1" if quick else "")
    extras: dict[str, Any] = {"variants": variants, "compiled": ["original", "lowered"], "scale_groups": True}
    comparison = compare(original, rewritten, inputs, quick=quick, command=command, progress=False, **extras)
    comparison.save(out / name)
    print(f"{name}: {comparison.summary()}, {time.perf_counter() - start:.0f} s", flush=True)


@torch.no_grad()
def move_(model: nn.Module, std: float = 0.1) -> None:
    """Every offset, shift and last layer of a residual a normal draw: what training does to the costs, not to the errors."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, ccrewrite.nn.Sampling):
            for mover in module.movers():
                mover.copy_(torch.randn(mover.shape, generator=generator) * std)


def index() -> None:
    """Write every report's page and tables from its data, and reports/README.md: a row for each, and links to the others."""
    folders = [path.parent for path in sorted(REPORTS.rglob("report.json"))]
    for folder in folders:
        Comparison.load(folder).save(folder)
    rows = [_row(folder) for folder in folders]
    others = sorted(p.relative_to(REPORTS) for p in REPORTS.rglob("*.md") if p.name not in ("README.md", "report.md"))
    links = "\n".join(f"- [{p}]({p})" for p in others)
    (REPORTS / "README.md").write_text(HEAD + table(rows, "markdown") + "\n\n" + TAIL + links + "\n")


HEAD = """# Reports

Generated: `make reports` (the demo) and `make reports-corpus` (the fifteen models of
[tests/corpus](../tests/corpus/README.md)). Each folder has `report.md` and `report.json`
([schema](../docs/report-schema.json)); the demo's has `report.html` too (one file: download it and open it, no network needed).
The other pages are not kept in git: `make reports-corpus` makes them anew, and `make reports` from the data that is here. Every
report names the command, date, machine and versions that made it. What the numbers mean: [docs/reports.md](../docs/reports.md).

Ratios are over the original, with a 99 % interval. "Once moved" is inference after the geometry has left its start; until then
the plain convolution runs. "Folded" is moved geometry (the demo's as trained, the others' at random) in plain layers again,
"lowered" the same compiled (`ccrewrite.lower`): over the original as it is, and over the original under `torch.compile`.

"""
TAIL = "Other measurements:\n\n"


def _row(folder: Path) -> dict[str, str]:
    comparison = Comparison.load(folder)
    before, after = comparison["original"], comparison["rewritten"]
    folded, lowered = (
        next((v["latency"] for v in comparison.data["variants"] if v["name"] == name), {}) for name in ("folded", "lowered")
    )

    def time_of(timings: dict[str, Any], mode: str = INFERENCE) -> str:
        return ratio(timings[mode]) if mode in timings else ""

    name = folder.relative_to(REPORTS).as_posix()
    times: dict[str, Any] = after["latency"]
    flops: dict[str, int] = after["flops"]
    errors = [o["max_rel_error"] for o in after["outputs"]]
    return {
        "model": f"[{name}]({name}/report.md)",
        "sites rewritten": f"{len(comparison.rewritten_sites)} of {len(comparison.data['sites'])}",
        "parameters": delta(after["parameters"]["total"], before["parameters"]["total"]),
        "max rel error": error(None if None in errors else max(errors, default=0)),
        "time, inference": time_of(times),
        "time, once moved": time_of(times, MOVED),
        "time, training step": time_of(times, TRAINING),
        "time, folded": time_of(folded),
        "time, lowered": time_of(lowered),
        "time, lowered over compiled": time_of(lowered, COMPILED),
        "FLOPs, once moved": delta(flops[MOVED], before["flops"][INFERENCE]) if MOVED in flops else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "corpus", "model", "index"), help="model: one of the corpus, in this process")
    parser.add_argument("--quick", action="store_true", help="seconds of timing for each model instead of a minute and a half")
    parser.add_argument("--only", nargs="*", default=[], help="names of corpus models")
    parser.add_argument("--out", type=Path, default=REPORTS / "corpus", help="where the corpus reports go; elsewhere: no index")
    parser.add_argument("--core", type=int, help="the core to run on")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the models' own
    if options.what == "demo":
        demo(options.quick)
    elif options.what == "corpus":
        corpus(options)
    elif options.what == "model":
        if options.core is not None:
            os.sched_setaffinity(0, {options.core})
        for name in options.only:
            model(name, options.quick, options.out)
    if options.what != "model" and options.out == REPORTS / "corpus":
        index()


if __name__ == "__main__":
    main()
