"""What is measured of one layer or network: ``COLUMNS``, each a function of a ``Subject`` that answers with plain numbers."""

from __future__ import annotations

import copy
import functools
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from moving import move_
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import ccrewrite
from ccrewrite.ir.geometry import ConvGeometry
from ccrewrite.ir.spent import peak_memory
from ccrewrite.ir.timing import Case, Effort, time_cases
from ccrewrite.ir.typed import compiled

MOST_CELLS = 1 << 22
"""Of a kernel that ``dcls`` builds, many times over: more of them take minutes and gigabytes a call."""
Run = Callable[[], object]
Build = Callable[[], tuple[nn.Module, Any]]


class Subject:
    """An original and its inputs, and what becomes of it; each is made once, when it is first asked for."""

    def __init__(self, build: Build, seconds: float) -> None:
        torch.manual_seed(0)
        self.original, inputs = build()
        self.original.eval()
        self.inputs: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
        self.seconds = seconds

    def rewritten(self) -> nn.Module:
        return ccrewrite.rewrite(self.original, self.inputs).model

    @functools.cached_property
    def moved(self) -> nn.Module:
        model = self.rewritten()
        move_(model, 0.3)
        return model

    @functools.cached_property
    def folded(self) -> Any:
        return ccrewrite.fold(self.moved, self.inputs)

    def inference(self, model: nn.Module) -> Run:
        @torch.no_grad()
        def run() -> None:
            model(*self.inputs)

        return run

    def step(self, model: nn.Module) -> Run:
        """Forward and backward of the outputs' mean squares, to floating-point inputs as well."""
        given = [i.clone().requires_grad_() if isinstance(i, Tensor) and i.is_floating_point() else i for i in self.inputs]
        wanted = [t for t in (*given, *model.parameters()) if isinstance(t, Tensor) and t.requires_grad]

        def run() -> None:
            for tensor in wanted:
                tensor.grad = None
            outputs = [t for t in tree_leaves(model(*given)) if isinstance(t, Tensor) and t.requires_grad]
            torch.stack([t.abs().square().mean() for t in outputs]).sum().backward()

        return run

    def timed(self, runs: dict[str, Run]) -> dict[str, dict[str, float]]:
        """Thread times, and ratios to the first of ``runs``; rounds in random order."""
        first = next(iter(runs))
        cases = {name: Case(run, nullcontext, first) for name, run in runs.items()}
        found = time_cases(cases, Effort(self.seconds, (7, 41), 0.0), clock=time.thread_time)
        return {name: timing.data() for name, timing in found.items()}


def eager_inference(s: Subject) -> dict[str, Any]:
    runs = {"original": s.original, "moved": s.moved, "folded": s.folded.model}
    return s.timed({name: s.inference(model) for name, model in runs.items()})


def eager_step(s: Subject) -> dict[str, Any]:
    return s.timed({"original": s.step(s.original), "moved": s.step(s.moved)})


def memory(s: Subject) -> dict[str, Any]:
    cpu = torch.device("cpu")
    peaks = {name: peak_memory(s.step(model), cpu) for name, model in (("original", s.original), ("moved", s.moved))}
    return {**peaks, "ratio": peaks["moved"] / max(peaks["original"], 1)}


def unmoved(s: Subject) -> dict[str, Any]:
    return s.timed({"original": s.inference(s.original), "unmoved": s.inference(s.rewritten())})


def peer(s: Subject) -> dict[str, Any]:
    """What people use instead: PyPI ``dcls``'s layer for a dilated one; a resized input and a layer of stride 1 for a strided
    one, and the other way round for a transposed one. Empty where there is none."""
    other = _peer(s.original)
    if other is None:
        return {}
    runs = {"original": s.original, "moved": s.moved, "peer": other}
    return {
        "inference": s.timed({name: s.inference(model) for name, model in runs.items()}),
        "step": s.timed({name: s.step(model) for name, model in runs.items()}),
    }


def runtime(s: Subject) -> dict[str, Any]:
    """The exported files in onnxruntime, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("original", s.original), ("moved", s.moved)):
            file = Path(folder) / f"{name}.onnx"
            ccrewrite.export_onnx(model, file, s.inputs)
            session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
            feed = {i.name: v.numpy() for i, v in zip(session.get_inputs(), s.inputs, strict=True)}
            runs[name] = functools.partial(session.run, None, feed)
        return s.timed(runs)


def sites_compiled(s: Subject) -> dict[str, Any]:
    torch._dynamo.reset()
    lowered = ccrewrite.lower(copy.deepcopy(s.moved), s.inputs, mode="training", scope="sites", verify=False)
    return {"forms": lowered.summary(), **s.timed({"original": s.step(s.original), "moved": s.step(lowered.model)})}


def lowered_inference(s: Subject) -> dict[str, Any]:
    """Over the original compiled."""
    torch._dynamo.reset()
    original: Any = torch.compile(s.original)
    lowered = ccrewrite.lower(s.moved, s.inputs, verify=False)
    runs = {"original": s.inference(original), "moved": s.inference(lowered.model)}
    return {"forms": lowered.summary(), **s.timed(runs)}


def lowered_step(s: Subject) -> dict[str, Any]:
    """Over the original compiled; forms by estimate."""
    torch._dynamo.reset()
    moved = copy.deepcopy(s.moved)
    lowered = ccrewrite.lower(moved, s.inputs, mode="training", measured=False, verify=False)
    runs = {"original": s.step(compiled(s.original)), "moved": s.step(lowered.model)}
    return {"forms": lowered.summary(), **s.timed(runs)}


EAGER = {"eager inference": eager_inference, "eager step": eager_step, "memory": memory}
OTHERS = {"unmoved": unmoved, "peer": peer, "onnxruntime": runtime}
COMPILED = {"lowered inference": lowered_inference, "lowered step": lowered_step, "sites compiled": sites_compiled}
COLUMNS: dict[str, Callable[[Subject], dict[str, Any]]] = {**EAGER, **OTHERS, **COMPILED}


class Resized(nn.Module):
    """The input resized by the stride, then the layer with stride 1; of a transposed layer, the input made larger first."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.geometry = g = ConvGeometry.from_module(layer)
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        padding = "same" if g.transposed else tuple(k // 2 for k in g.kernel_size)
        self.layer = kinds[g.ndim](g.in_channels, g.out_channels, g.kernel_size, padding=padding, groups=g.groups)

    def forward(self, x: Tensor) -> Tensor:
        g = self.geometry
        mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[g.ndim]
        size = [n * s if g.transposed else -(-n // s) for n, s in zip(x.shape[2:], g.stride, strict=True)]
        return self.layer(F.interpolate(x, size, mode=mode, antialias=g.ndim == 2 and not g.transposed))


def _peer(layer: nn.Module) -> nn.Module | None:
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return None
    g = ConvGeometry.from_module(layer)
    if max(g.dilation) == 1:
        return Resized(layer)
    try:
        import DCLS.construct.modules as reference  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    if math.prod(layer.weight.shape[:2]) * math.prod(g.extent) > MOST_CELLS:
        return None
    kind = {1: reference.Dcls1d, 2: reference.Dcls2d, 3: reference.Dcls3d}[g.ndim]
    return kind(
        g.in_channels,
        g.out_channels,
        math.prod(g.kernel_size),
        stride=g.stride,
        dilated_kernel_size=g.extent,
        padding=tuple(low for low, _ in g.pads),
        groups=g.groups,
        version="v1",
    )


def quiet() -> None:
    """One thread, for torch and for what it compiles."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.set_num_threads(1)
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = 64
