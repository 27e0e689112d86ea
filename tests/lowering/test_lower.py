"""``lower``: choices, what is compiled, and errors. What needs Inductor's compiler is kept small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.families.dcls.sampling import DclsSampling
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.observe import Like
from ccrewrite.lowering import choose
from ccrewrite.lowering import measure as measuring
from ccrewrite.lowering.calls import site_calls
from ccrewrite.lowering.lower import lower
from ccrewrite.lowering.lowered import Lowered
from ccrewrite.lowering.measure import measure, measure_folded
from ccrewrite.lowering.times import cache_file, load_times, save_times
from ccrewrite.passes.fold import choose as folding
from ccrewrite.passes.fold.choose import Question

X = torch.randn(2, 4, 13, 13, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Every form in one: shared positions near and far, depthwise, strided, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(4, 6, 3, dilation=2, padding=2)
        self.far = nn.Conv2d(6, 6, 3, dilation=4, padding=4)
        self.depthwise = nn.Conv2d(6, 6, 3, dilation=2, padding=2, groups=6)
        self.down = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(self.depthwise(self.far(self.near(x).relu()))))


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def rewritten(moved: bool = True) -> Any:
    torch.manual_seed(0)
    model = ccrewrite.rewrite(Net(), X).model
    for name, parameter in model.named_parameters():
        if moved and name.endswith(("offset", "shift")):
            nn.init.uniform_(parameter, -0.4, 0.4)
    return model


FORCED = {"near": "products", "far": "slices", "depthwise": "taps", "down": "filtered", "up": "filtered"}


def found(lowered: Lowered) -> dict[str, tuple[str, str]]:
    return {site.name: (site.code, site.how) for site in lowered}


def step(model: nn.Module, of: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    of.zero_grad()
    out = model(X)
    out.square().sum().backward()
    return out.detach(), {n: p.grad.clone() for n, p in of.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_computes_what_eager_computes():
    model = rewritten()
    eager, expected = step(model, model)
    forced = FORCED | {"far": "shifts"}  # for "slices" are not for compiled models alone
    lowered = lower(model, X, mode="training", forms=forced, fullgraph=True)
    assert {s.name: s.code for s in lowered} == forced
    out, found = step(lowered.model, model)
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name)
    # In eager mode the forms that pay only when compiled are not used.
    torch.testing.assert_close(model(X), eager, rtol=0, atol=0)


def test_inference_measures_what_can_be_either(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[int, ...]] = []

    def measure_folded(question: Question) -> dict[str, float]:
        asked.append(question.input.shape)
        return {form: 10.0 - n for n, form in enumerate(question.forms)}

    monkeypatch.setattr(choose, "measure_folded", measure_folded)
    monkeypatch.setattr(folding, "WORTH_MEASURING", 1e9)
    assert found(lower(rewritten(), X, forms={"far": "dense"}, verify=False)) == {
        "near": ("shifted", "measured"),
        "far": ("convolution", "forced"),
        "depthwise": ("sparse", "measured"),
        "down": ("filtered", "measured"),
        "up": ("filtered", "measured"),
    }
    assert asked[:2] == [(2, 4, 13, 13), (2, 6, 13, 13)]
    assert len(asked) == 4
    again = lower(rewritten(), X, verify=False)
    assert {site.how for site in again} == {"cached", "measured"}
    assert again["near"].message == "9 taps apart in 5x5; measured before, the fastest"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_measuring_folded_layers():
    model = rewritten()
    input = Like((2, 6, 13, 13), torch.float32, torch.device("cpu"))
    times = measure_folded(Question(model.far, input, ("dense", "shifted"), None))
    assert set(times) == {"shifted", "dense"}
    assert all(t > 0 for t in times.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inference_is_the_folded_model_compiled():
    model: Any = rewritten().eval()
    lowered = lower(model, X, fullgraph=True, measured=False)
    assert [s.code for s in lowered] == [s.code for s in ccrewrite.fold(model, X, forms="estimated")]
    assert lowered.check.ok
    assert 0 < lowered.check.max_rel_error < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(lowered.model(X), model(X), rtol=1e-4, atol=1e-5)
        nn.init.zeros_(model.far.weight)
        assert not torch.allclose(lowered.model(X), model(X))  # a copy


def test_choices_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, ...]] = []

    def measure(site: Any, forms: Any) -> dict[str, float]:
        asked.append(tuple(sorted(forms)))
        return {form: 1.0 + n for n, form in enumerate(sorted(forms))}

    monkeypatch.setattr(choose, "measure", measure)
    monkeypatch.setattr(choose, "WORTH_MEASURING", 1e9)
    first = lower(rewritten(), X, mode="training", verify=False)
    assert found(first) == {
        "near": ("bands", "measured"),
        "far": ("bands", "measured"),
        "depthwise": ("taps", "measured"),
        "down": ("filtered", "measured"),
        "up": ("filtered", "measured"),
    }
    of_cc = [("filtered", "separable")] * 2
    assert asked == [("bands", "products", "shifts", "slices", "window")] * 2 + [("taps", "window")] + of_cc
    again = lower(rewritten(), X, mode="training", verify=False)
    assert [site.how for site in again] == ["cached"] * 5
    assert [site.code for site in again] == [site.code for site in first]
    assert len(asked) == 5


def test_forms_that_cannot_win_are_not_compiled(monkeypatch: pytest.MonkeyPatch):
    """In the order of their estimates, until one comes near the plain convolution."""
    compiled: list[str] = []

    def seconds_of(runs: Any, device: torch.device, effort: Any) -> dict[str, float]:
        (form,) = set(runs) - {"plain"}
        compiled.append(form)
        runs["plain"]()
        return {"plain": 1.0, form: {"shifts": 3.0, "products": 1.05}.get(form, 2.0)}

    monkeypatch.setattr(measuring, "seconds_of", seconds_of)
    model = rewritten()
    calls = site_calls(model, Inputs.of(X), {"near": model.near.sampling})
    assert measure(calls["near"], ("shifts", "products", "slices")) == {"shifts": 3.0, "products": 1.05}
    assert compiled == ["shifts", "products"]
    assert measure(calls["near"], ("slices", "window")) == {"slices": 2.0, "window": 2.0}


def test_equal_sites_are_measured_once(monkeypatch: pytest.MonkeyPatch):
    count = 0

    def measure(site: Any, forms: Any) -> dict[str, float]:
        nonlocal count
        count += 1
        return dict.fromkeys(forms, 1.0)

    monkeypatch.setattr(choose, "measure", measure)
    monkeypatch.setattr(choose, "WORTH_MEASURING", 1e9)
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, dilation=2, padding=2) for _ in range(3)))
    lower(ccrewrite.rewrite(model, X), X, mode="training", verify=False)
    assert count == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["products", "slices", "taps"])
def test_other_sizes_take_one_more_compilation_at_most(form: str):
    model = rewritten()
    name = next(n for n, f in FORCED.items() if f == form)
    layer = getattr(model, name)
    channels = layer.in_channels
    lowered = lower(layer, torch.randn(2, channels, 9, 11), mode="training", forms={"(root)": form}, verify=False, dynamic=True)
    torch._dynamo.utils.counters.clear()
    # Of sizes for which Inductor sums in one way, or in two (it has thresholds, which differ between versions).
    for batch, height, width in ((2, 50, 51), (3, 60, 44), (4, 41, 38), (5, 40, 41)):
        x = torch.randn(batch, channels, height, width)
        torch.testing.assert_close(lowered.model(x), layer(x), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_measuring_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch):
    model = rewritten()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    calls = site_calls(model, Inputs.of(X), {"depthwise": model.depthwise.sampling})
    monkeypatch.setattr(measuring, "GOOD", 0.0)
    times = measure(calls["depthwise"], ("window", "taps"))
    assert set(times) == {"window", "taps"}
    assert all(t > 0 for t in times.values())
    assert model.depthwise.sampling.form is None
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_estimates_cover_the_forms_and_prefer_what_is_known_to_win():
    def best(conv: nn.Conv2d, size: int) -> str:
        x = torch.zeros(1, conv.in_channels, size, size)
        model: Any = ccrewrite.rewrite(conv, x).model
        (site,) = site_calls(model, Inputs.of(x), {"": model.sampling}).values()
        seconds = model.sampling.estimates(site.shapes, training=True)
        assert set(seconds) == set(model.sampling.forms)
        return min(seconds, key=lambda form: seconds[form])

    assert best(nn.Conv2d(96, 96, 9, dilation=2, padding=8, groups=96), 28) == "taps"
    assert best(nn.Conv2d(512, 32, 3, dilation=12, padding=12), 65) in ("products", "bands")
    assert best(nn.Conv2d(4, 4, 3, dilation=2, padding=2), 33) == "window"


def test_a_cache_that_cannot_be_read_or_written(tmp_path: Path):
    save_times({"a": {"window": 1.0}})
    save_times({"b": {"taps": 2.0}})
    assert load_times() == {"a": {"window": 1.0}, "b": {"taps": 2.0}}
    for broken in ("{", "[]"):
        cache_file().write_text(broken)
        with pytest.warns(UserWarning, match="can't be read|damaged|valid dictionary"):
            assert load_times() == {}
    cache_file().unlink()
    cache_file().mkdir()
    with pytest.warns(UserWarning, match="can't be"):
        save_times({"a": {"window": 1.0}})


def test_what_version_0_1_0_measured_is_kept(monkeypatch: pytest.MonkeyPatch):
    """Its keys belong to its code: nothing is taken from there, and nothing is lost."""
    written = json.loads((Path(__file__).parents[1] / "saving" / "v0_1_0" / "forms.json").read_text())
    cache_file().write_text(json.dumps(written))
    monkeypatch.setattr(choose, "measure", lambda site, forms: dict.fromkeys(forms, 1.0))
    assert lower(rewritten(), X, mode="training", verify=False)["near"].how == "measured"
    (old,) = written
    assert load_times()[old] == written[old]
    assert len(load_times()) > 1


def test_keys_tell_sites_and_shapes_apart():
    model = rewritten()
    keys = set[str]()
    for size in (13, 14):
        x = torch.zeros(2, 4, size, size)
        calls = site_calls(model, Inputs.of(x), {n: getattr(model, n).sampling for n in ("near", "far", "depthwise")})
        keys |= {str(choose.key_of(call)) for call in calls.values()}
    assert len(keys) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "fast"}, "mode must be one of 'inference', 'training', found 'fast'"),
        ({"mode": "training", "forms": {"neer": "taps"}}, "forms names neer; the rewritten sites are near, far"),
        (
            {"mode": "training", "forms": {"near": "taps"}},
            "site near can't take the form 'taps'; it has the forms window, bands",
        ),
        (
            {"mode": "training", "forms": {"down": "taps"}},
            "site down can't take the form 'taps'; it has the forms separable, filtered",
        ),
        (
            {"forms": {"near": "bands"}},
            r"site near can't be folded to 'bands'.*near \(shifted or dense\), far \(shifted or dense\), depthwise \(sparse",
        ),
    ],
)
def test_errors(arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        lower(rewritten(), X, **arguments)


def test_nothing_to_lower():
    with pytest.raises(InputError, match="nothing in this Net was rewritten"):
        lower(Net(), X)


def test_sites_that_do_not_run():
    class Half(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.near(x)

    model = rewritten()
    model.__class__ = Half
    sites = lower(model, X, mode="training", measured=False, verify=False).sites
    assert [(s.name, s.how) for s in sites][:3] == [("near", "estimated"), ("far", "not run"), ("depthwise", "not run")]


def test_forms_fall_back_outside_the_compiler():
    sampling = rewritten().far.sampling
    assert isinstance(sampling, DclsSampling)
    sampling.form = "products"
    program = torch.export.export(rewritten(), (X,))
    assert not any("ccrewrite" in str(n.target) for n in program.graph.nodes)


def test_options_of_torch_compile(monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: seen.append(options) or model)
    lower(rewritten(), X, measured=False, verify=False, options={"epilogue_fusion": False}, compile_mode="max-autotune")
    assert {k: v for k, v in seen[0]["options"].items() if k != "post_grad_custom_pre_pass"} == {
        **torch._inductor.list_mode_options("max-autotune"),
        "epilogue_fusion": False,
    }
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"refuses these options: .*no_such_option"):
        lower(rewritten(), X, measured=False, verify=False, options={"no_such_option": 1})
    with pytest.raises(InputError, match=r"torch\.compile's modes"):
        lower(rewritten(), X, compile_mode="no such mode")
