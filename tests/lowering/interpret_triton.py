"""Runs modules that Inductor wrote for a CUDA device on CPU tensors, in Triton's interpreter: a process of its own.

    TRITON_INTERPRET=1 python interpret_triton.py cases.pt results.pt

``cases.pt`` holds a list of (source, inputs), ``results.pt`` gets their lists of outputs. Grids and block sizes are ours: what
Inductor would choose by measuring.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch._inductor.runtime import triton_heuristics
from torch._inductor.runtime.triton_helpers import libdevice  # pyright: ignore[reportPrivateImportUsage]

BLOCKS = {"XBLOCK": 256, "YBLOCK": 16, "R0_BLOCK": 128}


class Kernel:
    def __init__(self, function: Any, meta: dict[str, Any]) -> None:
        assert meta["grid_type"] in ("Grid1D", "Grid2D"), meta["grid_type"]
        self.function = function
        names = list(inspect.signature(function.fn).parameters)
        self.blocks = {name: BLOCKS[name] for name in names if name.endswith("BLOCK")}
        self.sizes = {name: names.index(name) for name in ("xnumel", "ynumel") if name in names}

    def run(self, *arguments: Any, stream: int) -> None:
        grid = [-(-arguments[at] // self.blocks.get(f"{name[0].upper()}BLOCK", 1)) for name, at in self.sizes.items()]
        self.function[tuple(grid)](*arguments, **self.blocks)


class Compile:
    """In place of Inductor's ``AsyncCompile``."""

    def triton(self, name: str, kernel: str, device_str: str) -> Kernel:
        from torch._inductor.codecache import PyCodeCache

        return getattr(PyCodeCache.load(kernel), name)

    def wait(self, scope: dict[str, Any]) -> None: ...


def heuristic(**given: Any) -> Callable[[Any], Kernel]:
    return lambda function: Kernel(function, given["inductor_meta"])


def outputs(source: str, inputs: list[Tensor]) -> list[Tensor]:
    def empty(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(size, stride, dtype=dtype)

    module: dict[str, Any] = {"Compile": Compile, "empty": empty}
    source = source.replace("torch._C._dynamo.guards._empty_strided_cuda", "empty").replace("AsyncCompile()", "Compile()")
    exec(source, module)
    return list(module["call"](list(inputs)))


def main(cases: str, results: str) -> None:
    assert triton.knobs.runtime.interpret
    # A library that is linked in when compiling. Looked up when called: the interpreter puts its own functions there.
    libdevice.floor, libdevice.ceil = lambda x: tl.floor(x), lambda x: tl.ceil(x)  # pyright: ignore[reportAttributeAccessIssue]
    patches = [mock.patch.object(triton_heuristics, n, heuristic) for n in ("pointwise", "reduction", "persistent_reduction")]
    patches += [
        mock.patch("torch._inductor.runtime.triton_helpers.set_driver_to_gpu"),
        mock.patch("torch._C._cuda_getCurrentRawStream", return_value=0, create=True),
        mock.patch("torch.cuda._DeviceGuard", return_value=nullcontext()),
        mock.patch("torch.cuda.set_device"),
    ]
    for patch in patches:
        patch.start()
    torch.save([outputs(source, inputs) for source, inputs in torch.load(cases)], results)


if __name__ == "__main__":
    main(*sys.argv[1:])
