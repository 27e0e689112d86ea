"""Everything that is done with a layer besides calling it: copying, saving, moving, tracing, compiling, exporting."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ccrewrite
from ccrewrite.errors import InputError
from ccrewrite.nn import RewrittenConv, Sampling

# torch's warnings of its own doing: Dynamo instantiates the autograd.Function classes that it traces, strict export counts the
# attributes of a mode that lives for one call as side effects, Inductor imports code that uses torch.jit.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:While compiling, we found certain side effects:UserWarning",
    "ignore:.torch.jit.script",
)


class Standardised(nn.Conv2d):
    """Weight standardisation: a convolution class with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Causal(nn.Conv1d):
    """Pads by hand, then lets torch's own forward do the rest; takes an argument more."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0))) * scale


class Masked(nn.Conv2d):
    """A masked weight, by ``_conv_forward``."""

    mask: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mask = torch.ones(self.kernel_size)
        mask[-1] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class Functional(nn.Module):
    """Two functional convolutions, of a parameter and of a buffer."""

    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3))
        self.register_buffer("blur", torch.rand(4, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose1d(F.conv1d(x, self.weight, None, dilation=2), self.blur, stride=2, groups=4)


class Computed(nn.Module):
    """A functional convolution whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight.tanh(), padding="same", dilation=2)


class Casts(nn.Module):
    """Functional convolutions whose weights are brought to the input's dtype."""

    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3))
        self.register_buffer("blur", torch.rand(4, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv1d(x, self.weight.to(x.dtype), dilation=2)
        return F.conv_transpose1d(x, self.blur.type_as(x).contiguous(), stride=2, groups=4)


def pictures() -> Tensor:
    return torch.randn(2, 4, 9, 9)


def signals() -> Tensor:
    return torch.randn(2, 4, 17)


WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "dilated": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2), pictures),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, padding_mode="reflect", groups=2), pictures),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), pictures),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, output_padding=1), pictures),
    "standardised": (lambda: Standardised(4, 6, 3, stride=2), pictures),
    "causal": (lambda: Causal(4, 4, 3, dilation=2), signals),
    "masked": (lambda: Masked(4, 6, 3, dilation=2, padding="same"), pictures),
    "functional": (Functional, signals),
    "computed": (Computed, signals),
    "casts": (Casts, signals),
}
PLAIN = ("dilated", "reflect", "strided", "transposed")


class Way:
    """One kind of layer inside a small model, rewritten; ``moved`` also off its start."""

    def __init__(self, name: str) -> None:
        factory, inputs = WAYS[name]
        torch.manual_seed(0)
        self.x = inputs()
        self.original = nn.Sequential(nn.Identity(), factory()).eval()
        self.result = ccrewrite.rewrite(self.original, self.x)
        assert self.result.check.ok
        self.start: Any = self.result.model
        self.moved: Any = moved(copy.deepcopy(self.start))


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Sampling):
                for p in module.movers():
                    p += 0.2 * torch.randn_like(p)
    return model


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return Way(request.param)


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_moving_matters(way: Way) -> None:
    """Else the tests below would compare the start with itself."""
    with torch.no_grad():
        assert not torch.allclose(way.moved(way.x), way.start(way.x), atol=1e-3)


def test_deepcopy(way: Way) -> None:
    twin = copy.deepcopy(way.moved)
    close(twin(way.x), way.moved(way.x), 0)
    assert type(twin[1]) is type(way.moved[1])
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in way.moved.parameters()}
    moved(twin)
    assert not torch.allclose(twin(way.x), way.moved(way.x), atol=1e-3), "the copy uses the original's geometry"


def test_pickle(way: Way) -> None:
    twin = pickle.loads(pickle.dumps(way.moved))
    close(twin(way.x), way.moved(way.x), 0)
    assert type(twin[1]) is type(way.moved[1])
    back: Any = ccrewrite.revert(twin)
    assert type(back[1]) is type(way.original[1])


def test_torch_save(way: Way, tmp_path: Any) -> None:
    torch.save(way.moved, tmp_path / "model.pt")
    close(torch.load(tmp_path / "model.pt", weights_only=False)(way.x), way.moved(way.x), 0)


def test_state_dict_round_trip(way: Way) -> None:
    way.start.load_state_dict(way.moved.state_dict())
    close(way.start(way.x), way.moved(way.x), 0)


def test_the_originals_checkpoint_misses_exactly_what_was_added(way: Way) -> None:
    torch.manual_seed(1)
    other = {k: torch.randn_like(v) for k, v in way.original.state_dict().items()}
    added = way.start.state_dict().keys() - way.original.state_dict().keys()
    missing, unexpected = way.start.load_state_dict(other, strict=False)
    assert (set(missing), unexpected) == (added, [])
    assert added
    way.original.load_state_dict(other)
    close(way.start(way.x), way.original(way.x))


def test_dtypes(way: Way) -> None:
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)):
        model = copy.deepcopy(way.moved).to(dtype)
        x = way.x.to(dtype)
        out = model(x)
        assert out.dtype == dtype
        scale = way.moved(way.x).abs().max()
        assert (out.float() - way.moved(way.x)).abs().max() <= tolerance * scale
        with torch.no_grad():  # at the start the plain convolution runs, whatever the dtype
            assert torch.equal(copy.deepcopy(way.start).to(dtype)(x), copy.deepcopy(way.original).to(dtype)(x))


def test_a_cast_weight_is_still_the_same_weight() -> None:
    """Whatever the dtype that it is cast to, its geometry goes with it."""
    way = Way("casts")
    expected = way.moved(way.x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(way.moved(way.x).float(), expected, 1e-1)
    for dtype in (torch.float64, torch.bfloat16):
        out = way.moved(way.x.to(dtype))
        assert out.dtype == dtype
        close(out.float(), expected, 1e-1 if dtype == torch.bfloat16 else 1e-5)
    for how in ("export", "observe"):
        planned = ccrewrite.plan(way.original, way.x.double(), how=how)
        assert [(s.weight, s.decision.rewritten) for s in planned] == [("1.weight", True), ("1.blur", True)]


def test_meta_device(way: Way) -> None:
    model = copy.deepcopy(way.moved).to("meta")
    assert model(way.x.to("meta")).shape == way.moved(way.x).shape
    with torch.no_grad():
        assert model(way.x.to("meta")).is_meta


def test_to_empty_then_load(way: Way) -> None:
    state = way.moved.state_dict()
    model = copy.deepcopy(way.moved).to("meta").to_empty(device="cpu")
    model.load_state_dict(state)
    close(model(way.x), way.moved(way.x), 0)


def test_rewritten_on_meta_then_loaded(way: Way) -> None:
    """The original on the meta device is rewritten there; the weights of a rewritten model on the CPU load into it."""
    result = ccrewrite.rewrite(copy.deepcopy(way.original).to("meta"), way.x.to("meta"))
    assert all(t.is_meta for t in result.model.state_dict().values())
    assert not result.check.ran
    model = result.model.to_empty(device="cpu")
    model.load_state_dict(way.moved.state_dict())
    close(model(way.x), way.moved(way.x), 0)


def test_autocast(way: Way) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, start, off = way.original(way.x), way.start(way.x), way.moved(way.x)
    assert expected.dtype == start.dtype == off.dtype == torch.bfloat16
    close(start, expected, 3e-2)
    close(off.float(), way.moved(way.x), 1e-1)
    off.float().sum().backward()
    added = [p for n, p in way.moved.named_parameters() if n not in dict(way.original.named_parameters())]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in added)


@pytest.mark.parametrize("name", ["dilated", "strided", "transposed", "standardised", "masked"])
def test_channels_last(name: str) -> None:
    way = Way(name)
    expected = way.moved(way.x)
    x = way.x.to(memory_format=torch.channels_last)
    model = copy.deepcopy(way.moved).to(memory_format=torch.channels_last)
    out = model(x)
    close(out, expected)
    with torch.no_grad():
        twin = copy.deepcopy(way.original).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        ours = copy.deepcopy(way.start).to(memory_format=torch.channels_last)
        assert ours(x).stride() == twin(x).stride()
        assert torch.equal(ours(x), twin(x))


@pytest.mark.parametrize("grad", [True, False])
def test_compiled(way: Way, grad: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(way.moved, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        close(compiled(way.x), way.moved(way.x))
    if grad:
        compiled(way.x).sum().backward()
        found = {n: p.grad.clone() for n, p in way.moved.named_parameters() if p.grad is not None}
        way.moved.zero_grad()
        way.moved(way.x).sum().backward()
        assert found.keys() == {n for n, p in way.moved.named_parameters() if p.grad is not None}
        for name, p in way.moved.named_parameters():
            if name in found:
                close(found[name], p.grad, 1e-4)


@pytest.mark.parametrize("name", ["dilated", "strided", "functional"])
def test_a_graph_compiled_at_the_start_follows_the_geometry(name: str) -> None:
    """That nothing moved yet must not be baked in."""
    way = Way(name)
    torch._dynamo.reset()
    compiled = torch.compile(way.start, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(way.x), way.original(way.x))
        moved(way.start)
        close(compiled(way.x), way.start(way.x))
        assert not torch.allclose(way.start(way.x), way.original(way.x), atol=1e-3)


def test_inductor() -> None:
    way = Way("dilated")
    torch._dynamo.reset()
    compiled = torch.compile(way.moved, fullgraph=True)
    close(compiled(way.x), way.moved(way.x), 1e-4)


@pytest.mark.parametrize("strict", [pytest.param(True, marks=pytest.mark.slow), False])
def test_exported(way: Way, strict: bool) -> None:
    torch._dynamo.reset()
    for model in (way.start, way.moved):
        exported = torch.export.export(model, (way.x,), strict=strict).module()
        close(exported(way.x), model(way.x))
    exported.load_state_dict({k: v for k, v in way.start.state_dict().items() if k in exported.state_dict()})
    close(exported(way.x), way.start(way.x))  # the geometry is an input of the graph, not a constant


@pytest.mark.parametrize("name", WAYS)
def test_symbolically_traced(name: str) -> None:
    way = Way(name)
    traced = torch.fx.symbolic_trace(way.moved)
    close(traced(way.x), way.moved(way.x))
    moved(way.moved)
    for p, q in zip(traced.parameters(), way.moved.parameters(), strict=True):
        assert p is q or torch.equal(p, q)
    close(traced(way.x), way.moved(way.x))


def test_functional_call(way: Way) -> None:
    state = {k: v.detach() for k, v in way.moved.named_parameters()}
    close(torch.func.functional_call(way.start, state, (way.x,)), way.moved(way.x))
    close(torch.func.functional_call(way.start, dict(way.start.named_parameters()), (way.x,)), way.original(way.x))


def test_per_sample_gradients(way: Way) -> None:
    parameters = {k: v.detach() for k, v in way.moved.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(way.moved, parameters, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, way.x)
    way.moved.zero_grad()
    way.moved(way.x).square().sum().backward()
    for name, p in way.moved.named_parameters():
        close(
            each[name].sum(0), torch.zeros_like(p) if p.grad is None else p.grad, 2e-4 * max(1.0, float(each[name].abs().max()))
        )


@pytest.mark.parametrize("name", WAYS)
def test_zero_samples(name: str) -> None:
    way = Way(name)
    out = way.moved(way.x[:0])
    assert out.shape == way.moved(way.x)[:0].shape
    out.sum().backward()


@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_is_the_layer_it_replaces(name: str) -> None:
    way = Way(name)
    layer, original = way.start[1], way.original[1]
    assert isinstance(layer, type(original))
    assert isinstance(layer, RewrittenConv)
    for attribute in (
        "stride",
        "padding",
        "dilation",
        "groups",
        "kernel_size",
        "padding_mode",
        "in_channels",
        "output_padding",
    ):
        assert getattr(layer, attribute) == getattr(original, attribute)
    assert repr(layer).startswith(type(layer).__name__ + "(\n  4, 6, kernel_size=")
    assert "sampling" in repr(layer)


def test_own_forwards_keep_their_arguments() -> None:
    way = Way("causal")
    close(way.start[1](way.x, scale=3.0), way.original[1](way.x, scale=3.0))
    close(way.start[1](way.x, 3.0), way.original[1](way.x, 3.0))
    assert isinstance(way.start[1], Causal)


def test_output_size_of_a_transposed_layer() -> None:
    way = Way("transposed")
    for size in ([18, 18], [19, 18], [2, 6, 19, 19]):
        close(way.start[1](way.x, output_size=size), way.original[1](way.x, output_size=size))
    assert way.start[1](way.x, output_size=[40, 33]).shape[2:] == (40, 33)  # torch's layer can't; ours is resized
    with pytest.raises(ValueError, match="output_size"):
        way.start[1](way.x, output_size=[40, 0])


@pytest.mark.parametrize("name", WAYS)
def test_training_moves_every_added_parameter_in_two_steps(name: str) -> None:
    way = Way(name)
    model = way.start.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        model(way.x).square().sum().backward()
        optimizer.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []


def test_dilation_changed_behind_the_layers_back_is_an_error() -> None:
    way = Way("dilated")
    way.start[1].dilation = (3, 3)
    with pytest.raises(InputError, match=r"made for dilation \(2, 2\), but the call says \(3, 3\)"):
        way.start(way.x)


def test_from_conv_shares_the_parameters_and_leaves_the_original_alone() -> None:
    conv: Any = nn.Conv2d(3, 8, 3, dilation=2)
    conv.note = "mine"
    layer: Any = ccrewrite.nn.DclsConv2d.from_conv(conv)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert layer.note == "mine"
    assert type(conv) is nn.Conv2d
    assert not hasattr(conv, "sampling")


def test_from_conv_says_what_it_cannot_take() -> None:
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Conv2d, found .*Linear"):
        ccrewrite.nn.DclsConv2d.from_conv(nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Conv2d, found .*ConvTranspose2d"):
        ccrewrite.nn.CCConv2d.from_conv(nn.ConvTranspose2d(1, 1, 3))
    with pytest.raises(InputError, match="revert it first"):
        ccrewrite.nn.CCConv2d.from_conv(ccrewrite.nn.CCConv2d.from_conv(nn.Conv2d(1, 1, 3)))
    with pytest.raises(InputError, match="forward of its own"):
        ccrewrite.nn.CCConv2d.from_conv(Standardised(1, 1, 3, stride=2))
    with pytest.raises(InputError, match="axis"):
        ccrewrite.nn.DclsConv2d.from_conv(nn.Conv2d(1, 1, 1, dilation=2))
    with pytest.raises(InputError, match="basis must be one of 'linear', 'cubic', found 'spline'"):
        ccrewrite.nn.CCConv2d.from_conv(nn.Conv2d(1, 1, 3, stride=2), basis="spline")
    with pytest.raises(InputError, match="hidden must be at least 1, found 0"):
        ccrewrite.nn.CCConv2d.from_conv(nn.Conv2d(1, 1, 3, stride=2), hidden=0)


def test_a_sampling_says_what_a_call_takes() -> None:
    layer: Any = ccrewrite.nn.CCConv1d.from_conv(nn.Conv1d(1, 1, 3, stride=2))
    x = torch.randn(1, 1, 9)
    with pytest.raises(InputError, match="stride, padding, dilation, groups after its bias"):
        layer.sampling(x, layer.weight, layer.bias, output_padding=1)
    with pytest.raises(InputError, match="stride, padding, dilation, groups after its bias"):
        layer.sampling(x, layer.weight, layer.bias, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("name", PLAIN)
def test_whatever_moves_the_geometry_is_seen(name: str) -> None:
    """Also where no version counter and no gradient tells."""
    way = Way(name)
    movers = way.start[1].sampling.movers()
    with torch.no_grad():
        for mover in movers:
            mover.data.view(-1)[0] = 0.25  # the first tap of DCLS can move inwards
            assert not torch.equal(way.start(way.x), way.original(way.x))
            mover.data.zero_()
            assert torch.equal(way.start(way.x), way.original(way.x))
    for p in way.start[1].sampling.parameters():
        p.requires_grad_(False)
    assert torch.equal(way.start(way.x), way.original(way.x))  # with gradients, but none for the geometry


@pytest.mark.parametrize("name", PLAIN)
def test_ensembles(name: str) -> None:
    """Geometries stacked and vmapped, one of them unmoved."""
    way = Way(name)
    state, _ = torch.func.stack_module_state([way.start, way.moved])
    with torch.no_grad():
        found = torch.func.vmap(lambda s: torch.func.functional_call(way.start, s, (way.x,)))(state)
        close(found[0], way.original(way.x))
        close(found[1], way.moved(way.x))


def test_forward_mode_derivatives_are_never_silently_zero() -> None:
    way = Way("strided")
    shift = way.start[1].sampling.shift.detach()

    def run(shift: Tensor) -> Tensor:
        return torch.func.functional_call(way.start, {"1.sampling.shift": shift}, (way.x,))

    with torch.no_grad(), pytest.raises(NotImplementedError):
        torch.func.jvp(run, (shift,), (torch.ones_like(shift),))
