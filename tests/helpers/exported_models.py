"""Models and small files for the tests of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

import ccrewrite
from ccrewrite.nn import Sampling


def moved(model: nn.Module, inputs: Any, rules: Any = None) -> nn.Module:
    rewritten = ccrewrite.rewrite(model, inputs, rules=rules).model
    with torch.no_grad():
        for m in rewritten.modules():
            if isinstance(m, Sampling):
                for p in m.movers():
                    p += 0.3 * torch.randn_like(p)
    return rewritten


def network(**options: Any) -> nn.Module:
    """Down, across, up: one site of each kind, under names."""
    model = nn.Sequential()
    model.add_module("down", nn.Conv2d(3, 8, 3, stride=2, padding=1, **options))
    model.add_module("norm", nn.BatchNorm2d(8))
    model.add_module("act", nn.ReLU())
    model.add_module("across", nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, **options))
    model.add_module("up", nn.ConvTranspose2d(8, 2, 4, stride=2, padding=1))
    return model.eval()


def save(directory: Path, nodes: Any, initializers: Any, opset: int = 16, dtype: int = TensorProto.FLOAT) -> Path:
    x, y = helper.make_tensor_value_info("x", dtype, [1, 2, 17]), helper.make_tensor_value_info("y", dtype, [1, 2, "length"])
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, directory / "in.onnx")
    return directory / "in.onnx"
