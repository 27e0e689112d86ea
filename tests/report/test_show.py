"""Rich tables in a terminal, plain ones in a pipe, HTML in a notebook."""

from __future__ import annotations

import io

import pytest
from compared_net import Compared
from rich.console import Console

import ccrewrite
from ccrewrite.report import regression
from ccrewrite.report.budget import trade
from ccrewrite.report.show import show_comparison, show_plan, show_regression


def consoles(shown: io.StringIO) -> dict[str, Console]:
    return {
        "terminal": Console(file=shown, force_terminal=True, width=300, color_system="truecolor"),
        "pipe": Console(file=shown, force_terminal=False, width=80),
    }


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_comparisons_plans_and_regressions(compared: Compared, kind: str) -> None:
    shown = io.StringIO()
    console = consoles(shown)[kind]
    show_comparison(compared.comparison, console)
    show_plan(ccrewrite.plan(compared.original, compared.input), console)
    show_regression(regression(compared.comparison, compared.comparison), console)
    text = shown.getvalue()
    assert "output['map']" in text, "brackets are no markup"
    assert "5 of 6 convolution sites rewritten" in text
    assert "6 sites: 5 rewritten; left alone: 1 plain" in text
    assert "0 of" in text
    assert ("\x1b[" in text) == (kind == "terminal")
    if kind == "pipe":
        assert "───" not in text
        row = next(line for line in text.splitlines() if line.startswith("trained") and "training step" in line)
        assert len(row) > 80, "not wrapped at a width that a pipe doesn't have"


def test_plans_groups_and_trades_in_a_notebook(compared: Compared) -> None:
    html = ccrewrite.plan(compared.original, compared.input)._repr_html_()
    assert html.startswith("<p>6 sites: 5 rewritten; left alone: 1 plain</p><table>")
    assert "dilated-to-dcls" in html
    result = ccrewrite.rewrite(compared.original, compared.input)._repr_html_()
    assert result.startswith("<p>6 sites: 5 rewritten; left alone: 1 plain</p><table>")
    assert "output[&#x27;map&#x27;]" in result
    assert "<table>" in ccrewrite.scale_groups(compared.untouched, compared.input)._repr_html_()
    assert "<table>" in trade(compared.untouched, compared.input, [], repeats=2)._repr_html_()
