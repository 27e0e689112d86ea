"""A comparison as text: what a terminal shows, and the whole report."""

from __future__ import annotations

from collections.abc import Sequence

from ccrewrite.ir.json_types import JsonObject
from ccrewrite.report import contents
from ccrewrite.report.comparison import MOVED, ORIGINAL, Comparison
from ccrewrite.report.tables import table


def overview(comparison: Comparison, form: str = "plain") -> str:
    """The tables that a terminal or a notebook shows."""
    parts = (contents.parameters(comparison), contents.costs(comparison), contents.outputs(comparison))
    return "\n\n".join(table(rows, form) for rows in parts if rows)


def document(comparison: Comparison, form: str = "markdown") -> str:
    """The whole report as text, by default GitHub Markdown."""
    data = comparison.data
    sections = [
        ("Parameters", contents.parameters(comparison)),
        ("Cost", contents.costs(comparison)),
        ("Inference at other batch sizes", contents.batches(comparison)),
        ("Internal sizes: speed and score", contents.trade(comparison)),
        (f"Forecast: {data.get('forecast', {}).get('verdict')}", contents.forecast(comparison)),
        ("Outputs against the original's", contents.outputs(comparison)),
        ("Scale groups of the rewritten model", contents.scale_groups(comparison)),
        ("Receptive field of the output's centre", contents.receptive_fields(comparison)),
    ]
    names: Sequence[str] = [v["name"] for v in data["variants"] if v["name"] != ORIGINAL]
    sections += [(f"Sites of {name}", contents.sites(comparison, name)) for name in names]
    text = [f"# {data['model']}", f"{comparison.summary()}. Inputs: {inputs(data)}.", made(data)]
    text += [f"## {title}\n\n{table(rows, form)}" for title, rows in sections if rows]
    text.append("## How to read this\n\n" + "\n".join(f"- {note}" for note in notes(data)))
    return "\n\n".join(text) + "\n"


def notes(data: JsonObject) -> list[str]:
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


def inputs(data: JsonObject) -> str:
    return ", ".join(f"{'x'.join(map(str, i['shape']))} {i['dtype']}" for i in data["inputs"])


def made(data: JsonObject) -> str:
    """By what, when and where."""
    e = data["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    revision = f", revision {e['git_revision']}" if e["git_revision"] else ""
    device = e["cpu"] if e["device"] == "cpu" else f"{e['device']}, {e['cpu']}"
    threads = f"{e['threads']} thread{'s' if e['threads'] != 1 else ''}"
    quick = ", quick" if data["settings"]["quick"] else ""
    return f"Made by `{data['command']}`{quick} on {e['date']}: {device}, {threads}; {versions}{revision}."
