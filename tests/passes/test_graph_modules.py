"""Graph modules: copies keep what torch's copy leaves behind, and all graphs of one are rewritten."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from moved import move_
from torch import Tensor, fx, nn
from torch.fx.graph_module import _copy_attr

import ccrewrite
from ccrewrite.passes.fold import fold

X = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


class TwoGraphs(fx.GraphModule):
    """One for training, one for evaluation, as feature extractors have them; a copy starts out in training mode."""

    def __init__(self, root: nn.Module, train_graph: fx.Graph, eval_graph: fx.Graph) -> None:
        nn.Module.__init__(self)
        self.train_graph, self.eval_graph = train_graph, eval_graph
        for node in train_graph.nodes:
            if node.op in ("call_module", "get_attr"):
                _copy_attr(root, self, node.target)
        nn.Module.train(self)
        self.graph = train_graph
        self._tracer_cls = fx.Tracer

    def train(self, mode: bool = True) -> TwoGraphs:
        if mode != self.training:
            self.graph = self.train_graph if mode else self.eval_graph
        nn.Module.train(self, mode)
        return self

    def __deepcopy__(self, memo: Any) -> TwoGraphs:
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        root: Any = nn.Module()
        root.__dict__ = copy.deepcopy(self.__dict__, memo)
        TwoGraphs.__init__(result, root, root.train_graph, root.eval_graph)
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(F.conv2d(x, self.w, stride=2, padding=1)), 0.5, self.training)


def two_graphs() -> TwoGraphs:
    net = Net()
    return TwoGraphs(net, fx.symbolic_trace(net.train()).graph, fx.symbolic_trace(net.eval()).graph).eval()


def conv_nodes(graph: fx.Graph) -> list[bool]:
    """For each convolution of ``graph``: whether a sampling makes it."""
    calls = [n for n in graph.nodes if n.target is torch.conv2d or str(n.target).startswith("ccrewrite.")]
    return [n.op == "call_module" for n in calls]


@pytest.mark.parametrize("in_place", [False, True])
def test_every_graph_is_rewritten_and_reverted(in_place: bool) -> None:
    model = two_graphs()
    want = model(X)
    result = (ccrewrite.rewrite_ if in_place else ccrewrite.rewrite)(model, X)
    new: Any = result.model
    assert result.check.ok
    assert torch.equal(new(X), want)
    assert not any(m.training for m in new.modules())
    assert conv_nodes(new.eval_graph) == conv_nodes(new.train_graph) == [True]
    new.train()
    new(X).pow(2).sum().backward()
    assert all(p.grad is not None for p in new.parameters())
    folded: Any = fold(move_(new.eval()), X).model
    assert not folded.training
    torch.testing.assert_close(folded(X), new(X))
    ccrewrite.revert(new)
    assert conv_nodes(new.eval_graph) == conv_nodes(new.train_graph) == [False]


def test_flags_that_differ_between_parts_survive() -> None:
    model: Any = two_graphs()
    model.norm.train()
    new: Any = ccrewrite.rewrite(model, X).model
    assert (new.training, new.norm.training) == (False, True)
    model.train()
    model.norm.eval()
    new = ccrewrite.rewrite(model, X).model
    assert (new.training, new.norm.training) == (True, False)


@pytest.mark.parametrize("below", [False, True])
def test_hooks_and_attributes_survive(below: bool) -> None:
    fired: list[str] = []
    graph: Any = fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1)).eval())
    graph.register_forward_hook(lambda *_: fired.append("forward"))
    graph.register_forward_pre_hook(lambda m, a, k: fired.append("before"), with_kwargs=True)
    graph.register_full_backward_hook(lambda *_: fired.append("backward"))
    graph.register_state_dict_post_hook(lambda *_: fired.append("state"))
    graph.classes = ["cat"]
    model = nn.Sequential(graph) if below else graph
    new: Any = ccrewrite.rewrite(model, X).model
    fired.clear()
    new(X.clone().requires_grad_()).sum().backward()
    new.state_dict()
    assert fired == ["before", "forward", "backward", "state"]
    found = new[0] if below else new
    assert found.classes == ["cat"]
    assert found.classes is not graph.classes
