"""Folding taps that lie elsewhere in each output channel into one matrix product and gathered sums."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ccrewrite.export.onnx import export_onnx
from ccrewrite.folded.gathered import GatheredConv
from ccrewrite.nn import DclsConv1d, DclsConv2d, DclsConv3d
from ccrewrite.passes.fold import fold

DCLS = {nn.Conv1d: DclsConv1d, nn.Conv2d: DclsConv2d, nn.Conv3d: DclsConv3d}
CASES: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], tuple[int, ...], int]] = {
    "plain": (nn.Conv2d, (4, 5, 3), {"dilation": 6, "padding": 6}, (2, 4, 15, 14), 0),
    "stride": (nn.Conv2d, (4, 5, 3), {"dilation": (6, 5), "padding": 4, "stride": (2, 3)}, (2, 4, 17, 16), 0),
    "reach": (nn.Conv2d, (4, 5, 3), {"dilation": 4, "padding": (4, 2)}, (1, 4, 15, 19), 2),
    "circular, same": (nn.Conv1d, (4, 5, 5), {"dilation": 16, "padding": "same", "padding_mode": "circular"}, (2, 4, 70), 0),
    "no batch": (nn.Conv1d, (4, 5, 5), {"dilation": 16}, (4, 90), 0),
    "no bias": (nn.Conv3d, (4, 5, 2), {"dilation": 7, "bias": False}, (1, 4, 8, 9, 8), 0),
}
OUT = {"(root)": "gathered"}


def rewritten(case: str, sharing: str = "out") -> tuple[nn.Module, torch.Tensor]:
    kind, args, options, shape, reach = CASES[case]
    torch.manual_seed(0)
    conv, x = kind(*args, **options, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    model = DCLS[kind].from_conv(conv, sharing=sharing, reach=reach)
    with torch.no_grad():
        model.sampling.offset.uniform_(-1.5, 1.5)
        model.sampling.offset[..., 0] = model.sampling.offset[..., 0].round()
    return model, x


@pytest.mark.parametrize("backend", [None, "eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_same_outputs(case: str, backend: str | None) -> None:
    model, x = rewritten(case)
    folded = fold(model, x, forms=OUT)
    assert (folded["(root)"].code, folded.check.ok) == ("gathered", True)
    assert isinstance(folded.model, CASES[case][0])
    torch._dynamo.reset()
    run = torch.compile(folded.model, backend=backend, fullgraph=True) if backend else folded.model
    with torch.no_grad():
        torch.testing.assert_close(run(x), model(x), rtol=1e-12, atol=1e-12)


def test_gradients_and_copies() -> None:
    x: Any
    model, x = rewritten("stride")
    folded = fold(model, x, forms=OUT).model
    again = copy.deepcopy(folded)
    again.load_state_dict(folded.state_dict())
    assert isinstance(again, GatheredConv)
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(again, {"weight": w}, (x,)),
        (x[:1].requires_grad_(), again.weight),  # pyright: ignore[reportArgumentType]
    )


def test_exported() -> None:
    """In operators that runtimes have, for any batch and size."""
    model, x = rewritten("plain")
    folded = fold(model, x, forms=OUT).model
    dims = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(folded, (x,), dynamic_shapes=(dims,))
    called = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert "aten.gather.default" in called
    assert not {c for c in called if "as_strided" in c or "ccrewrite" in c}
    other = torch.randn(3, 4, 21, 13, dtype=torch.float64)
    torch.testing.assert_close(program.module()(other), model(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", ["shifted", "gathered"])
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning"
)  # of sizes that don't change
def test_traced(first: str) -> None:
    x = torch.randn(2, 64, 15, 14, dtype=torch.float64)
    model = DclsConv2d(64, 64, 3, dilation=6, padding=6, sharing="tap" if first == "shifted" else "out", dtype=torch.float64)
    nn.init.uniform_(model.sampling.offset, -1, 1)
    folded = fold(nn.Sequential(model), x, forms="estimated")
    assert folded["0"].code == first
    for traced in (torch.fx.symbolic_trace(folded.model), torch.jit.trace(folded.model, x)):
        torch.testing.assert_close(traced(x), folded.model(x), rtol=0, atol=0)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("size", "dynamic"),
    [
        ((40, 40), None),
        pytest.param((96, 96), None, marks=pytest.mark.slow),
        pytest.param((24, 20), {0: "n", 2: "h", 3: "w"}, marks=pytest.mark.slow),
    ],
)
def test_files_hold_no_index_of_every_output(tmp_path: Path, size: tuple[int, int], dynamic: Any) -> None:
    model = DclsConv2d(32, 16, 3, dilation=6, padding=6, sharing="out")
    nn.init.uniform_(model.sampling.offset, -1, 1)
    report = export_onnx(model, tmp_path / "model.onnx", torch.randn(1, 32, *size), dynamic=dynamic)
    assert [site.code for site in report] == ["gathered"]
    along_an_axis = 8 * 9 * 16 * max(size)  # an integer for each tap, output channel and row; there are as many columns
    assert report.size < 4 * 4 * model.weight.numel() + along_an_axis
