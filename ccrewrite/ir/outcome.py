"""The one shape of what passes return: ``Outcome``, with one answer for each site; and ``model_of``, which takes its model."""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar, cast

from tabulate import tabulate
from torch import nn

from ccrewrite.errors import InputError, likely
from ccrewrite.ir.check import Check
from ccrewrite.ir.json_types import JsonObject


class SiteOutcome(Protocol):
    """What became of one site: a stable ``code``, and a ``message`` with the values in it."""

    @property
    def name(self) -> str: ...
    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...


S = TypeVar("S", bound=SiteOutcome)


class SiteTable(ABC, Generic[S]):
    """One answer for each site: to iterate over, to index by a site's name or by position, to print, to show in a notebook, to
    keep as JSON.

    Subclasses are frozen dataclasses with ``sites``. They give ``rows`` and ``to_dict``, and may give ``notes``.
    """

    sites: tuple[S, ...]

    @abstractmethod
    def rows(self) -> list[dict[str, str]]:
        """The table's cells, by column: a row for each site."""

    @abstractmethod
    def to_dict(self) -> JsonObject:
        """All of it but the model, as plain data."""

    def shown(self) -> list[dict[str, str]]:
        """The rows that ``print`` shows: all, where a subclass doesn't leave some to the summary."""
        return self.rows()

    def notes(self) -> list[str]:
        """Lines below the table and the summary."""
        return []

    def __iter__(self) -> Iterator[S]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str | int) -> S:
        """The site of this name or alias, or at this position. Raises ``KeyError`` where there is none of that name."""
        if isinstance(name, int):
            return self.sites[name]
        for site in self.sites:
            if name == site.name or name in getattr(site, "aliases", ()):
                return site
        names = [site.name for site in self.sites]
        said = f"no site is called {name!r}; the sites are {', '.join(map(repr, names)) or 'none'}"
        raise KeyError(said + likely(name, names))

    def summary(self) -> str:
        """One line: how many sites, by code."""
        codes = Counter(site.code for site in self.sites)
        return f"{len(self.sites)} sites: " + (", ".join(f"{n} {code}" for code, n in codes.most_common()) or "none")

    def to_json(self) -> str:
        """``to_dict`` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def table(self, *, all: bool = False) -> str:
        """What ``print`` shows; with ``all``, a row for every site."""
        table = tabulate(self.rows() if all else self.shown(), headers="keys", disable_numparse=True) if self.sites else ""
        return "\n".join(filter(None, (table, self.summary(), *self.notes())))

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        table = tabulate(self.shown(), headers="keys", tablefmt="html", disable_numparse=True) if self.sites else ""
        notes = html.escape("\n".join(filter(None, self.notes())))
        return f"<p>{html.escape(self.summary())}</p>{table}" + (f"<pre>{notes}</pre>" if notes else "")


class Outcome(SiteTable[S]):
    """What a pass did. Subclasses have ``model`` (or ``path``, of a file) as well, and ``check``, which is shown below the
    table."""

    check: Check

    def notes(self) -> list[str]:
        return [str(self.check)]


GivenModel = nn.Module | Outcome[Any]
"""What may be given where a model is wanted: the model, or the result of a pass, whose ``model`` is meant."""


def model_of(given: object, what: str = "the model") -> nn.Module:
    """The module that is meant by ``given``: itself, or the ``model`` of a result.

    Raises ``InputError`` for anything else; ``what`` is how the message calls it.

    >>> model_of("resnet50", "what fold is given")
    Traceback (most recent call last):
    ccrewrite.errors.InputError: what fold is given must be an nn.Module, or a result with a model; found str
    """
    if isinstance(given, nn.Module):
        return given
    if isinstance(given, type):
        found = f"found the class {given.__name__}: call it first, {given.__name__}(...)"
    else:
        found = f"found {type(given).__name__}"
    model = getattr(cast(object, given), "model", None) if isinstance(given, Outcome) else None
    if isinstance(model, nn.Module):
        return model
    raise InputError(f"{what} must be an nn.Module, or a result with a model; {found}")
