"""Generated convolutions with inputs that fit them, for the property tests: every way torch has to call one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MODES = ("zeros", "reflect", "replicate", "circular")
MOST_TAPS = {1: 7, 2: 4, 3: 3}


@dataclass
class Case:
    """A convolution in float64, an input for it, and the other arguments of its forward."""

    conv: Any
    input: Tensor
    extra: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"{self.conv} on {tuple(self.input.shape)}, {self.extra}, padding_mode={self.conv.padding_mode}"

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.input.shape[-len(self.conv.kernel_size) :])

    @property
    def batch(self) -> Tensor:
        """The input with a batch axis."""
        return self.input if self.input.dim() == len(self.conv.kernel_size) + 2 else self.input[None]

    def native(self) -> Tensor:
        return self.conv(self.input, *self.extra)


@st.composite
def cases(draw: st.DrawFn, transposed: bool | None = None, taps: int = 1) -> Case:
    """Convolutions of any geometry whose output has at least one sample; ``taps``: the fewest along some axis."""
    ndim = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]
    each = range(ndim)
    kernel = [draw(st.integers(1, MOST_TAPS[ndim])) for _ in each]
    kernel[draw(st.integers(0, ndim - 1))] = draw(st.integers(taps, MOST_TAPS[ndim]))
    dilation = [draw(st.integers(1, 3)) for _ in each]
    stride = [draw(st.integers(1, 4)) for _ in each]
    transposed = draw(st.booleans()) if transposed is None else transposed
    bias, batch = draw(st.booleans()), draw(st.sampled_from([(), (1,), (2,)]))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    common: dict[str, Any] = {"groups": groups, "bias": bias, "dilation": tuple(dilation), "dtype": torch.float64}
    if transposed:
        padding = [draw(st.integers(0, 3)) for _ in each]
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        # (n - 1) * stride - 2 * padding + extent + output_padding >= 1
        sizes = [max(1, -((e + op - 2 * p - 1) // s) + 1) for e, op, p, s in zip(extents, extra, padding, stride, strict=True)]
        sizes = [n + draw(st.integers(0, 3)) for n in sizes]
        conv = TRANSPOSED[ndim - 1](*channels, tuple(kernel), tuple(stride), tuple(padding), tuple(extra), **common)  # pyright: ignore[reportCallIssue]
        input = torch.randn(*batch, channels[0], *sizes, dtype=torch.float64)
        asked: tuple[Any, ...] = ()
        if draw(st.booleans()):  # by output_size, which overrides output_padding and reaches up to stride - 1 further
            least = [(n - 1) * s - 2 * p + e for n, s, p, e in zip(sizes, stride, padding, extents, strict=True)]
            asked = ([n + draw(st.integers(0, s - 1)) for n, s in zip(least, stride, strict=True)],)
            asked = asked if min(asked[0]) >= 1 else ()
        return Case(conv, input, asked)
    mode = draw(st.sampled_from(MODES))
    named = draw(st.sampled_from([None, None, "same", "valid"]))
    if named == "same":
        stride, padding = [1] * ndim, [(e - 1) // 2 + (e - 1) % 2 for e in extents]
    else:
        padding = [0 if named else draw(st.integers(0, 4)) for _ in each]
    reach = {"reflect": 1, "circular": 0}.get(mode, -(10**6))  # reflect needs more samples than padding, circular as many
    sizes = [max(1, p + reach, 1 if named == "same" else e - 2 * p) for p, e in zip(padding, extents, strict=True)]
    sizes = [n + draw(st.integers(0, 5)) for n in sizes]
    conv = CONVS[ndim - 1](*channels, tuple(kernel), tuple(stride), named or tuple(padding), padding_mode=mode, **common)  # pyright: ignore[reportCallIssue]
    return Case(conv, torch.randn(*batch, channels[0], *sizes, dtype=torch.float64))
