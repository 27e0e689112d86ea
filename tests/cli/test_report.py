"""What the command line calls."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from compared_net import Net, move_
from rich.console import Console
from torch import Tensor, nn

import ccrewrite
from ccrewrite.cli.report import compare_command, report_command
from ccrewrite.errors import InputError
from ccrewrite.report import Comparison
from ccrewrite.report.variants import VARIANTS


class Compared(NamedTuple):
    original: nn.Module
    moved: nn.Module
    input: Tensor


@pytest.fixture(scope="module")
def compared() -> Compared:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 3, 20, 24)
    moved = ccrewrite.rewrite(model, x).model
    move_(moved)
    return Compared(model, moved, x)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's, of autograd functions
@pytest.mark.parametrize(
    "added", [("folded", "compiled"), pytest.param(("folded", "lowered", "compiled"), marks=pytest.mark.slow)], ids="/".join
)
def test_compare_and_report(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: tuple[str, ...]
) -> None:
    monkeypatch.setitem(VARIANTS, "compiled", lambda model, inputs: torch.compile(model, backend="eager"))
    shown = io.StringIO()
    console = Console(file=shown, width=80)
    found = compare_command(
        compared.original,
        compared.moved,
        compared.input,
        command="ccrewrite compare a.b:c --input 2x3x20x24",
        out=tmp_path,
        variants=("rewritten", *added),
        quick=True,
        console=console,
    )
    assert [v["name"] for v in found.data["variants"]] == ["original", "rewritten", *added]
    assert "saved" in shown.getvalue()
    assert "ccrewrite compare a.b:c --input 2x3x20x24" in (tmp_path / "report.md").read_text()
    assert found["folded"]["parameters"]["added"] == 0
    for name in added:
        for one, other in zip(found["rewritten"]["outputs"], found[name]["outputs"], strict=True):
            assert one["max_abs_error"] == pytest.approx(other["max_abs_error"], rel=1e-4)
        trained = set() if name == "lowered" else {"training step"}  # lowered for inference
        assert found[name]["latency"].keys() == found[name]["memory_bytes"].keys() == {"inference"} | trained
    if "lowered" in added:
        assert found["lowered"]["parameters"]["trainable"] == found["lowered"]["parameters"]["added"] == 0
    assert {name for site in found.data["sites"] for name in site["variants"]} == {"original", "rewritten", "folded"}
    page = (tmp_path / "report.html").read_text()
    assert "Sites of folded" in page
    assert "Sites of lowered" not in page, "what is compiled has no sites that run by themselves"
    same = report_command(tmp_path, tmp_path / "report.json", console=console)
    assert not same.worse
    assert "0 of" in shown.getvalue()
    assert Comparison.load(tmp_path) == found


def test_unknown_variant(compared: Compared) -> None:
    with pytest.raises(InputError, match="unknown variant 'faster'; the variants are rewritten, folded, lowered, compiled"):
        compare_command(compared.original, compared.moved, compared.input, command="", variants=["faster"])


def test_folding_what_was_never_rewritten_is_told(compared: Compared) -> None:
    with pytest.raises(InputError, match="rewritten"):
        compare_command(compared.original, compared.original, compared.input, command="", variants=["folded"])
