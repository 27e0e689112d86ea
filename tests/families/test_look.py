"""One look at all geometry in a forward: never a stale answer, and one value read at most."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import ccrewrite
from ccrewrite.nn import Sampling


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(4, 8, 3, stride=2, padding=1),
        nn.Conv1d(8, 8, 3, dilation=2, padding=2),
        nn.Conv1d(8, 8, 3, dilation=4, padding=4, groups=8),
        nn.ConvTranspose1d(8, 4, 4, stride=2, padding=1),
    ).eval()


@pytest.fixture
def rewritten() -> tuple[nn.Sequential, nn.Module, Tensor]:
    """The original, the rewritten model, an input."""
    original, x = network(), torch.randn(2, 4, 32)
    return original, ccrewrite.rewrite(original, x).model, x


def reads(run: Callable[[], object]) -> int:
    """Values that were read, each of which waits for a device."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key == "aten::_local_scalar_dense")


@torch.no_grad()
def fresh(model: nn.Sequential, x: Tensor) -> Tensor:
    """Layer by layer: each looks for itself."""
    for layer in model:
        x = layer(x)
    return x


@torch.no_grad()
def test_an_unmoved_model_reads_one_value(rewritten: Any) -> None:
    original, model, x = rewritten
    model(x)
    assert reads(lambda: model(x)) == 1
    assert torch.equal(model(x), original(x))
    model[1].sampling.offset.fill_(0.3)
    assert torch.equal(model(x), fresh(model, x))
    assert not torch.equal(model(x), original(x))


def changes() -> dict[str, Callable[[nn.Sequential, Tensor], nn.Module]]:
    def in_place(model: Any, x: Tensor) -> nn.Module:
        with torch.no_grad():
            model[2].sampling.offset.add_(0.2)
        return model

    def data(model: Any, x: Tensor) -> nn.Module:
        model[2].sampling.offset.data.add_(0.2)
        return model

    def storage(model: Any, x: Tensor) -> nn.Module:
        model[2].sampling.offset.detach().numpy()[...] = 0.2
        return model

    def optimizer(model: nn.Sequential, x: Tensor) -> nn.Module:
        model(x).square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        return model

    def state(model: nn.Sequential, x: Tensor) -> nn.Module:
        values = {k: v + 0.2 if "sampling" in k else v for k, v in model.state_dict().items()}
        model.load_state_dict(values)
        return model

    def assigned(model: nn.Sequential, x: Tensor) -> nn.Module:
        values = {k: v + 0.2 if "sampling" in k else v for k, v in model.state_dict().items()}
        model.load_state_dict(values, assign=True)
        return model

    def copied(model: nn.Sequential, x: Tensor) -> nn.Module:
        other = copy.deepcopy(model)
        return in_place(other, x)

    def pickled(model: nn.Sequential, x: Tensor) -> nn.Module:
        other: Any = pickle.loads(pickle.dumps(model))
        return in_place(other, x)

    def moved(model: nn.Sequential, x: Tensor) -> nn.Module:
        return in_place(model.double().float(), x)

    def replaced(model: Any, x: Tensor) -> nn.Module:
        model[2].sampling.offset = nn.Parameter(torch.full_like(model[2].sampling.offset, 0.2))
        return model

    return {f.__name__: f for f in (in_place, data, storage, optimizer, state, assigned, copied, pickled, moved, replaced)}


@pytest.mark.parametrize("how", changes())
def test_no_change_is_missed(how: str, rewritten: Any) -> None:
    model: Any
    original, model, x = rewritten
    with torch.no_grad():
        model(x)
    model = changes()[how](model, x)
    with torch.no_grad():
        out = model(x)
        assert torch.equal(out, fresh(model, x))
        assert not torch.equal(out, original(x))
        for module in model.modules():
            if isinstance(module, Sampling):
                for mover in module.movers():
                    mover.data.zero_()
        assert torch.equal(model(x), fresh(model, x))


@torch.no_grad()
def test_functional_call(rewritten: Any) -> None:
    original, model, x = rewritten
    values = {name: p + 0.2 if name == "1.sampling.offset" else p for name, p in model.named_parameters()}
    out = torch.func.functional_call(model, values, (x,))
    assert not torch.equal(out, original(x))
    assert torch.equal(model(x), original(x))
    with torch.no_grad():
        model[1].sampling.offset.add_(0.2)
    assert torch.equal(out, model(x))


@torch.no_grad()
def test_a_layer_by_itself_and_a_forward_that_raises(rewritten: Any) -> None:
    original, model, x = rewritten
    model(x)
    with pytest.raises(RuntimeError):
        model(x[:, :3])
    model[0].sampling.shift.data.fill_(0.2)
    assert not torch.equal(model[0](x), original[0](x)), "what the forward that raised had seen is forgotten"
    hidden = original[0](x)
    model[1].sampling.offset.data.fill_(0.2)
    assert not torch.equal(model[1](hidden), original[1](hidden))


@torch.no_grad()
def test_threads(rewritten: Any) -> None:
    """One thread's forward is stopped in the middle of a model while another moves and calls a layer of it."""
    original, model, x = rewritten
    inside, go_on = threading.Event(), threading.Event()

    def wait(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(20)

    model[0].register_forward_pre_hook(wait)
    thread = threading.Thread(target=lambda: model(x))
    thread.start()
    assert inside.wait(20)
    hidden = original[0](x)
    model[1].sampling.offset.data.fill_(0.2)
    changed = model[1](hidden)
    go_on.set()
    thread.join()
    assert not torch.equal(changed, original[1](hidden))


def test_hooks_come_and_go(rewritten: Any) -> None:
    original, model, x = rewritten
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == (1, 1)
    ccrewrite.revert(model)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert not model._forward_hooks_always_called
    assert not original._forward_hooks
    model = ccrewrite.rewrite_(model, x).model
    folded = ccrewrite.fold(model, x).model
    assert not folded._forward_hooks


def test_training_builds_the_kernels_and_reads_nothing(rewritten: Any) -> None:
    _, model, x = rewritten
    model(x)
    assert reads(lambda: model(x)) == 0
