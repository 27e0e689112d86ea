"""Fine-tuning with ``compile=True``: the same steps as eager ones, and a stopped run goes on to the same bits."""

from __future__ import annotations

from contextlib import ExitStack
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
from ccrewrite.errors import InputError
from ccrewrite.training.batches import Batches
from ccrewrite.training.compiled import compiled
from ccrewrite.training.loop import History

pytestmark = [  # Dynamo's and Inductor's own
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
DATA = TensorDataset(pictures(12), torch.arange(12) % 3)


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 3, 3, padding=2, dilation=2), nn.Dropout(0.2)
    return ccrewrite.rewrite(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), pictures()).model


def tuned(model: nn.Module, loss: Any = F.cross_entropy, **options: Any) -> History:
    run = {n: options.pop(n) for n in ("out", "resume") if n in options}
    return finetune(model, DataLoader(DATA, 4, shuffle=True), loss, config=FinetuneConfig(epochs=3, lr=1e-2, **options), **run)


@pytest.mark.slow
def test_goes_on_bitwise(tmp_path: Path) -> None:
    """Stopped in the second epoch. In the other run, the graphs are from the first one's cache."""
    calls = 0

    def breaking(outputs: Tensor, classes: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, classes)

    whole = small()
    expected = tuned(whole, out=tmp_path / "whole", compile=True)
    with pytest.raises(KeyboardInterrupt):
        tuned(small(), breaking, out=tmp_path / "parts", compile=True)
    torch._dynamo.reset()
    again = small()
    assert tuned(again, out=tmp_path / "parts", resume=True, compile=True) == expected
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


@pytest.mark.slow
def test_computes_what_eager_steps_do() -> None:
    eager, lowered = small(), small()
    for model in (eager, lowered):
        model[2].p = 0.0  # compiled code draws by a generator of its own
    torch.testing.assert_close(tuned(lowered, compile=True).losses, tuned(eager).losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(lowered.state_dict()), dict(eager.state_dict()), rtol=1e-3, atol=1e-4)
    assert lowered[1].sampling.form is None
    assert not lowered[1].sampling.opaque  # as it came


def test_not_under_fsdp() -> None:
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType.FSDP, device=torch.device("cpu"))
    with pytest.raises(InputError, match="under FSDP train with compile=False"):
        compiled(small(), Batches(DataLoader(DATA), "train_data", 0), accelerator, ExitStack())
