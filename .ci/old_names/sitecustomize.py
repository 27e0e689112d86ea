"""Old names of modules, for the programs that ``.ci/cases.py`` runs: they were written before 0.2.0 moved those. The package
has none of them. Python imports this file by itself where its folder is on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MOVED = {
    "ccrewrite.arguments": "ccrewrite.cli.arguments",
    "ccrewrite.export.commands": "ccrewrite.cli.export",
    "ccrewrite.lowering.measure": "ccrewrite.lowering.times",
    "ccrewrite.report.command": "ccrewrite.cli.report",
    "ccrewrite.training.command": "ccrewrite.cli.training",
}
"""Old module -> the one that has its names, or some of them, now."""


class OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules in ``MOVED``: those that still are, with the names that left them, and those that are no more."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        package = sys.modules[name.rpartition(".")[0]]
        still = PathFinder.find_spec(name, package.__path__)
        if still is not None and still.loader is not None:
            module.__file__ = still.origin
            still.loader.exec_module(module)
        for key, value in vars(importlib.import_module(MOVED[name])).items():
            vars(module).setdefault(key, value)


sys.meta_path.insert(0, OldNames())
