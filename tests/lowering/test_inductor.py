"""The expansion of the operators into their code, without Inductor's compiler."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomInferenceAwareGraphPass
from torch.fx.experimental.proxy_tensor import make_fx

from ccrewrite.errors import InputError
from ccrewrite.families.dcls.forms.operators import FORMS, dcls_conv
from ccrewrite.families.regions import REGIONS, Region
from ccrewrite.lowering import inductor
from ccrewrite.lowering.times import cache_key


def inputs(form: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 9, 10, generator=generator)
    weight = torch.randn(4, 1 if form == "taps" else 4, 5, generator=generator)
    return [x, weight, torch.rand(2, 1, 5, generator=generator) * 4]


def traced(form: str) -> tuple[Any, torch.fx.GraphModule]:
    def gradients(x: Tensor, weight: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        out = dcls_conv(x, weight, positions, form, (5, 5), [(2, 2), (2, 2)])
        return out, *torch.autograd.grad(out.square().sum(), (x, weight, positions))

    example = [t.requires_grad_() for t in inputs(form)]
    return gradients, make_fx(gradients, tracing_mode="fake")(*example)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_expanded_graphs_compute_the_same(form: str):
    eager, graph = traced(form)
    assert inductor.expand_(graph.graph) == 2
    graph.recompile()
    assert not any("ccrewrite" in str(n.target) for n in graph.graph.nodes)
    given = [t.requires_grad_() for t in inputs(form)]
    for found, expected in zip(graph(*given), eager(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_graphs_without_our_operators_are_left_alone():
    graph = make_fx(lambda x: x + 1)(torch.ones(2))
    before = str(graph.graph)
    assert inductor.expand_(graph.graph) == 0
    assert str(graph.graph) == before


def test_the_pass_has_an_identity_for_inductors_cache():
    (name,) = inductor.options()
    assert name == "post_grad_custom_pre_pass"
    expansion = inductor.options()[name]
    assert expansion.uuid() == inductor.options()[name].uuid() == inductor.code_hash()


def test_without_the_hook_there_are_no_options(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inductor, "CustomGraphPass", None)
    assert inductor.options() == {}


class Named(CustomGraphPass):
    """Somebody's own pass."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.seen.append(self.name)
        assert not any("ccrewrite" in str(n.target) for n in graph.nodes), "ours are expanded before"

    def uuid(self) -> object:
        return self.name


class Aware(CustomInferenceAwareGraphPass):
    """One that is told whether it is for inference."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __call__(self, graph: torch.fx.Graph, is_inference: bool) -> None:
        self.seen.append(f"inference {is_inference}")

    def uuid(self) -> object:
        return "aware"


def test_passes_of_others_run_after_ours():
    seen: list[str] = []
    _, traced_graph = traced("products")
    with config.patch(post_grad_custom_pre_pass=Named("from the configuration", seen)):
        expansion = inductor.options({"max_autotune": True})["post_grad_custom_pre_pass"]
    expansion(traced_graph.graph, is_inference=False)
    assert seen == ["from the configuration"]
    assert expansion.uuid() == (inductor.code_hash(), "from the configuration")
    asked = inductor.options({"post_grad_custom_pre_pass": [Named("asked for", seen), Aware(seen)]})
    asked["post_grad_custom_pre_pass"](traced_graph.graph, is_inference=True)
    assert seen[1:] == ["asked for", "inference True"]
    plain = inductor.options({"post_grad_custom_pre_pass": lambda graph: seen.append("a function")})
    plain["post_grad_custom_pre_pass"](traced_graph.graph, is_inference=True)
    assert seen[3:] == ["a function"]
    assert plain["post_grad_custom_pre_pass"].uuid() is None, "a function has no identity: nothing may be cached"


def test_options_of_a_mode():
    options = inductor.options({"coordinate_descent_tuning": False}, "max-autotune-no-cudagraphs")
    assert {k: options[k] for k in ("max_autotune", "coordinate_descent_tuning")} == {
        "max_autotune": True,
        "coordinate_descent_tuning": False,
    }
    with pytest.raises(InputError, match=r"torch.compile's modes: .*max-everything"):
        inductor.options(compile_mode="max-everything")


def test_calls_that_are_alike_share_one_subgraph():
    def chain(x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        for _ in range(3):
            x = dcls_conv(x, weight, positions, "products", (5, 5), [(2, 2), (2, 2)]).relu()
        return dcls_conv(x, weight[:2], positions, "products", (5, 5), [(2, 2), (2, 2)])

    graph = make_fx(chain, tracing_mode="fake")(*inputs("products"))
    assert inductor.expand_(graph.graph) == 4
    graph.recompile()
    assert [name for name, _ in graph.named_children()] == ["ccrewrite_form_0"]
    calls = [n for n in graph.graph.nodes if n.target is torch.ops.higher_order.invoke_subgraph]
    assert [call.args[:2] for call in calls] == [(call.args[0], "ccrewrite_form_0") for call in calls]
    assert len(calls) == 3
    assert not any("ccrewrite" in str(n.target) for n in graph.graph.nodes if n.op == "call_function")
    given = inputs("products")
    torch.testing.assert_close(graph(*given), chain(*given), rtol=1e-5, atol=1e-5)


def test_calls_of_open_sizes_share_nothing():
    def twice(x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
        for _ in range(2):
            x = dcls_conv(x, weight, positions, "shifts", (5, 5), [(2, 2), (2, 2)])
        return x

    graph = make_fx(twice, tracing_mode="symbolic")(*inputs("shifts"))
    assert inductor.expand_(graph.graph) == 2
    graph.recompile()
    assert not list(graph.named_children())
    given = inputs("shifts")
    torch.testing.assert_close(graph(*given), twice(*given), rtol=1e-5, atol=1e-5)


def test_the_hash_covers_the_code_that_others_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else Inductor would take what it compiled of a family's code before that was changed."""
    ours = inductor.code_hash()
    (tmp_path / "rotations").mkdir()
    file = tmp_path / "rotations" / "__init__.py"
    file.write_text("def code(tensors, constants, numbers): return tensors[0]\n")
    (tmp_path / "rotations" / "angles.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    code = importlib.import_module("rotations").code
    monkeypatch.setitem(REGIONS, "rotations", Region(code, code))
    with_theirs = inductor.code_hash()
    assert with_theirs not in (ours, None)
    (tmp_path / "rotations" / "angles.py").write_text("PI = 3\n")
    inductor._hash_of.cache_clear()  # as in the next process
    assert inductor.code_hash() not in (ours, with_theirs, None)
    monkeypatch.delitem(sys.modules, "rotations")


@pytest.mark.parametrize("kind", ["notebook", "partial"])
def test_code_without_a_file_is_never_cached(kind: str, monkeypatch: pytest.MonkeyPatch):
    def code(tensors: Any, constants: str, numbers: Any) -> Tensor:
        return tensors[0]

    monkeypatch.setitem(sys.modules, "notebook", types.ModuleType("notebook"))
    monkeypatch.setattr(code, "__module__", "notebook")
    monkeypatch.setitem(REGIONS, "mine", Region(code if kind == "notebook" else functools.partial(code), code))
    assert inductor.code_hash() is None
    assert cache_key(torch.device("cpu"), "training", "a layer") is None
    inductor._hash_of.cache_clear()
