"""Samplings of somebody else's family: saved and loaded where it is registered, refused by name where it isn't."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from stranger import VolumeSampling
from torch import Tensor, fx, nn
from zoo import Functional, Standardised

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.families import family as registry
from ccrewrite.families.family import Family, register_family
from ccrewrite.families.rule import Rule
from ccrewrite.families.sampling import Sampling
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.sites import Site
from ccrewrite.passes.substitute import copied


class TiltedSampling(VolumeSampling):
    """With options, something that is set later, and a buffer that isn't saved."""

    attributes: ClassVar[tuple[str, ...]] = ("loud",)
    ramp: Tensor

    def __init__(
        self, geometry: ConvGeometry, *, slopes: tuple[float, ...] = (), dtype: torch.dtype | None = None, device: Any = None
    ) -> None:
        super().__init__(geometry, dtype=dtype, device=device)
        self.slopes, self.loud = tuple(slopes), False
        ramp = torch.arange(self.kernel_size[-1], dtype=dtype, device=device) * sum(slopes)
        self.register_buffer("ramp", ramp, persistent=False)

    def options(self) -> dict[str, Any]:
        return {"slopes": self.slopes}

    def kernel(self, weight: Tensor) -> Tensor:
        return super().kernel(weight * (1 + self.volume.sum() * self.ramp) * (2 if self.loud else 1))


class Untold(VolumeSampling):
    def __init__(
        self, geometry: ConvGeometry, *, secret: int = 1, dtype: torch.dtype | None = None, device: Any = None
    ) -> None:
        super().__init__(geometry, dtype=dtype, device=device)
        self.secret = secret


class Unwritable(VolumeSampling):
    def options(self) -> dict[str, Any]:
        return {"start": torch.ones(2)}


@dataclass(frozen=True)
class ToVolume(Rule):
    name = "to-volume"
    kind: ClassVar[type[VolumeSampling]] = VolumeSampling

    def takes(self, site: Site) -> bool:
        return not site.geometry.transposed

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        return self.kind.of(site.geometry, **factory)


@dataclass(frozen=True)
class ToTilted(ToVolume):
    name = "to-tilted"

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        return TiltedSampling.of(site.geometry, slopes=(0.25, 0.5), **factory)


VOLUME = Family("volume", samplings=(VolumeSampling, TiltedSampling, Untold, Unwritable), rules=(ToVolume, ToTilted))


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered in a test is forgotten after it."""
    registry.families()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def registered(unregistered: None) -> Family:
    return register_family(VOLUME)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), Functional(), Standardised1d(), fx.symbolic_trace(Functional()))


class Standardised1d(nn.Module):
    """A convolution with a forward of its own, two-dimensional, over a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Standardised(4, 4, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[..., None])[..., 0]


X = torch.randn(2, 4, 60, generator=torch.Generator().manual_seed(1))


def rewritten(rule: Rule) -> nn.Module:
    model = ccrewrite.rewrite(network(), X, rules=[rule]).model
    with torch.no_grad():
        for site in rewritten_sites(model).values():
            for mover in site.sampling.movers():
                mover.copy_(0.1 * torch.randn(mover.shape, generator=torch.Generator().manual_seed(2)))
    return model


@pytest.mark.parametrize("rule", [ToVolume(), ToTilted()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("geometry_only", [False, True])
def test_saved_and_loaded(rule: Rule, geometry_only: bool, registered: Family, tmp_path: Path) -> None:
    model = rewritten(rule)
    sites: Any = rewritten_sites(model)
    assert set(sites) == {"0", "1.kernel", "1:conv1d", "2.conv", "3.kernel", "3:conv1d"}
    if isinstance(rule, ToTilted):
        sites["1.kernel"].sampling.loud = True
    ccrewrite.save(model, tmp_path, geometry_only=geometry_only)
    fresh = network()
    assert ccrewrite.load(fresh, tmp_path) is fresh
    for name, site in rewritten_sites(fresh).items():
        assert type(site.sampling) is type(sites[name].sampling)
        assert {n: t.tolist() for n, t in site.sampling.named_buffers()} == {
            n: t.tolist() for n, t in sites[name].sampling.named_buffers()
        }
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(fresh(X), model(X))
    assert not torch.equal(fresh(X), network()(X))


def test_a_family_that_is_not_registered_is_refused(unregistered: None, tmp_path: Path) -> None:
    model = rewritten(ToVolume())
    known = r"found dcls \(DclsSampling\), cc \(CCSampling\)\. An installed package with an entry point of the group "
    with pytest.raises(InputError, match=f"0: its VolumeSampling belongs to no family that is registered, .*{known}"):
        ccrewrite.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    register_family(VOLUME)
    ccrewrite.save(model, tmp_path)
    del registry._registered["volume"]
    fresh = network()
    before = copied(fresh)
    with pytest.raises(InputError, match=f"0: no registered family has a VolumeSampling; {known}"):
        ccrewrite.load(fresh, tmp_path)
    assert not rewritten_sites(fresh)
    assert torch.equal(fresh(X), before(X))
    register_family(VOLUME)
    assert torch.equal(ccrewrite.load(fresh, tmp_path)(X), model(X))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Untold, "^0: Untold takes the options secret; to be saved, it must say theirs in options"),
        (Unwritable, "^0: save writes numbers, strings, None, and lists of those; found start=tensor"),
    ],
)
def test_options_that_can_not_be_written(
    kind: type[VolumeSampling], message: str, registered: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToVolume, "kind", kind)
    with pytest.raises(InputError, match=message):
        ccrewrite.save(rewritten(ToVolume()), tmp_path / "new")


def test_the_recipe_says_options_and_what_was_set(registered: Family, tmp_path: Path) -> None:
    model = rewritten(ToTilted())
    ccrewrite.save(model, tmp_path)
    saved = json.loads((tmp_path / "recipe.json").read_text())["samplings"][0]
    assert (saved["site"], saved["sampling"]) == ("0", "TiltedSampling")
    assert saved["options"] == {"slopes": [0.25, 0.5]}
    assert saved["attributes"] == {"loud": False}
