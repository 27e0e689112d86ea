"""Do time ratios repeat? Two sets of reports of the same models: how often their intervals have something in common.

.venv-corpus/bin/python benchmarks/reports/make_reports.py corpus --quick --only NAME ... --out FIRST      (and again: SECOND)
.venv/bin/python benchmarks/reports/report_repeats.py FIRST SECOND
"""

from __future__ import annotations

import sys
from pathlib import Path

from tabulate import tabulate

from ccrewrite.report import Comparison


def main(first: Path, second: Path) -> None:
    rows: list[tuple[str, str, str, bool]] = []
    for path in sorted(first.glob("*/report.json")):
        one, other = Comparison.load(path), Comparison.load(second / path.parent.name)
        for variant in one.data["variants"][1:]:
            for mode, a in variant["latency"].items():
                b = other[variant["name"]]["latency"][mode]
                shown = [f"{t['ratio']:.2f} ({t['ratio_low']:.2f} to {t['ratio_high']:.2f})" for t in (a, b)]
                agree = a["ratio_low"] <= b["ratio_high"] and b["ratio_low"] <= a["ratio_high"]
                rows.append((f"{path.parent.name}: {variant['name']}, {mode}", *shown, agree))  # pyright: ignore[reportArgumentType]
    print(tabulate(rows, headers=("case", "first", "second", "agree"), tablefmt="github", disable_numparse=True))
    print(f"\n{sum(agree for *_, agree in rows)} of {len(rows)} cases agree within their intervals")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
