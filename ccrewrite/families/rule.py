"""A rule: which sites are rewritten, into what. A frozen dataclass whose fields are its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ccrewrite.errors import CcrewriteError, InputError
from ccrewrite.families.adopt import RewrittenConv
from ccrewrite.families.sampling import Sampling
from ccrewrite.ir.names import patterns_of
from ccrewrite.ir.options import check_options
from ccrewrite.ir.sites import Site


@dataclass(frozen=True)
class Rule(ABC):
    """Which sites are rewritten, into what: a frozen dataclass whose fields are its options, checked when it is made.

    Subclasses give ``name``, ``takes`` and ``sampling``; docs/writing-a-family.md goes through the rest.

    Args:
        include: sites to take (names, globs or ``re:...``). This narrows one rule; ``rewrite``'s own narrows them all.
        exclude: sites to leave to other rules.

    Raises:
        InputError: for options of another type, and where a subclass has no name.

    >>> import ccrewrite
    >>> ccrewrite.DilatedToDcls(include="encoder.*").include
    ('encoder.*',)
    """

    name: ClassVar[str]
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        owner = f"rule {require_name(type(self))}"
        for name in ("include", "exclude"):
            object.__setattr__(self, name, patterns_of(getattr(self, name), f"{owner}: {name}"))
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # of a TOML file
                object.__setattr__(self, field.name, tuple(cast("list[Any]", value)))
        check_options(owner, type(self), {field.name: getattr(self, field.name) for field in fields(self)})

    @property
    def exact(self) -> bool:
        """Whether a layer it makes starts out computing the same. Verification compares the outputs for these alone."""
        return True

    @abstractmethod
    def takes(self, site: Site) -> bool:
        """Whether this rule rewrites convolutions of the site's kind, "plain" ones included."""

    def refuses(self, site: Site) -> str | None:
        """Why this rule leaves a site of its kind alone; None: it doesn't.

        The reason has the values in it. The plan shows it where no other rule rewrites the site.
        """
        return None

    @abstractmethod
    def sampling(self, site: Site, **factory: Any) -> Sampling:
        """The geometry to put there; ``factory`` is dtype and device. Raises ``InputError`` for options that can't be."""

    def prepared(self, model: nn.Module, sites: Sequence[Site]) -> Rule:
        """This rule, ready for those ``sites`` of ``model`` that it takes: it may read their weights, and change its mind."""
        return self

    @contextmanager
    def asked_about(self, site: Site) -> Generator[None]:
        """What a rule or its sampling raises inside becomes an ``InputError`` that names both. Memory is no rule's fault."""
        try:
            yield
        except (CcrewriteError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"{site.name}: rule {self.name} raised {type(error).__name__}: {error}. Mend the rule, or leave the site out "
                "with exclude="
            ) from error

    def describe(self, site: Site) -> str:
        """What it would put there, in a few words."""
        return self.made(site, device="meta").describe()

    def made(self, site: Site, **factory: Any) -> Sampling:
        """What ``sampling`` gives. Raises ``InputError`` where that is no ``Sampling``."""
        found = self.sampling(site, **factory)
        if not isinstance(found, Sampling):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{site.name}: rule {self.name}'s sampling must return a Sampling, found {found!r}")
        return found

    def install_(self, layer: RewrittenConv, site: Site) -> Callable[[], object]:
        """Change whatever else of ``layer``, which has its sampling already; returns how to undo that."""
        return lambda: None

    def wants(self, site: Site) -> bool:
        """``takes``, narrowed by ``include`` and ``exclude``."""
        named = any(site.matches(p) for p in self.include) and not any(site.matches(p) for p in self.exclude)
        return named and self.takes(site)


def require_name(kind: type[Rule]) -> str:
    """The name of a rule. Raises ``InputError`` where it has none."""
    name = getattr(kind, "name", None)
    if not isinstance(name, str):
        raise InputError(f"the rule {kind.__name__} needs a name, as a class attribute")
    return name
