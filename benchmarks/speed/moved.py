"""What geometry that has moved costs next to the plain layers: at realistic sizes, in every way of running it.

    python benchmarks/speed/moved.py [--quick] [--only TEXT] [--columns NAME ...] [--seconds 2]    # reports/cpu/moved.json, .md
    .venv-corpus/bin/python benchmarks/speed/moved.py --corpus                             # reports/cpu/moved_corpus.json, .md

Single layers and whole networks (``moved_cases.py``; ``--corpus``: ``moved_corpus.py``), every geometry a normal draw of 0.3
samples. Columns (``moved_columns.py``): inference and a training step (forward, and backward of the mean square, to the inputs
as well) in eager mode, the peak of memory of a step, the folded model; the same unmoved; what people use instead (PyPI
``dcls`` where it is installed; a resized input); onnxruntime; only the layers compiled; the whole model lowered. One thread,
thread time, rounds in random order; medians of the rounds' ratios.

What a run has measured is kept: one that is cut short goes on with the next column of the next case. ``--only`` measures the
cases whose names hold the text anew. ``--quick``: no columns that compile, half a second for each comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from moved_cases import CONTINUOUS, DEPTHWISE, MODELS, SHARED
from moved_columns import COLUMNS, COMPILED, Build, Subject, quiet
from moving import ROOT
from tabulate import tabulate

REPORT = ROOT / "reports" / "cpu"
GROUPS: dict[str, dict[str, Any]] = {
    "DCLS, shared positions": SHARED,
    "DCLS, depthwise, own positions": DEPTHWISE,
    "CC": CONTINUOUS,
    "Networks": MODELS,
}
SHOWN = {
    "eager inference": ("eager inference", "moved", "ratio"),
    "eager step": ("eager step", "moved", "ratio"),
    "memory of a step": ("memory", "ratio"),
    "unmoved": ("unmoved", "unmoved", "ratio"),
    "folded, eager": ("eager inference", "folded", "ratio"),
    "onnxruntime": ("onnxruntime", "moved", "ratio"),
    "sites compiled, step": ("sites compiled", "moved", "ratio"),
    "lowered inference": ("lowered inference", "moved", "ratio"),
    "lowered step": ("lowered step", "moved", "ratio"),
    "peer, inference": ("peer", "inference", "peer", "ratio"),
    "peer, step": ("peer", "step", "peer", "ratio"),
}
"""Heading -> where its number is in a case's columns."""


def groups_of(corpus: bool) -> dict[str, dict[str, Build]]:
    if corpus:
        from moved_corpus import NETWORKS, SMALL  # of the corpus environment

        return {"Networks": NETWORKS, "Small models": SMALL}
    return {group: {name: getattr(case, "build", case) for name, case in cases.items()} for group, cases in GROUPS.items()}


def cells(case: dict[str, Any]) -> dict[str, str]:
    found = {"original, ms": _number(case, "eager inference", "original", "median_s", scale=1e3, digits=".2g")}
    return found | {heading: _number(case, *path) for heading, path in SHOWN.items()}


def _number(case: Any, *path: str, scale: float = 1.0, digits: str = ".2f") -> str:
    for step in path:
        if not isinstance(case, dict) or step not in case:
            return "failed" if isinstance(case, dict) and "error" in case else ""
        case = case[step]
    return format(scale * case, digits)


def written(document: dict[str, Any], groups: dict[str, Any]) -> str:
    lines = [
        "# What moved geometry costs",
        "",
        f"`{document['command']}` · {document['where']}",
        "",
        "Ratios to the original, of the lowered model to the original compiled: medians of interleaved rounds. Memory: peaks",
        "of a training step. Peer: PyPI `dcls` for a dilated layer, a resized input and a layer of stride 1 for a strided one.",
    ]
    for group, cases in groups.items():
        rows = [{"": name, **cells(document["cases"][name])} for name in cases if name in document["cases"]]
        used = [heading for heading in (rows[0] if rows else ()) if any(row[heading] for row in rows)]
        if rows:
            shown = [{heading: row[heading] for heading in used} for row in rows]
            lines += ["", f"## {group}", "", tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True)]
    return "\n".join([*lines, ""])


def measure(
    document: dict[str, Any], groups: dict[str, dict[str, Build]], columns: list[str], only: str, seconds: float, save: Any
) -> None:
    """Add to ``document`` what it lacks; ``save()`` after every column."""
    for cases in groups.values():
        for name, build in cases.items():
            if only not in name:
                continue
            known = document["cases"].setdefault(name, {})
            missing = [c for c in columns if only or c not in known or "error" in known[c]]
            subject = Subject(build, seconds) if missing else None
            for column in missing:
                try:
                    known[column] = COLUMNS[column](subject)  # pyright: ignore[reportArgumentType]
                except Exception as error:  # one column's failure must not lose the others
                    traceback.print_exc()
                    known[column] = {"error": f"{type(error).__name__}: {error}"[:300]}
                save()
            if missing:
                told = ", ".join(f"{what} {cell}" for what, cell in cells(known).items() if cell)
                print(f"{name}: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each comparison")
    parser.add_argument("--only", default="", help="cases whose name holds this; measured anew")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, help="these alone")
    parser.add_argument("--quick", action="store_true", help="columns that compile nothing, half a second each")
    parser.add_argument("--corpus", action="store_true", help="models of the corpus environment")
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    quiet()
    columns = options.columns or [c for c in COLUMNS if not (options.quick and c in COMPILED)]
    stem, flag = ("moved_corpus", " --corpus") if options.corpus else ("moved", "")
    file = options.out / f"{stem}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    where = (
        f"torch {torch.__version__}, {platform.processor() or platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()}), one thread · {datetime.now(UTC):%Y-%m-%d}"
    )
    command = f"python benchmarks/speed/moved.py{flag}"
    document: dict[str, Any] = {"command": command, "where": where, "cases": known.get("cases", {})}
    groups = groups_of(options.corpus)

    def save() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, separators=(",", ":")) + "\n")
        (options.out / f"{stem}.md").write_text(written(document, groups))

    measure(document, groups, columns, options.only, min(options.seconds, 0.5) if options.quick else options.seconds, save)


if __name__ == "__main__":
    main()
