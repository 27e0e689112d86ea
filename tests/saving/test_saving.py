"""Saving and loading: bitwise, without example inputs, all or nothing."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_leaves
from zoo import ZOO, Functional, Normed, Tied, build, causal, plain, run

import ccrewrite
from ccrewrite import DilatedToDcls, LargeToDcls, StridedToCC, TransposedToCC
from ccrewrite.errors import InputError, SelectionError, WeightsWarning
from ccrewrite.families.adopt import HOSTED, adopt_, unhost_
from ccrewrite.families.dcls.sharing import share_positions
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.written import workplace
from ccrewrite.nn import CCConv2d, CCConvTranspose2d, CCSampling, DclsConv2d, DclsSampling, RewrittenConv, Sampling
from ccrewrite.passes.substitute import copied
from ccrewrite.saving.files import digest

X = torch.randn(2, 4, 17, 17, generator=torch.Generator().manual_seed(1))
RULES: dict[str, Any] = {
    "default": None,
    "options": [DilatedToDcls(sharing="out", reach=1), StridedToCC(basis="linear"), TransposedToCC(hidden=4)],
    "dcls alone": ["dilated-to-dcls"],
    "cc alone": ["strided-to-cc", "transposed-to-cc"],
}


def samplings(model: nn.Module) -> dict[str, Sampling]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Sampling)}


def trained(model: nn.Module) -> Any:
    """Every parameter and floating-point buffer moved a little, in place."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            if t.is_floating_point():
                t += (0.01 * torch.rand(t.shape, generator=generator)).to(t)
    return model


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    return [t.detach() for t in tree_leaves(run(model, inputs)) if isinstance(t, Tensor)]


def same(found: nn.Module, expected: nn.Module, inputs: Any) -> None:
    """State, structure and what is computed, with and without gradients, bit for bit."""
    a, b = found.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    assert all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
    kinds = [[(n, kind(m)) for n, m in model.named_modules(remove_duplicate=False)] for model in (found, expected)]
    assert kinds[0] == kinds[1]
    ours, theirs = samplings(found), samplings(expected)
    assert [plain_attributes(s) for s in ours.values()] == [plain_attributes(s) for s in theirs.values()]
    ties = [
        [[n for n, other in m.named_parameters(remove_duplicate=False) if other is p] for p in m.parameters()]
        for m in (found, expected)
    ]
    assert ties[0] == ties[1]
    modes = [model.training for model in (found, expected)]
    found.eval()
    expected.eval()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            pairs = zip(outputs(found, inputs), outputs(expected, inputs), strict=True)
            assert all(torch.equal(x, y) for x, y in pairs)
    found.train(modes[0])
    expected.train(modes[1])


def plain_attributes(sampling: Sampling) -> dict[str, Any]:
    """All but torch's own registries and how a lowered model evaluates it."""
    torchs = vars(nn.Module()).keys() | {"form"}
    return {n: v for n, v in vars(sampling).items() if n not in torchs}


def kind(module: nn.Module) -> Any:
    """Its class; of a parametrized module or a graph, whose class torch makes anew for each, what that is made of."""
    found = type(module)
    if isinstance(module, fx.GraphModule):
        return fx.GraphModule
    return (found.__name__, found.__bases__) if parametrize.is_parametrized(module) else found


def snapshot(model: nn.Module) -> list[Any]:
    """All that a failed load must leave as it was."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [
        [(n, type(m), m.training, sorted(vars(m)), len(m._forward_pre_hooks)) for n, m in model.named_modules()],
        [(n, id(t), t.requires_grad, t._version >= 0, t.detach().clone().tolist()) for n, t in named],
        [m.code for m in model.modules() if isinstance(m, fx.GraphModule)],
        [plain_attributes(s) for s in samplings(model).values()],
    ]


@functools.cache
def rewritten(name: str, rules: str = "default") -> tuple[nn.Module, Any]:
    model, inputs = build(name)
    return trained(ccrewrite.rewrite(model, inputs, rules=RULES[rules], verify=False).model), inputs


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str, tmp_path: Path) -> None:
    model, inputs = build(name, torch.float64 if "norm" in name else torch.float32)
    result = ccrewrite.rewrite(model, inputs)
    trained(result.model)
    ccrewrite.save(result, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.json", "weights.safetensors"]
    fresh = copied(model)
    assert ccrewrite.load(fresh, tmp_path) is fresh
    same(fresh, result.model, inputs)
    assert all(m.training for m in fresh.modules())
    ccrewrite.revert(fresh)
    assert list(fresh.state_dict()) == list(model.state_dict())


@settings(max_examples=40)
@given(
    name=st.sampled_from(list(ZOO)),
    rules=st.sampled_from(list(RULES)),
    back=st.integers(0, 7),
    geometry_only=st.booleans(),
    eval_mode=st.booleans(),
)
def test_any_part_of_a_rewritten_model(
    name: str, rules: str, back: int, geometry_only: bool, eval_mode: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the rules, with some sites put back, in full or onto an original that has the weights already."""
    try:
        model, inputs = rewritten(name, rules)
    except SelectionError:
        return  # these rules take nothing here
    model = copied(model).train(not eval_mode)
    for bit, undo in enumerate(undos(model)):
        if back >> bit & 1:
            undo()
    directory = tmp_path_factory.mktemp("saved")
    if not samplings(model):
        with pytest.raises(InputError, match=r"nothing in this .* is rewritten"):
            ccrewrite.save(model, directory)
        return
    ccrewrite.save(model, directory, geometry_only=geometry_only)
    fresh, _ = build(name)
    fresh.train(not eval_mode)
    if geometry_only:
        fresh.load_state_dict({n: t for n, t in model.state_dict().items() if n in fresh.state_dict()})
    same(ccrewrite.load(fresh, directory), model, inputs)


def undos(model: nn.Module) -> list[Callable[[], Any]]:
    """What puts each site of ``model`` back."""
    layers = [functools.partial(ccrewrite.revert, m) for m in model.modules() if isinstance(m, RewrittenConv)]
    hosts = [(m, key) for m in model.modules() for key in m._modules.get(HOSTED) or ()]  # pyright: ignore[reportGeneralTypeIssues]
    return layers + [functools.partial(unhost_, m, key) for m, key in hosts]


def test_in_a_fresh_process(tmp_path: Path) -> None:
    expected: dict[str, Tensor] = {}
    for name in ZOO:
        model, inputs = rewritten(name)
        ccrewrite.save(model, tmp_path / name)
        expected |= {f"{name}.{i}": t for i, t in enumerate(outputs(copied(model).eval(), inputs))}
    code = """
import sys, torch, ccrewrite
from safetensors.torch import save_file
from zoo import ZOO, build
from test_saving import outputs
torch.set_num_threads(1)
found = {}
for name in ZOO:
    model, inputs = build(name)
    for t in (*model.parameters(), *model.buffers()):
        t.data.zero_()
    model = ccrewrite.load(model, f"{sys.argv[1]}/{name}").eval()
    found |= {f"{name}.{i}": t.contiguous() for i, t in enumerate(outputs(model, inputs))}
save_file(found, f"{sys.argv[1]}/found.safetensors")
"""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here), str(here.parent / "helpers")))}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment, timeout=300)
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def large() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 9, padding=4, groups=4), nn.Conv2d(4, 6, 7, stride=2, bias=False), nn.Conv2d(6, 4, 3, dilation=2)
    )


@pytest.mark.parametrize("geometry_only", [False, True])
@pytest.mark.parametrize(
    "rule",
    [
        LargeToDcls(elements=3, steps=3, interpolation="linear"),
        LargeToDcls(budget=0.3, steps=3, window=11, include=("0",)),
        LargeToDcls(elements=5, steps=3, interpolation="triangle", sharing="full"),
    ],
)
def test_sparse_layers(rule: LargeToDcls, geometry_only: bool, tmp_path: Path) -> None:
    result = ccrewrite.rewrite(large(), X, rules=[rule, "dilated-to-dcls"])
    with torch.no_grad():
        s: Any
        for s in samplings(result.model).values():
            s.offset.add_(0.01)
    ccrewrite.save(result, tmp_path, geometry_only=geometry_only)
    assert ("2.weight" in load_file(tmp_path / "weights.safetensors")) is not geometry_only
    assert "0.weight" in load_file(tmp_path / "weights.safetensors")  # few taps now: the original can't give them
    same(ccrewrite.load(large(), tmp_path), result.model, X)


def scratch() -> Any:
    options: dict[str, Any] = {"elements": 5, "window": 7, "padding": "same", "groups": 4}
    return nn.Sequential(
        DclsConv2d(4, 4, interpolation="gaussian", **options),
        DclsConv2d(4, 4, interpolation="gaussian", **options),
        CCConv2d(4, 4, 3, stride=2, kernel="mlp", hidden=8),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        CCConvTranspose2d(4, 4, 4, stride=2, basis="linear", hidden=4),
    )


def test_layers_from_scratch_beside_rewritten_ones_and_shared_positions(tmp_path: Path) -> None:
    original = scratch()
    original[5].alignment = "centred"
    model = trained(ccrewrite.rewrite(original, X, verify=False).model)
    share_positions(model[0], model[1])
    share_positions(model[3], model[4])
    model[2].scale = 0.75
    model[2].sampling.rescaled = True
    ccrewrite.save(model, tmp_path)
    assert "4.sampling.offset" not in load_file(tmp_path / "weights.safetensors")
    torch.manual_seed(5)
    fresh = scratch()
    with pytest.raises(InputError, match=r"5: expected sampling .*'alignment': 'centred'.* found .*'native'"):
        ccrewrite.load(fresh, tmp_path)
    fresh[5].alignment = "centred"
    same(ccrewrite.load(fresh, tmp_path), model, X)
    assert fresh[0].sampling.offset is fresh[1].sampling.offset
    assert fresh[3].sampling.offset is fresh[4].sampling.offset


def test_onto_a_model_that_is_rewritten_already(tmp_path: Path) -> None:
    model, inputs = rewritten("plain")
    ccrewrite.save(model, tmp_path)
    again = ccrewrite.rewrite(plain(), inputs).model
    same(ccrewrite.load(again, tmp_path), model, inputs)
    other = ccrewrite.rewrite(plain(), inputs, rules=RULES["options"]).model
    refused(other, tmp_path, r"0: expected sampling .*'basis': 'cubic'.* found .*'linear'.*as it was before rewrite")
    ccrewrite.save(ccrewrite.rewrite(plain(), inputs, include="0").model, tmp_path)
    refused(again, tmp_path, "3, 5: rewritten in this model, but not in the one that was saved")


def test_sizes_that_were_set(tmp_path: Path) -> None:
    model, inputs = copied(rewritten("plain")[0]), X
    ccrewrite.resize_(model, {"0": (0.8, 1.2)})
    model.eval()(inputs)
    ccrewrite.save(model, tmp_path)
    again = ccrewrite.load(plain(), tmp_path)
    same(again, model, inputs)
    same(again, model, torch.randn(1, 4, 25, 20))
    assert ccrewrite.revert(again)(inputs).shape == plain()(inputs).shape
    one: Any = ccrewrite.rewrite(plain(), inputs).model
    one[0].sampling.output_size = (5, 6)
    one[5].sampling.scale = (0.5, 1.5)
    ccrewrite.save(one, tmp_path)
    same(ccrewrite.load(plain(), tmp_path), one, inputs)


def graph() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2), Functional()))


def test_graph_modules(tmp_path: Path) -> None:
    x = torch.randn(1, 4, 30)
    model = trained(ccrewrite.rewrite(graph(), x).model)
    assert len(samplings(model)) == 4
    ccrewrite.save(model, tmp_path)
    fresh = graph()
    same(ccrewrite.load(fresh, tmp_path), model, x)
    assert fresh.code == model.code
    assert outputs(ccrewrite.revert(fresh), x)[0].shape == outputs(graph(), x)[0].shape
    inner = nn.ModuleDict({"traced": graph()})
    inner.forward = lambda x: inner["traced"](x)  # type: ignore[method-assign]
    nested = nn.Sequential(graph())
    result = ccrewrite.rewrite(nested, x)
    ccrewrite.save(result, tmp_path)
    same(ccrewrite.load(nn.Sequential(graph()), tmp_path), result.model, x)


def test_exported_programs(tmp_path: Path) -> None:
    model, x = plain().eval(), X
    program = torch.export.export(model, (x,), strict=False)
    result = ccrewrite.rewrite(program, x)
    trained(result.model)
    ccrewrite.save(result, tmp_path)
    again = ccrewrite.load(program, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(outputs(again, x), outputs(result.model, x), strict=True))
    assert again.state_dict().keys() == result.model.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    """A model cast after it was rewritten, geometry and all, and one whose geometry keeps its precision."""
    for keep in (False, True):
        model = copied(rewritten("plain")[0]).to(dtype)
        if keep:
            for sampling in samplings(model).values():
                sampling.float()
        ccrewrite.save(model, tmp_path)
        fresh = ccrewrite.load(plain().to(dtype), tmp_path)
        assert [p.dtype for p in fresh.parameters()] == [p.dtype for p in model.parameters()]
        same(fresh, model, X.to(dtype))
    refused(plain(), tmp_path, rf"0\.weight: expected {str(dtype)[6:]} 8x4x3x3, found float32 8x4x3x3")


def test_a_sampling_keeps_what_its_first_dtype_made_it(tmp_path: Path) -> None:
    conv = nn.Conv2d(4, 4, 3, dilation=2)
    sampling = DclsSampling(ConvGeometry.from_module(conv), interpolation="gaussian")
    sampling.site = "0"
    model: Any = nn.Sequential(adopt_(conv, sampling)).double()
    assert model[0].sampling.starts_exact
    ccrewrite.save(model, tmp_path)
    same(ccrewrite.load(nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2)).double(), tmp_path), model, X.double())


def test_frozen_parameters_freeze_their_geometry_and_nothing_is_drawn(tmp_path: Path) -> None:
    model, _ = rewritten("plain")
    ccrewrite.save(model, tmp_path)
    fresh: Any = plain()
    fresh[0].requires_grad_(False)
    torch.manual_seed(7)
    draw = torch.rand(3)
    torch.manual_seed(7)
    ccrewrite.load(fresh, tmp_path)
    assert torch.equal(torch.rand(3), draw)
    assert not any(p.requires_grad for p in fresh[0].parameters())
    assert all(p.requires_grad for p in fresh[3].parameters())


def test_tensors_that_share_or_are_laid_out_otherwise(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model: Any = nn.Sequential(Tied(), nn.Conv2d(4, 4, 3, stride=2))
        model.register_buffer("table", torch.arange(6.0).view(3, 2))
        model.register_buffer("part", model.table[1:])
        model.register_parameter("twin", nn.Parameter(model[1].bias.data))
        model.register_buffer("step", torch.tensor(3))
        model.register_buffer("none", torch.empty(0, 2, dtype=torch.bool))
        model.register_buffer("cache", torch.zeros(2), persistent=False)
        return model

    model = make().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ccrewrite.rewrite_(model, X)
    ccrewrite.save(model, tmp_path)
    assert "0.b.weight" not in load_file(tmp_path / "weights.safetensors")
    same(ccrewrite.load(make().to(memory_format=torch.channels_last), tmp_path), model, X)  # pyright: ignore[reportCallIssue]


@pytest.mark.filterwarnings("ignore:.torch.jit.")  # torch.compile's own doing
def test_wrapped_and_sharded_models(tmp_path: Path) -> None:
    model, inputs = rewritten("functional")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # pyright: ignore[reportPrivateImportUsage]
    try:
        sharded = copied(model)
        for child in sharded.children():
            fully_shard(child, mesh=dist.init_device_mesh("cpu", (1,)))  # pyright: ignore[reportPrivateImportUsage]
        for wrapped in (sharded, nn.parallel.DistributedDataParallel(copied(model)), torch.compile(model)):
            ccrewrite.save(wrapped, tmp_path)  # pyright: ignore[reportArgumentType]
            same(ccrewrite.load(build("functional")[0], tmp_path), model, inputs)
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.torch.jit.")
def test_beside_scripted_modules(tmp_path: Path) -> None:
    scripted = torch.jit.script(nn.Linear(8, 8))
    model = nn.Sequential(plain(), scripted)
    x = torch.randn(1, 4, 16, 8)
    result = ccrewrite.rewrite(model, x, verify=False)
    ccrewrite.save(result, tmp_path)
    same(ccrewrite.load(nn.Sequential(plain(), copied(scripted)), tmp_path), result.model, x)
    other = nn.Sequential(plain(), torch.jit.script(nn.Linear(8, 9)))
    refused(other, tmp_path, r"1\.weight: expected float32 8x8, found float32 9x8")


def test_geometry_only_is_small(tmp_path: Path) -> None:
    make = functools.partial(nn.Conv2d, 128, 128, 3, dilation=2)
    result = ccrewrite.rewrite(make(), torch.randn(1, 128, 9, 9), verify=False)
    ccrewrite.save(result, tmp_path / "whole")
    ccrewrite.save(result, tmp_path / "added", geometry_only=True)
    sizes = [sum(p.stat().st_size for p in (tmp_path / d).iterdir()) for d in ("whole", "added")]
    assert sizes[0] > 500_000
    assert sizes[1] < 5_000


def test_the_recipe_says_what_was_done(tmp_path: Path) -> None:
    result = ccrewrite.rewrite(plain(), X, rules=RULES["options"], exclude="5")
    ccrewrite.save(result, tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["format"] == 2
    assert recipe["torch"] == torch.__version__
    assert recipe["ccrewrite"] == ccrewrite.__version__
    assert [(s["module"], s["sampling"], s["layer"]) for s in recipe["samplings"]] == [
        ("0", "CCSampling", "Conv2d 4->8 k3 s2 p1"),
        ("3", "DclsSampling", "Conv2d 8->8 k3 p2 d2 g8"),
    ]
    assert recipe["original"]["tensors"] == {
        n: f"{str(t.dtype)[6:]} {shape(t)}".strip() for n, t in plain().state_dict().items()
    }
    assert recipe["rewrite"]["plan"]["rules"][0] == {"rule": "dilated-to-dcls", **vars(RULES["options"][0])} | {
        "include": ["*"],
        "exclude": [],
    }
    assert [s["decision"]["code"] for s in recipe["rewrite"]["plan"]["sites"]][-1] == "not-selected"
    assert recipe["rewrite"]["check"]["ok"]


def shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


@pytest.mark.parametrize("sampling", [DclsSampling, CCSampling])
def test_every_option_of_a_sampling_is_written_down(sampling: type[Any]) -> None:
    parameters = inspect.signature(sampling).parameters.keys() - {"geometry", "dtype", "device"}
    geometry = ConvGeometry.from_module(nn.Conv2d(4, 4, 3))
    assert sampling(geometry).options().keys() == parameters


# What can't be saved, and what can't be loaded


def refused(model: Any, directory: Path, message: str) -> None:
    before = snapshot(model)
    with pytest.raises(InputError, match=message):
        ccrewrite.load(model, directory)
    assert snapshot(model) == before


class Stateful(nn.ReLU):
    def get_extra_state(self) -> Any:
        return {"a": 1}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"a": 1}


def test_what_can_not_be_saved(tmp_path: Path) -> None:
    class Own(DclsSampling):
        pass

    def own() -> nn.Module:
        layer = DclsConv2d(4, 4, 3, dilation=2)
        layer.sampling = Own(ConvGeometry.from_module(layer))
        return layer

    model, _ = rewritten("plain")
    with_state: Any = copied(model)
    with_state[2] = Stateful()
    exact, subclassed = copied(model), copied(model)
    exact.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
    subclassed.register_buffer("own", torch.ones(2).as_subclass(type("Own", (Tensor,), {})))
    parametrized: Any = copied(model)
    parametrizations.weight_norm(parametrized[3].sampling, "offset")
    cases: list[tuple[Any, str]] = [
        (plain(), r"nothing in this Sequential is rewritten; rewrite returns a copy, and save takes that \(result\.model\)"),
        (ccrewrite.fold(model, X), "nothing in this Sequential is rewritten"),
        (None, "found NoneType"),
        (
            own(),
            r"\(root\): its Own belongs to no family that is registered, .* found dcls \(DclsSampling\), cc",
        ),
        (parametrized, "3: its ParametrizedDclsSampling belongs to no family that is registered"),
        (copied(model).to("meta"), r"0\.weight: save writes dense tensors with values, .* on meta"),
        (with_state, r"2\._extra_state: save writes plain tensors, found dict"),
        (exact, "phase: save writes dense tensors .* found a tensor of torch.complex128"),
        (subclassed, "own: save writes plain tensors, found Own"),
        (nn.Sequential(DclsConv2d(4, 4, 3, dilation=2), nn.LazyLinear(3)), "1.weight has no shape yet: run the model once"),
        (nn.Sequential(samplings(model)["3.sampling"]), "0: no layer or call of this Sequential uses this sampling"),
    ]
    for case, message in cases:
        with pytest.raises(InputError, match=message):
            ccrewrite.save(case, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    ccrewrite.save(with_state, tmp_path, geometry_only=True)
    fresh: Any = plain()
    fresh[2] = Stateful()
    with pytest.warns(WeightsWarning, match=r"\(0\.weight, 0\.bias, 1\.weight, 1\.bias and "):
        assert samplings(ccrewrite.load(fresh, tmp_path))


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = rewritten("plain")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file can't be written: "):
        ccrewrite.save(model, tmp_path / "file")
    with pytest.raises(InputError, match="can't be written: "):
        ccrewrite.save(model, tmp_path / "file" / "below")
    for nowhere in ("/proc/nowhere", "a\0b", "a" * 300):
        with pytest.raises(InputError, match="can't be written: "):
            ccrewrite.save(model, nowhere)
    saved = tmp_path / "saved"
    ccrewrite.save(model, saved)
    other = trained(copied(model))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left on device"):
        ccrewrite.save(other, saved)
    assert sorted(p.name for p in saved.iterdir()) == ["recipe.json", "weights.safetensors"]
    same(ccrewrite.load(plain(), saved), model, inputs)
    # Interrupted between the two files: the new save is completed.
    count = itertools.count()
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if next(count) != 1 else exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        ccrewrite.save(other, saved)
    assert sorted(p.name for p in saved.iterdir()) == ["recipe.json", "weights.safetensors"]
    same(ccrewrite.load(plain(), saved), other, inputs)


def snapshots(monkeypatch: pytest.MonkeyPatch, saved: Path, copies: Path, action: Callable[[], object]) -> list[Path]:
    """What a kill would leave on the disk, before and after each of the moves that ``action`` makes."""
    found: list[Path] = []

    def keep() -> None:
        found.append(copies / str(len(found)))
        shutil.copytree(saved, found[-1])

    replace = os.replace

    def watched(a: Any, b: Any) -> None:
        keep()
        replace(a, b)
        keep()

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched)
        action()
    return found


def test_whenever_it_is_killed_the_old_or_the_new_save_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next save, of any kill's leavings, clears them."""
    old, inputs = rewritten("plain")
    new, saved = trained(copied(old)), tmp_path / "saved"
    ccrewrite.save(old, saved)
    left = snapshots(monkeypatch, saved, tmp_path / "killed", lambda: ccrewrite.save(new, saved))
    for i, folder in enumerate(left):
        expected = old if i == 0 else new  # the recipe decides, which moves first
        same(ccrewrite.load(plain(), folder), expected, inputs)
    # A kill while the next save clears up: what the recipe needs was put in its place before.
    again = snapshots(monkeypatch, left[1], tmp_path / "twice", lambda: ccrewrite.save(old, left[1]))
    for i, folder in enumerate(again):
        same(ccrewrite.load(plain(), folder), new if i < 3 else old, inputs)
    for folder in (*left, *again):
        ccrewrite.save(old, folder)
        assert sorted(p.name for p in folder.iterdir()) == ["recipe.json", "weights.safetensors"]
        same(ccrewrite.load(plain(), folder), old, inputs)


def test_a_folder_in_use_and_those_of_others_stay(tmp_path: Path) -> None:
    model, inputs = rewritten("plain")
    with workplace(tmp_path) as used:
        (tmp_path / ".ccrewrite-dead").mkdir()
        (tmp_path / ".ccrewrite-file").write_text("no folder")
        (tmp_path / "mine").mkdir()
        ccrewrite.save(model, tmp_path)
        assert used.is_dir()
        assert not (tmp_path / ".ccrewrite-dead").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".ccrewrite-file", "mine", "recipe.json", "weights.safetensors"]
    same(ccrewrite.load(plain(), tmp_path), model, inputs)


def test_a_folder_where_the_weights_should_be(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").mkdir()
    with pytest.raises(InputError, match=r"weights\.safetensors can't be written: there is a folder"):
        ccrewrite.save(rewritten("plain")[0], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stride", [2], "stride must have 2 entries"),
        ("groups", 3, "can't be parted into 3 groups"),
        ("padding", [-1, -1], "padding"),
        ("kernel_size", [3.0, 3], r"geometry\.kernel_size\.0: input should be a valid integer"),
        ("kernel_size", [], "kernel_size"),
        ("padding_mode", "circular", "expected geometry .* circular, found 8->8"),
        ("transposed", True, "3"),
        ("output_padding", [1, 1], "expected geometry .* op1"),
    ],
)
def test_a_geometry_that_is_not_its_layers(key: str, value: Any, message: str, tmp_path: Path) -> None:
    ccrewrite.save(rewritten("plain")[0], tmp_path)
    edited(tmp_path, lambda r, t: r["samplings"][1]["geometry"].update({key: value}))
    refused(plain(), tmp_path, message)


def test_a_functional_calls_geometry_is_that_of_its_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ccrewrite.save(ccrewrite.rewrite(Functional(), torch.randn(1, 4, 30)), tmp_path)
    edited(tmp_path, lambda r, t: r["samplings"][0]["geometry"].update(kernel_size=[10**6]))
    refused(Functional(), tmp_path, "expected geometry .*k10{6}")


def test_other_models(tmp_path: Path) -> None:
    ccrewrite.save(rewritten("plain")[0], tmp_path)
    wider: Any = plain()
    wider[4] = nn.Conv2d(8, 8, 3, padding=1)
    bare: Any = plain()
    bare[1] = nn.Identity()
    strided: Any = plain()
    strided[0].stride = (1, 1)
    activation = nn.Sequential(*plain().children(), nn.Linear(3, 3))
    linear: Any = plain()
    linear[3] = nn.Linear(1, 1)
    linear[3].weight = nn.Parameter(torch.zeros(8, 1, 3, 3))
    linear[3].bias = nn.Parameter(torch.zeros(8))
    cases: list[tuple[nn.Module, str]] = [
        (wider, r"not the model that was rewritten\. 4\.weight: expected float32 8x8x1x1, found float32 8x8x3x3"),
        (bare, r"1\.weight: expected float32 8, found nothing; .*and 1 more\. load takes a fresh original"),
        (activation, r"6\.weight: expected nothing, found float32 3x3"),
        (nn.ModuleList(plain().children()), "its class: expected Sequential, found ModuleList"),
        (strided, r"0: expected layer Conv2d 4->8 k3 s2 p1, found Conv2d 4->8 k3 p1"),
        (linear, r"3: expected layer Conv2d .*, found Linear"),
    ]
    for model, message in cases:
        refused(model, tmp_path, message)
    with pytest.raises(InputError, match=r"0\.weight has no shape yet: run the model once first"):
        ccrewrite.load(nn.Sequential(nn.LazyConv2d(8, 3)), tmp_path)
    meta = plain().to("meta")
    with pytest.raises(InputError, match=r"on the meta device, which holds no values: call model\.to_empty"):
        ccrewrite.load(meta, tmp_path)
    assert not samplings(meta)
    for what in (nn.Conv2d, None, "resnet50"):
        with pytest.raises(InputError, match="the model must be an"):
            ccrewrite.load(what, tmp_path)  # type: ignore[arg-type]


def test_files_that_are_missing_or_cut_off(tmp_path: Path) -> None:
    refused(plain(), tmp_path / "nowhere", r"recipe\.json can't be read: .*No such file.*ccrewrite\.save writes it")
    model, _ = rewritten("plain")
    good, bad = tmp_path / "good", tmp_path / "bad"
    ccrewrite.save(model, good)
    for name in ("recipe.json", "weights.safetensors"):
        data = (good / name).read_bytes()
        for cut in (0, 1, 8, 100, len(data) // 2, len(data) - 1):
            shutil.copytree(good, bad, dirs_exist_ok=True)
            (bad / name).write_bytes(data[:cut])
            refused(plain(), bad, "damaged")
        (bad / name).unlink()
        refused(plain(), bad, "can't be read")


def test_a_changed_byte(tmp_path: Path) -> None:
    """Also one that leaves the files readable: a digit of the recipe, a bit of a weight."""
    ccrewrite.save(rewritten("plain")[0], tmp_path)
    for name, old, new in (("recipe.json", b'"reach": 0', b'"reach": 1'), ("weights.safetensors", None, None)):
        data = (tmp_path / name).read_bytes()
        changed = data.replace(old, new) if old and new is not None else data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
        assert changed != data
        (tmp_path / name).write_bytes(changed)
        refused(plain(), tmp_path, r"recipe\.json and weights\.safetensors are damaged, or not of one save")
        (tmp_path / name).write_bytes(data)


def edited(directory: Path, edit: Callable[[Any, dict[str, Tensor]], Any]) -> None:
    """Change what is saved, so that only its content is wrong."""
    recipe, tensors = json.loads((directory / "recipe.json").read_text()), load_file(directory / "weights.safetensors")
    recipe = edit(recipe, tensors) or recipe
    save_file({n: t.clone() for n, t in tensors.items()}, directory / "weights.safetensors")
    if isinstance(recipe, dict):
        del recipe["sha256"]
        recipe["sha256"] = digest(recipe, directory / "weights.safetensors")
    (directory / "recipe.json").write_text(json.dumps(recipe))


def drop(values: dict[str, Any], key: str) -> None:
    del values[key]


SAMPLING = {"module": "0", "key": "conv1d", "sampling": "Conv2d", "dtype": "int", "geometry": {}, "options": {}, "weight": 3}
EDITS: dict[str, tuple[Callable[[Any, dict[str, Tensor]], Any], str]] = {
    "a later format": (lambda r, t: r.update(format=3, ccrewrite="9.0"), "format 3, written by ccrewrite 9.0; .*update it"),
    "no format": (lambda r, t: drop(r, "format"), "no format number"),
    "a list": (lambda r, t: [r], "no format number"),
    "a tensor is missing": (lambda r, t: drop(t, "3.weight"), r"3\.weight: expected float32 8x1x3x3, found nothing"),
    "a sampling's is missing": (lambda r, t: drop(t, "0.sampling.shift"), r"0\.sampling\.shift: expected float32 2"),
    "one too many": (lambda r, t: t.update(extra=torch.ones(2)), "extra: expected nothing, found float32 2"),
    "misshaped": (lambda r, t: t.update({"4.bias": torch.ones(1)}), r"4\.bias: expected float32 8, found float32 1"),
    "another dtype": (lambda r, t: t.update({"4.bias": t["4.bias"].half()}), "found float16 8"),
    **{f"no {key}": (lambda r, t, key=key: drop(r, key), "damaged") for key in ("original", "samplings", "geometry_only")},
    **{
        f"{key} is {value!r}": (
            lambda r, t, key=key, value=value: r["samplings"][1].update({key: value}),
            "load takes|damaged|can be|can't|no registered family has a Linear|makes a window",
        )
        for key, value in {
            "module": "nowhere",
            "key": "conv2d",
            "sampling": "Linear",
            "dtype": "Tensor",
            "geometry": None,
            "options": {"reach": 10**15},
            "attributes": {},
            "weight": "0.none",
            "layer": "Conv3d",
        }.items()
    },
    "an unknown key": (lambda r, t: r["samplings"][0].update(more=1), "damaged"),
    "an option out of range": (lambda r, t: r["samplings"][0]["options"].update(hidden=-3), "hidden must be at least 1"),
    "another size": (lambda r, t: r["samplings"][0]["options"].update(hidden=3), r"weight 3x1, but the saved one is 16x1"),
    "huge": (lambda r, t: r["samplings"][0]["options"].update(hidden=10**13), "weight 10{13}x1, but"),
    "a huge geometry": (
        lambda r, t: r["samplings"][1]["geometry"].update(kernel_size=[10**9, 10**9]),
        "expected geometry 8->8 k10{9} ",
    ),
    "a tie of strangers": (
        lambda r, t: r.update(ties=[["0.sampling.shift", "1.weight"]]),
        "gives other original and ties than were saved",
    ),
    "sizes of nothing": (lambda r, t: r.update(resized={"": {"9": 0.5}}), "'9' hits no resizable site"),
    "sizes nowhere": (lambda r, t: r.update(resized={"a.b": {"0": 0.5}}), "damaged"),
    "twice": (lambda r, t: r["samplings"].append(r["samplings"][0]), "two samplings"),
    "a scale that is none": (lambda r, t: r["samplings"][0]["attributes"].update(scale=-1), "scale must be"),
    "nonsense": (lambda r, t: r["samplings"].append(SAMPLING), "damaged"),
    "nothing": (lambda r, t: r.update(samplings=[]), r"0\.sampling\..*: expected nothing, found float32 16"),
}


@pytest.mark.parametrize("what", EDITS)
def test_recipes_and_weights_that_do_not_fit(what: str, tmp_path: Path) -> None:
    edit, message = EDITS[what]
    ccrewrite.save(rewritten("plain")[0], tmp_path)
    edited(tmp_path, edit)
    refused(plain(), tmp_path, message)


def test_a_failure_in_the_middle_takes_everything_back(tmp_path: Path) -> None:
    """Whatever raises: a graph's nodes, hosts, parametrizations, sizes, weights that were copied already."""

    class Refuses(nn.Linear):
        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Functional(), graph(), Normed(), causal(), Refuses(1, 1))

    model: Any = make()
    for part, x in zip(model, (torch.randn(1, 4, 30),) * 4, strict=False):
        ccrewrite.rewrite_(part, x)
    trained(model)
    ccrewrite.save(model, tmp_path)
    fresh: Any = make()
    before = snapshot(fresh)
    with pytest.raises(KeyboardInterrupt):
        ccrewrite.load(fresh, tmp_path)
    assert snapshot(fresh) == before
    x = torch.randn(1, 4, 200)
    assert torch.equal(F.relu(fresh[1](x)), F.relu(graph()(x)))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A pickle in place of either file is refused unread."""
    model, _ = rewritten("plain")
    for name in ("recipe.json", "weights.safetensors"):
        ccrewrite.save(model, tmp_path)
        torch.save(model.state_dict(), tmp_path / name)
        refused(plain(), tmp_path, "damaged")
