"""The two-pass algorithm of the published notebooks, written from its description: what the rows are compared with.

First pass: for each batch and class, add the class's features. Second pass: for each batch and class, add the outer
products of the class's deviations from its mean, sample by sample.
"""

import torch
from torch import Tensor


def moments(batches: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Class means (k, p) and Σ_W (p, p)."""
    p, device = batches[0][0].shape[1], batches[0][0].device
    counts, means = torch.zeros(k, device=device), torch.zeros(k, p, device=device)
    for features, targets in batches:
        for c in range(k):
            mine = features[targets == c]
            counts[c] += len(mine)
            means[c] += mine.sum(0)
    means /= counts.clamp(min=1)[:, None]
    within = torch.zeros(p, p, device=device)
    for features, targets in batches:
        for c in range(k):
            deviations = features[targets == c] - means[c]
            within += (deviations[:, :, None] * deviations[:, None, :]).sum(0)
    return means, within / counts.sum()
