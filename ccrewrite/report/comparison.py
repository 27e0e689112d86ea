"""``Comparison``: what ``compare`` found, as data, as text, and saved as report.json, report.md and report.html."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Self, cast

from ccrewrite.errors import InputError
from ccrewrite.ir.documents import checked, read_json
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.written import refused, replacing
from ccrewrite.report.schema import Report

SCHEMA = "ccrewrite-report/1"
"""Name and version of the data's form: docs/report-schema.json. The version grows where a reader would have to change."""

ORIGINAL, REWRITTEN = "original", "rewritten"
INFERENCE, MOVED, TRAINING = "inference", "inference, kernels built", "training step"
COMPILED = "inference, compiled"


@dataclass(frozen=True)
class Comparison:
    """``data`` is the whole report, of the form that docs/report-schema.json says. ``print`` it for a table.

    ``comparison["rewritten"]`` is the entry of one variant; ``load(path)`` reads what ``save`` wrote.
    """

    data: JsonObject

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The comparison in a report.json, or in the directory that holds one. Raises ``InputError`` for anything else."""
        file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
        content = read_json(file)
        data = cast(JsonObject, content) if isinstance(content, dict) else {}
        found = data.get("schema")
        if found != SCHEMA:
            raise InputError(f"{file} has the schema {found!r}, this ccrewrite reads {SCHEMA!r}; make the report again")
        checked(Report, data, f"{file} is damaged")
        return cls(data)

    def __getitem__(self, variant: str) -> JsonObject:
        for entry in self.data["variants"]:
            if entry["name"] == variant:
                return entry
        raise KeyError(f"no variant is called {variant!r}; there are {', '.join(v['name'] for v in self.data['variants'])}")

    @property
    def rewritten_sites(self) -> list[str]:
        """Names of the sites that go through a sampling in some variant but not in the original."""
        return [
            site["name"]
            for site in self.data["sites"]
            if not site["variants"][ORIGINAL]["sampling"] and any(v["sampling"] for v in site["variants"].values())
        ]

    def summary(self) -> str:
        """One line: how many sites were rewritten."""
        count, total = len(self.rewritten_sites), len(self.data["sites"])
        calls = f"{total} convolution site{'s' if total != 1 else ''}"
        if count:
            return f"{count} of {calls} rewritten"
        had = [s["variants"] for s in self.data["sites"] if s["variants"][ORIGINAL]["sampling"]]
        lost = sum(REWRITTEN in variants and not variants[REWRITTEN]["sampling"] for variants in had)
        if lost:
            return f"{lost} of {calls} rewritten in the first model, the original, but not in the second: are they swapped?"
        if had:
            return f"nothing was rewritten: both models have the same rewritten layers ({calls})"
        return f"nothing was rewritten ({calls})"

    def to_json(self) -> str:
        """``data`` as a JSON document, without white space: reports of large models are long."""
        return json.dumps(self.data, separators=(",", ":"), allow_nan=False)

    def to_markdown(self) -> str:
        from ccrewrite.report.document import document

        return document(self)

    def to_html(self) -> str:
        """The page. Needs jinja2 (extra ``report``)."""
        from ccrewrite.report.page import page

        return page(self)

    def save(self, directory: str | os.PathLike[str], *, html: bool = True) -> list[Path]:
        """Write report.json, report.md and, unless ``html`` is False, report.html; returns their paths.

        Each is written beside its place and moved into it: a reader never finds half a file. Raises ``InputError`` where the
        disk refuses.
        """
        texts = {"report.json": self.to_json() + "\n", "report.md": self.to_markdown()}
        if html:
            texts["report.html"] = self.to_html()
        folder = Path(directory)
        with refused(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with replacing(folder / name) as file:
                file.write_text(text, encoding="utf-8")
        return [folder / name for name in texts]

    def __str__(self) -> str:
        from ccrewrite.report.document import overview

        return f"{self.summary()}\n\n{overview(self)}"

    def _repr_html_(self) -> str:
        from ccrewrite.report.document import overview

        return f"<p>{escape(self.summary())}</p>{overview(self, 'html')}"
