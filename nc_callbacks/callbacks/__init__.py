"""Lightning callbacks."""

from nc_callbacks.callbacks.neural_collapse import NeuralCollapse

__all__ = ["NeuralCollapse"]
