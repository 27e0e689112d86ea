"""Parameters, operations and memory against counts made another way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from compared_net import Compared
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

import ccrewrite
from ccrewrite.families.cc.native import cheapest
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.spent import flops_of, peak_memory
from ccrewrite.report.cost import parameters_of, training_step
from ccrewrite.report.observe import built


@pytest.fixture(autouse=True)
def _evaluating(compared: Compared) -> None:
    for model in (compared.original, compared.untouched, compared.moved):
        model.eval()


LAYERS = {
    "1-d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 11)),
    "1-d dilated": (nn.Conv1d(4, 6, 3, padding=3, dilation=3), (2, 4, 11)),
    "2-d grouped": (nn.Conv2d(4, 6, (3, 5), padding=2, dilation=(1, 2), groups=2), (2, 4, 9, 10)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6), (1, 6, 9, 9)),
    "strided and dilated": (nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2), (2, 4, 9, 10)),
    "3-d dilated, grouped": (nn.Conv3d(4, 6, 3, padding=2, dilation=2, groups=2), (1, 4, 5, 6, 7)),
    "3-d": (nn.Conv3d(2, 3, 3, stride=(1, 2, 2), padding=1), (1, 2, 5, 6, 7)),
    "1-d transposed": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (2, 4, 7)),
    "2-d transposed grouped": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 7, 5)),
    "transposed, depthwise": (nn.ConvTranspose2d(6, 6, 4, stride=2, padding=1, groups=6), (2, 6, 7, 5)),
    "transposed, dilated": (nn.ConvTranspose2d(4, 6, 3, padding=2, dilation=2), (2, 4, 7, 5)),
    "3-d transposed": (nn.ConvTranspose3d(2, 4, 2, stride=2), (1, 2, 3, 4, 5)),
}


def products(layer: Any, input: tuple[int, ...], output: torch.Size, taps: tuple[int, ...]) -> int:
    """Multiplications of a convolution with a kernel of ``taps``, those with padding too: for each output sample (transposed:
    input sample), tap, output channel and input channel of its group."""
    lattice = input if isinstance(layer, _ConvTransposeNd) else output
    pairs = layer.in_channels * layer.out_channels // layer.groups
    return lattice[0] * math.prod(lattice[2:]) * math.prod(taps) * pairs


@pytest.mark.parametrize("name", LAYERS)
def test_flops_of_a_convolution(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape, requires_grad=True)
    count = 2 * products(layer, shape, layer(x).shape, layer.kernel_size)
    assert flops_of(lambda: layer(x)) == count

    def step() -> None:
        torch.autograd.grad(layer(x).sum(), (x, *layer.parameters()))

    assert flops_of(step) == 3 * count  # the gradients of input and weight, as much each


@pytest.mark.parametrize("name", LAYERS)
def test_flops_of_a_rewritten_convolution(name: str) -> None:
    """The plain convolution's as long as the geometry is untouched; then the window's, and those of building the kernel."""
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    rewritten = ccrewrite.rewrite(layer, x).model
    output = layer(x).shape
    with torch.no_grad():
        assert flops_of(lambda: rewritten(x)) == 2 * products(layer, shape, output, layer.kernel_size)
        sampling: Any = rewritten.sampling
        with built(rewritten):
            trained = flops_of(lambda: rewritten(x))
        if isinstance(sampling, ccrewrite.nn.DclsSampling):
            construction = flops_of(lambda: sampling.kernel(layer.weight))  # as one product with the taps' footprints
            assert trained == 2 * products(layer, shape, output, sampling.window) + construction
            return
        # The kernel along one axis after the other; those that are resampled instead (at most one here) keep its taps.
        resampled = cheapest(ConvGeometry.from_module(layer), sampling.margin, shape[2:])
        assert resampled == ((1,) if name == "3-d" else ())
        cells = [k if a in resampled else w for a, (k, w) in enumerate(zip(layer.kernel_size, sampling.window, strict=True))]
        expected = products(layer, shape, output, tuple(cells))
        for axis in set(range(len(cells))) - set(resampled):
            others = math.prod(cells[:axis]) * math.prod(layer.kernel_size[axis:])
            expected += math.prod(layer.weight.shape[:2]) * others * cells[axis]
        for axis in resampled:  # all rows of the axis by a matrix of (outputs * taps) x samples
            rows = math.prod(shape) // shape[2 + axis]
            expected += rows * output[2 + axis] * layer.kernel_size[axis] * shape[2 + axis]
        assert trained == 2 * expected


def test_flops_are_torchs_forward(compared: Compared) -> None:
    for model in (compared.original, compared.untouched, compared.moved):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(compared.input)
        assert flops_of(lambda m=model: torch.no_grad()(m)(compared.input)) == counter.get_total_flops()


def test_a_moved_model_costs_what_was_announced(compared: Compared) -> None:
    untouched, moved = compared.comparison["rewritten"], compared.comparison["trained"]
    assert "inference, kernels built" not in moved["flops"]
    for kind in ("flops", "memory_bytes"):
        assert moved[kind]["inference"] == untouched[kind]["inference, kernels built"]
        assert untouched[kind]["inference"] == compared.comparison["original"][kind]["inference"]
        assert moved[kind]["training step"] == untouched[kind]["training step"]
    for site in compared.comparison.data["sites"][1:]:
        before, untouched, moved = (site["variants"][name]["flops"] for name in ("original", "rewritten", "trained"))
        assert moved.keys() == {"inference"}
        assert untouched == before | {"inference, kernels built": moved["inference"]}
        assert moved["inference"] > before["inference"]


def test_parameters(compared: Compared) -> None:
    plain = sum(p.numel() for p in compared.original.parameters())
    assert parameters_of(compared.original) == {"total": plain, "trainable": plain, "added": 0}
    # DCLS: two coordinates for each of 9 taps (dilated), 12 x 25 (depthwise), 9 (functional); CC: a shift per axis, and
    # residuals of 16 hidden units with an output per tap.
    residual = 16 + 16, 16 + 1
    added = 2 * (9 + 12 * 25 + 9) + sum(2 + 2 * (residual[0] + taps * residual[1]) for taps in (3, 4))
    assert compared.comparison["rewritten"]["parameters"] == {
        "total": plain + added,
        "trainable": plain + added,
        "added": added,
    }
    by_site = {s["name"]: s["variants"]["rewritten"]["added_parameters"] for s in compared.comparison.data["sites"]}
    assert by_site == {"stem": 0, "down": 168, "dilated": 18, "depthwise": 600, "kernel": 18, "up": 202}


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_of_a_rewritten_layer(name: str) -> None:
    """DCLS: a coordinate per axis for each tap of each set of positions; CC: a shift per axis, and for each axis a residual
    whose output layer has a row for each of its taps."""
    layer, shape = LAYERS[name]
    plain = layer.in_channels * layer.out_channels // layer.groups * math.prod(layer.kernel_size) + layer.out_channels
    assert parameters_of(layer) == {"total": plain, "trainable": plain, "added": 0}
    rewritten = ccrewrite.rewrite(layer, torch.randn(shape)).model
    axes = len(layer.kernel_size)
    if max(layer.dilation) > 1 and not layer.transposed:
        sets = layer.out_channels if layer.groups == layer.in_channels else 1
        added = axes * math.prod(layer.kernel_size) * sets
    else:
        hidden = 16
        added = axes + sum(2 * hidden + taps * (hidden + 1) for taps in layer.kernel_size)
    assert parameters_of(rewritten) == {"total": plain + added, "trainable": plain + added, "added": added}


def test_frozen_and_shared_parameters_count_as_such() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    second.bias.requires_grad_(False)
    assert parameters_of(nn.Sequential(first, second)) == {"total": 15, "trainable": 12, "added": 0}


def test_peak_memory_of_a_chain() -> None:
    """The second operation's input and output are there together; the first one's input was there before."""
    x = torch.zeros(1000)

    def chain() -> Tensor:
        return (x + x) * x

    assert peak_memory(chain, x.device) == 8000
    assert peak_memory(lambda: [chain(), chain()], x.device) == 12000


def test_a_training_step_leaves_no_gradients(compared: Compared) -> None:
    model = compared.moved
    gradients = training_step(model, Inputs.of(compared.input))
    assert gradients is not None
    assert len(gradients) == len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())
    assert training_step(nn.ReLU(), Inputs.of(compared.input)) is None
