"""What rounding does to a model, measured: so that its noise isn't taken for a fault, and a fault not for noise.

Outputs that differ by more than the tolerance are compared with what one rounding of the inputs, and of each convolution's
output, changes in the model itself. And where that is possible each site is judged where it is: on the input that it gets in
the run, against what it stands for, which then goes on in its place, so that no site hears of another's noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ccrewrite.ir.calls import as_call
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.check import TOLERANCE, OutputCheck
from ccrewrite.passes.verify import compare_outputs

ROUNDINGS = 10
"""How many times the noise a difference may be: the order of a sum, say, rounds more than once."""
JUDGED = 1000
"""The same where every site was judged by itself."""
Run = Callable[[Inputs], Mapping[str, object]]
"""The outputs by path, on these inputs."""
Judged = tuple[str, nn.Module, Callable[..., object]]
"""A site: its name, its module in a changed model, and what that stands for, called with the same arguments."""
Args = tuple[object, ...]
Named = dict[str, object]


def rounded(tensor: Tensor, seed: int = 0, precision: torch.dtype | None = None) -> Tensor:
    """``tensor`` with every element off by one rounding, up or down; ``precision``: of a coarser type than its own.

    >>> float((rounded(torch.ones(3)) - 1).abs().max()) == torch.finfo(torch.float32).eps
    True
    """
    if not tensor.is_floating_point():
        return tensor
    draw = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed))
    signs = torch.where(draw < 0.5, -1.0, 1.0).to(tensor)
    return tensor + tensor * signs * _unit(tensor.dtype, precision)


def _unit(dtype: torch.dtype, precision: torch.dtype | None) -> float:
    return max(torch.finfo(d).eps for d in (dtype, precision) if d is not None)


class _Rounding(TorchFunctionMode):
    """Rounds the output of every convolution once more."""

    def __init__(self, precision: torch.dtype | None) -> None:
        super().__init__()
        self.calls, self.precision = 0, precision

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if as_call(func, args, kwargs) is None:
            return out
        self.calls += 1
        return rounded(cast(Tensor, out), self.calls, self.precision)


@dataclass(frozen=True)
class Noise:
    """What one rounding changes in a model's outputs, by path."""

    outputs: Mapping[str, OutputCheck]

    @classmethod
    def of(cls, run: Run, inputs: Inputs, precision: torch.dtype | None = None) -> Noise:
        """``run`` on the inputs, and on rounded ones."""
        before = run(inputs)
        given = Inputs(*tree_map_only(Tensor, lambda t: rounded(t, 0, precision), (inputs.args, inputs.kwargs)))
        with _Rounding(precision):
            after = run(given)
        return cls({o.path: o for o in compare_outputs(before, after)})

    @classmethod
    def most(cls, runs: Iterable[Iterable[OutputCheck]]) -> Noise:
        """The largest difference of each output in several comparisons."""
        found: dict[str, OutputCheck] = {}
        for output in (o for run in runs for o in run):
            known = found.setdefault(output.path, output)
            if (output.flips, output.max_rel_error) > (known.flips, known.max_rel_error):
                found[output.path] = output
        return cls(found)

    def explains(self, output: OutputCheck, roundings: float) -> bool:
        """Whether ``output`` differs by no more than so many roundings do."""
        own = self.outputs.get(output.path)
        if own is None or (own.dtype, own.shape) != (output.dtype, output.shape):
            return False
        if output.flips or own.flips:
            return output.flips <= roundings * own.flips
        return output.max_rel_error <= roundings * own.max_rel_error


def with_noise(
    outputs: tuple[OutputCheck, ...],
    run: Run,
    inputs: Inputs,
    precision: torch.dtype | None = None,
    roundings: float = ROUNDINGS,
) -> tuple[tuple[OutputCheck, ...], str]:
    """``outputs``, where those that differ by no more than rounding does are right, and the sentence for the check's note.

    ``run`` is the model that they were compared with. It runs only where an output is wrong so far. ``precision``: the type
    that the other one computed in, where that is a coarser one.
    """
    what = "nothing but its inputs and its convolutions' outputs is rounded"
    return settled(outputs, lambda: Noise.of(run, inputs, precision), what, precision, roundings)


def settled(
    outputs: tuple[OutputCheck, ...],
    measure: Callable[[], Noise],
    what: str,
    precision: torch.dtype | None = None,
    roundings: float = ROUNDINGS,
) -> tuple[tuple[OutputCheck, ...], str]:
    """The same for a noise that is measured in another way, where ``what`` happens."""
    wrong = [o for o in outputs if not o.ok]
    if not wrong or any(o.max_rel_error == float("inf") for o in wrong):
        return outputs, ""
    noise = measure()
    if not all(noise.explains(o, roundings) for o in wrong):
        return outputs, ""
    worst = max(wrong, key=lambda o: o.max_rel_error)
    own = noise.outputs[worst.path].max_rel_error
    dtype = getattr(torch, worst.dtype)
    by = f" by {own / _unit(dtype, precision):.0e}" if dtype.is_floating_point else ""
    note = f"this model amplifies rounding{by}: outputs differ by {worst.max_rel_error:.0e}, and by {own:.0e} where {what}"
    return tuple(o if o.ok else replace(o, ok=True, note="no more than rounding changes") for o in outputs), note


def judged(run: Callable[[], Mapping[str, object]], sites: Iterable[Judged], before: Mapping[str, object]) -> str:
    """What is wrong with a changed model, judged site by site while ``run`` runs it; empty where nothing is.

    ``before`` are the
    outputs that the run must have where every site gives just what it stands for.
    """
    faults: dict[str, str] = {}

    def judge(name: str, stands_for: Callable[..., object], args: Args, kwargs: Named, found: object) -> object:
        expected = stands_for(*args, **kwargs)
        (output,) = compare_outputs({name: expected}, {name: found}) or (None,)
        if output is not None and not output.ok and not _rounds_so(stands_for, args, kwargs, expected, found):
            faults.setdefault(name, f"{name} is off by {output.max_rel_error:.1e} on the input that it gets")
        return expected

    with ExitStack() as stack:
        for name, module, stands_for in sites:

            def hook(
                _: nn.Module, a: Args, k: Named, out: object, name: str = name, what: Callable[..., object] = stands_for
            ) -> object:
                return judge(name, what, a, k, out)

            stack.callback(module.register_forward_hook(hook, with_kwargs=True, prepend=True).remove)
        after = run()
    if faults:
        return "; ".join(faults.values())
    wrong = next((o for o in compare_outputs(before, after) if not o.ok), None)
    return "" if wrong is None else wrong.note or f"{wrong.path} changed by {wrong.max_rel_error:.1e}"


def _rounds_so(stands_for: Callable[..., object], args: Args, kwargs: Named, expected: object, found: object) -> bool:
    """Whether rounding the input changes as much: a kernel whose products cancel leaves little but rounding."""
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor) or expected.shape != found.shape:
        return False
    again = cast(Tensor, stands_for(*(rounded(a) if isinstance(a, Tensor) else a for a in args), **kwargs))
    allowed = ROUNDINGS * float((again - expected).abs().max())
    allowed = min(allowed, TOLERANCE.get(expected.dtype, 1e-5) ** 0.5 * float(expected.abs().max()))
    return float((found - expected).abs().max()) <= allowed
