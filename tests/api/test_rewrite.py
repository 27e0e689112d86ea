"""Rewriting: exact, reversible, all or nothing, and in the model that the user has."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves
from zoo import ZOO, Normed, OldNormed, Reused, build, plain, run

import ccrewrite
from ccrewrite import CcrewriteError, StridedToCC
from ccrewrite.errors import InputError, SelectionError
from ccrewrite.nn import CCSampling, DclsSampling, RewrittenConv, Sampling

F64 = torch.float64
X = torch.randn(2, 4, 17, 17, generator=torch.Generator().manual_seed(1))


def samplings(model: nn.Module) -> dict[str, Sampling]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Sampling)}


def outline(model: nn.Module) -> list[Any]:
    """Modules, their classes and flags, and the keys and identities of all tensors."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [
        [(n, kind(m), m.training, sorted(vars(m))) for n, m in model.named_modules(remove_duplicate=False)],
        [(n, id(t), t.requires_grad) for n, t in tensors],
        list(model.state_dict()),
    ]


def kind(module: nn.Module) -> Any:
    """Its class; of a parametrized module, whose class torch makes anew for each, what that is made of."""
    found = type(module)
    return (found.__name__, found.__module__, found.__bases__) if parametrize.is_parametrized(module) else found


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    return [t for t in tree_leaves(run(model, inputs)) if isinstance(t, Tensor)]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(
        float((a.detach() - b.detach()).abs().max() / b.detach().abs().max()) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_in_float64(name: str) -> None:
    model, inputs = build(name, F64)
    model.eval()
    result = ccrewrite.rewrite(model, inputs)
    assert result.check.ran
    assert result.check.ok
    assert not [s for s in result.plan if s.decision.code == "verification-failed"]
    with torch.no_grad():
        expected = outputs(model, inputs)
        assert worst(outputs(result.model, inputs), expected) == 0  # bitwise: the plain convolutions run
    found = outputs(result.model, inputs)
    assert worst(found, expected) <= 1e-12
    torch.stack([(t * torch.randn_like(t)).sum() for t in found if t.is_floating_point()]).sum().backward()
    for path, sampling in samplings(result.model).items():
        gradients = [p.grad for p in sampling.movers()]
        assert all(g is not None and bool(g.isfinite().all() and g.any()) for g in gradients), path


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("training", [True, False])
def test_the_original_is_untouched(name: str, training: bool) -> None:
    model, inputs = build(name)
    model.train(training)
    before, values = outline(model), {k: v.clone() for k, v in model.state_dict().items()}
    result = ccrewrite.rewrite(model, inputs)
    assert outline(model) == before
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    shared = {id(t) for t in model.state_dict(keep_vars=True).values()}
    assert not shared & {id(t) for t in result.model.state_dict(keep_vars=True).values()}
    assert result.model.training is training
    assert all(s.training is training for s in samplings(result.model).values())


@pytest.mark.parametrize("name", ZOO)
def test_revert_gives_the_original_back_with_its_weights_as_they_are_now(name: str) -> None:
    model, inputs = build(name)
    model.eval()
    result = ccrewrite.rewrite(model, inputs)
    with torch.no_grad():
        for p in result.model.parameters():  # "training"
            p += 0.01 * torch.randn_like(p)
    trained = {k: v.clone() for k, v in result.model.state_dict().items()}
    assert ccrewrite.revert(result.model) is result.model
    classes = [(n, kind(m), m.training) for n, m in model.named_modules(remove_duplicate=False)]
    assert [(n, kind(m), m.training) for n, m in result.model.named_modules(remove_duplicate=False)] == classes
    assert [sorted(vars(m)) for m in result.model.modules()] == [sorted(vars(m)) for m in model.modules()]
    assert list(result.model.state_dict()) == list(model.state_dict())
    assert all(torch.equal(v, trained[k]) for k, v in result.model.state_dict().items())
    model.load_state_dict(result.model.state_dict())
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) == 0


@pytest.mark.parametrize("name", ZOO)
def test_in_place_and_back(name: str) -> None:
    model, inputs = build(name)
    before = outline(model)
    modules = dict(model.named_modules())
    result = ccrewrite.rewrite_(model, inputs)
    assert result.model is model
    assert all(model.get_submodule(n) is m for n, m in modules.items())
    assert {i for _, i, _ in before[1]} <= {id(t) for t in (*model.parameters(), *model.buffers())}
    assert samplings(model)
    ccrewrite.revert(model)
    assert outline(model) == before


@pytest.mark.parametrize("name", ["plain", "functional", "normed", "subclasses"])
def test_the_same_model_gets_the_same_layers_and_nothing_is_drawn(name: str) -> None:
    model, inputs = build(name)
    torch.manual_seed(7)
    draw = torch.rand(3)
    torch.manual_seed(7)
    first = ccrewrite.rewrite(model, inputs).model.state_dict()
    assert torch.equal(torch.rand(3), draw)
    second = ccrewrite.rewrite(model, inputs).model.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_aliases_are_one_layer_everywhere() -> None:
    model: Any = ccrewrite.rewrite(Reused(), X).model
    assert isinstance(model.conv, RewrittenConv)
    assert model.conv is model.again is model.stages[1]
    assert len(samplings(model)) == 2


def test_a_second_rewrite_is_refused_site_by_site() -> None:
    model = plain()
    once = ccrewrite.rewrite(model, X, include="0").model
    with pytest.raises(SelectionError, match=r"nothing to rewrite: .* 1 already-rewritten"):
        ccrewrite.rewrite(once, X, include="0")
    twice = ccrewrite.rewrite(once, X)
    assert [s.decision.code for s in twice.plan] == ["already-rewritten", "dilated-to-dcls", "plain", "transposed-to-cc"]
    assert twice.plan["0"].geometry == ccrewrite.plan(model, X)["0"].geometry
    assert list(samplings(twice.model)) == ["0.sampling", "3.sampling", "5.sampling"]
    with pytest.raises(SelectionError, match="3 already-rewritten"):
        ccrewrite.rewrite_(twice.model, X)
    assert len(samplings(twice.model)) == 3


@pytest.mark.parametrize("name", ["functional", "subclasses", "normed", "tied"])
def test_a_second_rewrite_of_other_forms(name: str) -> None:
    model, inputs = build(name)
    once = ccrewrite.rewrite(model, inputs).model
    before = outline(once)
    with pytest.raises(SelectionError, match="already-rewritten"):
        ccrewrite.rewrite_(once, inputs)
    assert outline(once) == before


def test_hooks_stay_and_fire() -> None:
    model: Any = plain()
    seen: list[str] = []
    conv = model[0]
    conv.register_forward_pre_hook(lambda m, a: seen.append("pre"))
    conv.register_forward_hook(lambda m, a, out: seen.append("forward") or out + 1)
    conv.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    conv.weight.register_hook(lambda g: seen.append("weight"))
    expected = model.eval()(X)
    result = ccrewrite.rewrite_(model, X)
    seen.clear()
    out = model(X.requires_grad_(False).clone().requires_grad_())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert sorted(seen) == ["backward", "forward", "pre", "weight"]
    assert result.check.ok


def test_an_optimizer_made_before_goes_on() -> None:
    model = plain()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(X).square().sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    known = {id(p) for p in model.parameters()}
    ccrewrite.rewrite_(model, X)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == known
    optimizer.add_param_group({"params": [p for p in model.parameters() if id(p) not in known], "lr": 1e-3})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []
    assert float(optimizer.state_dict()["state"][0]["step"]) == float(state["state"][0]["step"]) + 2


def test_frozen_weights_have_frozen_geometry() -> None:
    model: Any = plain()
    model[0].requires_grad_(False)
    rewritten: Any = ccrewrite.rewrite(model, X).model
    assert not any(p.requires_grad for p in rewritten[0].parameters())
    assert all(p.requires_grad for p in rewritten[3].parameters())
    out = rewritten.eval()(X)
    assert torch.equal(rewritten[0](X), model[0](X))  # no gradient wanted: the plain convolution
    out.sum().backward()
    assert rewritten[0].sampling.shift.grad is None


def test_dtype_and_device_are_the_weights() -> None:
    for dtype in (F64, torch.bfloat16):
        model = plain().to(dtype)
        rewritten = ccrewrite.rewrite(model, X.to(dtype)).model
        assert {p.dtype for p in rewritten.parameters()} == {dtype}


class Stop(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


@pytest.mark.parametrize("name", ["plain", "functional", "reused", "normed", "subclasses"])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, Stop])
def test_raising_in_the_middle_leaves_the_model_as_it_was(
    name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever sampling can't be made: the first, a later, the last."""
    model, inputs = build(name)
    count = len(ccrewrite.plan(model, inputs).rewritten)
    assert count >= 2
    for fatal in range(count):
        made = 0

        def of(kind: Any, geometry: Any, _fatal: int = fatal, **options: Any) -> Any:
            nonlocal made
            if options.get("device") is not None and str(options["device"]) == "cpu" and kind in (CCSampling, DclsSampling):
                made += 1
                if made > _fatal:
                    raise error("no memory")
            return kind(geometry, **options)

        before = outline(model)
        for verify in (True, False):
            with monkeypatch.context() as patched:
                for kind in (CCSampling, DclsSampling):
                    patched.setattr(kind, "of", classmethod(of))
                told = InputError if error is RuntimeError else error
                with pytest.raises(told, match="no memory"):
                    ccrewrite.rewrite_(model, inputs, verify=verify)
            assert outline(model) == before
            made = 0


@pytest.mark.parametrize("after", [1, 2, 3])
def test_interrupted_while_verifying(after: int) -> None:
    """Run 1 captures, run 2 is the original's, run 3 the rewritten model's."""

    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain()

        def forward(self, x: Tensor) -> Tensor:
            runs.append(None)
            if len(runs) == after:
                raise KeyboardInterrupt
            return self.net(x)

    runs: list[None] = []
    model = Interrupted()
    before = outline(model)
    with pytest.raises(KeyboardInterrupt):
        ccrewrite.rewrite_(model, X, how="observe")
    assert outline(model) == before


class Breaks(nn.Module):
    """Some layers are looked at too closely."""

    def __init__(self, layers: int, *bad: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=2, dilation=2) for _ in range(layers))
        self.bad = bad

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x).tanh()
            if i in self.bad and type(layer) is not nn.Conv2d:
                x = x + 0.1
        return x


@pytest.mark.parametrize("bad", [(0,), (6,), (2, 3), (0, 3, 6), tuple(range(7))])
def test_failing_sites_are_put_back_one_by_one(bad: tuple[int, ...]) -> None:
    model = Breaks(7, *bad)
    result: Any = ccrewrite.rewrite(model, X)
    assert result.check.ok
    for i, site in enumerate(result.plan):
        assert site.decision.rewritten is (i not in bad)
        assert isinstance(result.model.layers[i], RewrittenConv) is (i not in bad)
        if i in bad:
            assert site.decision.code == "verification-failed"
            assert "output changed by" in site.decision.message
    assert "7 verification-failed" in result.plan.summary() or len(bad) < 7
    assert len(result.plan.rewritten) == 7 - len(bad)


def test_a_site_that_makes_the_model_raise_is_put_back() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.bad = nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            if len(list(self.bad.parameters())) != 2:
                raise ValueError("what have you done")
            return self.bad(self.good(x))

    result = ccrewrite.rewrite(Strict(), X)
    assert [s.decision.rewritten for s in result.plan] == [True, False]
    assert result.plan["bad"].decision.message == "the rewritten model raised ValueError: what have you done"
    assert result.check.ok


def test_sites_wrong_only_together_are_all_put_back() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            both = isinstance(self.a, RewrittenConv) and isinstance(self.b, RewrittenConv)
            return self.b(self.a(x)) * (2 if both else 1)

    model = Counts()
    result = ccrewrite.rewrite(model, X)
    assert not result.plan.rewritten
    assert {s.decision.message for s in result.plan} == {"right by itself, wrong together with the others"}
    assert not samplings(result.model)
    assert result.check.ok


def test_a_model_that_is_not_deterministic_keeps_its_layers_and_says_so() -> None:
    generator = torch.Generator()

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + torch.rand((), generator=generator)

    result = ccrewrite.rewrite_(Noisy(), X)
    assert isinstance(result.model.conv, RewrittenConv)
    assert not result.check.ok
    assert "not deterministic" in result.check.note
    assert "not deterministic" in str(result.check)


def test_randomness_from_the_usual_generators_is_the_same_in_both_runs() -> None:
    class Sampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, dilation=2)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.conv(x), training=True) + torch.rand(())

    result = ccrewrite.rewrite(Sampled(), X)
    assert result.check.ok
    assert result.check.max_abs_error == 0


@pytest.mark.parametrize("name", ["plain", "functional", "dictionary"])
def test_without_verification(name: str) -> None:
    model, inputs = build(name)
    result = ccrewrite.rewrite(model, inputs, verify=False)
    assert not result.check.ran
    assert str(result.check) == "not verified: verify=False"
    assert "not verified" in result.check._repr_html_()
    assert len(samplings(result.model)) == len(result.plan.rewritten)


def test_a_result_as_text_and_as_data() -> None:
    result = ccrewrite.rewrite(*build("dictionary"))
    assert (result.check.ok, result.check.max_abs_error, result.check.max_rel_error) == (True, 0.0, 0.0)
    paths = [o.path for o in result.check.outputs]
    assert paths == ["output['mask']", "output['features'][0]", "output['features'][1]"]
    assert [o.shape for o in result.check.outputs] == [(1, 2, 18, 18), (1, 4, 4, 4), ()]
    data = json.loads(result.to_json())
    assert data["check"]["ok"] is True
    assert data["check"]["outputs"][0]["path"] == "output['mask']"
    assert data["plan"]["sites"][0]["name"] == "down"
    assert "outputs are equal" in str(result)


# Weight and spectral norm, of both kinds.


def normed(kind: type[nn.Module], name: str) -> tuple[nn.Module, Tensor, Tensor]:
    model = kind().eval()
    x = torch.randn(2, 4, 21)
    expected = model(x).detach()
    result = ccrewrite.rewrite_(model, x)
    assert result.plan[name].decision.rewritten
    return model, x, expected


@pytest.mark.parametrize("name", ["weight_normed", "spectral", "up"])
def test_parametrizations_stay_and_can_be_removed_before_and_after_reverting(name: str) -> None:
    for revert_first in (True, False):
        model, x, expected = normed(Normed, name)
        layer = model.get_submodule(name)
        assert parametrize.is_parametrized(layer, "weight")
        assert isinstance(layer, RewrittenConv)
        close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(model(x), expected, **close)
        if revert_first:
            ccrewrite.revert(model)
            assert parametrize.is_parametrized(layer, "weight")
        parametrize.remove_parametrizations(layer, "weight")
        torch.testing.assert_close(model(x), expected, **close)
        if not revert_first:
            assert isinstance(layer, RewrittenConv)
            assert "sampling.shift" in dict(layer.named_parameters()) or "sampling.offset" in dict(layer.named_parameters())
            twin = copy.deepcopy(model)
            torch.testing.assert_close(twin(x), expected, **close)
            ccrewrite.revert(model)
        assert type(layer) in (nn.Conv1d, nn.ConvTranspose1d)
        assert isinstance(layer.weight, nn.Parameter)
        torch.testing.assert_close(model(x), expected, **close)


def test_a_parametrization_can_be_added_after_rewriting() -> None:
    for name in ("0", "3", "5"):
        model = plain().eval()
        expected = model(X).detach()
        rewritten = ccrewrite.rewrite(model, X).model
        layer = rewritten.get_submodule(name)
        torch.nn.utils.parametrizations.weight_norm(layer)
        torch.testing.assert_close(rewritten(X), expected, rtol=1e-5, atol=1e-5)
        ccrewrite.revert(rewritten)
        assert not isinstance(layer, RewrittenConv)
        assert parametrize.is_parametrized(layer, "weight")
        torch.testing.assert_close(rewritten(X), expected, rtol=1e-5, atol=1e-5)
        parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) is type(model.get_submodule(name))


class Host(nn.Module):
    """A module with a functional convolution, whose weight can be parametrized."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, dilation=2)


def weight_norm(module: nn.Module) -> None:
    torch.nn.utils.parametrizations.weight_norm(module, "kernel")


def remove(module: nn.Module) -> None:
    parametrize.remove_parametrizations(module, "kernel")


@pytest.mark.parametrize(
    "steps",
    [
        ("norm", "rewrite", "revert", "remove"),
        ("norm", "rewrite", "remove", "revert"),
        ("rewrite", "norm", "remove", "revert"),
        ("rewrite", "norm", "revert", "remove"),
        ("norm", "rewrite", "copy", "remove", "revert"),
    ],
)
def test_parametrized_hosts_of_functional_calls(steps: tuple[str, ...]) -> None:
    model: Any = nn.Sequential(Host())
    expected = model(X).detach()
    for step in steps:
        if step == "rewrite":
            ccrewrite.rewrite_(model, X)
        elif step == "copy":
            model = copy.deepcopy(model)
        else:
            {"norm": weight_norm, "remove": remove, "revert": ccrewrite.revert}[step](model[0])
        torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    assert type(model[0]) is Host
    assert list(model.state_dict()) == ["0.kernel"]


@pytest.mark.parametrize("name", ["weight_normed", "spectral"])
def test_old_norms_stay_and_can_be_removed_before_and_after_reverting(name: str) -> None:
    remove = {"weight_normed": nn.utils.remove_weight_norm, "spectral": nn.utils.remove_spectral_norm}[name]
    for revert_first in (True, False):
        model, x, expected = normed(OldNormed, name)
        layer = model.get_submodule(name)
        if revert_first:
            ccrewrite.revert(model)
        remove(layer)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        if not revert_first:
            ccrewrite.revert(model)
        assert type(layer) is nn.Conv1d
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_old_norms_after_a_forward_with_gradients() -> None:
    """Their weight is then a tensor with a history, which can't be deep-copied as it is."""
    model, x = build("old_normed")
    model(x).sum().backward()
    result: Any = ccrewrite.rewrite(model, x)
    assert result.check.ok
    result.model(x).sum().backward()
    assert all(p.grad is not None for p in result.model.weight_normed.parameters())


def test_training_through_a_parametrization_moves_its_originals() -> None:
    model, x = build("normed")
    rewritten = ccrewrite.rewrite(model, x).model
    rewritten(x).square().sum().backward()
    gradients = {n: p.grad for n, p in rewritten.named_parameters() if "parametrizations" in n}
    assert gradients
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients.values())


# Graph modules and exported programs.


@pytest.mark.parametrize("name", ["plain", "functional", "subclasses", "reused"])
def test_graph_modules(name: str) -> None:
    model, inputs = build(name)
    graph = fx.symbolic_trace(model.eval())
    code, before = graph.code, outline(graph)
    result: Any = ccrewrite.rewrite(graph, inputs)
    assert result.plan.how == "graph"
    assert (graph.code, outline(graph)) == (code, before)
    assert result.check.ok
    assert len(samplings(result.model)) == len(result.plan.rewritten) > 0
    torch.testing.assert_close(result.model(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    result.model.graph.lint()
    ccrewrite.revert(result.model)
    result.model.graph.lint()
    assert [n.target for n in result.model.graph.nodes] == [n.target for n in graph.graph.nodes]
    torch.testing.assert_close(result.model(inputs), model(inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["plain", "functional", "subclasses", "normed", "volumes"])
@pytest.mark.parametrize("form", ["exported", "module"])
def test_exported_programs(name: str, form: str) -> None:
    model, inputs = build(name)
    exported = torch.export.export(model.eval(), (inputs,))
    result = ccrewrite.rewrite(exported if form == "exported" else exported.module(), inputs)
    # A graph doesn't know its modules any more: calls that look the same, of computed weights, are one site of two calls.
    wanted = [s.geometry.describe() for s in ccrewrite.plan(model, inputs).rewritten for _ in range(s.calls)]
    assert sorted(s.geometry.describe() for s in result.plan.rewritten for _ in range(s.calls)) == sorted(wanted)
    assert result.check.ok
    torch.testing.assert_close(result.model(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    result.model(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.any() for s in samplings(result.model).values() for p in s.movers())
    ccrewrite.revert(result.model)
    assert not samplings(result.model)
    torch.testing.assert_close(result.model(inputs), model(inputs), rtol=1e-6, atol=1e-6)


class Twins(nn.Module):
    """Calls of one geometry on two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(4, 4, 3, 3) / 6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.a, dilation=2), self.b, dilation=2)


@pytest.mark.parametrize("graph", [False, True])
def test_each_weight_has_its_own_geometry(graph: bool) -> None:
    model = fx.symbolic_trace(Twins()) if graph else Twins()
    rewritten = ccrewrite.rewrite(model, X).model
    assert len(samplings(rewritten)) == 2
    only: Any = ccrewrite.rewrite(model, X, include="b").model
    (sampling,) = samplings(only).values()
    with torch.no_grad():
        sampling.offset.add_(0.3)  # type: ignore[operator]
        moved = F.conv2d(X, only.a, dilation=2)
        torch.testing.assert_close(only(X), F.conv2d(moved, sampling.kernel(only.b)))


def test_a_graph_module_copied_and_pickled_after_rewriting(tmp_path: Any) -> None:
    model, inputs = build("functional")
    rewritten = ccrewrite.rewrite(fx.symbolic_trace(model.eval()), inputs).model
    with torch.no_grad():
        for s in samplings(rewritten).values():
            for p in s.movers():
                p += 0.1 * torch.randn_like(p)
        expected = rewritten(inputs)
        torch.testing.assert_close(copy.deepcopy(rewritten)(inputs), expected, rtol=0, atol=0)
        torch.save(rewritten, tmp_path / "graph.pt")
        torch.testing.assert_close(torch.load(tmp_path / "graph.pt", weights_only=False)(inputs), expected, rtol=0, atol=0)


def test_a_graph_module_inside_a_model() -> None:
    model, inputs = build("functional")
    outer = nn.Sequential(fx.symbolic_trace(model), nn.Conv1d(4, 4, 3, dilation=2)).eval()
    result = ccrewrite.rewrite(outer, inputs)
    assert result.check.ok
    assert len(result.plan.rewritten) == 4
    ccrewrite.revert(result.model)
    assert not samplings(result.model)


# Reverting what can't be.


def test_reverting_what_was_not_rewritten() -> None:
    with pytest.raises(InputError, match="nothing in this Sequential was rewritten"):
        ccrewrite.revert(plain())
    result = ccrewrite.rewrite(plain(), X)
    ccrewrite.revert(result.model)
    with pytest.raises(CcrewriteError, match="nothing in this Sequential was rewritten"):
        ccrewrite.revert(result.model)


def test_reverting_a_part() -> None:
    model: Any = ccrewrite.rewrite(nn.Sequential(plain(), plain()), X).model
    ccrewrite.revert(model[0])
    assert {n.split(".")[0] for n in samplings(model)} == {"1"}
    ccrewrite.revert(model[1][0])
    assert list(samplings(model)) == ["1.3.sampling", "1.5.sampling"]
    assert model[1](X).shape == (2, 4, 18, 18)


def test_rewriting_other_sites_later_in_the_same_host() -> None:
    model: Any
    model, inputs = build("functional")
    model.eval()
    expected = model(inputs)
    ccrewrite.rewrite_(model, inputs, include="1.kernel")
    ccrewrite.rewrite_(model, inputs, rules=[StridedToCC(), "transposed-to-cc"])
    assert list(model[1].ccrewrite) == ["conv1d", "conv_transpose1d", "conv1d_2"]
    torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-5)
    ccrewrite.revert(model)
    assert torch.equal(model(inputs), expected)


class Filtered(nn.Sequential):
    blur: Tensor

    """A container with a functional convolution of its own."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(2, 2, 1), nn.ReLU())
        self.register_buffer("blur", torch.rand(2, 1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.conv1d(x, self.blur, stride=2, groups=2))


def test_a_container_may_host_a_functional_call():
    result = ccrewrite.rewrite(Filtered(), torch.randn(1, 2, 9))
    assert result.plan["blur"].decision.rewritten
    assert result.check.ok


def test_what_is_done_to_all_linear_layers_leaves_the_geometry_alone():
    model: Any = nn.Sequential(nn.Conv1d(2, 2, 3, stride=2), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(1, 2, 9)
    rewritten = ccrewrite.rewrite(model, x).model
    for module in rewritten.modules():
        if isinstance(module, nn.Linear):
            nn.init.ones_(module.weight)
    nn.init.ones_(model[2].weight)
    assert ccrewrite.verify(model, rewritten, x).max_abs_error == 0


def test_a_result_is_taken_where_its_model_is_meant() -> None:
    result = ccrewrite.rewrite(plain(), X, include="0")
    again = ccrewrite.rewrite(result, X)
    assert [site.code for site in again][:2] == ["already-rewritten", "dilated-to-dcls"]
    assert ccrewrite.plan(result, X)["0"].code == "already-rewritten"
    assert ccrewrite.verify(plain(), result, X).ran
    assert ccrewrite.rewrite_(result, X).model is result.model
    assert ccrewrite.revert(result) is result.model
    assert not samplings(result.model)


def test_a_plan_where_a_model_is_meant_is_refused() -> None:
    planned = ccrewrite.plan(plain(), X)
    with pytest.raises(InputError, match=r"what revert changes back must be an nn\.Module, or a result .* found Plan"):
        ccrewrite.revert(planned)  # type: ignore[arg-type]


def test_a_result_has_the_habits_of_its_plan() -> None:
    result = ccrewrite.rewrite(plain(), X)
    assert list(result) == list(result.plan) == list(result.sites)
    assert len(result) == len(result.plan)
    assert result["0"] is result.plan["0"]
    assert (result["0"].code, result["0"].message) == (result["0"].decision.code, result["0"].decision.message)
    assert result.rows() == result.plan.rows()
    assert result.summary() == result.plan.summary()
    assert str(result) == f"{result.plan}\n{result.check}"
    data = json.loads(result.to_json())
    assert data["plan"] == json.loads(result.plan.to_json())
    assert data["check"]["ok"] is True
    page = result._repr_html_()
    assert page.startswith(result.plan._repr_html_())
    assert "outputs are equal" in page
