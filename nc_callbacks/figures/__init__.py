"""Matplotlib figures of the metrics, from a callback's `history` and `latest`, in the papers' own forms.

Figures are made without pyplot: no global state, no window, any thread.
"""

from nc_callbacks.figures.alignment import (
    accuracies_figure,
    cosines_figure,
    near_optimality_figure,
    save_alignment_figures,
)
from nc_callbacks.figures.collapse import collapse_figure, layers_figure, plot_cosines, save_collapse_figures
from nc_callbacks.figures.each import save_metric_figures
from nc_callbacks.figures.interpolation import interpolation_figure, save_interpolation_figures
from nc_callbacks.figures.spectrum import save_spectrum_figures, spectrum_figure
from nc_callbacks.figures.summary import save_summary_figures, summary_figure

__all__ = [
    "accuracies_figure",
    "collapse_figure",
    "cosines_figure",
    "interpolation_figure",
    "layers_figure",
    "near_optimality_figure",
    "plot_cosines",
    "save_alignment_figures",
    "save_collapse_figures",
    "save_interpolation_figures",
    "save_metric_figures",
    "save_spectrum_figures",
    "save_summary_figures",
    "spectrum_figure",
    "summary_figure",
]
