"""Models of the Hugging Face hub's mixin, rewritten: saved, pushed and loaded, with a folder in the hub's place. Those of
transformers are in tests/corpus."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin
from moved import move_
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import WeightsWarning

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module, PyTorchModelHubMixin):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.context = nn.Conv2d(width, width, 3, dilation=2, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.context(self.down(x).tanh())


class WithGeometry(Net):
    """Whoever writes the class can have the geometry in the same commit."""

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        ccrewrite.save(self, save_directory, geometry_only=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is uploaded lands here, a folder for each repository."""
    folder = tmp_path / "hub"

    def upload(self: HfApi, *, repo_id: str, folder_path: str | Path, **_: Any) -> str:
        shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)
        return "a commit"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return folder


def model_of(kind: type[Net]) -> Any:
    torch.manual_seed(0)
    return move_(ccrewrite.rewrite(kind(width=5).eval(), X).model)


def test_saved_in_one_folder_and_loaded(tmp_path: Path) -> None:
    model = model_of(Net)
    model.save_pretrained(tmp_path)
    ccrewrite.save(model, tmp_path, geometry_only=True)
    again = ccrewrite.load(Net.from_pretrained(tmp_path), tmp_path)
    assert torch.equal(again(X), model(X))
    assert type(again).__name__ == "Net"


def test_pushed_and_the_geometry_uploaded_beside_it(hub: Path, tmp_path: Path) -> None:
    model = model_of(Net)
    assert model.push_to_hub("somebody/net") == "a commit"
    ccrewrite.save(model, tmp_path / "geometry", geometry_only=True)
    HfApi().upload_folder(repo_id="somebody/net", folder_path=tmp_path / "geometry")
    there = hub / "somebody" / "net"
    again = ccrewrite.load(Net.from_pretrained(there), there)
    assert torch.equal(again(X), model(X))


def test_pushed_in_one_commit_by_a_class_that_saves_its_geometry(hub: Path) -> None:
    model = model_of(WithGeometry)
    model.push_to_hub("somebody/net")
    there = hub / "somebody" / "net"
    assert {"config.json", "model.safetensors", "recipe.json", "weights.safetensors"} <= {f.name for f in there.iterdir()}
    again = ccrewrite.load(WithGeometry.from_pretrained(there), there)
    assert torch.equal(again(X), model(X))


def test_weights_of_another_commit_are_noticed(hub: Path) -> None:
    model = model_of(WithGeometry)
    model.push_to_hub("somebody/net")
    there = hub / "somebody" / "net"
    other = copy.deepcopy(model)
    nn.init.zeros_(other.context.weight)
    other.save_pretrained(there)
    model.save_pretrained(there.parent / "other")
    with pytest.warns(WeightsWarning, match=r"context\.weight"):
        ccrewrite.load(WithGeometry.from_pretrained(there), there.parent / "other")


def test_without_ccrewrite_the_folder_is_the_originals(hub: Path) -> None:
    model = model_of(Net)
    model.push_to_hub("somebody/net")
    plain = Net.from_pretrained(hub / "somebody" / "net")
    assert type(plain.context) is nn.Conv2d
    assert torch.equal(plain.context.weight, model.context.weight)
