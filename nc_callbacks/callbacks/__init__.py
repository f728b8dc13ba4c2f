"""The public callbacks, and what they share: arguments, schedule, logging, history."""

from nc_callbacks.callbacks.centred_mean_init import CentredMeanInit
from nc_callbacks.callbacks.feature_spectrum import FeatureSpectrum
from nc_callbacks.callbacks.neural_collapse import NeuralCollapse
from nc_callbacks.callbacks.quasi_interpolation import QuasiInterpolation
from nc_callbacks.callbacks.weight_mean_alignment import WeightMeanAlignment

__all__ = ["CentredMeanInit", "FeatureSpectrum", "NeuralCollapse", "QuasiInterpolation", "WeightMeanAlignment"]
