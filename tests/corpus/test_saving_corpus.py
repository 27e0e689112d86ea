"""Third-party models saved and loaded; Hugging Face's folders, as docs/saving.md says."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError

from .models import MODELS, build
from .observe import tensors
from .torchvision_shim import import_torchvision

pytestmark = [pytest.mark.slow]
TRANSFORMERS = [name for name in MODELS if name.startswith("hf_")]
NORMED_AFTERWARDS = {"hf_dac_weightnorm", "hf_univnet"}
"""Their users call ``apply_weight_norm`` on the model: transformers can't build them from a configuration alone."""


def rewritten(name: str) -> tuple[nn.Module, Any, tuple[Tensor, ...]]:
    """The original with weights that loading must replace, the rewritten model after some training, and inputs."""
    original, inputs = build(name)
    model = ccrewrite.rewrite(original, inputs, verify=False).model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.003 * torch.randn(parameter.shape, generator=generator))
    return original, model, inputs


def same(found: nn.Module, expected: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    a, b = found.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert [type(m).__name__ for m in found.modules()] == [type(m).__name__ for m in expected.modules()]
    found.eval()
    expected.eval()
    for wanted in (True, False):
        with torch.set_grad_enabled(wanted):
            torch.manual_seed(0)
            one = tensors(found(*inputs))
            torch.manual_seed(0)
            other = tensors(expected(*inputs))
        # Not bit by bit: weights read from a file may lie elsewhere in a cache line, and some processors' sums depend on that.
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6 * float(y.detach().abs().max()))


@pytest.mark.parametrize("geometry_only", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded(name: str, geometry_only: bool, tmp_path: Path) -> None:
    original, model, inputs = rewritten(name)
    ccrewrite.save(model, tmp_path, geometry_only=geometry_only)
    fresh = copy.deepcopy(original)
    if geometry_only:
        fresh.load_state_dict({n: t for n, t in model.state_dict().items() if n in fresh.state_dict()})
    same(ccrewrite.load(fresh, tmp_path), model, inputs)


@pytest.mark.parametrize("name", [n for n in TRANSFORMERS if n not in NORMED_AFTERWARDS])
def test_hugging_face_folder(name: str, tmp_path: Path) -> None:
    original, model, inputs = rewritten(name)
    kind: Any = type(original)
    model.save_pretrained(tmp_path)
    ccrewrite.save(model, tmp_path, geometry_only=True)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [kind.__name__]
    same(ccrewrite.load(kind.from_pretrained(tmp_path), tmp_path), model, inputs)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_hugging_face_configuration(name: str, tmp_path: Path) -> None:
    original, model, inputs = rewritten(name)
    kind: Any = type(original)
    model.config.save_pretrained(tmp_path)
    ccrewrite.save(model, tmp_path)
    fresh = kind(kind.config_class.from_pretrained(tmp_path))
    if name in NORMED_AFTERWARDS:
        with pytest.raises(InputError, match=r"parametrizations\.weight\.original0: expected .*, found nothing"):
            ccrewrite.load(fresh, tmp_path)
        fresh.apply_weight_norm()
    same(ccrewrite.load(fresh, tmp_path), model, inputs)


def test_hugging_face_and_sparse_layers(tmp_path: Path) -> None:
    """Their weights have another shape, which transformers refuses; ours is the whole state."""
    import_torchvision()
    from transformers import ConvNextConfig
    from transformers import ConvNextForImageClassification as Net

    original = Net(ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])).eval()
    x = torch.randn(1, 3, 64, 64)
    result: Any = ccrewrite.rewrite(original, x, rules=[ccrewrite.LargeToDcls(elements=5, steps=3), "strided-to-cc"])
    result.model.save_pretrained(tmp_path)
    ccrewrite.save(result, tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        Net.from_pretrained(tmp_path)
    same(ccrewrite.load(Net(Net.config_class.from_pretrained(tmp_path)), tmp_path), result.model, (x,))


def test_hugging_face_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder in the hub's place: what ``push_to_hub`` uploads, and the geometry uploaded beside it."""
    from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
    from huggingface_hub.errors import EntryNotFoundError

    hub = tmp_path / "hub"

    def commit(self: HfApi, repo_id: str, operations: list[CommitOperationAdd], **_: Any) -> str:
        for operation in operations:
            target = hub / repo_id / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                target.write_bytes(file.read())
        return "a commit"

    def no_card(*_: object, **__: object) -> None:
        raise EntryNotFoundError("there is none")

    monkeypatch.setattr(ModelCard, "load", no_card)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", commit)
    name = next(n for n in TRANSFORMERS if n not in NORMED_AFTERWARDS)
    original, model, inputs = rewritten(name)
    model.push_to_hub("somebody/net")
    ccrewrite.save(model, tmp_path / "geometry", geometry_only=True)
    there = hub / "somebody" / "net"
    shutil.copytree(tmp_path / "geometry", there, dirs_exist_ok=True)
    same(ccrewrite.load(type(original).from_pretrained(there), there), model, inputs)  # pyright: ignore[reportAttributeAccessIssue]
