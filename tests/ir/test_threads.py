"""Threads that rewrite side by side, and threads that have nothing to do with it."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

import ccrewrite
from ccrewrite.ir.observe import module_stack
from ccrewrite.ir.threads import quiet

THREADS = 4


def network(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    dilated = nn.Conv2d(width, width, 3, dilation=2, padding=2)
    return nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU(), dilated, nn.AdaptiveAvgPool2d(2)).eval()


def picture() -> Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def side_by_side(work: Callable[[int], Any]) -> list[Any]:
    """``work(i)`` of each thread; threads are switched as often as can be."""
    interval, barrier = sys.getswitchinterval(), threading.Barrier(THREADS)
    sys.setswitchinterval(1e-5)

    def run(i: int) -> Any:
        barrier.wait()
        return work(i)

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(run, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)


def in_another_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def rewritten(model: nn.Module, scale: float, how: str) -> dict[str, Any]:
    result = ccrewrite.rewrite(model, picture(), how=cast(Any, how))
    return {"codes": [s.code for s in result], **result.model.state_dict()}


def resized(model: nn.Module, scale: float, how: str) -> dict[str, Any]:
    made = ccrewrite.rewrite(model, picture(), how=cast(Any, how)).model
    with ccrewrite.resized(made, {"0": scale}), torch.no_grad():
        return {"output": made(picture())}


def folded(model: nn.Module, scale: float, how: str) -> dict[str, Any]:
    made = ccrewrite.rewrite(model, picture(), how=cast(Any, how)).model
    torch.nn.init.constant_(cast(Tensor, cast(Any, made)[2].sampling.offset), 0.3)
    plain = ccrewrite.fold(made, picture())
    return {"codes": [s.code for s in plain], **plain.model.state_dict()}


@pytest.mark.parametrize("how", ["observe", "auto"])
@pytest.mark.parametrize("work", [rewritten, resized, folded])
def test_side_by_side_as_one_after_the_other(work: Callable[[nn.Module, float, str], dict[str, Any]], how: str) -> None:
    models, scales = [network(4 + i) for i in range(THREADS)], (0.5, 1.5, 0.75, 1.25)
    expected = [work(model, scale, how) for model, scale in zip(models, scales, strict=True)]
    call, streams, filters = nn.Module.__call__, (sys.stdout, sys.stderr), list(warnings.filters)
    for found, wanted in zip(side_by_side(lambda i: work(models[i], scales[i], how)), expected, strict=True):
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            assert torch.equal(value, wanted[name]) if isinstance(value, Tensor) else value == wanted[name], name
    assert nn.Module.__call__ is call
    assert (sys.stdout, sys.stderr) == streams
    assert list(warnings.filters) == filters


class Asking(nn.Module):
    """Runs ``meanwhile`` in another thread in the middle of its forward."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, dilation=2)
        self.meanwhile = meanwhile

    def forward(self, x: Tensor) -> Tensor:
        in_another_thread(self.meanwhile)
        return self.conv(x)


def test_a_bystander_sees_no_hooks() -> None:
    seen: list[int] = []
    registries = (module_hooks._global_forward_pre_hooks, module_hooks._global_forward_hooks)
    model = Asking(lambda: seen.append(sum(map(len, registries))))
    ccrewrite.rewrite(model.eval(), picture(), how="observe")
    assert set(seen) == {0}


def test_another_threads_run_of_the_same_model_is_not_followed() -> None:
    model, x = network(4), picture()
    paths: list[list[str]] = []
    model[1].register_forward_hook(lambda *_: in_another_thread(lambda: model[2](x.new_ones(1, 4, 8, 8))))
    model[2].register_forward_hook(lambda *_: paths.append([path for path, _ in stack]))
    with module_stack(model) as stack, torch.no_grad():
        model(x)
        assert stack == [("", model)]
    assert paths == [["", "", "1"], ["", "", "2"]]  # while the other thread runs "2", this one is in "1"


def test_what_another_thread_prints_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        sys.stdout.write("mine")
        sys.stderr.write("mine")
        in_another_thread(lambda: (sys.stdout.write("another's"), sys.stderr.write("another's")))
    sys.stdout.write(", after")
    assert capsys.readouterr() == ("another's, after", "another's")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_hooks_come_first_and_leave_no_trace_on_script_modules_either() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2), scripted).eval()
    handles = model[0].register_forward_pre_hook(lambda *_: order.append([p for p, _ in stack]))
    order: list[list[str]] = []
    with module_stack(model) as stack:
        model(picture())
    assert order == [["", "", "0"]], "the user's own hook runs inside the module"
    handles.remove()
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert not module._forward_hooks_always_called
    assert [s.code for s in ccrewrite.plan(model, picture(), how="observe")] == ["dilated-to-dcls"]


def test_the_stack_is_right_after_a_forward_that_raised() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3))
    with module_stack(model) as stack:
        with pytest.raises(RuntimeError, match="channels"):
            model(picture())
        assert stack == [("", model)]
