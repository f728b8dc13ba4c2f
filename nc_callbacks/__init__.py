"""Watch what a classifier's last layers do while a Lightning trainer trains it.

Names and rooms load when they are first asked for, so that ``import nc_callbacks.functional`` needs no Lightning.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from nc_callbacks import _moved

if TYPE_CHECKING:
    from nc_callbacks.callbacks import (
        CentredMeanInit,
        FeatureSpectrum,
        NeuralCollapse,
        QuasiInterpolation,
        WeightMeanAlignment,
    )
    from nc_callbacks.callbacks.look_recorder import LookRecorder
    from nc_callbacks.runs.report_page import ReportPage
    from nc_callbacks.statistics import ClassMoments, ClassStatistics, OutputErrors
    from nc_callbacks.transfer import rank_sources
    from nc_callbacks.transfer.etf_head import DotRegression, SimplexETFHead
    from nc_callbacks.transfer.head import CentredMeanHead

    __version__: str

__all__ = [
    "CentredMeanHead",
    "CentredMeanInit",
    "ClassMoments",
    "ClassStatistics",
    "DotRegression",
    "FeatureSpectrum",
    "LookRecorder",
    "NeuralCollapse",
    "OutputErrors",
    "QuasiInterpolation",
    "ReportPage",
    "SimplexETFHead",
    "WeightMeanAlignment",
    "rank_sources",
]

_HOMES = {
    "nc_callbacks.callbacks": (
        "CentredMeanInit",
        "FeatureSpectrum",
        "NeuralCollapse",
        "QuasiInterpolation",
        "WeightMeanAlignment",
    ),
    "nc_callbacks.callbacks.look_recorder": ("LookRecorder",),
    "nc_callbacks.runs.report_page": ("ReportPage",),
    "nc_callbacks.statistics": ("ClassMoments", "ClassStatistics", "OutputErrors"),
    "nc_callbacks.transfer.etf_head": ("DotRegression", "SimplexETFHead"),
    "nc_callbacks.transfer.head": ("CentredMeanHead",),
    "nc_callbacks.transfer.ranking": ("rank_sources",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

_moved.install()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("nc-callbacks")
    elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
