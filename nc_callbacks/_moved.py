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
    "callbacks.measurement": "engine.measurement",
    "callbacks.monitors": "engine.monitors",
    "callbacks.observation": "engine.request",
    "callbacks.online": "engine.online",
    "callbacks.passes": "engine.passes",
    "callbacks.progress": "engine.progress",
    "callbacks.ranks": "distributed",
    "callbacks.shared": "engine.session",
    "callbacks.trainers": "engine.trainer",
    "callbacks.units": "engine.units",
    "callbacks.waiting": "engine.waiting",
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
"""The old name and the new one, both within the package."""

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
        new = f"{PACKAGE}.{MOVED[old.partition('.')[2]]}"
        warnings.warn(f"{old} is now {new}.", DeprecationWarning, stacklevel=2)
        # The import system hands out what is there afterwards.
        sys.modules[old] = importlib.import_module(new)


def install() -> None:
    """Let imports find them, after all that lies where its name says."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
