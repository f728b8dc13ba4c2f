"""Products of rows with themselves, in strips, class by class and in blocks, against whole-set float64 products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.statistics import products

COUNTS = [1000, 133, 64, 63, 1, 0, 1]


def samples(p: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(p)
    targets = rng.permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    return torch.tensor(rng.normal(size=(len(targets), p)), dtype=dtype), torch.tensor(targets)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("p", [1, 5, 128, 129, 300])
def test_products_of_all_rows(p: int, dtype: torch.dtype, rtol: float) -> None:
    x, _ = samples(p, dtype)
    total = torch.zeros(p, p, dtype=dtype)
    for part in x.split(100):
        products.add_products(total, part)
    h = x.double().numpy()
    np.testing.assert_allclose(products.mirror(total), h.T @ h, atol=rtol * len(h))


def test_only_the_upper_triangle_of_wide_products_is_worked_on() -> None:
    total = torch.zeros(300, 300)
    products.add_products(total, torch.ones(2, 300))
    assert total[128:, :128].eq(0).all()
    assert products.mirror(total).eq(2).all()


@pytest.mark.parametrize("add", [products._add_by_class, products._add_by_blocks])
@pytest.mark.parametrize("block_bytes", [1, 10_000, 2**26])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_products_class_by_class(
    monkeypatch: pytest.MonkeyPatch,
    add: Callable[[Tensor, Tensor, Tensor], None],
    block_bytes: int,
    dtype: torch.dtype,
    rtol: float,
) -> None:
    monkeypatch.setattr(products, "_BLOCK_BYTES", block_bytes)
    x, y = samples(4, dtype)
    total = torch.zeros(len(COUNTS), 4, 4, dtype=dtype)
    for rows, classes in zip(x.split(700), y.split(700), strict=True):
        add(total, rows, classes)
    h = x.double().numpy()
    expected = np.stack([h[y == c].T @ h[y == c] for c in range(len(COUNTS))])
    np.testing.assert_allclose(products.mirror(total), expected, atol=rtol * len(h))
