"""Modules under the names that they had before: for imports of users and ``_target_``s of old configurations."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "callbacks.gather": "engine.split",
    "callbacks.look": "engine.look",
    "callbacks.monitors": "engine.monitors",
    "callbacks.observation": "engine.observation engine.request",
    "callbacks.online": "engine.online",
    "callbacks.passes": "engine.passes",
    "callbacks.progress": "engine.progress",
    "callbacks.ranks": "distributed",
    "callbacks.shared": "engine.session",
    "callbacks.trainers": "engine.trainer",
    "callbacks.units": "engine.request",
    "experiments.jobs": "runs.job",
    "experiments.loggers": "runs.loggers",
    "experiments.looks": "callbacks.look_recorder",
    "experiments.paper_figures": "runs.paper_figures",
    "experiments.ranks": "runs.processes",
    "experiments.summary": "runs.summary",
    "experiments.sweep": "runs.sweep",
    "features": "transfer.features",
    "heads": "transfer.head",
    "loader": "data.loader",
    "preserve": "data.preserve",
    "report.catalogue": "metrics",
    "report.read": "runs.folder",
    "temperature": "transfer.scale",
    "transfer.sources": "experiments.sources",
}
"""The old name and the new one, or the two that share what was there; all within the package."""

PACKAGE = __name__.partition(".")[0]


class MovedFinder(MetaPathFinder, Loader):
    """Gives the module of the new name for an import of the old one, and says so."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return spec_from_loader(fullname, self) if package == PACKAGE and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = [f"{PACKAGE}.{name}" for name in MOVED[old.partition(".")[2]].split()]
        warnings.warn(f"{old} is now {' and '.join(new)}.", DeprecationWarning, stacklevel=2)
        homes = [importlib.import_module(name) for name in new]
        if len(homes) == 1:
            # The import system hands out what is there afterwards.
            sys.modules[old] = homes[0]
        for home in homes:
            vars(module).update({name: value for name, value in vars(home).items() if not name.startswith("_")})


def install() -> None:
    """Let imports find them, after all that lies where its name says."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
