"""The rules: which sites are rewritten, into what. A rule is a frozen dataclass whose fields are its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import nn

from ccrewrite.errors import InputError
from ccrewrite.nn.cc import CCSampling
from ccrewrite.nn.conv import RewrittenConv
from ccrewrite.nn.dcls import DclsSampling
from ccrewrite.nn.sampling import Sampling
from ccrewrite.sites import Site


@dataclass(frozen=True)
class Rule(ABC):
    """``include`` and ``exclude`` (globs of site names) narrow one rule; those of ``rewrite`` narrow them all."""

    name: ClassVar[str]
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            globs: str | Sequence[str] = getattr(self, name)
            object.__setattr__(self, name, (globs,) if isinstance(globs, str) else tuple(globs))

    @property
    def exact(self) -> bool:
        """Whether a layer it makes starts out computing the same. Verification compares the outputs for these alone."""
        return True

    @abstractmethod
    def takes(self, site: Site) -> bool:
        """Whether this rule rewrites convolutions of the site's kind."""

    @abstractmethod
    def sampling(self, site: Site, **factory: Any) -> Sampling:
        """The geometry to put there; ``factory`` is dtype and device. Raises ``InputError`` for options that can't be."""

    def prepared(self, model: nn.Module, sites: Sequence[Site]) -> Rule:
        """This rule, ready for those ``sites`` of ``model`` that it takes: it may read their weights, and change its mind."""
        return self

    def describe(self, site: Site) -> str:
        """What it would put there, in a few words."""
        return self.sampling(site, device="meta").describe()

    def install_(self, layer: RewrittenConv, site: Site) -> Callable[[], object]:
        """Change whatever else of ``layer``, which has its sampling already; returns how to undo that."""
        return lambda: None

    def admits(self, site: Site) -> bool:
        """``takes``, narrowed by ``include`` and ``exclude``."""
        named = any(site.matches(p) for p in self.include) and not any(site.matches(p) for p in self.exclude)
        return named and self.takes(site)


@dataclass(frozen=True)
class DilatedToDcls(Rule):
    """dilated Conv -> DCLS (``ccrewrite.nn.DclsConv2d``): its taps get learnable positions. Options as ``DclsSampling``'s."""

    name: ClassVar[str] = "dilated-to-dcls"
    sharing: str = "auto"
    reach: int = 0

    def takes(self, site: Site) -> bool:
        return "dilated" in site.kinds and "transposed" not in site.kinds

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        sharing = self.sharing
        if sharing == "auto" and site.form == "functional" and site.weight is None:
            sharing = "tap"  # the channels of a computed weight may change from call to call
        return DclsSampling.of(site.geometry, sharing=sharing, reach=self.reach, **factory)


@dataclass(frozen=True)
class StridedToCC(Rule):
    """strided Conv -> CC (``ccrewrite.nn.CCConv2d``): its taps become the nodes of a continuous kernel. Options as
    ``CCSampling``'s; ``kernel="mlp"`` and ``alignment="centred"`` are not exact."""

    name: ClassVar[str] = "strided-to-cc"
    kernel: str = "nodes"
    basis: str = "cubic"
    hidden: int | None = None
    reach: int | None = None
    alignment: str = "native"

    @property
    def exact(self) -> bool:
        return self.kernel == "nodes" and self.alignment == "native"

    def takes(self, site: Site) -> bool:
        return "strided" in site.kinds and "transposed" not in site.kinds

    def sampling(self, site: Site, **factory: Any) -> Sampling:
        options = {n: getattr(self, n) for n in ("kernel", "basis", "hidden", "reach", "alignment")}
        return CCSampling.of(site.geometry, **options, **factory)

    def describe(self, site: Site) -> str:
        return ("" if self.exact else "NOT exact: ") + super().describe(site)


@dataclass(frozen=True)
class TransposedToCC(StridedToCC):
    """ConvTranspose -> CC (``ccrewrite.nn.CCConvTranspose2d``): its taps become the nodes of a continuous kernel."""

    name: ClassVar[str] = "transposed-to-cc"

    def takes(self, site: Site) -> bool:
        return "transposed" in site.kinds


DEFAULT_RULES: tuple[Rule, ...] = (DilatedToDcls(), StridedToCC(), TransposedToCC())
"""The first rule that takes a site rewrites it: a strided dilated convolution becomes DCLS, keeping its stride."""

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (DilatedToDcls, StridedToCC, TransposedToCC)}


def rule_for(site: Site, rules: Sequence[Rule]) -> Rule | None:
    """The first of ``rules`` that admits ``site``."""
    return next((rule for rule in rules if rule.admits(site)), None)


def make_rule(options: Mapping[str, Any] | str) -> Rule:
    """A rule from a name, or from a mapping with a ``rule`` key and its options (a table of a TOML file).

    >>> make_rule({"rule": "dilated-to-dcls", "sharing": "out"}).sharing
    'out'
    """
    options = {"rule": options} if isinstance(options, str) else dict(options)
    name = options.pop("rule", None)
    if name not in RULES:
        raise InputError(f"unknown rule {name!r}; the rules are {', '.join(RULES)}")
    kind = RULES[name]
    known = {f.name: f for f in fields(kind)}
    for option in options:
        if option not in known:
            raise InputError(f"rule {name} has no option {option!r}; its options are {', '.join(known)}")
    return kind(**options)


def check_rules(rules: Sequence[Any] | None) -> tuple[Rule, ...]:
    """``rules`` as a tuple of rules (names and mappings made into them); None is ``DEFAULT_RULES``."""
    if rules is None:
        return DEFAULT_RULES
    if isinstance(rules, (str, Mapping, Rule)):
        rules = [rules]
    for rule in rules:
        if not isinstance(rule, (Rule, str, Mapping)):
            raise InputError(f"a rule must be one of {', '.join(k.__name__ for k in RULES.values())}, found {rule!r}")
    return tuple(rule if isinstance(rule, Rule) else make_rule(rule) for rule in rules)
