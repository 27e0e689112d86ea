"""A CUDA device that isn't there, for what can be checked of GPU code on any machine. Needs triton, and no GPU.

``source`` is what Inductor would run on the device; ``compiled`` makes PTX of its kernels; ``interpret_triton.py`` runs it on
CPU tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import view_to_reshape  # pyright: ignore[reportPrivateImportUsage]
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

CAPABILITY = (9, 0)
PROPERTIES = SimpleNamespace(
    name="Fake H100",
    type="cuda",
    index=0,
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=50 << 20,
    gcnArchName="",
    is_integrated=0,
    is_multi_gpu_board=0,
)


def _target() -> Any:
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]

    return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)


class _Driver:
    """As much of Triton's driver as is asked without anything being launched."""

    def get_current_target(self) -> Any:
        return _target()

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_capability(self, *_: Any) -> tuple[int, int]:
        return CAPABILITY

    def get_device_interface(self) -> Any:
        return torch.cuda


@contextmanager
def fake_cuda() -> Iterator[None]:
    """torch, Inductor and Triton find one device, of ``PROPERTIES``."""
    import triton  # pyright: ignore[reportMissingImports]

    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": PROPERTIES,
        "get_device_capability": CAPABILITY,
        "get_device_name": PROPERTIES.name,
    }
    interface = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": PROPERTIES,
        "get_compute_capability": 10 * CAPABILITY[0] + CAPABILITY[1],
        "get_raw_stream": 0,
    }
    worker = {"get_device_properties": PROPERTIES, "current_device": 0}
    with ExitStack() as stack:
        for owner, found in ((torch.cuda, answers), (CudaInterface, interface), (CudaInterface.Worker, worker)):
            for name, answer in found.items():
                told = lambda *_, answer=answer, **__: answer  # noqa: E731
                stack.enter_context(mock.patch.object(owner, name, staticmethod(told) if owner is not torch.cuda else told))
        stack.enter_context(mock.patch.object(torch.version, "cuda", "13.0"))
        # The method wants the device's runtime, the function doesn't.
        stack.enter_context(mock.patch.object(torch.Tensor, "__invert__", lambda x: torch.bitwise_not(x)))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", _Driver()))
        stack.enter_context(mock.patch("torch._inductor.runtime.triton_helpers.set_driver_to_gpu"))
        yield


def source(function: Callable[..., Any], inputs: Sequence[Tensor]) -> str:
    """The module that Inductor writes for ``function`` of CUDA tensors like ``inputs`` (on the CPU): kernels, and ``call``."""
    # On the CPU, for fake CUDA tensors run into what isn't linked; forms are told that they aren't there.
    with mock.patch("ccrewrite.gathering.moved.copies", return_value=False):
        traced = make_fx(function, decomposition_table=select_decomp_table(), tracing_mode="fake")(*inputs)
    for node in traced.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    traced.recompile()
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    with fake_cuda(), V.set_fake_mode(mode):
        with mode:
            moved = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in inputs]
            _Values(traced).run(*moved)
        view_to_reshape(traced)
        post_grad_passes(traced, is_inference=True)
        lowering = GraphLowering(traced, shape_env=shapes, is_inference=True)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]), V.set_debug_handler(DebugContext()):
            lowering.run(*moved)
            return lowering.codegen()[0].value


class _Values(fx.Interpreter):
    """Notes every node's value where Inductor looks for it."""

    def run_node(self, n: fx.Node) -> Any:
        n.meta["val"] = value = super().run_node(n)
        return value


def kernels(code: str) -> dict[str, str]:
    """The source of every Triton kernel in a module that ``source`` returned."""
    return dict(re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.DOTALL))


def buffers(code: str) -> list[int]:
    """How many elements each buffer has that ``call`` allocates on the device."""
    shapes = re.findall(r"= empty_strided_cuda\(\(([\d, ]*)\)", code)
    return [torch.Size(int(n) for n in shape.split(",") if n.strip()).numel() for shape in shapes]


def compiled(name: str, kernel: str) -> str:
    """PTX of one of ``kernels``, for ``CAPABILITY``; it has gone through the assembler too."""
    import triton  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    with fake_cuda():
        found = getattr(PyCodeCache.load(kernel), name)  # from a file: Triton reads the function's source there
        chosen = found.configs[0]
        signature = found.triton_meta["signature"]
        constants = {(found.fn.arg_names.index(k),): v for k, v in chosen.kwargs.items()}
        attributes = found.triton_meta["configs"][0]
        made = triton.compile(ASTSource(found.fn, signature, constants, attributes), target=_target())
        assert made.asm["cubin"]
        return made.asm["ptx"]
