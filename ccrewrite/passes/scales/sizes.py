"""What the sizes of a run's feature maps have to do with each other, found by running the model on symbolic sizes.

Every resizable site's output gets a size of its own, a symbol, and the model runs on fake tensors: no values, only shapes.
torch's own shape rules carry the symbols through every operator, and through the Python code between them. Whatever must be
equal for the run to go on is asked of the ``SizeEnv``, which answers with the native sizes and writes the equality down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import sympy  # pyright: ignore[reportMissingTypeStubs]
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._pytree import tree_map_only

from ccrewrite.families.resizable import ResizableSampling
from ccrewrite.families.sites import rewritten_sites
from ccrewrite.ir.calls import as_call
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.observe import module_stack
from ccrewrite.ir.preserve import WriteGuard, preserved
from ccrewrite.ir.torch_private import forward_pre_hooks_of
from ccrewrite.passes.graph import FUNCTIONS
from ccrewrite.passes.scales.whereabouts import OUTPUT, Where, Whereabouts, hint_of
from ccrewrite.passes.verify import leaves

Expr = Any
"""A size: a ``sympy`` expression over the sites' symbols, or an int. sympy's operators have no types."""
Size = int | torch.SymInt
Sizes = Callable[[str, tuple[Size, ...]], tuple[Size, ...]]
"""A site's name and the sizes that its output has by itself -> those that it gets."""


@dataclass(frozen=True)
class Relation:
    """Two sizes that were equal in the run, and that something relied on."""

    left: Expr
    right: Expr
    where: Where


@dataclass
class SiteSizes:
    """One site's output: ``symbols`` per axis, ``native`` values, and ``natural``, its size as the original arithmetic gives it
    from its input. ``calls`` has the native sizes of all its calls; where they differ, one size can't serve them. ``aliases``:
    the site's other names."""

    symbols: tuple[Expr, ...]
    native: Ints
    natural: tuple[Expr, ...]
    aliases: tuple[str, ...] = ()
    calls: list[Ints] = field(default_factory=list[Ints])

    @property
    def one_size(self) -> bool:
        return len(set(self.calls)) == 1


class SizeEnv(ShapeEnv):
    """Answers every question about sizes for the native ones, and keeps the equalities that held.

    Turning a size into a plain int (``int(x.shape[2])``) loses the symbol, but pins nothing: what then really breaks shows
    when other sizes are tried.
    """

    def __init__(self) -> None:
        super().__init__(specialize_zero_one=False, duck_shape=False)
        self.relations: dict[tuple[Expr, Expr], Relation] = {}
        self.where: Callable[[], Where] = lambda: Where("", "")
        self.values: dict[Expr, int] = {}

    def fresh(self, name: str, native: int) -> tuple[Expr, torch.SymInt]:
        """A new symbol with its value in this run, and the size (a ``torch.SymInt``) to shape tensors with."""
        from torch._dynamo.source import ConstantSource  # seconds, which only those pay who ask

        source = ConstantSource(name)
        symbol = self.create_symbol(native, source, DimDynamic.DYNAMIC, None, do_not_specialize_zero_one=True)
        self.values[symbol] = native
        return symbol, cast(torch.SymInt, self.create_symintnode(symbol, hint=native, source=source))

    def evaluate_expr(self, orig_expr: Expr, *_: object, **__: object) -> Expr:
        """The value of ``orig_expr`` at the native sizes; the seam through which ``torch.SymInt`` asks."""
        value = orig_expr.xreplace(self.values)
        # Whether a size is 1 is asked of every stride and broadcast, mostly for nothing.
        one = sympy.Integer(1) in orig_expr.args
        if isinstance(orig_expr, (sympy.Eq, sympy.Ne)) and bool(value) == isinstance(orig_expr, sympy.Eq) and not one:
            self.holds(orig_expr.lhs, orig_expr.rhs, self.where())
        return value

    def holds(self, left: Expr, right: Expr, where: Where) -> None:
        if left != right:
            self.relations.setdefault((left, right), Relation(left, right, where))


@dataclass(frozen=True)
class SizeRun:
    """What one run on symbolic sizes showed. ``sites`` in the order of their first calls."""

    sites: dict[str, SiteSizes]
    relations: tuple[Relation, ...]
    values: dict[Expr, int]
    shapes: dict[str, object]
    """Of the outputs, by path, at the native sizes."""


class ChoosesSizes:
    """A forward pre-hook that chooses output sizes: out of the way while they are studied."""


def samplings_of(model: nn.Module) -> dict[str, ResizableSampling]:
    """The samplings of ``model`` that can give other output sizes, by site name."""
    return {n: site.sampling for n, site in rewritten_sites(model).items() if isinstance(site.sampling, ResizableSampling)}


def observe_sizes(model: nn.Module, inputs: Inputs) -> SizeRun:
    """Run ``model`` on fake tensors with a symbol for each axis of each resizable site's output. Leaves it as it was.

    Raises whatever the model raises: ``scale_groups`` says it in its own words.
    """
    env, sites, there = SizeEnv(), dict[str, SiteSizes](), rewritten_sites(model)

    def sizes(name: str, natural: tuple[Size, ...]) -> tuple[Size, ...]:
        native = tuple(hint_of(n) for n in natural)
        known = sites.get(name)
        if known is None:
            pairs = [env.fresh(f"{name}[{axis}]", n) for axis, n in enumerate(native)]
            symbols, aliases = tuple(s for s, _ in pairs), there[name].aliases
            known = sites[name] = SiteSizes(symbols, native, tuple(_expr(n) for n in natural), aliases)
            made[name] = tuple(size for _, size in pairs)
        known.calls.append(native)
        return made[name] if native == known.native else natural

    made: dict[str, tuple[Size, ...]] = {}
    with _fake_run(model, inputs, sizes, env) as (run, whereabouts):
        env.where = whereabouts.here
        outputs = run()
    shapes: dict[str, object] = {}
    for path, value in leaves(outputs, OUTPUT):
        for size in value.shape if isinstance(value, Tensor) else (value,):
            if isinstance(size, torch.SymInt):
                env.holds(_expr(size), sympy.Integer(hint_of(size)), Where(OUTPUT, path))
        shapes[path] = _plain(value)
    return SizeRun(sites, tuple(env.relations.values()), env.values, shapes)


def try_sizes(
    model: nn.Module, inputs: Inputs, sizes: Mapping[str, Ints], shapes: Mapping[str, object]
) -> tuple[Where, str] | None:
    """Run ``model`` on fake tensors with the output sizes ``sizes`` (the other sites as they come).

    None where it runs and its outputs have the shapes ``shapes``; else where it fails, and how.
    """

    def chosen(name: str, natural: tuple[Size, ...]) -> tuple[Size, ...]:
        return sizes.get(name, natural)

    with _fake_run(model, inputs, chosen, None) as (run, whereabouts):
        try:
            found = {path: _plain(value) for path, value in leaves(run(), OUTPUT)}
        except Exception as error:
            lines = str(error).strip().splitlines()
            return whereabouts.failed or whereabouts.here(), f"{type(error).__name__}: {lines[0] if lines else ''}"
    for path, shape in shapes.items():
        if found.get(path) != shape:
            return Where(OUTPUT, path), f"{_shown(shape)} becomes {_shown(found.get(path))}"
    return None


@contextmanager
def _fake_run(
    model: nn.Module, inputs: Inputs, sizes: Sizes, env: SizeEnv | None
) -> Generator[tuple[Callable[[], object], Whereabouts]]:
    """``model`` with each resizable sampling giving an empty output of the sizes that ``sizes(site, natural sizes)`` says."""
    dispatcher = enable_python_dispatcher() if env else nullcontext()  # some C++ operators would make numbers of symbols
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True, static_shapes=True)
    with preserved(model, None) as own, torch.no_grad(), module_stack(model) as stack:
        for name, sampling in samplings_of(model).items():
            vars(sampling)["forward"] = _sized_forward(sampling, name, sizes)
        for key, hook in list(forward_pre_hooks_of(model).items()):
            if isinstance(hook, ChoosesSizes):
                del forward_pre_hooks_of(model)[key]
        whereabouts = Whereabouts(stack)
        with _quiet(), mode, WriteGuard(model, own), dispatcher, whereabouts:
            fake, named = tree_map_only(Tensor, mode.from_tensor, (inputs.args, inputs.kwargs))
            whereabouts.counts.clear()
            yield lambda: model(*fake, **named), whereabouts


@contextmanager
def _quiet() -> Generator[None]:
    """Without torch's log of each operator that refuses its shapes: whether it does is what is asked here."""
    loggers = [logging.getLogger(n) for n in ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _sized_forward(sampling: ResizableSampling, name: str, sizes: Sizes) -> Callable[..., Tensor]:
    function, ndim = FUNCTIONS[sampling.transposed, sampling.ndim], sampling.ndim

    def forward(input: Tensor, weight: Tensor, bias: Tensor | None = None, *arguments: object, **named: object) -> Tensor:
        call = as_call(function, (input, weight, bias, *arguments), named)
        assert call is not None
        geometry = call.geometry(weight.shape)
        out = sizes(name, geometry.output_size(input.shape[-ndim:]))
        if any(size < 1 for size in out):
            raise ValueError(f"an output of size {tuple(out)} for an input of size {tuple(input.shape[-ndim:])}")
        made = input.new_empty((*input.shape[: -ndim - 1], geometry.out_channels, *out))
        strided = input.ndim == 4 and not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last)
        return made.contiguous(memory_format=torch.channels_last) if strided else made

    return forward


def _expr(size: Size) -> Expr:
    return cast(Any, size).node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _plain(value: object) -> object:
    """An output's shape, for a tensor, or the value itself; sizes as plain numbers."""
    if isinstance(value, Tensor):
        return tuple(hint_of(n) for n in value.shape)
    return hint_of(value) if isinstance(value, torch.SymInt) else value


def _shown(shape: object) -> str:
    return "x".join(map(str, cast("tuple[int, ...]", shape))) if isinstance(shape, tuple) else str(shape)
