"""Callbacks that have drawn, without the time that pixels take; pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.callbacks.base import CollapseCallback
from tests.callbacks.common import Classifier, loader, trainer


def drawn(folder: Path, model: Classifier, val_loaders: Any, epochs: int) -> tuple[set[str], list[CollapseCallback]]:
    """Names of the figures that were saved, which stay empty files, and the callbacks."""
    settings: dict[str, Any] = {"splits": ["train", "val"], "figures": folder}
    callbacks: list[CollapseCallback] = [
        NeuralCollapse(layers=["body.4"], **settings),
        WeightMeanAlignment(**settings),
        QuasiInterpolation(outputs="raw", **settings),
        FeatureSpectrum(layers=["body.4"], **settings),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **settings: Path(path).touch())
        trainer(*callbacks, max_epochs=epochs).fit(model, loader(), val_loaders)
    return {path.stem for path in folder.glob("*.png")}, callbacks


def picture(path: Path) -> np.ndarray:
    """Pixels of a figure that was saved, of which a tenth of a percent at the least are ink."""
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 100
    assert (np.abs(pixels - pixels[0, 0]).max(-1) > 0.1).mean() > 0.001
    return pixels
