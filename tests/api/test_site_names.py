"""A site has one name: in the plan, in what the passes give, in files, and where a name is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parallel import DataParallel
from zoo import Functional, Standardised

import ccrewrite
from ccrewrite import DilatedToDcls, StridedToCC, TransposedToCC
from ccrewrite.errors import InputError
from ccrewrite.families.resizable import ResizableSampling
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.typed import compiled
from ccrewrite.passes.scales.resize import resize_
from ccrewrite.passes.substitute import copied


class Mixed(nn.Module):
    """Computed weights: several geometries, some of them called twice, one of them plain."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)

    def forward(self, x: Tensor) -> Tensor:
        w = self.base.tanh()
        x = F.conv2d(x, w, padding=1)
        x = F.conv2d(x, w, padding=2, dilation=2) + F.conv2d(x, w * 2, padding=2, dilation=2)
        return F.conv2d(F.conv2d(x, w, padding=3, dilation=3), w, padding=1, stride=2)


class OneKernel(nn.Module):
    """One parameter, called ``weight``, at several dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return sum((F.conv2d(x, self.weight, padding=d, dilation=d) for d in (1, 2, 3)), torch.zeros(()))


class Outer(nn.Module):
    """Calls its children's weights, and its children call their own; a child called with a parameter of the parent's."""

    class Reads(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, padding=2, dilation=2)

    def __init__(self) -> None:
        super().__init__()
        self.inner = OneKernel()
        self.conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.unused = nn.Conv2d(4, 4, 3)
        self.reads = self.Reads()
        self.bank = nn.ParameterList([torch.randn(4, 4, 3, 3) / 6])

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.unused.weight, padding=4, dilation=4)
        x = self.reads(self.conv(self.inner(x)), self.bank[0])
        return F.conv2d(x, self.inner.weight, stride=2)


class Twice(nn.Module):
    """One host and one convolution, each registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Mixed()
        self.second = nn.ModuleDict({"again": self.first})
        self.a = self.b = nn.Conv2d(4, 4, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second["again"](self.b(self.first(self.a(x))))


def graph() -> nn.Module:
    return fx.symbolic_trace(nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2, padding=2), Functional()))


def pictures() -> Tensor:
    return torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(1))


def signals() -> Tensor:
    return torch.randn(2, 4, 21, generator=torch.Generator().manual_seed(1))


def layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2), Standardised(4, 4, 3, stride=2))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], set[str]]] = {
    "one layer": (lambda: nn.Conv2d(4, 4, 3, dilation=2), pictures, {"(root)"}),
    "layers": (layers, pictures, {"0", "1"}),
    "functional": (lambda: nn.Sequential(nn.Conv1d(4, 4, 3), Functional()), signals, {"1.kernel", "1.blur", "1:conv1d"}),
    "computed": (lambda: nn.Sequential(Mixed()), pictures, {"0:conv2d#2", "0:conv2d#3", "0:conv2d#4"}),
    "root": (Mixed, pictures, {":conv2d#2", ":conv2d#3", ":conv2d#4"}),
    "its own weight": (OneKernel, pictures, {"(root)#2", "(root)#3"}),
    "nested": (Outer, pictures, {"unused", "inner#2", "inner#3", "conv", "bank.0", "inner#4"}),
    "shared": (Twice, pictures, {"first:conv2d#2", "first:conv2d#3", "first:conv2d#4", "a"}),
    "a graph": (graph, signals, {"0", "1.kernel", "1.blur", ":conv1d"}),
    "a graph within": (lambda: nn.Sequential(graph()), signals, {"0.0", "0.1.kernel", "0.1.blur", "0:conv1d"}),
}
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda model: model,
    "data parallel": DataParallel,
    "compiled": lambda model: compiled(model, backend="eager"),
}


def built(name: str) -> tuple[nn.Module, Tensor, set[str]]:
    torch.manual_seed(0)
    make, inputs, names = MODELS[name]
    return make().eval(), inputs(), names


def moved(model: nn.Module) -> nn.Module:
    """Every site a little off its start, so that folding keeps none of them as it was."""
    with torch.no_grad():
        for site in rewritten_sites(model).values():
            for mover in site.sampling.movers():
                mover.fill_(0.25)
    return model


def resizable(model: nn.Module) -> set[str]:
    return {name for name, site in rewritten_sites(model).items() if isinstance(site.sampling, ResizableSampling)}


def names_by_source(original: nn.Module, model: nn.Module, x: Tensor, directory: Path) -> Iterator[tuple[str, set[str]]]:
    """Where names of rewritten sites come from -> those that are found there."""
    yield "plan", {site.name for site in ccrewrite.plan(original, x).rewritten}
    yield "a plan of the rewritten model", {s.name for s in ccrewrite.plan(model, x) if s.code == "already-rewritten"}
    yield "fold", {site.name for site in ccrewrite.fold(model, x)}
    for mode in ("training", "inference"):
        yield f"lower, {mode}", {site.name for site in ccrewrite.lower(model, x, mode=mode, measured=False, verify=False)}
    compared = ccrewrite.compare(original, model, x, quick=True, progress=False).data["sites"]
    yield "compare", {site["name"] for site in compared if site["variants"]["rewritten"]["sampling"] is not None}
    yield "Recorder", set(ccrewrite.training.Recorder(model).recordings)
    ccrewrite.save(model, directory / "saved")
    loaded = ccrewrite.load(copied(original), directory / "saved")
    yield "load", set(rewritten_sites(loaded))
    written = ccrewrite.export_onnx(model, directory / "model.onnx", x)
    yield "what export_onnx returns", {site.name for site in written}
    nodes = onnx.load(directory / "model.onnx").graph.node
    origins = [{p.key: p.value for p in node.metadata_props} for node in nodes]
    yield "the ONNX file", {origin["ccrewrite.module"] for origin in origins if "ccrewrite.from" in origin}
    recipe = json.loads((directory / "saved" / "recipe.json").read_text())
    yield "recipe.json", {saved["site"] for saved in recipe["samplings"]}


QUICK = ("layers", "functional", "nested", "a graph")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_one_name_everywhere(name: str, tmp_path: Path) -> None:
    original, x, expected = built(name)
    model = moved(ccrewrite.rewrite(original, x).model)
    found = dict(names_by_source(original, model, x, tmp_path))
    assert found == dict.fromkeys(found, expected)
    if resizable(model):
        groups = ccrewrite.scale_groups(model, x)
        assert {site for group in groups for site in group.sites} == resizable(model)


@pytest.mark.parametrize("name", MODELS)
def test_each_name_is_taken_wherever_one_is_asked_for(name: str) -> None:
    original, x, expected = built(name)
    result = ccrewrite.rewrite(original, x)
    model = moved(result.model)
    for site in expected:
        assert site in {s.name for s in ccrewrite.plan(original, x, include=site).rewritten}
        assert result[site].name == site
        assert ccrewrite.fold(model, x, include=site)[site].code != "not-selected"
        if len(expected) > 1:
            assert site not in {s.name for s in ccrewrite.plan(original, x, exclude=site).rewritten}
            assert ccrewrite.fold(model, x, exclude=site)[site].code == "not-selected"
        rules = [DilatedToDcls(include=(site,)), StridedToCC(include=(site,)), TransposedToCC(include=(site,))]
        assert site in {s.name for s in ccrewrite.plan(original, x, rules=rules).rewritten}
        rewritten = ccrewrite.rewrite(original, x, include=site).model
        assert site in rewritten_sites(rewritten)
    for site in resizable(model):
        resize_(resize_(model, {site: 1.0}, x), None)


@pytest.mark.parametrize(
    ("name", "backwards"), [("layers", False), ("functional", True), ("computed", False), ("nested", True)]
)
def test_sites_rewritten_one_after_the_other_keep_their_names(name: str, backwards: bool) -> None:
    model, x, expected = built(name)
    before = {s.name for s in ccrewrite.plan(model, x)}
    for site in sorted(expected, reverse=backwards):
        ccrewrite.rewrite_(model, x, include=site)
    assert set(rewritten_sites(model)) == expected
    assert {s.name for s in ccrewrite.plan(model, x)} == before


def test_aliases_are_taken_as_well() -> None:
    original, x, _ = built("shared")
    model = moved(ccrewrite.rewrite(original, x).model)
    for alias, site in (
        ("b", "a"),
        ("second.again:conv2d#3", "first:conv2d#3"),
        ("first.ccrewrite.conv2d_2", "first:conv2d#3"),
    ):
        assert ccrewrite.fold(model, x, include=alias)[site].code != "not-selected"
        if "ccrewrite" not in alias:
            assert ccrewrite.plan(original, x)[alias].name == site
            assert {s.name for s in ccrewrite.plan(original, x, include=alias).rewritten} == {site}
    resize_(model, {"second.again:conv2d#4": 1.0}, x)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_looked_through(wrapper: str, tmp_path: Path) -> None:
    wrap = WRAPPERS[wrapper]
    original, x, expected = built("functional")
    result = ccrewrite.rewrite(wrap(original), x)
    assert {site.name for site in result.plan.rewritten} == expected
    assert type(result.model) is type(original)
    model = moved(result.model)
    assert set(ccrewrite.plan(wrap(original), x, include="1.kernel").rewritten) <= set(result.plan.rewritten)
    assert {site.name for site in ccrewrite.fold(wrap(model), x)} == expected
    assert {site.name for site in ccrewrite.lower(wrap(model), x, mode="training", measured=False, verify=False)} == expected
    assert set(ccrewrite.training.Recorder(wrap(model)).recordings) == expected
    assert {site for group in ccrewrite.scale_groups(wrap(model), x) for site in group.sites} == resizable(model)
    ccrewrite.save(wrap(model), tmp_path / "saved")
    assert set(rewritten_sites(ccrewrite.load(copied(original), tmp_path / "saved"))) == expected


@pytest.mark.parametrize("wrapper", sorted(set(WRAPPERS) - {"bare"}))
def test_what_changes_a_model_in_place_wants_it_bare(wrapper: str, tmp_path: Path) -> None:
    original, x, _ = built("layers")
    model = ccrewrite.rewrite(original, x).model
    ccrewrite.save(model, tmp_path)
    wrapped = WRAPPERS[wrapper](original)
    for change in (
        lambda: ccrewrite.rewrite_(wrapped, x),
        lambda: ccrewrite.revert(WRAPPERS[wrapper](model)),
        lambda: ccrewrite.load(wrapped, tmp_path),
    ):
        with pytest.raises(InputError, match="give it the model inside, and wrap or compile that afterwards"):
            change()


def test_sizes_asked_of_a_wrapper_are_not_lost(tmp_path: Path) -> None:
    original, x, _ = built("layers")
    model = ccrewrite.rewrite(nn.Sequential(original, nn.AdaptiveAvgPool2d(2)), x).model
    wrapped = DataParallel(model)
    resize_(wrapped, {"0.1": 0.5}, x)
    with pytest.raises(InputError, match="was given internal sizes, which the model inside doesn't know"):
        ccrewrite.fold(wrapped, x)
    ccrewrite.save(wrapped, tmp_path)
    loaded = ccrewrite.load(nn.Sequential(original, nn.AdaptiveAvgPool2d(2)), tmp_path)
    assert torch.equal(loaded(x), wrapped(x))
