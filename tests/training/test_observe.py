"""What is recorded while geometry trains, and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from training_models import network, pictures, rewritten

from ccrewrite import FinetuneConfig, finetune
from ccrewrite.errors import InputError
from ccrewrite.nn import DclsConv1d, DclsConv3d
from ccrewrite.training import Recorder
from ccrewrite.training.pictures import animate, draw

BATCHES = [(pictures(6), torch.arange(6) % 3)]


def trained(tmp_path: Path | None = None, epochs: int = 4, every: int = 2) -> tuple[Any, Recorder]:
    model = rewritten(network())
    recorder = Recorder(model, every=every)
    config = FinetuneConfig(epochs=epochs, lr=1e-2)
    finetune(model, BATCHES, F.cross_entropy, config=config, schedules=[recorder], out=tmp_path, resume=tmp_path is not None)
    return model, recorder


def test_records_what_the_layers_have() -> None:
    model, recorder = trained()
    assert recorder.steps == [0, 2, 4]
    assert {name: found[0].kind for name, found in recorder.recordings.items()} == {
        "0": "profiles",
        "3": "positions",
        "4": "profiles",
    }
    sampling = model[3].sampling
    assert torch.equal(recorder.recordings["3"][-1].tensors[0], sampling.positions().detach())
    assert (recorder.recordings["3"][0].tensors[0].abs() - torch.tensor([2.0, 0.0, 2.0])).abs().min() == 0
    # The continuous kernel at whole samples is what the layer convolves with.
    vertical = recorder.recordings["0"][-1].tensors[0]
    assert vertical.shape == (3, 41)
    unit = torch.zeros(6, 1, 3, 3)
    unit[:, :, 1, 1] = 1
    kernel = model[0].sampling.kernel(unit)[0, 0]
    horizontal = recorder.recordings["0"][-1].tensors[1]
    assert torch.allclose(torch.outer(vertical[1, 4:37:8], horizontal[1, 4:37:8])[1:4, 1:4], kernel[2:5, 2:5], atol=1e-5)


def test_says_what_moved_and_what_never_had_a_gradient() -> None:
    model: Any = rewritten(network())
    model.append(DclsConv1d(1, 1, 3, dilation=2))
    model.forward = model[:9].forward
    recorder = Recorder(model)
    model(BATCHES[0][0]).sum().backward()
    recorder.step()
    assert [(m.site, m.kind, m.largest, m.graded) for m in recorder.movements()] == [
        ("0", "CC", 0.0, True),
        ("3", "DCLS", 0.0, True),
        ("4", "CC", 0.0, True),
        ("9", "DCLS", 0.0, False),
    ]
    with torch.no_grad():
        model[3].sampling.offset[:, 2, 0, 1, 1] = torch.tensor([0.3, -0.4])
        model[0].sampling.shift[1] = 0.25
    recorder.step()
    moved = {m.site: m.largest for m in recorder.movements()}
    assert moved["3"] == pytest.approx(0.5)
    assert moved["0"] > 0.1
    assert moved["4"] == moved["9"] == 0
    assert "never" in str(recorder).splitlines()[-1]


def test_goes_on_with_a_run(tmp_path: Path) -> None:
    _, recorder = trained(tmp_path)
    _, again = trained(tmp_path)
    assert again.steps == recorder.steps
    assert again.movements() == recorder.movements()


def test_pictures(tmp_path: Path) -> None:
    _, recorder = trained(epochs=2, every=1)
    figure = draw(recorder, tmp_path / "taps.png")
    assert [a.get_title() for a in figure.axes] == ["0, axis 0", "0, axis 1", "3", "4, axis 0", "4, axis 1"]
    taps = figure.axes[2]
    assert taps.get_ylim() == (2.5, -2.5)
    ways = [line for line in taps.lines if len(line.get_xdata()) == 3]  # pyright: ignore[reportArgumentType]
    assert len(ways) == 6 * 9
    assert len(figure.axes[0].lines) == 3 * 2 + 1
    with Image.open(tmp_path / "taps.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 50  # pyright: ignore[reportArgumentType]
    animate(recorder, tmp_path / "taps.gif", sites=["3"])
    with Image.open(tmp_path / "taps.gif") as picture:
        assert picture.n_frames == 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="no site 'head' was recorded; there are 0, 3, 4"):
        draw(recorder, sites=["head"])


@pytest.mark.parametrize("layer", [DclsConv1d(2, 2, 3, dilation=2), DclsConv3d(2, 2, 3, dilation=2, sharing="full")], ids=repr)
def test_other_dimensions_are_drawn(layer: nn.Module) -> None:
    recorder = Recorder(layer)
    recorder.step()
    assert draw(recorder).axes[0].get_title() == "(root)"


def test_nothing_to_record() -> None:
    with pytest.raises(InputError, match="no geometry to record"):
        Recorder(network())
    with pytest.raises(InputError, match="every must be"):
        Recorder(rewritten(network()), every=0)
