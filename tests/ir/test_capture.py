"""What a run calls, seen by export and by observation alike; and nothing of it left behind in the model."""

from __future__ import annotations

import copy
import random
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as module_hooks
from zoo import REFUSED_BY_EXPORT, ZOO, Functional, Reused, build, plain, run, signals

import ccrewrite
from ccrewrite.errors import ModelRunError
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.capture import Program, capture


def short(program: Program) -> list[tuple[str, str | None, str]]:
    return [(c.module, c.weight, c.geometry.describe()) for c in program.calls]


@pytest.mark.parametrize("name", sorted(ZOO.keys() - REFUSED_BY_EXPORT))
def test_export_and_observation_see_the_same(name: str) -> None:
    model, inputs = build(name)
    exported, observed = capture(model, inputs, how="export"), capture(model, inputs, how="observe")
    assert (exported.how, observed.how) == ("export", "observed")
    assert exported.calls == observed.calls
    assert exported.calls


def test_the_calls_of_each_model() -> None:
    expected = {
        "functional": [
            ("0", "0.weight", "4->4 k3"),
            ("1", "1.kernel", "4->4 k3 p2 d2"),
            ("1", "1.blur", "4->4 k4 s2 g4"),
            ("1", None, "4->4 k3 s3"),
        ],
        "reused": [
            ("conv", "conv.weight", "4->4 k3 p2 d2"),
            ("conv", "conv.weight", "4->4 k3 p2 d2"),
            ("stages.0", "stages.0.weight", "4->4 k3 s2"),
            ("conv", "conv.weight", "4->4 k3 p2 d2"),
        ],
        "tied": [("a", "a.weight", "4->4 k3 p2 d2"), ("b", "a.weight", "4->4 k3 p3 d3")],
        "normed": [
            ("weight_normed", None, "4->4 k3 p2 d2"),
            ("spectral", None, "4->4 k3 s2"),
            ("up", None, "4->4 k4 s2"),
        ],
        "causal": [("0", "0.weight", "4->4 k3"), ("1", "1.weight", "4->4 k3 d2"), ("2", "2.weight", "4->4 k2 d4")],
        "one_layer": [("", "weight", "4->4 k5 d2")],
    }
    for name, calls in expected.items():
        assert short(capture(*build(name))) == calls, name


def test_shapes_dtypes_devices() -> None:
    model, inputs = build("dictionary", torch.float64)
    down, up = capture(model, inputs).calls
    assert (down.input_shape, down.output_shape) == ((1, 3, 18, 18), (1, 4, 4, 4))
    assert (up.input_shape, up.output_shape, up.geometry.output_padding) == ((1, 4, 4, 4), (1, 2, 18, 18), (2, 2))
    assert {(c.dtype, c.device.type) for c in (down, up)} == {(torch.float64, "cpu")}


def test_what_export_refuses_is_observed_and_the_note_says_why() -> None:
    model, inputs = build("reads_values")
    program = capture(model, inputs)
    assert (program.how, short(program)) == ("observed", [("conv", "conv.weight", "4->4 k3 d2")])
    assert program.note
    assert program.graph is None
    with pytest.raises(Exception, match="data-dependent"):
        capture(model, inputs, how="export")


class Messy(nn.Module):
    """Writes to all that a module has to write to, and draws from all that it has to draw from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, stride=2)
        self.norm = nn.BatchNorm1d(4, momentum=0.5)
        self.register_buffer("counter", torch.zeros(()))
        self.register_buffer("late", None)
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.cache: list[Tensor] = []
        self.seen: dict[str, int] = {"calls": 0}
        self.names = {"a"}
        self.last: Any = None
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()  # as some models do, whatever they are asked
        x = self.norm(self.conv(x))
        self.counter += 1
        cast(Tensor, self.scratch).mul_(2)[0] = 7
        self.late = x.mean()
        self.last = x
        self.cache.append(x)
        self.seen["calls"] += 1
        self.names.add("b")
        self.steps += 1
        self.extra = x
        self.conv.weight.data.mul_(0.5)
        with torch.no_grad():
            nn.init.zeros_(cast(Tensor, self.conv.bias))
        x = x + torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002
        return x.mul_(1)


class MessyAndRefused(Messy):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if out.sum() > -1e9 else -out


def everything(model: Any) -> dict[str, Any]:
    """What a run could have changed."""
    state = {f"{n}.{k}": v for n, m in model.named_modules() for k, v in vars(m).items()}
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "ids": {k: id(v) for k, v in model.state_dict(keep_vars=True).items()},
        "attributes": {k: copy.copy(v) for k, v in state.items() if not k.endswith(("_parameters", "_buffers", "_modules"))},
        "buffers": {n: None if b is None else (id(b), b.clone()) for n, b in model._buffers.items()},
        "grads": [p.grad for p in model.parameters()],
        "requires": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "versions": len(model._forward_hooks) + len(model._forward_pre_hooks),
    }


def assert_same(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def global_hooks() -> list[int]:
    names = (
        "_global_forward_pre_hooks",
        "_global_forward_hooks",
        "_global_backward_hooks",
        "_global_forward_hooks_always_called",
    )
    return [len(getattr(module_hooks, n)) for n in names]


@pytest.mark.parametrize("how", ["auto", "observe"])
@pytest.mark.parametrize("kind", [Messy, MessyAndRefused])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(kind: type[Messy], how: Any, training: bool) -> None:
    model, x = kind().train(training), signals()
    model.norm.eval()  # flags differ from module to module
    before, given, hooks = everything(model), x.clone(), global_hooks()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    draws = torch.rand(2), random.random(), float(np.random.rand())  # noqa: NPY002
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    capture(model, x, how=how)
    assert_same((torch.rand(2), random.random(), float(np.random.rand())), draws)  # noqa: NPY002
    assert_same(everything(model), before)
    assert torch.equal(x, given)
    assert global_hooks() == hooks
    assert torch.is_grad_enabled()


def test_a_model_that_raises_halfway_is_left_alone_too() -> None:
    class Raises(Messy):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise KeyError("no such scale")

    model = Raises()
    before, hooks = everything(model), global_hooks()
    with pytest.raises(
        ModelRunError, match=r"Raises raised KeyError on the example inputs \(\(2, 4, 21\)\): 'no such scale'"
    ) as raised:
        capture(model, signals())
    assert isinstance(raised.value.__cause__, KeyError)
    assert_same(everything(model), before)
    assert global_hooks() == hooks


def test_inputs_written_in_place_come_back() -> None:
    class Eats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.mul_(0))

    for how in ("auto", "observe"):
        x = signals()
        given = x.clone()
        capture(Eats(), x, how=how)
        assert torch.equal(x, given)


@pytest.mark.parametrize("first", [True, False])
def test_slices_of_one_storage_all_come_back(first: bool) -> None:
    class Sliced(nn.Module):
        low: Tensor
        high: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, stride=2)
            whole = torch.ones(8)
            self.register_buffer("low", whole[:4])
            self.register_buffer("high", whole[4:])

        def forward(self, x: Tensor) -> Tensor:
            (self.low if first else self.high).mul_(2)
            self.high.add_(1)
            return self.conv(x)

    model: Any = Sliced()
    capture(model, signals(), how="observe")
    assert torch.equal(torch.cat([model.low, model.high]), torch.ones(8))


def test_input_gradients_stay_away() -> None:
    x = signals().requires_grad_()
    model = nn.Conv1d(4, 4, 3, stride=2)
    for how in ("auto", "observe"):
        capture(model, x, how=how)
        assert x.grad is None
        assert model.weight.grad is None


def test_the_users_hooks_run_and_stay() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3, stride=2))
    seen: list[str] = []
    model[0].register_forward_hook(lambda m, a, out: seen.append("forward") or out * 2)
    model[0].register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    capture(model, signals(), how="observe")
    assert seen == ["forward"]
    model(signals().requires_grad_()).sum().backward()
    assert seen == ["forward", "forward", "backward"]


def test_batch_norm_in_training_mode_is_captured_in_evaluation_mode() -> None:
    """A batch of one sample has no variance: in training mode this model raises."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)).train()
    assert len(capture(model, torch.randn(1, 4, 9, 9)).calls) == 1
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("name", ["plain", "functional", "subclasses", "reused"])
def test_graph_modules_are_taken_as_they_are(name: str) -> None:
    model, inputs = build(name)
    graph = fx.symbolic_trace(model)
    program = capture(graph, inputs)
    assert program.how == "graph"
    assert program.graph is graph
    by_geometry = [g for _, _, g in short(program)]
    assert by_geometry == [g for _, _, g in short(capture(model, inputs))]


def test_graph_modules_of_aten_operators() -> None:
    model, inputs = build("functional")
    graph = torch.export.export(model.eval(), (inputs,)).module()
    assert [g for _, _, g in short(capture(graph, inputs))] == ["4->4 k3", "4->4 k3 p2 d2", "4->4 k4 s2 g4", "4->4 k3 s3"]


def test_modules_below_which_a_graph_module_sits() -> None:
    model = nn.Sequential(fx.symbolic_trace(plain()), nn.Conv2d(4, 4, 3, dilation=2))
    calls = capture(model, torch.randn(2, 4, 17, 17)).calls
    assert [c.module for c in calls] == ["0.0", "0.3", "0.4", "0.5", "1"]


@pytest.mark.parametrize("name", ["plain", "functional", "normed", "reused", "subclasses"])
@pytest.mark.parametrize("how", ["auto", "observe"])
def test_the_meta_device(name: str, how: Any) -> None:
    model, inputs = build(name)
    expected = short(capture(model, inputs))
    model.to("meta")
    program = capture(model, inputs.to("meta"), how=how)
    assert short(program) == expected
    assert {c.device.type for c in program.calls} == {"meta"}
    assert all(t.is_meta for t in model.state_dict().values())


@pytest.mark.parametrize("how", ["auto", "observe"])
def test_a_convolution_inside_another_modules_forward_belongs_to_the_caller(how: Any) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv1d(4, 4, 3)
            self.deep = nn.Sequential(nn.Sequential(Functional()))

        def forward(self, x: Tensor) -> Tensor:
            return self.deep(F.conv1d(x, self.inner.weight, stride=2, padding=9))

    calls = capture(Outer(), signals(), how=how).calls
    assert [(c.module, c.weight) for c in calls] == [
        ("", "inner.weight"),
        ("deep.0.0", "deep.0.0.kernel"),
        ("deep.0.0", "deep.0.0.blur"),
        ("deep.0.0", None),
    ]


def test_a_module_made_in_the_forward_is_seen_at_its_caller() -> None:
    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            conv = nn.Conv1d(4, 4, 3, dilation=2, bias=False)
            conv.weight = self.kernel
            return conv(x)

    (call,) = capture(Makes(), signals(), how="observe").calls
    assert (call.module, call.weight) == ("", "kernel")


def test_fused_and_nested_calls_are_counted_once() -> None:
    for how in ("export", "observe"):
        model, x = Reused(), torch.randn(1, 4, 17, 17)
        assert len(capture(model, x, how=how).calls) == 4


def test_a_capture_draws_nothing_from_a_model_that_runs_under_grad() -> None:
    with torch.no_grad():
        capture(*build("plain"))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert len(capture(*build("plain")).calls) == 4


def test_an_exports_graph_knows_the_calls_nodes() -> None:
    program = capture(*build("plain"))
    assert program.graph is not None
    nodes = {n.name for n in program.graph.graph.nodes}
    assert {c.node for c in program.calls} <= nodes


def test_samplings_are_modules_like_others() -> None:
    model, inputs = build("plain")
    rewritten = ccrewrite.rewrite(model, inputs).model
    for how in ("export", "observe"):
        calls = capture(rewritten, inputs, how=how).calls
        modules = [rewritten.get_submodule(c.module) for c in calls]
        assert [isinstance(m, Sampling) for m in modules] == [True, True, False, True]
    run(rewritten, inputs)
