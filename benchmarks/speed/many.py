"""One whole pass and nine metrics beside the same by two vectorised passes in plain PyTorch, by CPU time.

`python benchmarks/run.py --only many`, with one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import nc_callbacks.functional as F_nc
from nc_callbacks import ClassStatistics
from nc_callbacks.functional.pairs import pair_metrics
from nc_callbacks.functional.rounding import centred
from speed.measure import Options, Row, batch, by_cpu_time, threads_of


def rows(options: Options) -> Iterator[Row]:
    sizes = [(6_000, 512, 10, 1 / 1.8), (8_000, 768, 5_000, 1 / 2)]
    for n, p, k, goal in sizes[:1] if options.quick else sizes:
        x, y = batch(n, p, k, options.device)
        batches = list(zip(x.split(500), y.split(500), strict=True))
        weight = torch.randn(k, p, generator=torch.Generator().manual_seed(1)).to(options.device)
        ours, theirs = one_pass(batches, weight), two_passes(batches, weight)
        worst = max(abs(float(a) / float(b) - 1) for a, b in zip(ours, theirs, strict=True))
        few = Options(options.device, quick=True, threads=options.threads)
        with threads_of(1):
            pair = by_cpu_time(partial(one_pass, batches, weight), partial(two_passes, batches, weight), few)
        what = f"n = {n:,}, p = {p}, k = {k:,}"
        detail = f"{pair}; {1 / pair.ratio:.2f} times as fast; values differ by up to {worst:.1g}"
        yield Row("pass and nine metrics / two vectorised passes", what, pair.ratio, "×", goal, detail)


def one_pass(batches: list[tuple[Tensor, Tensor]], weight: Tensor) -> list[Tensor]:
    """NC1, CDNV, equinorm, equiangularity, ETF of the means and of the weight, NC3 twice, the mean W–M cosine."""
    statistics = ClassStatistics(len(weight)).to(weight.device)
    for features, targets in batches:
        statistics.update(features, targets)
    moments = statistics.compute().observed()
    weight = weight[statistics.counts > 0]
    assert moments.within is not None
    means = centred(moments.means, None, moments.precision)
    pairs = pair_metrics(means, moments.traces)
    assert pairs.cdnv is not None
    of_means = moments.means, None, moments.precision
    return [
        F_nc.nc1(moments.within, *of_means),
        pairs.cdnv,
        F_nc.nc2_equinorm(means),
        pairs.equiangularity,
        F_nc.nc2_etf(means),
        F_nc.nc2_etf(weight),
        F_nc.nc3(weight, *of_means),
        F_nc.nc3_etf(weight, *of_means),
        F_nc.wm_cosine(weight, *of_means).mean(),
    ]


def two_passes(batches: list[tuple[Tensor, Tensor]], weight: Tensor) -> list[Tensor]:
    """The same by whole matrices: means in one pass, covariance around them in a second, k × k products for pairs."""
    k, p = weight.shape
    counts, sums = weight.new_zeros(k), weight.new_zeros(k, p)
    for features, targets in batches:
        counts.index_add_(0, targets, torch.ones_like(targets, dtype=counts.dtype))
        sums.index_add_(0, targets, features)
    means = sums / counts.clamp(min=1)[:, None]
    within, traces = weight.new_zeros(p, p), weight.new_zeros(k)
    for features, targets in batches:
        d = features - means[targets]
        within += d.T @ d
        traces.index_add_(0, targets, d.square().sum(1))
    seen = counts > 0
    means, weight, traces = means[seen], weight[seen], (traces / counts.clamp(min=1))[seen]
    within, k = within / counts.sum(), len(means)
    m = means - means.mean(0)
    between = m.T @ m / k
    norms = m.norm(dim=1)
    products = m @ m.T
    cosines = products / norms[:, None] / norms
    off = ~torch.eye(k, dtype=torch.bool, device=m.device)
    squares = norms.square()
    distances = squares[:, None] + squares - 2 * products
    etf = (torch.eye(k, device=m.device) - 1 / k) / (k - 1) ** 0.5
    of_weight, across = weight @ weight.T, weight @ m.T
    return [
        (within.double() * torch.linalg.pinv(between.double(), hermitian=True, rtol=1e-6)).sum() / k,
        ((traces[:, None] + traces) / 2 / distances)[off].mean(),
        norms.std() / norms.mean(),
        (cosines + 1 / (k - 1)).abs()[off].mean(),
        (products / products.norm() - etf).norm(),
        (of_weight / of_weight.norm() - etf).norm(),
        (weight / weight.norm() - m / m.norm()).square().sum(),
        (across / across.norm() - etf).norm(),
        ((weight * m).sum(1) / weight.norm(dim=1) / norms).mean(),
    ]
