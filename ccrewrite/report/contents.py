"""What the tables of a comparison have in their cells, table by table."""

from __future__ import annotations

from ccrewrite.ir.json_types import JsonObject
from ccrewrite.report.comparison import MOVED, ORIGINAL, Comparison
from ccrewrite.report.tables import Rows, delta, error, ratio, sizes


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
            "native size": sizes(group["native"][i]),
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


def forecast(comparison: Comparison) -> Rows:
    """What each site was expected to gain and to cost."""
    told = comparison.data.get("forecast", {})
    return [
        {
            "site": site["name"],
            "expected": site["code"],
            "gain (loss)": "" if site["gain"] is None else "{mean:.3g} ({low:.3g} to {high:.3g})".format(**site["gain"]),
            "added time": "" if site["added_seconds"] is None else f"{100 * site['added_seconds'] / told['seconds'][0]:+.1f} %",
            "added parameters": "" if site["parameters"] is None else f"{site['parameters']:,}",
        }
        for site in told.get("sites", ())
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
                    "input (samples)": sizes(field["input_size"]),
                    "extent (samples)": sizes(field["extent"]),
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


def drift(site_variant: JsonObject) -> str:
    """How far a site's geometry has moved: mean and largest distance of its taps, or of what drifts first (a shift) its value
    on each axis."""
    learnt: JsonObject = site_variant.get("learnt", {})
    if "distance" in learnt:
        return f"mean {learnt['distance']['mean']:.3f}, max {learnt['distance']['max']:.3f}"
    name, values = first_drift(learnt)
    return " ".join(filter(None, (name, ", ".join(f"{v:.3f}" for v in values))))


def first_drift(learnt: JsonObject) -> tuple[str, list[float]]:
    """What ``drift`` of a picture names first, and its value on each axis."""
    axes: list[dict[str, float]] = learnt.get("drift", [])
    name = next((name for axis in axes for name in axis if name != "axis"), "")
    return name, [axis[name] for axis in axes if name in axis]


def _largest(found: dict[str, float] | None) -> str:
    """Empty where the shapes can't be compared."""
    return "" if found is None else error(found["max_abs_error"])
