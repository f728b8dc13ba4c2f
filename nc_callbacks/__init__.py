"""Watch what a classifier's last layers do while a Lightning trainer trains it."""

from nc_callbacks.callbacks import NeuralCollapse
from nc_callbacks.statistics import ClassMoments, ClassStatistics, OutputErrors

__all__ = ["ClassMoments", "ClassStatistics", "NeuralCollapse", "OutputErrors"]
