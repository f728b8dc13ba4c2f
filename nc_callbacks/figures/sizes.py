"""Numbers of classes and of features, as a look tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nc_callbacks.metrics import LogKey

OF_CLASSES = ("class_mean_cosines", "counts", "wm_cosine_per_class", "mu1_per_class")


def classes_of(latest: Mapping[str, Any], split: str, prefix: str = "nc") -> int | None:
    """Classes with samples; None where no vector or matrix tells.

    Example:
        >>> classes_of({"nc/train/counts": np.array([3, 0, 5])}, "train")
        2
    """
    for name in OF_CLASSES:
        if (found := latest.get(str(LogKey(name, split, prefix=prefix)))) is not None:
            values = np.asarray(found)
            of_class = values if values.ndim == 1 else np.where(np.isfinite(values).any(1), 1.0, np.nan)
            present = int((of_class > 0 if name == "counts" else np.isfinite(of_class)).sum())
            return present if present > 1 else None
    return None


def features_of(latest: Mapping[str, Any], split: str, prefix: str = "nc") -> int | None:
    """Features at the classifier's input; None without a spectrum."""
    spectrum = latest.get(str(LogKey("explained_variance", split, prefix=prefix)))
    return None if spectrum is None else len(spectrum)
