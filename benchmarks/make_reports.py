"""``make reports``: the comparison reports under reports/, and their index.

    .venv/bin/python benchmarks/make_reports.py demo             the network that ships with the package: fine-tuned, folded
    .venv-corpus/bin/python benchmarks/make_reports.py corpus    the fifteen corpus models: rewritten, moved, folded
    .venv/bin/python benchmarks/make_reports.py index            pages, tables and reports/README.md anew from the data there

One thread: times of small models on shared machines repeat best that way.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ccrewrite
from ccrewrite.passes.fold import fold
from ccrewrite.report import Comparison, compare
from ccrewrite.report.tables import delta, error, ratio, table

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "reports"


def demo(quick: bool) -> None:
    """The digit segmenter as rewritten, after the demo's sixty steps of training on the added geometry, and that folded."""
    from ccrewrite.demo.network import example_inputs, segmenter
    from ccrewrite.demo.run import fine_tune

    model, inputs = segmenter(), example_inputs()
    rewritten, tuned = (ccrewrite.rewrite(model, inputs).model for _ in range(2))
    fine_tune(tuned)
    command = "make reports" + (" QUICK=1" if quick else "")
    variants = {"fine-tuned": tuned, "folded": fold(tuned, inputs).model}
    extras: dict[str, Any] = {} if quick else {"batches": (1, 4, 16)}
    compare(model, rewritten, inputs, variants=variants, quick=quick, command=command, **extras).save(REPORTS / "demo")


def corpus(quick: bool, compiled: bool, only: Sequence[str], out: Path) -> None:
    """The third-party models of tests/corpus: as rewritten, with every geometry moved at random, and that folded."""
    sys.path.insert(0, str(ROOT / "tests"))
    from corpus.models import MODELS, build

    for name in only or MODELS:
        start = time.perf_counter()
        model, inputs = build(name)
        rewritten, moved = (ccrewrite.rewrite(model, inputs).model for _ in range(2))
        move_(moved)
        variants = {"moved": moved, "folded": fold(moved, inputs).model}
        command = f"make reports-corpus ONLY={name}" + (" QUICK=1" if quick else "")
        options: dict[str, Any] = {"quick": quick, "compiled": compiled, "scale_groups": True}
        comparison = compare(model, rewritten, inputs, variants=variants, command=command, **options)
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
[tests/corpus](../tests/corpus/README.md)). Each folder has `report.html` (one file: download it and open it, no network
needed), `report.md` and `report.json` ([schema](../docs/report-schema.json)). Every report names the command, date, machine and
versions that made it. What the numbers mean: [docs/reports.md](../docs/reports.md).

Ratios are over the original, with a 99 % interval. "Once moved" is inference after the geometry has left its start; until then
the plain convolution runs. "Folded" is moved geometry (the demo's as trained, the others' at random) in plain layers again.

"""
TAIL = "Other measurements:\n\n"


def _row(folder: Path) -> dict[str, str]:
    comparison = Comparison.load(folder)
    before, after = comparison["original"], comparison["rewritten"]
    folded = next((v for v in comparison.data["variants"] if v["name"] == "folded"), None)
    name = folder.relative_to(REPORTS).as_posix()
    times: dict[str, Any] = after["latency"]
    flops: dict[str, int] = after["flops"]
    moved = "inference, kernels built"
    errors = [o["max_rel_error"] for o in after["outputs"]]
    return {
        "model": f"[{name}]({name}/report.md)",
        "sites rewritten": f"{len(comparison.rewritten_sites)} of {len(comparison.data['sites'])}",
        "parameters": delta(after["parameters"]["total"], before["parameters"]["total"]),
        "max rel error": error(None if None in errors else max(errors, default=0)),
        "time, inference": ratio(times["inference"]),
        "time, once moved": ratio(times[moved]) if moved in times else "",
        "time, training step": ratio(times["training step"]) if "training step" in times else "",
        "time, folded": ratio(folded["latency"]["inference"]) if folded else "",
        "FLOPs, once moved": delta(flops[moved], before["flops"]["inference"]) if moved in flops else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "corpus", "index"))
    parser.add_argument("--quick", action="store_true", help="seconds for each model instead of a minute and a half")
    parser.add_argument(
        "--compiled", action="store_true", help="corpus: inference by torch.compile, too; minutes for each model"
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of corpus models")
    parser.add_argument("--out", type=Path, default=REPORTS / "corpus", help="where the corpus reports go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the models' own
    if arguments.what == "demo":
        demo(arguments.quick)
    elif arguments.what == "corpus":
        corpus(arguments.quick, arguments.compiled, arguments.only, arguments.out)
    index()


if __name__ == "__main__":
    main()
