"""Folding: plain layers that compute what the rewritten model computes, for any geometry, wherever its parts have moved."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from family_layers import LAYERS
from geometries import CONVS, TRANSPOSED, Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from moved import move_, ours, worst
from torch import Tensor, nn
from torch.nn.utils import prune
from zoo import ZOO, build, run

import ccrewrite
from ccrewrite.errors import InputError, SelectionError
from ccrewrite.families.dcls.sampling import SHARINGS
from ccrewrite.folded.filtered import FILTERED
from ccrewrite.folded.fixed import FixedSampling
from ccrewrite.folded.gathered import GATHERED
from ccrewrite.folded.padded import PaddedConv, PaddedConvTranspose
from ccrewrite.folded.shifted import SHIFTED
from ccrewrite.folded.sparse import SPARSE
from ccrewrite.ir.sites import ROOT
from ccrewrite.nn import CCSampling, DclsConv1d, DclsConv2d, DclsSampling
from ccrewrite.passes.fold import alternatives, fold
from ccrewrite.passes.fold.sites import CODES, Folded

PLAIN = (*CONVS, *TRANSPOSED)


class OneLayer(nn.Module):
    """A layer with the other arguments of its call."""

    def __init__(self, layer: nn.Module, extra: tuple[Any, ...]) -> None:
        super().__init__()
        self.layer, self.extra = layer, extra

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, *self.extra)


@st.composite
def moved_layers(draw: st.DrawFn) -> tuple[Case, nn.Module]:
    """Layers whose geometry moved: at random, by whole samples, or on some axes alone."""
    if draw(st.booleans()):
        case = draw(cases(transposed=False, taps=2))
        sharing, reach = draw(st.sampled_from(SHARINGS)), draw(st.integers(0, 2))
        interpolation = draw(st.sampled_from(["linear", "gaussian", "triangle"]))
        options = {"sharing": sharing, "reach": reach, "interpolation": interpolation}
        layer: Any = LAYERS[DclsSampling, type(case.conv)].from_conv(case.conv, **options)
    else:
        case = draw(cases())
        layer = LAYERS[CCSampling, type(case.conv)].from_conv(
            case.conv, hidden=2, basis=draw(st.sampled_from(["cubic", "linear"]))
        )
    how = draw(st.sampled_from(["anywhere", "whole", "shift"]))
    with torch.no_grad():
        for p in layer.sampling.movers() if how == "anywhere" else layer.sampling.movers()[:1]:
            p += torch.randn_like(p) if how == "anywhere" else torch.randint(-2, 3, p.shape) * (1.0 if how == "whole" else 0.2)
    return case, layer


LAYERS_OF = {"filtered": FILTERED, "shifted": SHIFTED, "gathered": GATHERED, "sparse": SPARSE}


@given(moved_layers(), st.booleans())
@settings(max_examples=200)
def test_layers_of_any_geometry(drawn: tuple[Case, nn.Module], other: bool) -> None:
    case, layer = drawn
    model = OneLayer(layer, case.extra)
    forms = {name: offered[0].name for name, offered in alternatives(model).items()}
    result = fold(model, case.input, forms=forms if other else "estimated")
    assert result.check.ok
    assert worst(result.model, model, case.input) <= 1e-12
    code = result["layer"].code
    assert code in (forms if other and forms else {code: code}).values()
    folded: Any = result.model.layer
    if code == "padded":
        assert type(folded) is (PaddedConvTranspose if case.conv.transposed else PaddedConv)
        folded = folded.conv
        assert type(folded) is type(case.conv)
    else:
        assert type(folded) in (PLAIN if code in ("original", "convolution") else LAYERS_OF[code].values())
    assert set(dict(folded.named_parameters())) == set(dict(case.conv.named_parameters()))
    larger = F.pad(case.input, (0, 3) * (case.input.dim() - case.batch.dim() + len(case.conv.kernel_size)), value=0.5)
    if not case.extra:
        assert worst(result.model, model, larger) <= 1e-12, "another input size"


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str, moved: bool) -> None:
    model, inputs = build(name, torch.float64)
    rewritten = ccrewrite.rewrite(model, inputs).model
    if moved:
        move_(rewritten)
        assert worst(rewritten, model, inputs) > 1e-3, "moving must show"
    before = copy.deepcopy(rewritten.state_dict())
    result = fold(rewritten, inputs)
    assert result.check.ok, result
    assert all(site.folded for site in result), result
    assert worst(result.model, rewritten, inputs) <= (1e-12 if moved else 0)
    assert ours(result.model) == []
    assert {m.training for m in result.model.modules()} == {True}
    assert all(torch.equal(v, before[k]) for k, v in rewritten.state_dict().items())
    assert bool(ours(rewritten)), "the rewritten model stays as it is"
    if not moved:
        assert {site.code for site in result} == {"original"}
        assert [type(m) for m in result.model.modules()] == [type(m) for m in model.modules()] or name in ("normed",)
        assert list(result.model.state_dict()) == list(model.state_dict())


def test_the_calls_of_a_graph() -> None:
    model, inputs = build("functional", torch.float64)
    graph = torch.fx.symbolic_trace(model)
    rewritten = move_(ccrewrite.rewrite(graph, inputs).model)
    result = fold(rewritten, inputs)
    assert [s.code for s in result] == ["geometry"] * 3
    assert worst(result.model, rewritten, inputs) <= 1e-12
    assert ours(result.model) == []


def conv_at(*rows: float, dilation: int = 2, **options: Any) -> DclsConv1d:
    """A 1-d layer of three taps whose offsets are ``rows``."""
    conv = nn.Conv1d(2, 3, 3, dilation=dilation, padding=dilation, dtype=torch.float64, **options)
    layer = DclsConv1d.from_conv(conv, reach=2)
    layer.sampling.offset.data.copy_(torch.tensor(rows).expand_as(layer.sampling.offset))
    return layer


@pytest.mark.parametrize(
    ("rows", "code", "message"),
    [
        ((0.0, 0.0, 0.0), "original", "nothing moved"),
        ((1.0, 0.0, -1.0), "convolution", "k3 p1"),
        ((-1.0, 0.0, 1.0), "convolution", "k3 p3 d3"),
        ((-2.0, 0.0, 2.0), "convolution", "k3 p4 d4"),
        ((0.0, 0.0, 2.0), "padded", "k4 d2"),
        ((0.0, 2.0, 0.0), "convolution", "k2 p2 d4"),
        ((0.5, 0.0, -0.5), "convolution", "k5 p2"),
        ((1.0, 1.0, 1.0), "padded", "k3 d2"),
    ],
)
def test_the_smallest_grid(rows: tuple[float, ...], code: str, message: str) -> None:
    layer, x = conv_at(*rows), torch.randn(2, 2, 16, dtype=torch.float64)
    result = fold(layer, x)
    site = result[ROOT]
    assert (site.code, site.message) == (code, message)
    assert worst(result.model, layer, x) <= 1e-12


def test_an_unmoved_layer_gets_its_weight_back() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2)), torch.randn(1, 3, 17, 17)
    result = fold(ccrewrite.rewrite(model, x).model, x)
    for (name, found), (other, weight) in zip(result.model.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(found, weight)
    assert result.check.max_abs_error == 0


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("layer", ["dilated", "strided"])
def test_padding_modes(mode: str, layer: str) -> None:
    options: dict[str, Any] = {"dilation": 2, "padding": 2} if layer == "dilated" else {"stride": 2, "padding": 1}
    conv = nn.Conv2d(2, 3, 3, padding_mode=mode, dtype=torch.float64, **options)  # pyright: ignore[reportArgumentType]
    x = torch.randn(1, 2, 11, 12, dtype=torch.float64)
    rewritten = move_(ccrewrite.rewrite(conv, x).model)
    result = fold(rewritten, x)
    assert result.check.ok
    assert worst(result.model, rewritten, torch.randn(2, 2, 9, 17, dtype=torch.float64)) <= 1e-12


def test_an_output_padding_that_only_the_dilation_allowed() -> None:
    conv = nn.ConvTranspose2d(3, 4, 2, stride=1, dilation=3, padding=2, output_padding=2, dtype=torch.float64)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    rewritten = move_(ccrewrite.rewrite(conv, x).model)
    result = fold(rewritten, x)
    assert result.check.ok
    assert worst(result.model, rewritten, torch.randn(2, 3, 5, 9, dtype=torch.float64)) <= 1e-12


def test_parametrizations_and_norms_are_folded_in() -> None:
    for name in ("normed", "old_normed"):
        model, inputs = build(name, torch.float64)
        rewritten = move_(ccrewrite.rewrite(model, inputs).model)
        result = fold(rewritten, inputs)
        assert worst(result.model, rewritten, inputs) <= 1e-12
        assert {k.rpartition(".")[2] for k in result.model.state_dict()} == {"weight", "bias"}
        assert not any(hasattr(m, "parametrizations") or m._forward_pre_hooks for m in result.model.modules())
        pickle.loads(pickle.dumps(result.model))


def test_pruned_weights_are_folded_in() -> None:
    conv = prune.l1_unstructured(nn.Conv2d(3, 4, 3, dilation=2, dtype=torch.float64), "weight", 0.5)
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    rewritten = move_(ccrewrite.rewrite(nn.Sequential(conv), x).model)
    result = fold(rewritten, x)
    assert worst(result.model, rewritten, x) <= 1e-12
    assert set(result.model.state_dict()) == {"0.weight", "0.bias"}


def test_a_weight_that_an_unknown_hook_computes() -> None:
    conv = nn.Conv2d(3, 4, 3, dilation=2, dtype=torch.float64)
    raw = nn.Parameter(conv.weight.detach().clone())
    del conv.weight
    conv.register_parameter("raw", raw)
    conv.register_forward_pre_hook(lambda module, args: setattr(module, "weight", module.get_parameter("raw") * 2))
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    model = nn.Sequential(conv)
    model(x)
    rewritten = move_(ccrewrite.rewrite(model, x).model)
    result: Any = fold(rewritten, x)
    assert result["0"].code == "geometry"
    assert "hook" in result["0"].message
    result.model[0].raw.data.mul_(3)
    assert worst(result.model, rewritten, x) > 0.1, "the hook still runs"


def test_hooks_stay() -> None:
    seen: list[str] = []
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2)), torch.randn(1, 3, 9, 9)
    model[0].register_forward_hook(lambda module, args, out: seen.append("forward"))
    rewritten = move_(ccrewrite.rewrite(model, x).model)
    folded = fold(rewritten, x).model
    seen.clear()
    folded(x)
    assert seen == ["forward"]


class ReadsItsLayer(nn.Module):
    """Pads by what it reads off its convolution, and reads its weight."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.reads = reads
        self.conv = nn.Conv1d(2, 2, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        if self.reads == "kernel_size":
            return self.conv(F.pad(x, (self.conv.kernel_size[0], 0)))
        if self.reads == "padding, and adds":
            return x + self.conv(F.pad(x, (self.conv.kernel_size[0] - 1, self.conv.kernel_size[0] - 1)))
        return self.conv(x) * self.conv.weight.square().sum()


@pytest.mark.parametrize("reads", ["kernel_size", "padding, and adds", "weight"])
def test_attributes_and_weights_that_others_read_are_kept(reads: str) -> None:
    model, x = ReadsItsLayer(reads).double(), torch.randn(2, 2, 17, dtype=torch.float64)
    rewritten = move_(ccrewrite.rewrite(model, x).model)
    result = fold(rewritten, x)
    assert result.check.ok
    assert result["conv"].code == "geometry"
    assert "read elsewhere" in result["conv"].message
    assert worst(result.model, rewritten, x) <= 1e-12
    assert ours(result.model) == []


def test_a_layer_under_several_names_is_folded_once() -> None:
    model, inputs = build("reused", torch.float64)
    rewritten = move_(ccrewrite.rewrite(model, inputs).model)
    result: Any = fold(rewritten, inputs)
    assert result.model.again is result.model.conv is result.model.stages[1]
    assert [s.name for s in result] == ["conv", "stages.0"]


def test_snapping_is_lossy_and_says_so() -> None:
    model = nn.Sequential(conv_at(0.9, 0.02, -0.95), nn.Conv1d(3, 3, 3, stride=2, dtype=torch.float64))
    x = torch.randn(2, 2, 32, dtype=torch.float64)
    rewritten: Any = ccrewrite.rewrite(model, x, include="1").model
    rewritten[1].sampling.shift.data.fill_(0.03)
    exact, snapped = fold(rewritten, x), fold(rewritten, x, tol=0.12)
    assert [(s.code, s.message) for s in exact] == [("convolution", "k5 p2"), ("padded", "k6")]
    assert [(s.code, s.message) for s in snapped] == [("convolution", "k3 p1"), ("original", "nothing moved")]
    assert exact.lost == ()
    assert all(s.moved == s.kernel_error == 0 for s in exact)
    assert [round(s.moved, 6) for s in snapped] == [0.1, 0.03]
    assert snapped.check.ok, "compared with the snapped model"
    error = worst(rewritten, snapped.model, x)
    assert snapped.lost[0].max_rel_error == error > 1e-3
    assert all(1e-3 < s.kernel_error < 0.2 for s in snapped)
    assert "snapping" in str(snapped)
    assert worst(exact.model, rewritten, x) <= 1e-12, "the rewritten model is not snapped itself"


def test_taps_placed_freely() -> None:
    layer = DclsConv2d(4, 4, padding="same", groups=4, elements=5, window=7, dtype=torch.float64)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    result = fold(layer, x)
    assert type(result.model) in (nn.Conv2d, PaddedConv)
    assert worst(result.model, layer, x) <= 1e-12


def test_selection() -> None:
    model, x = build("plain", torch.float64)
    rewritten = move_(ccrewrite.rewrite(model, x).model)
    result = fold(rewritten, x, exclude="5")
    assert result["5"].code == "not-selected"
    assert ours(result.model) == ["5", "5.sampling"]
    assert result.check.ok
    with pytest.raises(SelectionError, match="nowhere"):
        fold(rewritten, x, include="nowhere")


@pytest.mark.parametrize("name", ["plain", "normed", "functional", "subclasses", "causal"])
def test_what_is_done_with_a_folded_model(name: str) -> None:
    model, inputs = build(name)
    folded = fold(move_(ccrewrite.rewrite(model, inputs).model), inputs).model.eval()
    expected = run(folded, inputs)
    for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(run(twin, inputs), expected)
    torch.testing.assert_close(torch.export.export(folded, (inputs,), strict=False).module()(inputs), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(folded, backend="aot_eager", fullgraph=True)(inputs), expected)
    half = copy.deepcopy(folded).half()
    assert (half(inputs.half()).float() - expected).abs().max() <= 1e-2 * expected.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (run(folded, inputs).float() - expected).abs().max() <= 5e-2 * expected.abs().max()
    for module in folded.modules():
        assert not isinstance(module, FixedSampling) or module.matrix.dtype == torch.float32


def test_folded_models_trace() -> None:
    for name in ("plain", "functional"):
        model, inputs = build(name)
        folded = fold(move_(ccrewrite.rewrite(model, inputs).model), inputs).model.eval()
        traced = torch.fx.symbolic_trace(folded)
        torch.testing.assert_close(traced(inputs), folded(inputs))


def test_the_result_as_data_and_as_text() -> None:
    model, inputs = build("plain")
    result = fold(move_(ccrewrite.rewrite(model, inputs).model), inputs)
    assert isinstance(result, Folded)
    data = json.loads(result.to_json())
    assert [s["name"] for s in data["sites"]] == ["0", "3", "5"]
    assert data["check"]["ok"] is True
    assert "3 sites" in str(result)
    assert {s.code for s in result} <= CODES.keys()
    with pytest.raises(KeyError, match="nowhere"):
        result["nowhere"]


def test_bad_input() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2)), torch.randn(1, 3, 9, 9)
    rewritten = ccrewrite.rewrite(model, x).model
    with pytest.raises(InputError, match="nothing to fold"):
        fold(model, x)
    for tol in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="tol"):
            fold(rewritten, x, tol=tol)
    with pytest.raises(InputError, match="meta"):
        fold(rewritten.to("meta"), x.to("meta"))


def test_every_code_has_its_section() -> None:
    page = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text().partition("\n## ONNX")[0]
    assert [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")] == list(CODES)
