"""Pure functions of tensors: the metrics of neural collapse and of weights and class means.

They take and return tensors on any device, in float32 or float64 (half precision is widened), know nothing of
Lightning, and are differentiable where their formula is.
"""

from nc_callbacks.functional.duality import centred_mean_weight, nc3, nc3_etf, nc3_uniform_duality, wm_cosine
from nc_callbacks.functional.geometry import nc2_equiangularity, nc2_equinorm, nc2_etf
from nc_callbacks.functional.nearest_mean import nc4, nearest_mean
from nc_callbacks.functional.variability import nc1, nc1_cdnv, nc1_quotient

__all__ = [
    "centred_mean_weight",
    "nc1",
    "nc1_cdnv",
    "nc1_quotient",
    "nc2_equiangularity",
    "nc2_equinorm",
    "nc2_etf",
    "nc3",
    "nc3_etf",
    "nc3_uniform_duality",
    "nc4",
    "nearest_mean",
    "wm_cosine",
]
