"""Pure functions of tensors: the metrics of neural collapse and of weights and class means.

They take and return tensors on any device, in float32 or float64 (half precision is widened), know nothing of
Lightning, and are differentiable where their formula is.
"""

from nc_callbacks.functional.corrected import nc1_cdnv_corrected, nc1_corrected, wm_cosine_corrected
from nc_callbacks.functional.duality import (
    centred_mean_weight,
    nc3,
    nc3_bias,
    nc3_etf,
    nc3_uniform_duality,
    wm_cosine,
)
from nc_callbacks.functional.geometry import (
    nc2_equiangularity,
    nc2_equinorm,
    nc2_etf,
    nc2_uniformity,
    nc5,
    subspace_angles,
)
from nc_callbacks.functional.interpolation import quasi_interpolation_errors
from nc_callbacks.functional.loss import mse_decomposition
from nc_callbacks.functional.near_optimal import (
    NearOptimality,
    SoftmaxExpectations,
    a2_residual,
    implicit_weights,
    near_optimality,
    softmax_expectations,
)
from nc_callbacks.functional.nearest_mean import nc4, nearest_mean
from nc_callbacks.functional.outside import (
    energy_score,
    mahalanobis_score,
    nci_score,
    nearest_mean_score,
    neco_score,
)
from nc_callbacks.functional.shrinkage import gcv_shrinkage, oas_shrinkage
from nc_callbacks.functional.spectrum import (
    effective_rank,
    eigenvalues,
    entropy_rank,
    explained_variance,
    present_eigenvalues,
    rankme,
    spectrum_decay,
    stable_rank,
)
from nc_callbacks.functional.transferability import h_score, log_evidence
from nc_callbacks.functional.unbalanced import minority_collapse, nc2_seli
from nc_callbacks.functional.uncertainty import standard_error
from nc_callbacks.functional.variability import class_separation, nc1, nc1_cdnv, nc1_quotient
from nc_callbacks.functional.whitening import whitened_weight

__all__ = [
    "NearOptimality",
    "SoftmaxExpectations",
    "a2_residual",
    "centred_mean_weight",
    "class_separation",
    "effective_rank",
    "eigenvalues",
    "energy_score",
    "entropy_rank",
    "explained_variance",
    "gcv_shrinkage",
    "h_score",
    "implicit_weights",
    "log_evidence",
    "mahalanobis_score",
    "minority_collapse",
    "mse_decomposition",
    "nc1",
    "nc1_cdnv",
    "nc1_cdnv_corrected",
    "nc1_corrected",
    "nc1_quotient",
    "nc2_equiangularity",
    "nc2_equinorm",
    "nc2_etf",
    "nc2_seli",
    "nc2_uniformity",
    "nc3",
    "nc3_bias",
    "nc3_etf",
    "nc3_uniform_duality",
    "nc4",
    "nc5",
    "nci_score",
    "near_optimality",
    "nearest_mean",
    "nearest_mean_score",
    "neco_score",
    "oas_shrinkage",
    "present_eigenvalues",
    "quasi_interpolation_errors",
    "rankme",
    "softmax_expectations",
    "spectrum_decay",
    "stable_rank",
    "standard_error",
    "subspace_angles",
    "whitened_weight",
    "wm_cosine",
    "wm_cosine_corrected",
]
