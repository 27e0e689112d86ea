"""A comparison as one HTML file that needs nothing else: tables, and charts by Observable Plot, which is inside."""

from __future__ import annotations

import json
from pathlib import Path

from ccrewrite.errors import InputError
from ccrewrite.forecasting.picture import svg
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.report import contents, document, tables
from ccrewrite.report.comparison import COMPILED, INFERENCE, MOVED, ORIGINAL, REWRITTEN, TRAINING, Comparison

ASSETS = Path(__file__).with_name("assets")


def page(comparison: Comparison) -> str:
    """The page. Raises ``InputError`` where jinja2 (extra ``report``) is missing."""
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise InputError("the page needs jinja2: pip install 'ccrewrite[report]', or save(directory, html=False)") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    data = comparison.data
    tabled = {v["name"]: _sites(comparison, v["name"]) for v in data["variants"] if v["name"] != ORIGINAL}
    return environment.get_template("page.html.j2").render(
        data=data,
        summary=comparison.summary(),
        inputs=document.inputs(data),
        made=document.made(data).replace("`", ""),
        notes=document.notes(data),
        tiled=f"The {REWRITTEN} model against the {ORIGINAL}",
        tiles=_tiles(comparison),
        costs=contents.costs(comparison),
        parameters=contents.parameters(comparison),
        batches=contents.batches(comparison),
        trade=contents.trade(comparison),
        forecast=contents.forecast(comparison),
        forecast_picture=Markup(svg(data["forecast"])) if "forecast" in data else "",
        groups=contents.scale_groups(comparison),
        outputs=contents.outputs(comparison),
        fields=contents.receptive_fields(comparison),
        sites={name: found for name, found in tabled.items() if found["rows"]},
        words=tables.WORDS,
        # Nothing in a script element may look like its end.
        json=Markup(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")),
        style=Markup((ASSETS / "page.css").read_text()),
        library=Markup((ASSETS / "plot.min.js").read_text()),
        script=Markup((ASSETS / "page.js").read_text()),
    )


def _tiles(comparison: Comparison) -> list[dict[str, str]]:
    before, after = comparison[ORIGINAL], comparison[REWRITTEN]
    found: list[dict[str, str]] = []

    def tile(name: str, value: str, note: str) -> None:
        found.append({"name": name, "value": value, "note": note})

    tile("sites rewritten", f"{len(comparison.rewritten_sites)} of {len(comparison.data['sites'])}", "convolutions that run")
    added = after["parameters"]["total"], before["parameters"]["total"]
    tile("parameters", tables.delta(*added) or "0", f"{after['parameters']['added']:,} of added geometry")
    errors = [o["max_abs_error"] for o in after["outputs"]]
    worst = None if None in errors else max(errors, default=0.0)
    tile("largest output error", tables.error(worst), "all outputs equal" if worst == 0 else "absolute, over all outputs")

    def took(name: str, timing: JsonObject | None) -> None:
        if timing is not None:
            over = f"{timing['ratio_low']:.2f} to {timing['ratio_high']:.2f}, over the original"
            tile(f"time, {name}", f"× {timing['ratio']:.2f}", over)  # noqa: RUF001

    modes = {INFERENCE: "inference", MOVED: "inference, once moved", COMPILED: "compiled", TRAINING: "training step"}
    for mode, name in modes.items():
        took(name, after["latency"].get(mode))
    mode = MOVED if MOVED in after["flops"] else INFERENCE
    flops = after["flops"][mode], before["flops"][INFERENCE]
    tile(
        "FLOPs, " + ("once moved" if mode == MOVED else "inference"),
        tables.delta(*flops) or "0",
        f"{flops[0] / 1e6:,.1f} MFLOP",
    )
    for variant in comparison.data["variants"]:
        if variant["name"] not in (ORIGINAL, REWRITTEN):
            took(f"inference of the {variant['name']} model", variant["latency"].get(INFERENCE))
    return found


def _sites(comparison: Comparison, variant: str) -> JsonObject:
    """Columns and rows of the sortable table; a cell's ``value`` is what it sorts by."""
    rows: list[JsonObject] = []
    listed = iter(contents.sites(comparison, variant))
    columns: list[str] = []
    for index, site in enumerate(comparison.data["sites"]):
        entry = site["variants"].get(variant)
        if entry is None:
            continue
        row = next(listed)
        columns = list(row)
        cells = [{"column": c, "text": text, "value": _value(c, text, entry)} for c, text in row.items()]
        rows.append({"index": index, "cells": cells, "opens": "learnt" in entry})
    return {"columns": columns, "rows": rows}


def _value(column: str, text: str, entry: JsonObject) -> str:
    if column in tables.WORDS:
        return text
    if column.startswith("drift"):
        learnt = entry.get("learnt", {})
        values = map(abs, contents.first_drift(learnt)[1])
        return str(learnt["distance"]["max"] if "distance" in learnt else max(values, default=""))
    first = text.split(" ")[0].replace(",", "")
    return "" if first == "differs" else first
