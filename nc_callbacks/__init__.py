"""Watch what a classifier's last layers do while a Lightning trainer trains it."""

from nc_callbacks.callbacks import (
    CentredMeanInit,
    FeatureSpectrum,
    NeuralCollapse,
    QuasiInterpolation,
    WeightMeanAlignment,
)
from nc_callbacks.statistics import ClassMoments, ClassStatistics, OutputErrors
from nc_callbacks.transfer import rank_sources
from nc_callbacks.transfer.head import CentredMeanHead

__all__ = [
    "CentredMeanHead",
    "CentredMeanInit",
    "ClassMoments",
    "ClassStatistics",
    "FeatureSpectrum",
    "NeuralCollapse",
    "OutputErrors",
    "QuasiInterpolation",
    "WeightMeanAlignment",
    "rank_sources",
]
