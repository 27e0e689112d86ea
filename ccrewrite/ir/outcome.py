"""The one shape of what passes return: ``Outcome``, with one answer for each site."""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from tabulate import tabulate

from ccrewrite.ir.check import Check


class SiteOutcome(Protocol):
    """What became of one site: a stable ``code``, and a ``message`` with the values in it."""

    @property
    def name(self) -> str: ...
    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...


S = TypeVar("S", bound=SiteOutcome)


class Outcome(ABC, Generic[S]):
    """What a pass did: to iterate over, to index by a site's name, to print, to show in a notebook, to keep as JSON.

    Subclasses are frozen dataclasses with ``model`` (or ``path``, of a file), ``sites`` and ``check``. They give ``rows`` and
    ``to_dict``, and may give ``notes``: lines below the table.
    """

    sites: tuple[S, ...]
    check: Check

    @abstractmethod
    def rows(self) -> list[dict[str, str]]:
        """The table's cells, by column: a row for each site."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All of it but the model, as plain data."""

    def notes(self) -> list[str]:
        """Lines below the table and the summary."""
        return [str(self.check)]

    def __iter__(self) -> Iterator[S]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str) -> S:
        """The site of this name."""
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(f"no site is called {name!r}; there are {', '.join(s.name for s in self.sites) or 'none'}")

    def summary(self) -> str:
        """One line: how many sites, by code."""
        codes = Counter(site.code for site in self.sites)
        return f"{len(self.sites)} sites: " + (", ".join(f"{n} {code}" for code, n in codes.most_common()) or "none")

    def to_json(self) -> str:
        """``to_dict`` as a JSON document."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        table = tabulate(self.rows(), headers="keys", disable_numparse=True) if self.sites else ""
        return "\n".join(filter(None, (table, self.summary(), *self.notes())))

    def _repr_html_(self) -> str:
        table = tabulate(self.rows(), headers="keys", tablefmt="html", disable_numparse=True) if self.sites else ""
        notes = html.escape("\n".join(filter(None, self.notes())))
        return f"<p>{html.escape(self.summary())}</p>{table}<pre>{notes}</pre>"
