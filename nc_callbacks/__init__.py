"""Watch what a classifier's last layers do while a Lightning trainer trains it."""

from nc_callbacks.callbacks import (
    CentredMeanInit,
    FeatureSpectrum,
    NeuralCollapse,
    QuasiInterpolation,
    WeightMeanAlignment,
)
from nc_callbacks.heads import CentredMeanHead
from nc_callbacks.statistics import ClassMoments, ClassStatistics, OutputErrors

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
]
