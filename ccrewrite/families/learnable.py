"""What training and reports ask of a sampling: ``Learnable``, a base of ``Sampling``, with answers that hold for any."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple, cast

from torch import Tensor, nn

from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.typed import lists

FINENESS = 8
"""Places per sample at which continuous kernels are recorded and pictured."""


class Recording(NamedTuple):
    """Geometry at one moment, as a ``ccrewrite.training.Recorder`` keeps it. ``kind`` says what the tensors are:

    - "positions": one, ``(axes, A, B, *taps)``, in samples from the window's centre; ``window`` is its size along these axes;
    - "profiles": one for each axis, ``(taps, places)``, the continuous kernels of the taps at ``FINENESS`` places per sample,
      centred;
    - "values": any.
    """

    kind: Literal["positions", "profiles", "values"]
    tensors: list[Tensor]
    window: Ints = ()

    def change(self, first: list[Tensor]) -> float:
        """How far it is from ``first``, the tensors of another recording: of positions the longest way of a tap, in samples, of
        others the largest change of a number."""
        apart = [now - then for now, then in zip(self.tensors, first, strict=True)]
        if self.kind == "positions":
            apart = [d.square().sum(0).sqrt() for d in apart]
        return max(float(d.abs().max()) for d in apart)


class Learnable(nn.Module):
    """Learnable geometry as training and reports see it."""

    parameter_group: ClassVar[str] = "geometry"
    """The optimizer group of its parameters (``ccrewrite.training.param_groups``). "positions" is for places of taps, in
    samples: they learn at 5 times the rate, and ``ccrewrite.training.snap`` can round them."""
    lr_scale: ClassVar[float] = 1.0
    """Learning rate of its parameters over what the group says."""

    def clamp_(self) -> None:
        """Write parameters that an optimizer carried past their bounds back onto them, in place. Parameters may be sharded:
        ``clamp_between_`` can do that. By default there are no bounds."""

    def snap_(self, tol: float, *, width: float | None = None) -> float:
        """Move what is within ``tol`` samples of a sample onto it, in place; returns the largest move, in samples. ``width``:
        narrow taps to so many samples, too, where they have a width. By default there is nothing to move."""
        return 0.0

    def recording(self) -> Recording:
        """The geometry now. By default all parameters, as "values"."""
        return Recording("values", [p.detach() for p in self.parameters()])

    def picture(self) -> JsonObject:
        """What a report shows of the geometry beside the kernel before and now, as plain data: any of the entries "positions",
        "profiles", "distance" and "drift" of ``learnt`` in docs/report-schema.json. By default none."""
        return {}


def clamp_between_(parameter: Tensor, low: Tensor, high: Tensor) -> None:
    """``parameter.clamp_(low, high)`` with bounds that broadcast, each process its share where it is sharded. What is inside
    keeps its last bit.

    >>> import torch
    >>> angle = torch.nn.Parameter(torch.tensor([-2.0, 0.5]))
    >>> with torch.no_grad():
    ...     clamp_between_(angle, torch.tensor(-1.0), torch.tensor(1.0))
    >>> angle.tolist()
    [-1.0, 0.5]
    """
    if hasattr(parameter, "to_local"):  # this process's part of the bounds, without asking the others
        from torch.distributed.tensor import DTensor, distribute_tensor

        shares = cast(DTensor, parameter)
        where = shares.device_mesh, shares.placements
        whole = (bound.expand(shares.shape).contiguous() for bound in (low, high))
        low, high = (distribute_tensor(bound, *where, src_data_rank=None).to_local() for bound in whole)
        parameter = shares.to_local()
    parameter.clamp_(low, high)


def rounded(values: Any, digits: int = 4) -> Any:
    """A number, tensor or list of numbers as plain numbers of as many digits as a picture needs. Reports are full of them.

    >>> rounded([1 / 3, 0.0]), rounded(2 / 3, 2)
    ([0.3333, 0], 0.67)
    """
    if isinstance(values, Tensor):
        values = lists(values)
    if isinstance(values, list):
        return [rounded(v, digits) for v in cast("list[Any]", values)]
    return float(f"{float(values):.{digits}g}") or 0
