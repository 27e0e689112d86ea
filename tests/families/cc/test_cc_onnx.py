"""The operator ``ccrewrite::CCConv`` against the layers that it stands for, at sizes that it learns when it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ccrewrite import nn as ccnn
from ccrewrite.families.cc.onnx import bands
from ccrewrite.families.cc.onnx.bands import BLOCK
from ccrewrite.families.cc.onnx.operator import CCConv
from ccrewrite.families.onnx import OnnxCall
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.onnx_nodes import Nodes

CASES: dict[str, Any] = {
    "strided": lambda: ccnn.CCConv2d(2, 3, 3, stride=2, padding=1),
    "uneven": lambda: ccnn.CCConv2d(4, 2, (5, 2), stride=(1, 3), padding=(2, 0), dilation=(1, 2), groups=2, bias=False),
    "linear": lambda: ccnn.CCConv1d(2, 2, 4, stride=2, padding=1, basis="linear"),
    "mlp": lambda: ccnn.CCConv1d(2, 2, 4, stride=2, padding=1, kernel="mlp", hidden=8),
    "causal": lambda: ccnn.CCConv1d(2, 2, 4, stride=2, reach=0),
    "wide": lambda: ccnn.CCConv1d(2, 2, 66, stride=33, padding=60),
    "volume": lambda: ccnn.CCConv3d(1, 1, 2, stride=2),
    "circular": lambda: ccnn.CCConv2d(1, 2, 3, stride=2, padding=1, padding_mode="circular"),
    "reflect": lambda: ccnn.CCConv1d(1, 2, 4, stride=2, padding=3, padding_mode="reflect"),
    "replicate": lambda: ccnn.CCConv1d(1, 2, 4, stride=3, padding=1, padding_mode="replicate"),
    "centred": lambda: ccnn.CCConv2d(1, 2, 3, stride=2, alignment="centred"),
    "one axis plain": lambda: ccnn.CCConv2d(2, 3, (4, 1), stride=(2, 1), padding=(1, 0)),
    "the other axis": lambda: ccnn.CCConv2d(1, 2, 3, stride=2, padding=1, dilation=2, padding_mode="reflect", axes=(1,)),
    "one residual": lambda: ccnn.CCConv2d(2, 2, 3, stride=2, padding=1, sharing="axis"),
    "up": lambda: ccnn.CCConvTranspose2d(2, 4, 4, stride=2, padding=1, groups=2),
    "up uneven": lambda: ccnn.CCConvTranspose2d(2, 1, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), dilation=2),
    "up centred": lambda: ccnn.CCConvTranspose1d(2, 2, 5, stride=3, alignment="centred"),
    "up mlp": lambda: ccnn.CCConvTranspose1d(2, 2, 4, stride=2, kernel="mlp", hidden=8),
    "up, one axis plain": lambda: ccnn.CCConvTranspose2d(2, 2, (3, 4), stride=2, padding=1, dilation=(2, 1), axes=(1,)),
    "up volume": lambda: ccnn.CCConvTranspose3d(1, 2, 2, stride=2, bias=False),
}


def operator(layer: Any) -> tuple[CCConv, dict[str, Tensor]]:
    """What a float32 layer is in ONNX."""
    g, form = ConvGeometry.from_module(layer), layer.sampling.onnx_form()
    call = OnnxCall(g, g.pads, tuple(layer.weight.shape), torch.float32)
    return form.operator(call), form.tensors


def model_of(what: CCConv, layer: Any, native: Any, tensors: dict[str, Tensor]) -> ir.Model:
    """A file with the operator alone: inputs x and asked, everything else constant."""
    x, asked = ir.val("x", ir.DataType.FLOAT), ir.val("asked", ir.DataType.INT64, [len(what.axes)])
    constants = {"weight": layer.weight.numpy(), "native": np.array(native), **{n: t.numpy() for n, t in tensors.items()}}
    if layer.bias is not None:
        constants["bias"] = layer.bias.numpy()
    known = {n: ir.val(n, const_value=ir.tensor(c, name=n)) for n, c in constants.items()}
    op = Nodes()
    more = {"native": known["native"], "asked": asked, **{n: known[n] for n in tensors}}
    out = what.body(op, x, known["weight"], known.get("bias"), more)
    out.name, out.dtype = "y", ir.DataType.FLOAT
    x.shape = out.shape = ir.Shape([None] * (len(what.axes) + 2))
    nodes, initializers = list(op.nodes), list(known.values())
    graph = ir.Graph([x, asked], [out], nodes=nodes, initializers=initializers, opset_imports={"": 18}, name="g")
    return ir.Model(graph, ir_version=8)


def session_of(model: ir.Model) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("block", [3, BLOCK])
@pytest.mark.parametrize("moved", [False, True], ids=["still", "moved"])
@pytest.mark.parametrize("name", CASES)
def test_every_size(name: str, moved: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BLOCK", block)
    torch.manual_seed(0)
    layer = CASES[name]()
    geometry, cc = ConvGeometry.from_module(layer), layer.sampling
    if moved:
        for tensor in cc.movers():
            nn.init.normal_(tensor, std=0.3)
    layer.requires_grad_(False)
    shape = (7, 9, 8)[: geometry.ndim]
    x = torch.randn(2, geometry.in_channels, *shape)
    what, learned = operator(layer)
    assert bool(learned) == (moved or not cc.movers())
    native = np.array(geometry.output_size(shape))
    session = session_of(model_of(what, layer, native, learned))
    sizes = (np.ones_like(native), native, native + 2, np.maximum(1, native // 2), 3 * native)
    for size in sizes:
        (found,) = session.run(None, {"x": x.numpy(), "asked": size})
        layer.output_size = tuple(map(int, size))
        expected: Tensor = layer(x)
        layer.output_size = None
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("block", [3, BLOCK])
def test_long_signals_lose_no_phase(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinates of 6000 -> 8001 samples times taps are beyond what float32 can count."""
    monkeypatch.setattr(bands, "BLOCK", block)
    torch.manual_seed(0)
    layer = ccnn.CCConvTranspose1d(1, 1, 4, stride=2, padding=1).requires_grad_(False)
    x = torch.randn(1, 1, 3000)
    what, learned = operator(layer)
    assert not learned
    session = session_of(model_of(what, layer, [6000], learned))
    (found,) = session.run(None, {"x": x.numpy(), "asked": np.array([8001])})
    layer.output_size = 8001
    exact = layer.double()(x.double())
    assert float((torch.from_numpy(found) - exact).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("taps", "stride"), [(3, 2), (16, 8), (16, 16), (41, 4), (64, 2), (256, 128), (400, 160), (401, 100), (512, 16)]
)
def test_a_matrix_reads_few_samples(taps: int, stride: int) -> None:
    """Whatever the kernel, as spectrograms have it: else its matrices would be gigabytes of zeros."""
    what, _ = operator(ccnn.CCConv1d(1, 1, taps, stride=stride).requires_grad_(False))
    outputs, together = bands.block_of(what.axes[0])
    assert taps % together == 0
    assert outputs == 1 or together == taps, "else rows would have to be put in order"
    assert stride * (outputs - 1) + together <= (BLOCK + bands.MANY if taps == 41 else 2 * BLOCK)


def test_the_checker_takes_it(tmp_path: Any) -> None:
    layer = ccnn.CCConv2d(2, 3, 3, stride=2).requires_grad_(False)
    what, learned = operator(layer)
    ir.save(model_of(what, layer, [3, 3], learned), tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
