"""Streaming statistics of features and outputs: one pass, merged over ranks, exact to the end of training."""

from nc_callbacks.statistics.classes import ClassStatistics
from nc_callbacks.statistics.moments import ClassMoments, SoftmaxExpectations
from nc_callbacks.statistics.outputs import OutputErrors, Outputs, SoftmaxStatistics
from nc_callbacks.statistics.precision import wide_dtype
from nc_callbacks.statistics.result import state_bytes
from nc_callbacks.statistics.states import Covariance

__all__ = [
    "ClassMoments",
    "ClassStatistics",
    "Covariance",
    "OutputErrors",
    "Outputs",
    "SoftmaxExpectations",
    "SoftmaxStatistics",
    "state_bytes",
    "wide_dtype",
]
