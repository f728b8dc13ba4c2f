"""The forms that a head of class means can have."""

from __future__ import annotations

import math
from typing import Any, Literal

HeadMode = Literal["fixed", "trainable", "mixing"]
Normalize = Literal["spectral", "frobenius", "none"]


def check_form(mode: str, normalize: str, scale: Any) -> None:
    """Refuse arguments out of range.

    Raises:
        ValueError: One is.
    """
    if mode not in ("fixed", "trainable", "mixing"):
        raise ValueError(f'mode must be "fixed", "trainable" or "mixing", got {mode!r}.')
    if normalize not in ("spectral", "frobenius", "none"):
        raise ValueError(f'normalize must be "spectral", "frobenius" or "none", got {normalize!r}.')
    if isinstance(scale, str) or not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number, got {scale!r}; fit_scale and from_loader can fit it.")
