"""A comparison as tables: GitHub Markdown, plain text, LaTeX or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from ccrewrite.report.comparison import MOVED, ORIGINAL, Comparison

FORMATS = {"markdown": "github", "plain": "simple", "latex": "latex_booktabs", "html": "html"}
Rows = list[dict[str, str]]


def table(rows: Rows, form: str = "plain") -> str:
    """``rows`` as a table: ``form`` is "markdown", "plain", "latex" or "html".

    >>> print(table([{"layer": "conv", "time (ms)": "1.20"}], "markdown"))
    | layer   |   time (ms) |
    |---------|-------------|
    | conv    |        1.20 |
    """
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = tuple(n for n in names if n in WORDS)
    align = ["left" if n in text else "right" for n in names]
    cells = [[row.get(n, "") for n in names] for row in rows]
    return tabulate(cells, headers=names, tablefmt=FORMATS[form], colalign=align, disable_numparse=True)


WORDS = (
    *("model", "mode", "output", "dtype", "shape", "note", "site", "layer", "geometry", "became", "quantity", "verdict"),
    *("kinds", "decision", "", "group", "follows", "axes", "pinned by", "setting"),
)
"""Columns that read from the left."""


def delta(value: float, reference: float) -> str:
    """The relative change: "+1.2 %"; empty where there is nothing to relate to.

    >>> delta(101.2, 100), delta(7, 7), delta(1, 0)
    ('+1.2 %', '0.0 %', '')
    """
    if not reference:
        return ""
    change = 100 * (value - reference) / reference
    return "0.0 %" if value == reference else f"{change:+.1f} %"


def ratio(timing: dict[str, Any]) -> str:
    """A ratio with its interval."""
    return f"{timing['ratio']:.2f} ({timing['ratio_low']:.2f} to {timing['ratio_high']:.2f})"


def parameters(comparison: Comparison) -> Rows:
    before = comparison[ORIGINAL]["parameters"]["total"]
    return [
        {
            "model": v["name"],
            "parameters": f"{v['parameters']['total']:,}",
            "change": delta(v["parameters"]["total"], before),
            "trainable": f"{v['parameters']['trainable']:,}",
            "added geometry": f"{v['parameters']['added']:,}",
        }
        for v in comparison.data["variants"]
    ]


def costs(comparison: Comparison) -> Rows:
    """A row for each model and way to run it. Changes and ratios are over the original's run of the same kind (``MOVED``: over
    its inference)."""
    rows: Rows = []
    for v in comparison.data["variants"]:
        for mode, timing in v["latency"].items():
            reference = "inference" if mode == MOVED else mode
            row = {
                "model": v["name"],
                "mode": mode,
                "median (ms)": f"{timing['median_s'] * 1e3:.3f}",
                "quartiles (ms)": f"{timing['q1_s'] * 1e3:.3f} to {timing['q3_s'] * 1e3:.3f}",
                "time ratio": "1" if v["name"] == ORIGINAL else ratio(timing),
            }
            for key, unit, size in (("flops", "MFLOP", 1e6), ("memory_bytes", "peak memory (MB)", 1e6)):
                value, before = v[key].get(mode), comparison[ORIGINAL][key].get(reference)
                row[unit] = "" if value is None else f"{value / size:,.2f}"
                row[f"{unit.partition(' (')[0]} change"] = "" if value is None or before is None else delta(value, before)
            rows.append(row)
    return rows


def batches(comparison: Comparison) -> Rows:
    """Inference at other batch sizes, model by model."""
    return [
        {
            "model": name,
            "batch": str(entry["batch"]),
            "median (ms)": f"{timing['median_s'] * 1e3:.3f}",
            "quartiles (ms)": f"{timing['q1_s'] * 1e3:.3f} to {timing['q3_s'] * 1e3:.3f}",
            "time ratio": "1" if name == ORIGINAL else ratio(timing),
            "samples per second": f"{entry['batch'] / timing['median_s']:,.1f}",
        }
        for entry in comparison.data.get("batches", ())
        for name, timing in entry["latency"].items()
    ]


def scale_groups(comparison: Comparison) -> Rows:
    """Which sites of the rewritten model change their output size together, and what keeps others."""
    return [
        {
            "group": group["name"] if i == 0 else "",
            "site": site,
            "native size": _sizes(group["native"][i]),
            "follows": group["relations"][i],
            "axes": " ".join("pinned" if pin else "free" for pin in group["pins"]) if i == 0 else "",
            "pinned by": "; ".join(dict.fromkeys(pin for pin in group["pins"] if pin)) if i == 0 else "",
        }
        for group in comparison.data.get("scale_groups", {}).get("groups", ())
        for i, site in enumerate(group["sites"])
    ]


def trade(comparison: Comparison) -> Rows:
    """Speed and score at other internal sizes."""
    return [
        {
            "setting": point["name"],
            "GFLOP": f"{point['gflops']:.3g}",
            "median (ms)": f"{point['latency_ms']:.3f}",
            "interquartile range (ms)": f"{point['latency_iqr_ms']:.3f}",
            "score": "" if point["score"] is None else f"{point['score']:.4g}",
        }
        for point in comparison.data.get("trade", {}).get("points", ())
    ]


def outputs(comparison: Comparison) -> Rows:
    return [
        {
            "model": v["name"],
            "output": o["path"],
            "dtype": o["dtype"],
            "shape": "x".join(map(str, o["shape"])),
            "max abs error": error(o["max_abs_error"]),
            "mean abs error": error(o["mean_abs_error"]),
            "max rel error": error(o["max_rel_error"]),
            "flips": str(o["flips"]),
            "note": o["note"],
        }
        for v in comparison.data["variants"]
        if v["name"] != ORIGINAL
        for o in v["outputs"]
    ]


def receptive_fields(comparison: Comparison) -> Rows:
    rows: Rows = []
    for v in comparison.data["variants"]:
        field = v["receptive_field"]
        if field is not None:
            rows.append(
                {
                    "model": v["name"],
                    "output": field["output"],
                    "input (samples)": _sizes(field["input_size"]),
                    "extent (samples)": _sizes(field["extent"]),
                    "rms radius (samples)": " x ".join(f"{x:.2f}" for x in field["rms"]),
                }
            )
    return rows


def sites(comparison: Comparison, variant: str) -> Rows:
    """A row for each site of the original that ``variant`` has too."""
    rows: Rows = []
    for site in comparison.data["sites"]:
        before, after = site["variants"][ORIGINAL], site["variants"].get(variant)
        if after is None:
            continue
        mode = MOVED if MOVED in after["flops"] else "inference"
        errors = after["error"]
        rows.append(
            {
                "site": site["name"],
                "layer": site["layer"],
                "geometry": site["described"],
                "became": after["sampling"] or "",
                "drift (samples)": drift(after),
                "local error": _largest(errors.get("local, kernels built", errors["local"])),
                "propagated error": _largest(errors["propagated"]),
                "time ratio": ratio(after["latency"][mode]),
                "median before (ms)": f"{before['latency']['inference']['median_s'] * 1e3:.3f}",
                "MFLOP change": delta(after["flops"][mode], before["flops"]["inference"]),
                "MFLOP before": f"{before['flops']['inference'] / 1e6:,.2f}",
                "added": f"{after['added_parameters']:,}",
            }
        )
    return rows


def drift(site_variant: dict[str, Any]) -> str:
    """How far a site's geometry has moved: mean and largest distance of its taps, or of what drifts first (a shift) its value
    on each axis."""
    learnt: dict[str, Any] = site_variant.get("learnt", {})
    if "distance" in learnt:
        return f"mean {learnt['distance']['mean']:.3f}, max {learnt['distance']['max']:.3f}"
    name, values = first_drift(learnt)
    return " ".join(filter(None, (name, ", ".join(f"{v:.3f}" for v in values))))


def first_drift(learnt: dict[str, Any]) -> tuple[str, list[float]]:
    """What ``drift`` of a picture names first, and its value on each axis."""
    axes: list[dict[str, float]] = learnt.get("drift", [])
    name = next((name for axis in axes for name in axis if name != "axis"), "")
    return name, [axis[name] for axis in axes if name in axis]


def overview(comparison: Comparison, form: str = "plain") -> str:
    """The tables that a terminal or a notebook shows."""
    parts = (parameters(comparison), costs(comparison), outputs(comparison))
    return "\n\n".join(table(rows, form) for rows in parts if rows)


def document(comparison: Comparison, form: str = "markdown") -> str:
    """The whole report as text, by default GitHub Markdown."""
    data = comparison.data
    sections = [
        ("Parameters", parameters(comparison)),
        ("Cost", costs(comparison)),
        ("Inference at other batch sizes", batches(comparison)),
        ("Internal sizes: speed and score", trade(comparison)),
        ("Outputs against the original's", outputs(comparison)),
        ("Scale groups of the rewritten model", scale_groups(comparison)),
        ("Receptive field of the output's centre", receptive_fields(comparison)),
    ]
    names: Sequence[str] = [v["name"] for v in data["variants"] if v["name"] != ORIGINAL]
    sections += [(f"Sites of {name}", sites(comparison, name)) for name in names]
    text = [f"# {data['model']}", f"{comparison.summary()}. Inputs: {inputs(data)}.", made(data)]
    text += [f"## {title}\n\n{table(rows, form)}" for title, rows in sections if rows]
    text.append("## How to read this\n\n" + "\n".join(f"- {note}" for note in notes(data)))
    return "\n\n".join(text) + "\n"


def notes(data: dict[str, Any]) -> list[str]:
    """What the numbers mean, a sentence or two for each kind."""
    compiled = [f"{v['name']}: {note}." for v in data["variants"] for note in v.get("notes", ())]
    unknown = data.get("scale_groups", {}).get("note")
    return [
        "One multiply-add is two floating-point operations; convolutions and matrix products are counted. "
        f'"{MOVED}" is what inference costs once the geometry has moved: until then, the plain convolution runs.',
        "A training step is forward and backward in evaluation mode. Peak memory is the most that torch's allocator held above "
        "what it held before.",
        "Times are medians over interleaved rounds; a ratio is the median of the rounds' own ratios to the original, with its "
        f"{100 * data['settings']['confidence']:.0f} % bootstrap interval.",
        "A site's cost and its local error are those of its kernel built from the geometry, on the original's input to that "
        "site. The propagated error is the difference to the original there when the whole model runs.",
        *([f"Scale groups: {unknown}."] if unknown else []),
        *compiled,
    ]


def inputs(data: dict[str, Any]) -> str:
    return ", ".join(f"{'x'.join(map(str, i['shape']))} {i['dtype']}" for i in data["inputs"])


def made(data: dict[str, Any]) -> str:
    """By what, when and where."""
    e = data["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    revision = f", revision {e['git_revision']}" if e["git_revision"] else ""
    device = e["cpu"] if e["device"] == "cpu" else f"{e['device']}, {e['cpu']}"
    threads = f"{e['threads']} thread{'s' if e['threads'] != 1 else ''}"
    quick = ", quick" if data["settings"]["quick"] else ""
    return f"Made by `{data['command']}`{quick} on {e['date']}: {device}, {threads}; {versions}{revision}."


def _largest(found: dict[str, float] | None) -> str:
    """Empty where the shapes can't be compared."""
    return "" if found is None else error(found["max_abs_error"])


def error(value: float | None) -> str:
    return "differs" if value is None else "0" if value == 0 else f"{value:.1e}"


def _sizes(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))
