"""What a family is made of is checked, and what its samplings leave out has answers that are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from stranger import VolumeSampling
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.families import ConvGeometry, Family, Rule, Site, hat, register_family


@dataclass(frozen=True)
class Nameless(Rule):
    def takes(self, site: Site) -> bool:
        return True

    def sampling(self, site: Site, **factory: Any) -> ccrewrite.Sampling:
        return VolumeSampling.of(site.geometry, **factory)


@dataclass(frozen=True)
class ToFilters(Nameless):
    name = "to-filters"

    def sampling(self, site: Site, **factory: Any) -> ccrewrite.Sampling:
        return FilterSampling.of(site.geometry, **factory)


class FilterSampling(VolumeSampling):
    """A gain for each filter, which says nothing of ``sets`` and takes a weight of the geometry's channels alone."""

    def __init__(self, geometry: ConvGeometry, **factory: Any) -> None:
        super().__init__(geometry, **factory)
        self.volume = nn.Parameter(torch.zeros(geometry.weight_channels[0], **factory))

    def kernel(self, weight: Tensor) -> Tensor:
        gain = self.volume.exp().view(-1, *(1,) * (weight.dim() - 1)).expand(weight.shape[0], *(1,) * (weight.dim() - 1))
        return self.on_grid(weight * gain)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"samplings": "VolumeSampling"}, "samplings must be classes of Samplings, found 'V'"),
        ({"samplings": (nn.Conv2d,)}, "samplings must be classes of Samplings, found <class 'torch.nn.modules.conv.Conv2d'>"),
        ({"rules": (ToFilters(),)}, "rules must be classes of Rules, found ToFilters"),
        ({"layers": 3}, "layers must be classes of ScratchConvs, found 3"),
        ({"rules": (Nameless,)}, "the rule Nameless needs a name, as a class attribute"),
    ],
)
def test_what_is_no_part_of_a_family_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=r"family 'mine': |the rule Nameless") as caught:
        Family(**{"name": "mine", "samplings": (), **given})
    assert said in str(caught.value)
    with pytest.raises(InputError, match="register_family takes a Family, found 'mine'"):
        register_family("mine")  # pyright: ignore[reportArgumentType]


def test_one_class_alone_and_lists_are_taken() -> None:
    family = Family("mine", samplings=VolumeSampling, rules=[ToFilters])  # pyright: ignore[reportArgumentType]
    assert (family.samplings, family.rules) == ((VolumeSampling,), (ToFilters,))


def test_a_rule_without_a_name_says_so() -> None:
    with pytest.raises(InputError, match="the rule Nameless needs a name, as a class attribute"):
        Nameless()


def test_a_rule_that_makes_no_sampling_is_named() -> None:
    class ToNothing(ToFilters):
        name = "to-nothing"

        def sampling(self, site: Site, **factory: Any) -> Any:
            return None

    with pytest.raises(InputError, match=r"\(root\): rule to-nothing's sampling must return a Sampling, found None"):
        ccrewrite.plan(nn.Conv1d(2, 2, 3), torch.zeros(1, 2, 9), rules=ToNothing())


@pytest.mark.parametrize("method", ["takes", "refuses", "sampling", "describe", "kernel"])
def test_what_a_rule_raises_names_it_and_the_site(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*arguments: Any, **named: Any) -> Any:
        raise IndexError("list index out of range")

    monkeypatch.setattr(FilterSampling if method == "kernel" else ToFilters, method, raising)
    model = nn.Sequential(nn.Conv1d(2, 2, 3, dilation=2))
    said = "^0: rule to-filters raised IndexError: list index out of range. Mend the rule, or leave the site out"
    with pytest.raises(InputError, match=said) as caught:
        ccrewrite.rewrite(model, torch.zeros(1, 2, 9), rules=ToFilters())
    assert isinstance(caught.value.__cause__, IndexError)


def test_a_negative_margin_is_refused() -> None:
    class Narrow(VolumeSampling):
        def __init__(self, geometry: ConvGeometry) -> None:
            ccrewrite.Sampling.__init__(self, geometry, margin=(0, -1))

    with pytest.raises(InputError, match=r"Narrow: margin must be at least 0, found \(0, -1\)"):
        Narrow(ConvGeometry.from_module(nn.Conv2d(2, 2, 3)))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, stride=2, dilation=3, groups=2),
        nn.Conv2d(2, 3, (4, 1), dilation=(2, 5)),
        nn.Conv3d(2, 2, 2, dilation=(1, 2, 3)),
        nn.ConvTranspose2d(4, 6, 3, stride=2, dilation=2, groups=2),
    ],
)
def test_taps_on_the_grid_are_the_plain_convolution(conv: Any) -> None:
    geometry = ConvGeometry.from_module(conv)
    for margin in (0, 2, (1, 3, 2)[: geometry.ndim]):
        sampling = VolumeSampling(geometry)
        sampling.margin = (margin,) * geometry.ndim if isinstance(margin, int) else margin
        kernel = sampling.on_grid(conv.weight)
        assert kernel.shape == (*conv.weight.shape[:2], *sampling.window)
        slices = (slice(m, n - m, d) for m, n, d in zip(sampling.margin, sampling.window, sampling.dilation, strict=True))
        assert torch.equal(kernel[(..., *slices)], conv.weight)
        assert int(kernel.count_nonzero()) == conv.weight.numel()


def test_a_kernel_of_another_shape_is_refused() -> None:
    class Short(VolumeSampling):
        def kernel(self, weight: Tensor) -> Tensor:
            return weight

    conv, x = nn.Conv1d(2, 3, 3, dilation=2), torch.randn(1, 2, 9)
    sampling = Short(ConvGeometry.from_module(conv))
    with pytest.raises(InputError, match=r"Short.kernel must return the shape \(3, 2, 5\), found \(3, 2, 3\)"):
        sampling(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Computed(nn.Module):
    """A convolution whose weight is computed in each call."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.weight, self.transposed = nn.Parameter(torch.randn(4, 3, 3)), transposed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.tanh()
        return F.conv_transpose1d(x, weight, groups=2) if self.transposed else F.conv1d(x, weight, groups=2)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("values", "sets"), [("own", 4), ("equal", 1)])
def test_folding_finds_out_which_channels_are_alike(transposed: bool, values: str, sets: int) -> None:
    model, x = Computed(transposed).eval(), torch.randn(1, 4 if transposed else 6, 9)
    result = ccrewrite.rewrite(model, x, rules=ToFilters())
    (sampling,) = (m for m in result.model.modules() if isinstance(m, FilterSampling))
    with torch.no_grad():
        sampling.volume.copy_(torch.randn(4) if values == "own" else torch.ones(4))
    folded = ccrewrite.fold(result, x)
    assert folded.check.ok
    torch.testing.assert_close(folded.model(x), result.model(x))
    (matrix,) = (buffer for name, buffer in folded.model.named_buffers() if name.endswith("matrix"))
    assert matrix.shape[1:3] == (sets, 1)


class PerSample(nn.Module):
    """Each sample has weights of its own, in a group of its own: there are as many filters as the batch says."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.weight, self.transposed = nn.Parameter(torch.randn(2, 2, 3)), transposed

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight * x.mean((1, 2)).exp()[:, None, None, None]).flatten(0, 1)
        convolve = F.conv_transpose1d if self.transposed else F.conv1d
        return convolve(x.flatten(0, 1)[None], weight, groups=len(x)).unflatten(1, (len(x), 2))[0]


class VolumeForAll(VolumeSampling):
    @property
    def sets(self) -> tuple[int, int]:
        return 1, 1


@dataclass(frozen=True)
class ToVolumes(Nameless):
    name = "to-volumes"

    def sampling(self, site: Site, **factory: Any) -> ccrewrite.Sampling:
        return VolumeForAll.of(site.geometry, **factory)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("samples", [1, 3, 4])
def test_only_a_geometry_that_all_channels_share_takes_weights_with_others(transposed: bool, samples: int) -> None:
    model, x, other = PerSample(transposed).eval(), torch.randn(2, 2, 9), torch.randn(samples, 2, 9)
    for rule in (ToFilters(), ToVolumes()):
        result = ccrewrite.rewrite(model, x, rules=rule)
        with torch.no_grad():
            for sampling in result.model.modules():
                if isinstance(sampling, VolumeSampling):
                    sampling.volume.copy_(torch.randn_like(sampling.volume))
        for moved in (result.model, ccrewrite.fold(result, x).model):
            assert moved(x).shape == model(x).shape
            if isinstance(rule, ToVolumes):
                torch.testing.assert_close(moved(other)[:1], moved(other[:1]))
            else:
                with pytest.raises(InputError, match=f"has geometry for 4 channels .* first .* weight has {2 * samples}"):
                    moved(other)


def test_on_a_sample_interpolation_leans_to_neither_side() -> None:
    distance = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    hat(distance).sum().backward()
    assert cast(Tensor, distance.grad).tolist() == [0.5, 0.0, -0.5]
