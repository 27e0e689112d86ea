"""Old names, for the programs that ``.ci/cases.py`` runs: they were written before 0.2.0 moved modules and errors. The package
has none of them. Python imports this file by itself where its folder is on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import importlib.abc
import operator
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "ccrewrite": "ccrewrite.errors",
    "ccrewrite.arguments": "ccrewrite.cli.arguments",
    "ccrewrite.export.commands": "ccrewrite.cli.export",
    "ccrewrite.lowering.measure": "ccrewrite.lowering.times",
    "ccrewrite.report.command": "ccrewrite.cli.report",
    "ccrewrite.training.command": "ccrewrite.cli.training",
}
"""Old module -> the one that has its names, or some of them, now."""

ATTRIBUTES = {"ccrewrite.export.report": {"RewrittenFile.max_rel_error": "check.max_rel_error"}}
"""Module -> old attribute of a class in it -> where an object of that class has its value now."""


class OldNames(importlib.abc.MetaPathFinder):
    """Finds the modules in ``MOVED`` and ``ATTRIBUTES``."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in MOVED and name not in ATTRIBUTES:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None) or ModuleSpec(name, None)
        spec.loader = WithNames(spec.loader)
        return spec


class WithNames(importlib.abc.Loader):
    """A module as ``loader`` makes it (None: an empty one), with the names and attributes that are elsewhere now."""

    def __init__(self, loader: importlib.abc.Loader | None) -> None:
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        if self.loader is not None:
            self.loader.exec_module(module)
        if module.__name__ in MOVED:
            for name, value in vars(importlib.import_module(MOVED[module.__name__])).items():
                vars(module).setdefault(name, value)
        for old, path in ATTRIBUTES.get(module.__name__, {}).items():
            kind, _, attribute = old.partition(".")
            setattr(vars(module)[kind], attribute, property(operator.attrgetter(path)))


sys.meta_path.insert(0, OldNames())
