"""Which resizable sites must change their output sizes together, which can't, and what the others then do.

``observe_sizes`` runs the model on symbolic sizes and ``Ties`` solves what it relied on. What comes out of that is a
conjecture in both directions (code may turn a size into a number and back), so each one is tried on fake tensors: a group is
free only if the model runs with it at other sizes and its outputs keep their shapes, and pinned only if it doesn't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real

from torch import nn

from ccrewrite.errors import InputError, ModelRunError, SelectionError
from ccrewrite.families.resizable import scaled_size
from ccrewrite.ir.capture import Inputs
from ccrewrite.ir.geometry import Ints
from ccrewrite.ir.json_types import JsonObject
from ccrewrite.ir.names import hits
from ccrewrite.ir.outcome import GivenModel, SiteTable, model_of
from ccrewrite.ir.progress import step
from ccrewrite.ir.wrappers import unwrapped
from ccrewrite.passes.scales.grouping import ScaleGroup, grouped
from ccrewrite.passes.scales.sizes import Expr, SizeRun, observe_sizes, samplings_of
from ccrewrite.passes.scales.ties import Ties, number
from ccrewrite.passes.scales.trials import Pin, Trials

Setting = float | Sequence[float]
Settings = Mapping[str, Setting]
"""Group name, site name or glob of module paths -> output size over native size, one number or one per axis."""


@dataclass(frozen=True, eq=False)
class ScaleGroups(SiteTable[ScaleGroup]):
    """The scale groups of a model for inputs of one shape, in the order of the run; to index by the name of a group or of one
    of its sites.

    For code that computes with sizes: ``run`` has each site's sizes as symbols, ``ties`` says which symbols are roots and
    how the others follow from them, ``pins`` which roots keep their size, and why.
    """

    sites: tuple[ScaleGroup, ...]
    run: SizeRun = field(repr=False)
    ties: Ties = field(repr=False)
    pins: dict[Expr, Pin] = field(repr=False)

    @property
    def free(self) -> tuple[ScaleGroup, ...]:
        """The groups with every axis free."""
        return tuple(g for g in self if g.free)

    def sizes(self, settings: Settings) -> dict[str, Ints]:
        """Output size of every site under ``settings``: those asked for and their group by the ratio, pinned ones native, the
        others as the original's arithmetic makes them from what they now get (the first site of a group decides).

        A site that is called for different sizes is left out: it follows. Raises ``SelectionError`` for a key that hits no
        site, ``InputError`` for a ratio that can't be.
        """
        return self._values(self._resolve(settings), "symbols")

    def changes(self, settings: Settings) -> dict[str, Ints]:
        """``sizes``, of those sites alone that would not have them by themselves."""
        known = self._resolve(settings)
        natural = self._values(known, "natural")
        return {n: size for n, size in self._values(known, "symbols").items() if size != natural[n]}

    def _values(self, known: Mapping[Expr, int], what: str) -> dict[str, Ints]:
        sites = {n: sizes for n, sizes in self.run.sites.items() if sizes.one_size}
        return {n: tuple(number(e, known) for e in getattr(sizes, what)) for n, sizes in sites.items()}

    def _resolve(self, settings: Settings) -> dict[Expr, int]:
        """Values of all symbols under ``settings``."""
        chosen = {root: scaled_size(self.run.values[root], ratio) for root, ratio in self.ratios(settings).items()}
        return self.ties.resolve(chosen, self.pins)

    def ratios(self, settings: Settings) -> dict[Expr, float]:
        """Root -> what ``settings`` ask of it: its size over the native one. Raises as ``sizes`` does."""
        asked: dict[Expr, tuple[float, str]] = {}
        for key, setting in settings.items():
            for site in self._hit(key):
                symbols = self.run.sites[site].symbols
                for axis, (symbol, ratio) in enumerate(zip(symbols, _ratios(key, setting, len(symbols)), strict=True)):
                    for root in self.ties.size(symbol).free_symbols:
                        self._ask(asked, root, ratio, f"{key!r} (site {site}, axis {axis})")
        return {root: ratio for root, (ratio, _) in asked.items()}

    def _ask(self, asked: dict[Expr, tuple[float, str]], root: Expr, ratio: float, who: str) -> None:
        pin, before = self.pins.get(root), asked.get(root)
        if pin and scaled_size(self.run.values[root], ratio) != self.run.values[root]:
            raise InputError(
                f"{who} can't be resized by {ratio}: it is pinned by {pin}. print(ccrewrite.scale_groups(...)) shows all"
            )
        if before and before[0] != ratio:
            raise InputError(f"{who} asks for {ratio} of a size that {before[1]} sets to {before[0]}: they must be equal")
        asked[root] = ratio, who

    def _hit(self, key: str) -> list[str]:
        """The sites that a key of the settings means."""
        for group in self:
            if key == group.name or (group.name in group.sites and key in self.run.sites[group.name].aliases):
                return list(group.sites)
        sites = [name for name, sizes in self.run.sites.items() if hits(key, (name, *sizes.aliases))]
        if not sites:
            known = ", ".join(g.name for g in self)
            raise SelectionError(f"{key!r} hits no group, site or module; the scale groups are {known}")
        return sites

    def rows(self) -> list[dict[str, str]]:
        return [
            {
                "group": g.name if i == 0 else "",
                "site": site,
                "native": "x".join(map(str, g.native[i])),
                "size": g.relations[i],
                "axes": (" ".join("pinned" if p else "free" for p in g.pins) if any(g.pins) else "free") if i == 0 else "",
                "pinned by": "; ".join(dict.fromkeys(str(p.where) for p in g.pins if p)) if i == 0 else "",
            }
            for g in self
            for i, site in enumerate(g.sites)
        ]

    def to_dict(self) -> JsonObject:
        """``{"groups": [{"name", "sites", "native", "pins", "relations", "free_axes"}]}``."""
        return {"groups": [{**asdict(g), "free_axes": g.free_axes} for g in self]}

    def summary(self) -> str:
        """One line: how many groups, how many of them free."""
        return f"{len(self)} scale groups, {len(self.free)} free"

    def notes(self) -> list[str]:
        known = "size: n, or n0, n1, ... for its axes, is the group's own size; those of its sites follow from it"
        return [known] if len(self) else []


def scale_groups(model: GivenModel, example_inputs: object) -> ScaleGroups:
    """The groups of sites of a rewritten model whose output sizes must change together, and which of them can.

    Sites are those of layers that can give another size than their convolution's (CC). A site's output size is free to choose
    unless something downstream relies on it: an addition or a concatenation ties it to another site's or to the input's, a
    flatten before a linear layer, a position embedding or the shape of the model's outputs pins it. No values are computed: the
    model runs on fake tensors, some runs for each group.

    Args:
        model: a rewritten model, or what ``rewrite`` returned.
        example_inputs: as ``plan``'s; native sizes are those at theirs, in samples.

    Returns:
        The groups, each with its sites, native sizes and what pins it.

    Raises:
        InputError: where the model has no resizable site.
        ModelRunError: where it can't run on fake tensors.

    >>> import ccrewrite, torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    >>> x = torch.randn(1, 3, 32, 32)
    >>> groups = scale_groups(ccrewrite.rewrite(model, x).model, x)
    >>> [(g.name, g.native, g.free) for g in groups]
    [('0', ((15, 15),), True)]
    """
    model, inputs = unwrapped(model_of(model)), Inputs.of(example_inputs)
    require_sites(model)
    step("scale_groups", "following sizes through the model")
    try:
        run = observe_sizes(model, inputs)
    except Exception as error:
        raise ModelRunError(
            f"{type(model).__name__} can't be followed on fake tensors ({type(error).__name__}: {error}), so its scale groups "
            "are unknown. Check that model(*example_inputs) runs, and that no TorchScript or NumPy code sees its tensors"
        ) from error
    ties = Ties.of(run)
    step("scale_groups", f"trying {len(run.sites)} sites at other sizes", 0.3)
    pins = Trials(model, inputs, run, ties).pins()
    return ScaleGroups(grouped(run, ties, pins), run, ties, pins)


def require_sites(model: nn.Module) -> None:
    if not samplings_of(model):
        raise InputError(
            f"this {type(model).__name__} has no resizable site (a CC layer, say), so no size can be chosen: rewrite it first, "
            "model = ccrewrite.rewrite(model, inputs).model"
        )


def _ratios(key: str, setting: Setting, ndim: int) -> tuple[float, ...]:
    ratios = tuple(setting) if isinstance(setting, Sequence) else (setting,)
    if len(ratios) not in (1, ndim) or not all(isinstance(r, Real) and 0 < r < float("inf") for r in ratios):
        raise InputError(f"{key!r}: expected one positive ratio, or {ndim} (one per axis), found {setting!r}")
    return ratios * ndim if len(ratios) == 1 else ratios
