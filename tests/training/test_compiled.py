"""Fine-tuning with ``compile``: the same steps as eager ones, and a stopped run goes on to the same bits."""

from __future__ import annotations

import json
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training_models import pictures

import ccrewrite
from ccrewrite import FinetuneConfig, finetune
from ccrewrite.errors import InputError, ModelRunError
from ccrewrite.families import alone
from ccrewrite.ir.progress import progress
from ccrewrite.lowering import sites
from ccrewrite.lowering.calls import SiteCall
from ccrewrite.training import compiled as compiled_module
from ccrewrite.training import gains
from ccrewrite.training.batches import Batches
from ccrewrite.training.compiled import compiled, with_compiled_sites
from ccrewrite.training.loop import History

pytestmark = [  # Dynamo's and Inductor's own
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
]
DATA = TensorDataset(pictures(12), torch.arange(12) % 3)


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 3, 3, padding=2, dilation=2), nn.Dropout(0.2)
    return ccrewrite.rewrite(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), pictures()).model


def strided() -> nn.Module:
    """Two CC layers."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 3, 3, stride=2, padding=1)
    return ccrewrite.rewrite(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), pictures()).model


def tuned(model: nn.Module, loss: Any = F.cross_entropy, **options: Any) -> History:
    run = {n: options.pop(n) for n in ("out", "resume") if n in options}
    return finetune(model, DataLoader(DATA, 4, shuffle=True), loss, config=FinetuneConfig(epochs=3, lr=1e-2, **options), **run)


@pytest.mark.slow
@pytest.mark.parametrize("compile", [True, "sites"])
def test_goes_on_bitwise(tmp_path: Path, compile: Any) -> None:
    """Stopped in the second epoch. In the other run, the graphs are from the first one's cache."""
    calls = 0

    def breaking(outputs: Tensor, classes: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, classes)

    whole = small()
    expected = tuned(whole, out=tmp_path / "whole", compile=compile)
    with pytest.raises(KeyboardInterrupt):
        tuned(small(), breaking, out=tmp_path / "parts", compile=compile)
    torch._dynamo.reset()
    again = small()
    assert tuned(again, out=tmp_path / "parts", resume=True, compile=compile) == expected
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("compile", [True, "sites"])
def test_computes_what_eager_steps_do(compile: Any) -> None:
    lowered: Any
    eager, lowered = small(), small()
    model: Any
    for model in (eager, lowered):
        model[2].p = 0.0  # compiled code draws by a generator of its own
    torch.testing.assert_close(tuned(lowered, compile=compile).losses, tuned(eager).losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(lowered.state_dict()), dict(eager.state_dict()), rtol=1e-3, atol=1e-4)
    assert lowered[1].sampling.form is None
    assert not lowered[1].sampling.opaque  # as it came
    assert not lowered[0].sampling.compiled_at


def test_not_under_fsdp() -> None:
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.FSDP, device=torch.device("cpu"))
    with pytest.raises(InputError, match="under FSDP train with compile=False"):
        compiled(small(), Batches(DataLoader(DATA), "train_data", 0), accelerator, ExitStack())
    with pytest.raises(InputError, match='compile="sites" runs on one process or under DDP'):
        with_compiled_sites(small(), Batches(DataLoader(DATA), "train_data", 0), accelerator, ExitStack(), must=True)


@pytest.fixture(autouse=True)
def _own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be compiled runs as it is."""
    monkeypatch.setattr(alone, "_of", lambda function, key, dynamic: function)


@pytest.fixture
def _long(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the run were long enough to gain."""
    monkeypatch.setattr(gains, "SHORT", 0)
    monkeypatch.setattr(gains, "COMPILING", 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What is measured: seconds of a step, eager and with compiled layers, and of any compiled layer but the first."""
    seconds = {"eager": 1.0, "sites": 0.5, "layer": 0.5}

    def alone_(site: SiteCall, form: str, *, training: bool) -> dict[str, float]:
        return {"eager": 1.0, form: seconds["layer"] if site.shapes.weight[1] > 1 else 1.5}

    def steps(*_: Any) -> dict[str, float]:
        return {name: seconds[name] for name in ("eager", "sites")}

    monkeypatch.setattr(sites, "measure_alone", alone_)
    monkeypatch.setattr(compiled_module, "step_seconds", steps)
    return seconds


@pytest.mark.usefixtures("_no_compiler", "_long")
def test_auto_compiles_layers_where_a_run_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: dict[str, float]
) -> None:
    expected = tuned(strided(), out=tmp_path / "run", compile="auto")
    assert expected.compile == "sites"
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (stored["config"]["compile"], stored["forms"]) == ("sites", {"0": "eager", "1": "separable"})
    assert tuned(strided(), compile="sites") == expected
    # A resumed run takes what it took, layer by layer, whatever would be taken now.
    monkeypatch.setattr(gains, "SHORT", 10**9)
    monkeypatch.setattr(sites, "measure_alone", lambda *_, **__: pytest.fail("a resumed run measures nothing"))
    monkeypatch.setattr(compiled_module, "step_seconds", lambda *_: pytest.fail("a resumed run measures nothing"))
    monkeypatch.setenv("CCREWRITE_CACHE", str(tmp_path / "nothing"))
    longer = tuned(strided(), out=tmp_path / "run", resume=True, compile="auto")
    assert longer == expected
    assert tuned(strided()).compile is False


@pytest.mark.usefixtures("_no_compiler", "_long")
@pytest.mark.parametrize("slower", ["sites", "layer"])
def test_auto_keeps_eager_code_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: dict[str, float], slower: str
) -> None:
    """A whole step, or every layer."""
    clock[slower] = 1.5
    with progress((said := []).append):
        history = tuned(strided(), out=tmp_path / "run")
    assert history.compile is False
    assert history == tuned(strided(), compile=False)
    if slower == "sites":
        assert "a step takes eager 1e+03 ms, sites 1.5e+03 ms: nothing is compiled" in [s.what for s in said]
    assert "forms" not in json.loads((tmp_path / "run" / "run.json").read_text())


@pytest.mark.usefixtures("_no_compiler", "clock")
def test_processes_take_what_the_main_one_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_main(found: list[Any]) -> None:
        found[:] = [{"0": "filtered", "1": "eager"}]

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", from_main)
    model: Any = strided()
    cpu = torch.device("cpu")
    one: Any = SimpleNamespace(distributed_type=DistributedType.NO, device=cpu, num_processes=1, autocast=nullcontext)
    data = Batches(DataLoader(DATA, 4), "train_data", 0)
    with ExitStack() as stack:
        assert with_compiled_sites(model, data, one, stack, must=False) == {"0": "eager", "1": "separable"}
        one.num_processes = 2
        assert with_compiled_sites(model, data, one, stack, must=False) == {"0": "filtered", "1": "eager"}
        assert (model[0].sampling.form, model[1].sampling.form) == ("filtered", None)
        assert (bool(model[0].sampling.compiled_at), bool(model[1].sampling.compiled_at)) == (True, False)
    assert not model[0].sampling.compiled_at


@pytest.mark.usefixtures("_long")
def test_auto_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(alone, "_of", failing)
    with pytest.warns(UserWarning, match="goes on without compiled layers .* no compiler") as said:
        history = tuned(small())
    assert len(said) == 1
    assert history.compile is False
    assert history == tuned(small(), compile=False)
    with pytest.raises(ModelRunError, match="no compiler"):
        tuned(small(), compile="sites")


def test_gains_are_weighed() -> None:
    """A depthwise layer of a real size in many steps; not in a few hundred."""
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.NO, device=torch.device("cpu"))
    x = torch.randn(1, 256, 2000)
    layer = ccrewrite.rewrite(nn.Conv1d(256, 256, 3, dilation=64, padding=64, groups=256), x).model
    train = Batches([(x, x)], "train_data", 0)
    assert gains.gains(layer, train, FinetuneConfig(epochs=100_000), accelerator)
    assert not gains.gains(layer, train, FinetuneConfig(epochs=300), accelerator)
    assert not gains.gains(small(), Batches(DataLoader(DATA, 4), "train_data", 0), FinetuneConfig(epochs=1000), accelerator)
