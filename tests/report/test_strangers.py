"""Reports know samplings by their protocol: one of somebody else's, with no more than it must have."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from stranger import VolumeSampling
from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.families.adopt import adopt_
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.report import Comparison, compare
from ccrewrite.report.contents import sites

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report-schema.json").read_text())


class Told(VolumeSampling):
    """One that says how far it is from its start."""

    def picture(self) -> dict[str, Any]:
        largest = float(self.volume.abs().max())
        return {"drift": [{"axis": axis, "decibels": 8.69 * largest} for axis in range(self.ndim)]}


class Wrong(VolumeSampling):
    def picture(self) -> dict[str, Any]:
        return {"colour": "red"}


def compared(kind: type[VolumeSampling]) -> Comparison:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3)), torch.randn(1, 1, 8, 8)
    other: Any = copy.deepcopy(model)
    adopt_(other[0], kind.of(ConvGeometry.from_module(other[0])))
    with torch.no_grad():
        other[0].sampling.volume[1, 1] = 1
    return compare(model, other, x, quick=True, progress=False)


@pytest.mark.parametrize(("kind", "title", "drift"), [(VolumeSampling, "Volume", ""), (Told, "Told", "decibels 8.690, 8.690")])
def test_its_kernel_is_shown_before_and_after(kind: type[VolumeSampling], title: str, drift: str) -> None:
    comparison = compared(kind)
    jsonschema.validate(json.loads(comparison.to_json()), SCHEMA)
    learnt = comparison.data["sites"][0]["variants"]["rewritten"]["learnt"]
    before, after = (torch.tensor(learnt["kernel"][when]["filter"]) for when in ("before", "after"))
    assert torch.allclose(after, before * torch.tensor([[1, 1, 1], [1, torch.e, 1], [1, 1, 1]]), rtol=0.01)
    assert learnt["moved"]
    row, _ = sites(comparison, "rewritten")
    assert (row["became"], row.get("drift (samples)")) == (title, drift)
    assert title in comparison.to_html()


def test_a_picture_that_no_report_knows_is_refused() -> None:
    with pytest.raises(InputError, match=r"Wrong\.picture\(\) has the entry 'colour'; a report shows positions, profiles"):
        compared(Wrong)
