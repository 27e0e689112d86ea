"""What Inductor makes of every form for a CUDA device, looked at without one: its Triton source, its PTX, and what it computes.

make gpu-code
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ccrewrite.families.dcls.forms.operators import FORMS, backward_of, forward_of
from ccrewrite.gathering.rows import sum_of_cells

pytest.importorskip("triton", reason="not part of torch's CPU build: make gpu-code")

import fake_cuda

pytestmark = pytest.mark.slow


class Case(NamedTuple):
    """One direction of one form, at one size: a function of tensors, as Inductor gets it."""

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]


def cases(
    form: str, batch: int, inner: int, out: int, size: int, window: int, taps: int, dtype: torch.dtype = torch.float32
) -> dict[str, Case]:
    """Forward and backward in two dimensions, with "same" padding. Depthwise: ``inner == out``."""
    pads, windows = [(window - 1) // 2] * 4, [window] * 2
    depthwise = form == "taps"
    x = torch.randn(batch, inner, size, size, dtype=dtype)
    weight = torch.randn(out, 1 if depthwise else inner, taps, dtype=dtype)
    positions = torch.rand(2, out if depthwise else 1, taps) * (window - 1)
    positions[..., 0] = positions[..., 0].round()  # on a sample, where two derivatives meet
    y, kept = forward_of(x, weight, positions, form, windows, pads)

    def forward(x: Tensor, weight: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return forward_of(x, weight, positions, form, windows, pads)

    def backward(gradient: Tensor, x: Tensor, weight: Tensor, positions: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        return backward_of(gradient, x, weight, positions, kept, form, windows, pads, [True] * 3)

    given = (x, weight, positions)
    return {"forward": Case(forward, given), "backward": Case(backward, (torch.randn_like(y), *given, kept))}


def sparse(batch: int, channels: int, size: int, window: int, cells: int) -> Case:
    """The forward of a folded depthwise layer that visits ``cells`` of each filter."""
    pads = [((window - 1) // 2,) * 2] * 2
    visited = torch.stack([torch.randperm(window**2)[:cells].sort().values for _ in range(channels)])
    weight = torch.zeros(channels, window**2).scatter_(1, visited, torch.randn(channels, cells))

    def forward(x: Tensor, weight: Tensor, visited: Tensor) -> tuple[Tensor, ...]:
        return (sum_of_cells(x, weight, visited, (1, 1), pads),)  # pyright: ignore[reportArgumentType]

    given = torch.randn(batch, channels, size, size), weight.view(channels, 1, window, window), visited.to(torch.int32)
    return Case(forward, given)


WAYS = [*itertools.product(sorted(FORMS), ("forward", "backward")), ("sparse", "forward")]
DENSE = (2, 256, 256, 33, 13, 9)
SIZES = {"products": DENSE, "shifts": DENSE, "taps": (2, 96, 96, 56, 17, 34)}
FEW = {"forward": 8, "backward": 16}  # kernels, most of them of a few elements: cells, corners and coefficients of the taps


@pytest.fixture(scope="module")
def sources() -> dict[tuple[str, str], str]:
    torch.manual_seed(0)
    made = {form: cases(form, *SIZES[form]) for form in FORMS} | {"sparse": {"forward": sparse(2, 96, 56, 17, 120)}}
    return {(form, way): fake_cuda.source(*case) for form, both in made.items() for way, case in both.items()}


@pytest.mark.parametrize(("form", "way"), WAYS)
def test_few_kernels_and_no_atomics(sources, form, way):
    code = sources[form, way]
    assert 1 <= len(fake_cuda.kernels(code)) <= FEW[way]
    assert "tl.atomic_" not in code
    assert (
        "aten." not in code.replace("aten = torch.ops.aten", "").split("def call(")[1]
    )  # nothing that isn't generated but GEMMs


@pytest.mark.parametrize(("form", "way"), [("taps", "forward"), ("taps", "backward"), ("sparse", "forward")])
def test_tap_by_tap_nothing_of_taps_times_outputs_is_allocated(sources, form, way):
    batch, channels, _, size, _, taps = SIZES["taps"]
    assert max(fake_cuda.buffers(sources[form, way])) < batch * channels * size**2 * taps / 10


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("form", ["products", "shifts"])
def test_what_goes_into_or_comes_out_of_a_matrix_product_is_written_once(sources, form, way):
    batch, channels, _, size, _, taps = SIZES[form]
    wide = [n for n in fake_cuda.buffers(sources[form, way]) if n >= batch * channels * size**2 * taps]
    assert len(wide) == 1


@pytest.mark.parametrize(("form", "way"), WAYS)
def test_kernels_compile_for_hopper(sources, form, way):
    for name, kernel in fake_cuda.kernels(sources[form, way]).items():
        ptx = fake_cuda.compiled(name, kernel)
        assert f".visible .entry {name}(" in ptx
        assert ".target sm_90" in ptx
        assert "atom." not in ptx
        assert "red.global" not in ptx


def test_bfloat16_is_computed_in_float32():
    code = fake_cuda.source(*cases("taps", 2, 32, 32, 14, 7, 10, torch.bfloat16)["forward"])
    assert "*bf16" in code
    assert ".to(tl.float32)" in code
    for name, kernel in fake_cuda.kernels(code).items():
        fake_cuda.compiled(name, kernel)


def test_interpreted_kernels_compute_what_eager_does(tmp_path: Path):
    shapes = {"products": (2, 3, 5, 7, 5, 3), "shifts": (2, 3, 5, 7, 5, 3), "taps": (2, 4, 4, 7, 5, 6)}
    made = {(form, way): case for form in FORMS for way, case in cases(form, *shapes[form]).items()}
    made["sparse", "forward"] = sparse(2, 4, 7, 5, 6)
    torch.save([(fake_cuda.source(*case), list(case.inputs)) for case in made.values()], tmp_path / "cases.pt")
    script = Path(__file__).with_name("interpret_triton.py")
    command = [sys.executable, script, tmp_path / "cases.pt", tmp_path / "results.pt"]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    for (name, case), found in zip(made.items(), torch.load(tmp_path / "results.pt"), strict=True):
        for got, expected in zip(found, case.function(*case.inputs), strict=True):
            torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5, msg=lambda said, name=name: f"{name}: {said}")
