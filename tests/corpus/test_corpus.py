"""The main job on real input: each corpus model through ``ccrewrite.rewrite`` in one call, and what must hold afterwards.

    .venv-corpus/bin/python -m pytest -m slow tests/corpus

Every model runs in evaluation mode (batch-norm statistics frozen, no dropout), so that runs compare; gradients reach all of
its parameters all the same.
"""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import ccrewrite
from ccrewrite.errors import SelectionError
from ccrewrite.ir.sites import Site

from .models import MODELS, build
from .observe import Observer, Seen, loss, relative_error, state, tensors
from .table import CALLS, HIDDEN, NOT_COMPILABLE, NOT_EXPORTABLE, REFUSED

pytestmark = [pytest.mark.slow]
LEARNABLE = ("dilated", "strided", "transposed")


@dataclass
class Case:
    """A model, its inputs, what it computed before anything else, and the result of rewriting it."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    output: Any
    before: dict[str, Any]
    result: Any
    after: dict[str, Any]

    @functools.cached_property
    def calls(self) -> list[Seen]:
        """The convolution calls of the original; each one's probe holds the gradient of its weight."""
        model = copy.deepcopy(self.model)
        with Observer(model) as observer:
            loss(model(*self.inputs)).backward()
        return observer.calls

    @property
    def reached(self) -> set[str]:
        """Paths of the modules that make a call which the loss reaches."""
        return {call.module for call in self.calls if _live(call.probe)}

    @property
    def added(self) -> dict[str, nn.Parameter]:
        """Parameters of the rewritten model that the original lacks."""
        known = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {name: p for name, p in self.result.model.named_parameters() if name not in known}


def case_of(name: str, dtype: torch.dtype, *, training: bool) -> Case:
    """``training``: the model is in training mode while it is rewritten."""
    model, inputs = build(name)
    model, inputs = model.to(dtype), tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
    with torch.no_grad():
        output = model(*inputs)
    model.train(training)
    before = state(model)
    result = ccrewrite.rewrite(model, inputs)
    case = Case(name, model, inputs, output, before, result, state(model))
    assert {m.training for m in result.model.modules()} == {training}
    model.eval()
    result.model.eval()
    return case


@pytest.fixture(scope="module", params=MODELS)
def single(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param, torch.float32, training=False)


@pytest.fixture(scope="module", params=MODELS)
def double(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param, torch.float64, training=True)


def test_the_table_covers_the_models() -> None:
    assert CALLS.keys() == MODELS.keys()
    assert (REFUSED | HIDDEN).keys() <= MODELS.keys()


def test_the_model_makes_the_calls_of_the_table(single: Case) -> None:
    kinds = Counter(call.kind for call in single.calls)
    assert (len(single.calls), *(kinds[k] for k in LEARNABLE)) == CALLS[single.name]


def test_the_outputs_depend_on_every_call(single: Case) -> None:
    hidden = [call for call in single.calls if not _live(call.probe)]
    assert len(hidden) == HIDDEN.get(single.name, 0)
    assert not {call.module for call in hidden} & single.reached, "a module with one call that matters and one that doesn't"


def test_every_call_has_an_answer(single: Case) -> None:
    counted, refused = Counter(), {}
    for site in single.result.plan.sites:
        geometry = site.geometry
        kind = "transposed" if geometry.transposed else next((k for k in LEARNABLE if k in site.kinds), "other")
        counted[kind] += site.calls
        if kind in LEARNABLE and site.calls and not site.decision.rewritten:
            refused[site.name] = site.decision.code
    assert (sum(counted.values()), *(counted[k] for k in LEARNABLE)) == CALLS[single.name]
    assert refused == REFUSED.get(single.name, {})


def test_rewritten_sites_and_only_they_have_new_parameters(single: Case) -> None:
    rewritten = [s for s in single.result.plan.sites if s.decision.rewritten]
    samplings = [m for m in single.result.model.modules() if isinstance(m, ccrewrite.nn.Sampling)]
    assert len(samplings) == len(rewritten)
    assert {id(p) for m in samplings for p in m.parameters()} == {id(p) for p in single.added.values()}


def test_outputs_in_float32(single: Case) -> None:
    assert single.result.check.ok
    with torch.no_grad():
        assert relative_error(single.result.model(*single.inputs), single.output) <= 1e-5
    assert relative_error(single.result.model(*single.inputs), single.output) <= 1e-5


def test_outputs_in_float64(double: Case) -> None:
    with torch.no_grad():
        assert relative_error(double.result.model(*double.inputs), double.output) <= 1e-12


def test_outputs_of_the_learnable_path_in_float64(double: Case) -> None:
    """With gradients wanted, every rewritten layer builds its kernel from its geometry."""
    error = relative_error(double.result.model(*double.inputs), double.output)
    print(f"learnable path, float64: {double.name} {error:.1e}")  # noqa: T201 (shown by pytest -rP)
    assert error <= 1e-10


def test_original_is_untouched(single: Case) -> None:
    assert single.after == single.before
    with torch.no_grad():
        assert relative_error(single.model(*single.inputs), single.output) == 0.0


def test_original_in_training_mode_is_untouched(double: Case) -> None:
    assert double.after == double.before
    with torch.no_grad():
        assert relative_error(double.model(*double.inputs), double.output) == 0.0


def test_original_checkpoint_loads(single: Case) -> None:
    model = copy.deepcopy(single.result.model)
    missing, unexpected = model.load_state_dict(single.model.state_dict(), strict=False)
    assert unexpected == []
    assert set(missing) == model.state_dict().keys() - single.model.state_dict().keys()
    assert {id(p) for p in model.state_dict(keep_vars=True).values()} >= {id(p) for p in model.parameters()}


def test_revert(single: Case) -> None:
    back = ccrewrite.revert(copy.deepcopy(single.result.model))
    original = single.model
    assert [(n, type(m).__qualname__) for n, m in back.named_modules()] == [
        (n, type(m).__qualname__) for n, m in original.named_modules()
    ]
    assert list(back.state_dict()) == list(original.state_dict())
    with torch.no_grad():
        assert relative_error(back(*single.inputs), single.output) == 0.0


def test_a_second_rewrite_finds_everything_done(single: Case) -> None:
    again = ccrewrite.plan(single.result.model, single.inputs, how="observe")
    done = [s for s in again.sites if s.decision.code == "already-rewritten"]
    # By geometry and calls: a functional site is now called by its sampling, and has the name of that.
    assert _summary(done) == _summary(single.result.plan.rewritten)
    assert _summary(again.sites) == _summary(single.result.plan.sites)
    with pytest.raises(SelectionError, match="already-rewritten"):
        ccrewrite.rewrite(single.result.model, single.inputs, how="observe")


def test_export_and_observation_find_the_same_sites(single: Case) -> None:
    plan = single.result.plan
    assert plan.how == ("observed" if single.name in NOT_EXPORTABLE else "export")
    assert ccrewrite.plan(single.model, single.inputs, how="observe").sites == plan.sites


def test_rewritten_model_exports(single: Case) -> None:
    if single.name in NOT_EXPORTABLE:
        with pytest.raises(GuardOnDataDependentSymNode):
            torch.export.export(single.result.model, single.inputs, strict=False)
        return
    with torch.no_grad():
        program = torch.export.export(single.result.model, single.inputs, strict=False)
        assert relative_error(program.module()(*single.inputs), single.output) <= 1e-5


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_rewritten_model_compiles_whole(single: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(single.result.model, backend="aot_eager", fullgraph=True)
    if single.name in NOT_COMPILABLE:
        with pytest.raises(TorchDynamoException):
            compiled(*single.inputs)
        return
    with torch.no_grad():
        assert relative_error(compiled(*single.inputs), single.output) <= 1e-5


def test_one_training_step(single: Case) -> None:
    """What starts at zero moves in the first step wherever the loss reaches; behind it, the rest does in the second."""
    model = copy.deepcopy(single.result.model)
    added = {name: p for name, p in model.named_parameters() if name in single.added}
    reached = {name for name in added if _owner(name) in single.reached}
    zeros = {name for name in reached if re.search(r"(offset|shift|last\.weight|last\.bias)$", name)}
    assert zeros == {name for name in reached if not bool(added[name].any())}
    sites = {call.module for call in single.calls if call.kind in LEARNABLE and call.module in single.reached}
    assert {_owner(name) for name in zeros} == sites

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss(model(*single.inputs)).backward()
    assert zeros <= (live := {n for n, p in added.items() if _live(p)}), sorted(zeros - live)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    largest = max(g.abs().max() for g in gradients)
    for gradient in gradients:
        gradient.mul_(1e-3 / largest)  # no parameter moves by more than 1e-3
    optimizer.step()
    optimizer.zero_grad()
    loss(model(*single.inputs)).backward()
    assert reached <= (live := {n for n, p in added.items() if _live(p)}), sorted(reached - live)


def test_moved_geometry_shows_whether_gradients_are_wanted_or_not(double: Case) -> None:
    model = copy.deepcopy(double.result.model)
    for name, p in model.named_parameters():
        if name in double.added:
            p.data.add_(1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype))
    moved = [t.detach() for t in tensors(model(*double.inputs)) if t.is_floating_point()]
    with torch.no_grad():
        plain = [t for t in tensors(model(*double.inputs)) if t.is_floating_point()]
    assert relative_error(plain, moved) <= 1e-12
    assert relative_error(plain, [t for t in tensors(double.output) if t.is_floating_point()]) > 1e-6


def _summary(sites: Iterable[Site]) -> Counter[Any]:
    return Counter((site.geometry, site.calls) for site in sites)


def _owner(added: str) -> str:
    """The module whose forward makes the call that an added parameter belongs to: a layer, or a functional call's host."""
    return re.split(r"\.sampling\.|\.ccrewrite\.", added)[0]


def _live(parameter: Tensor) -> bool:
    """Whether it has a gradient that is finite and not all zero."""
    gradient = parameter.grad
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
