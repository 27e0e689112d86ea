"""What a model's run looks like from outside the package: its convolution calls, its outputs, its state."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), ("stride", "padding", "dilation", "groups")),
    **dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        ("stride", "padding", "output_padding", "groups", "dilation"),
    ),
}


@dataclass(frozen=True)
class Seen:
    """One convolution call: the path of the module that makes it, its kind, and a zero that was added to its weight."""

    module: str
    kind: str
    probe: Tensor


class Observer(TorchFunctionMode):
    """Records the convolution calls made inside. The gradient of each call's weight lands in its probe, whether that weight
    is a parameter or not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paths = {module: path for path, module in model.named_modules()}
        self.running: list[str] = [""]
        self.calls: list[Seen] = []

    def __enter__(self) -> Observer:
        def enter(module: nn.Module, args: Any) -> None:
            self.running.append(self.paths.get(module, self.running[-1]))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()

        self.handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self.handles:
            handle.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in CONVOLUTIONS:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("input", "weight", "bias", *CONVOLUTIONS[func]), args, strict=False)) | dict(kwargs or {})
        probe = torch.zeros_like(named["weight"], requires_grad=True)
        self.calls.append(Seen(self.running[-1], _kind(func.__name__, named), probe))
        named["weight"] = named["weight"] + probe
        return func(**named)


def _kind(name: str, named: Mapping[str, Any]) -> str:
    sizes = named["weight"].shape[2:]
    stride, dilation = (
        v if isinstance(v := named.get(argument, 1), (tuple, list)) else (v,) * len(sizes)
        for argument in ("stride", "dilation")
    )
    if "transpose" in name:
        return "transposed"
    if any(d > 1 and k > 1 for d, k in zip(dilation * len(sizes), sizes, strict=False)):
        return "dilated"
    return "strided" if max(stride) > 1 else "other"


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output of any structure, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    elif dataclasses.is_dataclass(output):
        output = [getattr(output, f.name) for f in dataclasses.fields(output)]
    return [t for part in output for t in tensors(part)] if isinstance(output, (list, tuple)) else []


def loss(output: Any) -> Tensor:
    """A scalar that every floating-point output reaches."""
    return torch.stack([t.square().mean() for t in tensors(output) if t.is_floating_point()]).sum()


def relative_error(found: Any, expected: Any) -> float:
    """Largest error of any output, relative to that output's largest magnitude; discrete outputs must be equal."""
    found, expected = tensors(found), tensors(expected)
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
    assert expected
    errors = [0.0]
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.is_floating_point():
            assert bool(theirs.isfinite().all())
            errors.append(((ours - theirs).abs().max() / theirs.abs().max()).item())
        else:
            assert torch.equal(ours, theirs), f"{int((ours != theirs).sum())} of {theirs.numel()} discrete values differ"
    return max(errors, key=lambda error: (error != error, error))  # a NaN is the largest of all


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a rewrite of it must leave alone, in a form that compares with ``==``."""
    return {
        "modules": [(name, id(m), type(m), m.training) for name, m in model.named_modules(remove_duplicate=False)],
        "hooks": [{k: len(v) for k, v in vars(m).items() if k.endswith("hooks")} for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "parameters": [
            (name, id(p), p._version, p.requires_grad, p.grad is None)
            for name, p in model.named_parameters(remove_duplicate=False)
        ],
        "buffers": [(name, id(b)) for name, b in model.named_buffers(remove_duplicate=False)],
        "values": {name: _bytes(t) for name, t in model.state_dict().items()},
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),  # noqa: NPY002
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()
